/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sim_task.c - what the simulated GPU's "kernels" and "copy engines" do: the CPU codec over mapped memory.
 *
 * ENCODE gives no `generic` chunks, as no GPU does: a block that would have some is stored raw.
 */
#include <errno.h>
#include <string.h>

#include "gpu/codec/internal.h"
#include "gpu/sim_handles.h"
#include "gpu/sim_internal.h"

static struct codec_view task_view(const struct device_task *t)
{
	return (struct codec_view){
		.base = sim_host(t->region->base),
		.stride = t->region->stride,
		.block_index = t->block_index,
		.block_stride = t->region->block_stride,
		.position = t->position,
	};
}

static int task_encode(struct codec_workspace *ws, struct device_task *t)
{
	const struct codec_geometry *g = t->region->geom;
	const struct sim_staged *s = t->device_user;
	struct codec_view v = task_view(t);
	unsigned flags = t->verify ? CODEC_ENCODE_VERIFY : 0;
	int r = codec_encode(ws, g, t->profile, t->speculator, flags, &v, s->memory, s->bytes,
			     &t->info);

	if (r == 0 && codec_payload_needs_cpu(g, s->memory, t->info.encoded_bytes))
		r = codec_encode(ws, g, NULL, CODEC_SPEC_RAW, flags, &v, s->memory, s->bytes,
				 &t->info);
	return r;
}

static int task_copy_in(struct device_task *t)
{
	const struct codec_geometry *g = t->region->geom;
	struct codec_view v = task_view(t);

	if (t->in_bytes < g->raw_bytes)
		return -EINVAL;
	for (uint32_t i = 0; i < g->segments_count; i++)
		codec_scatter(g, &v, i, t->skip_tokens, (const uint8_t *)t->in + g->segment_off[i]);
	return 0;
}

static const void *place_host(const void *address, uint8_t place)
{
	return place == DEVICE_PLACE_DEVICE ? sim_host(address) : address;
}

int sim_task_run(struct codec_workspace *ws, struct device_task *t)
{
	struct codec_view v;

	switch (t->op) {
	case DEVICE_ENCODE:
		return task_encode(ws, t);
	case DEVICE_DECODE:
		v = task_view(t);
		return codec_decode_from(ws, t->region->geom, t->profile,
					 place_host(t->in, t->in_place), t->in_bytes,
					 &t->expect_xxh3, &v, t->skip_tokens, &t->segments_done);
	case DEVICE_COPY_OUT:
		v = task_view(t);
		if (t->out_cap_bytes < t->region->geom->raw_bytes)
			return -ENOSPC;
		codec_copy_out(t->region->geom, &v, t->out);
		return 0;
	case DEVICE_COPY_IN:
		return task_copy_in(t);
	case DEVICE_MOVE:
		for (uint32_t i = 0; i < t->copies_count; i++) {
			const struct device_copy *c = &t->copy[i];

			memmove(c->out_place == DEVICE_PLACE_DEVICE ? sim_host(c->out) : c->out,
				place_host(c->in, c->in_place), c->bytes);
		}
		return 0;
	default:
		return -EINVAL;
	}
}
