/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_place.c - see gpu_place.h.
 */
#include "tests/lib/gpu_place.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

void gpu_place_make(struct gpu_codec_rig *rig, struct gpu_place *p, const struct gpu_kv *kv,
		    enum gpu_kv_layout layout, uint32_t blocks)
{
	struct codec_stride stride[GPU_KV_SEGMENTS_MAX];
	uint64_t block_stride[GPU_KV_SEGMENTS_MAX];

	p->rig = rig;
	p->bytes = gpu_kv_place(&kv->g, layout, blocks, stride, block_stride);
	p->base = gpu_codec_rig_memory(rig, p->bytes);
	p->image = gpu_codec_rig_host(rig, p->bytes);
	p->seen = gpu_codec_rig_host(rig, p->bytes);
	assert_int_equal(device_region_init(&p->region, &kv->g, p->base, p->bytes, blocks, stride,
					    block_stride),
			 0);
	assert_int_equal(rig->d->import->region_open(rig->d, &p->region), 0);
	memset(p->image, GPU_KV_POISON, p->bytes);
}

void gpu_place_drop(struct gpu_place *p)
{
	p->rig->d->import->region_close(p->rig->d, &p->region);
	device_region_deinit(&p->region);
}

void gpu_place_put(struct gpu_place *p)
{
	gpu_codec_rig_put(p->rig, p->base, p->image, p->bytes);
}

void gpu_place_poison(struct gpu_place *p)
{
	memset(p->image, GPU_KV_POISON, p->bytes);
	gpu_place_put(p);
}

void gpu_place_check(struct gpu_place *p, const char *what)
{
	gpu_codec_rig_get(p->rig, p->seen, p->base, p->bytes);
	for (uint64_t i = 0; i < p->bytes; i++)
		if (p->seen[i] != p->image[i])
			fail_msg("%s: byte %llu of %llu is %02x, not %02x", what,
				 (unsigned long long)i, (unsigned long long)p->bytes, p->seen[i],
				 p->image[i]);
}
