/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_fit.c - sample blocks into statistics, statistics and samples into profiles, and what a profile is
 * worth: bits a scalar of blocks as they would be stored, headers and all.  For the maps from layer to
 * layer that is measured on samples that they were not fitted on, since with few tokens they know the others
 * by heart.
 */
#include "gpu/cpu_fit.h"

#include <cblas.h>
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define JUDGE_BLOCKS_MAX 16u /* samples that the worth is measured on */
#define LAYER_BLOCKS_MIN 4u

/* The codec reads a view through a pointer that it may also write; it does not here. */
static struct codec_view sample_view(const struct device_task *t, uint32_t i)
{
	return (struct codec_view){ .base = (uint8_t *)(uintptr_t)t->in,
				    .block_index = i,
				    .position = t->positions ? t->positions[i]
							     : CODEC_POSITION_UNKNOWN };
}

static uint64_t scalars_of(const struct codec_geometry *g)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < g->segments_count; i++)
		n += (uint64_t)g->block_tokens * g->segments[i].heads * g->segments[i].head_dim;
	return n;
}

/* Bits a scalar that the samples from first on take.  -ECANCELED; -ENOMEM. */
static int judge(struct codec_workspace *ws, struct device_task *t, uint32_t first,
		 const struct codec_profile *p, uint8_t speculator, double *ret_bits)
{
	size_t cap = codec_bound(t->geom);
	void *out = malloc(cap);
	uint64_t bytes = 0;
	int r = out ? 0 : -ENOMEM;

	for (uint32_t i = first; r == 0 && i < t->samples_count; i++) {
		struct codec_view v = sample_view(t, i);
		struct codec_info info = { 0 };

		if (atomic_load_explicit(&t->cancel, memory_order_relaxed))
			r = -ECANCELED;
		if (r == 0)
			r = codec_encode(ws, t->geom, p, speculator, 0, &v, out, cap, &info);
		bytes += info.encoded_bytes;
	}
	free(out);
	if (r == 0)
		*ret_bits = (double)bytes * 8 / (double)scalars_of(t->geom) /
			    (t->samples_count - first);
	return r;
}

/* Those whose place is known move together; the rest has served its purpose. */
static void samples_keep(struct device_task *t)
{
	/* Nobody else looks at the samples while a task has them; the lane hands them over as const. */
	uint8_t *to = (uint8_t *)(uintptr_t)t->in;
	uint64_t bytes = t->geom->raw_bytes;

	for (uint32_t i = 0; i < t->samples_count; i++) {
		if (t->positions[i] == CODEC_POSITION_UNKNOWN)
			continue;
		if (t->samples_kept != i)
			memcpy(to + t->samples_kept * bytes, to + i * bytes, bytes);
		t->positions[t->samples_kept++] = t->positions[i];
	}
}

static int samples_check(const struct device_task *t)
{
	return t->samples_count > 0 && t->in_bytes / t->samples_count < t->geom->raw_bytes ? -EINVAL
											   : 0;
}

/* The memory goes back to the system here, where that may take its time. */
static void samples_discard(const struct device_task *t)
{
	if (t->discard)
		(void)madvise((void *)(uintptr_t)t->in, t->in_bytes, MADV_DONTNEED);
}

int cpu_fit(struct codec_workspace *ws, struct device_task *t)
{
	uint32_t first = t->samples_count > JUDGE_BLOCKS_MAX ? t->samples_count - JUDGE_BLOCKS_MAX
							     : 0;
	int r = samples_check(t);

	if (r < 0)
		return r;
	for (uint32_t i = t->samples_first; i < t->samples_count; i++) {
		struct codec_view v = sample_view(t, i);

		codec_fit_add(t->fit, &v);
	}
	if (t->fit_finish)
		r = codec_fit_finish(t->fit, &t->ret_profile);
	if (r == 0 && t->fit_finish && t->samples_count > 0)
		r = judge(ws, t, first, t->ret_profile, CODEC_SPEC_CHANNEL, &t->bits_channel);
	if (r == 0 && t->rival && t->samples_count > 0)
		r = judge(ws, t, first, t->rival, CODEC_SPEC_CHANNEL, &t->bits_rival);
	if (r < 0 || (t->rival && t->bits_channel > t->bits_rival))
		t->ret_profile = codec_profile_free(t->ret_profile);
	if (t->positions)
		samples_keep(t);
	samples_discard(t);
	return r;
}

/* Both speculators on what was held back, and the rival, whatever that can do. */
static int worth(struct codec_workspace *ws, struct device_task *t, uint32_t first,
		 const struct codec_profile *p)
{
	int r = judge(ws, t, first, p, CODEC_SPEC_LAYER, &t->bits_layer);

	if (r == 0)
		r = judge(ws, t, first, p, CODEC_SPEC_CHANNEL, &t->bits_channel);
	t->bits_rival = HUGE_VAL;
	if (r == 0 && t->rival)
		r = judge(ws, t, first, t->rival, CODEC_SPEC_LAYER, &t->bits_rival);
	return r;
}

int cpu_fit_layer(struct codec_workspace *ws, struct device_task *t)
{
	uint32_t held = t->samples_count / 8u;
	struct codec_profile *p = NULL;
	int r = samples_check(t);

	held = held == 0 ? 1u : held > JUDGE_BLOCKS_MAX ? JUDGE_BLOCKS_MAX : held;
	if (r == 0 && t->samples_count < LAYER_BLOCKS_MIN)
		r = -ENODATA;
	openblas_set_num_threads(1); /* of the process: this is the only thread that uses it */
	if (r == 0)
		r = codec_profile_fit_layer_until(t->geom, t->profile, t->in, t->positions,
						  t->samples_count - held, t->previous, &t->cancel,
						  &p);
	if (r == 0)
		r = worth(ws, t, t->samples_count - held, p);
	if (r == 0 && t->bits_layer < fmin(t->bits_channel, t->bits_rival))
		t->ret_profile = p;
	else
		codec_profile_free(p);
	samples_discard(t);
	return r;
}
