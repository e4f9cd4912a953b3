/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_profile.c - any bytes as a profile: refused, or a profile under which a block goes in and comes
 * out, by its channel statistics and by its maps.  The geometry's digest is put right first.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/layer_code.h"
#include "tests/lib/codec_rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define KV(k, d, h, n)                                                                          \
	{                                                                                       \
		.kind = CODEC_KIND_##k, .dtype = CODEC_DTYPE_##d, .heads = (h), .head_dim = (n) \
	}

static struct codec_rig rig;

/* Maps that promise nothing are not chosen for a block; they have to be exact all the same. */
static void layer_itself(const struct codec_profile *p)
{
	static struct layer_workspace *w;
	static uint8_t out[1u << 16];
	uint64_t escapes = 0;
	size_t bytes = 0;

	if (!p->layer)
		return;
	if (layer_encode(&w, &rig.g, p->layer, 12345, rig.block, out, sizeof(out), &bytes, &escapes,
			 NULL) < 0)
		abort();
	memset(rig.back, 0xa5, rig.g.raw_bytes);
	if (layer_decode(&w, &rig.g, p->layer, out, bytes, rig.back) < 0)
		abort();
	assert(memcmp(rig.back, rig.block, rig.g.raw_bytes) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct codec_segment segments[] = { KV(K, BF16, 2, 24), KV(V, E4M3, 1, 32) };
	static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
	struct codec_profile *own, *p = NULL;
	uint8_t *in;
	int r;

	if (!rig.g.segments)
		codec_rig_init(&rig, 4, segments, 2, 1, 16);
	in = malloc(size ? size : 1);
	if (!in)
		return 0;
	memcpy(in, data, size);
	if (size >= sizeof(struct format_profile_header))
		memcpy(in + offsetof(struct format_profile_header, geometry_digest), rig.g.digest,
		       CODEC_DIGEST_BYTES);
	r = codec_profile_parse(&rig.g, in, size, &p);
	assert(r == 0 || r == -EBADMSG || r == -ESTALE || r == -ENOMEM);
	free(in);
	if (r < 0) {
		assert(!p);
		return 0;
	}
	(void)codec_isa_set(isas[codec_profile_digest(p)[0] % 4u]);
	own = rig.profile;
	rig.profile = p;
	for (uint8_t spec = CODEC_SPEC_CHANNEL; spec <= (uint8_t)CODEC_SPEC_LAYER; spec++) {
		if (codec_rig_encode(&rig, spec, 0) < 0 || codec_rig_decode(&rig) < 0)
			abort();
		assert(memcmp(rig.back, rig.block, rig.g.raw_bytes) == 0);
	}
	layer_itself(p);
	rig.profile = own;
	codec_profile_free(p);
	return 0;
}
