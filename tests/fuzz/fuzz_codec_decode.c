/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_codec_decode.c - any bytes as an encoded block: refused, or decoded to bytes whose checksum is
 * the one in the header.  The header's identity (magic, digests, lengths) is put right first, so that
 * the input reaches the chunks; the first byte picks the kernels, and whether the profile has maps.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/codec/format.h"
#include "tests/lib/codec_rig.h"
#include "tests/lib/layer_rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define KV(k, d, h, n)                                                                          \
	{                                                                                       \
		.kind = CODEC_KIND_##k, .dtype = CODEC_DTYPE_##d, .heads = (h), .head_dim = (n) \
	}

static struct codec_rig rig;
static struct layer_rig maps;

/* What the input is decoded as. */
struct target {
	const struct codec_geometry *g;
	const struct codec_profile *profile;
	struct codec_workspace *ws;
	const uint8_t *coded; /* a sound block */
	uint8_t *back;
};

static struct target target_of(uint8_t first)
{
	static const struct codec_segment segments[] = { KV(K, BF16, 4, 32), KV(V, E4M3, 3, 13),
							 KV(OPAQUE, U8, 1, 9), KV(V, FP16, 1, 97) };

	if (!rig.g.segments) {
		struct layer_rig_options o = layer_rig_defaults();

		codec_rig_init(&rig, 8, segments, 4, 1, 16);
		assert(rig.g.chunks_count == 3);
		o.layers = 2;
		o.fitted = 16;
		o.blocks = 17;
		layer_rig_init(&maps, &o);
		if (codec_rig_encode(&rig, CODEC_SPEC_CHANNEL, 0) < 0 ||
		    layer_rig_encode(&maps, layer_rig_block(&maps, 16), 256, 0) < 0)
			abort();
		assert(maps.info.speculator == CODEC_SPEC_LAYER);
	}
	if (first / 4u % 2u)
		return (struct target){ &maps.g, maps.profile, maps.ws, maps.coded, maps.back };
	return (struct target){ &rig.g, rig.profile, rig.ws, rig.coded, rig.back };
}

static void identity(const struct target *t, uint8_t *in, size_t size)
{
	struct format_block_header h;

	memcpy(&h, t->coded, sizeof(h));
	h.encoded_bytes = (uint32_t)size;
	h.raw_xxh3 = ((struct format_block_header *)(void *)in)->raw_xxh3;
	memcpy(in, &h, sizeof(h));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char *const isas[] = { "scalar", "avx2", "avx512", "avx512-loads" };
	struct codec_view v;
	uint64_t sum, made;
	struct target t;
	uint8_t *in;
	int r;

	if (size < 1)
		return 0;
	t = target_of(data[0]);
	(void)codec_isa_set(isas[data[0] % 4u]);
	in = malloc(size); /* an end that a sanitizer sees */
	if (!in)
		return 0;
	memcpy(in, data + 1, size - 1);
	if (size - 1 >= sizeof(struct format_block_header) && data[0] < 240)
		identity(&t, in, size - 1);
	v = (struct codec_view){ .base = t.back };
	r = codec_decode(t.ws, t.g, t.profile, in, size - 1, NULL, &v);
	assert(r == 0 || r == -EBADMSG || r == -ESTALE);
	if (r == 0) {
		memcpy(&sum, in + offsetof(struct format_block_header, raw_xxh3), 8);
		assert(codec_checksum(t.ws, t.g, &v, &made) == 0 && sum == made);
	}
	free(in);
	return 0;
}
