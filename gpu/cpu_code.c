/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_code.c - see cpu_code.h.
 */
#include "gpu/cpu_code.h"

struct codec_view cpu_view(const struct device_task *t)
{
	return (struct codec_view){
		.base = t->region->base,
		.stride = t->region->stride,
		.block_index = t->block_index,
		.block_stride = t->region->block_stride,
		.position = t->position,
		.tokens = t->tokens,
	};
}

int cpu_encode(struct codec_workspace *ws, struct device_task *t, struct codec_sequence *s)
{
	struct codec_view v = cpu_view(t);

	v.sequence = s;
	return codec_encode(ws, t->region->geom, t->profile, t->speculator,
			    t->verify ? CODEC_ENCODE_VERIFY : 0, &v, t->out, t->out_cap_bytes,
			    &t->info);
}

int cpu_decode(struct codec_workspace *ws, struct device_task *t, struct codec_sequence *s)
{
	struct codec_view v = cpu_view(t);
	int r;

	v.sequence = s;
	r = codec_decode_from(ws, t->region->geom, t->profile, t->in, t->in_bytes, &t->expect_xxh3,
			      &v, t->skip_tokens, &t->segments_done);
	t->refusal = (uint8_t)codec_refusal(ws);
	return r;
}
