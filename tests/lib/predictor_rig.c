/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predictor_rig.c - see predictor_rig.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/predictor_rig.h"

#define SEQUENCES CODE_RIG_SEQUENCES

const struct code_rig_shape predictor_rig_shape = { .kind = 0,
						    .dtype = CODEC_DTYPE_BF16,
						    .ids = true,
						    .block_tokens = 16,
						    .streams_count = 1,
						    .blocks = { 6, 4, 0, 2 } };

static uint32_t tokens_of(const struct predictor_rig *p)
{
	return p->r->shape.block_tokens;
}

static uint32_t blocks_all(const struct predictor_rig *p)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < SEQUENCES; i++)
		n += p->r->s[i].blocks;
	return n;
}

/* ---- the object ---- */

static void code(struct predictor_rig *p, uint32_t i, uint32_t others)
{
	const struct code_rig_sequence *s = &p->r->s[i];
	struct codec_sequence *q = code_rig_sequence(p->r);

	for (uint32_t b = 0; b < s->blocks; b++) {
		const struct codec_view v = { .base = s->raw[b],
					      .position = b * tokens_of(p),
					      .sequence = q,
					      .tokens = s->ids + b * tokens_of(p) };

		p->coded[i][b] = calloc(1, p->cap);
		p->page[i][b] = calloc(1, p->r->g.raw_bytes);
		assert_true(p->coded[i][b] && p->page[i][b]);
		p->region[i][b] = device_region_packed(&p->r->g, p->page[i][b]);
		assert_int_equal(codec_encode(p->r->base->ws, &p->r->g, p->r->profile,
					      b == others ? CODEC_SPEC_CHANNEL : CODEC_SPEC_MODEL,
					      0, &v, p->coded[i][b], p->cap, &p->info[i][b]),
				 0);
	}
	codec_sequence_free(q);
}

struct predictor_rig *predictor_rig_new(const struct code_rig_shape *shape, uint32_t others)
{
	struct predictor_rig *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	p->r = code_rig_new(shape);
	p->cap = codec_bound(&p->r->g);
	for (uint32_t i = 0; i < SEQUENCES; i++)
		code(p, i, others);
	return p;
}

void predictor_rig_unuse(struct predictor_rig *p)
{
	if (p->d)
		p->d->ops->free(p->d);
	p->d = NULL;
}

struct predictor_rig *predictor_rig_free(struct predictor_rig *p)
{
	predictor_rig_unuse(p);
	for (uint32_t i = 0; i < SEQUENCES; i++)
		for (uint32_t b = 0; b < p->r->s[i].blocks; b++) {
			free(p->coded[i][b]);
			free(p->page[i][b]);
		}
	code_rig_free(p->r);
	free(p);
	return NULL;
}

void predictor_rig_use(struct predictor_rig *p, struct device *d)
{
	predictor_rig_unuse(p);
	p->d = d;
}

/* ---- tasks ---- */

void predictor_rig_sequences(struct predictor_rig *p)
{
	for (uint32_t i = 0; i < SEQUENCES; i++) {
		assert_int_equal(p->d->ops->sequence_new(p->d, &p->r->g, p->r->profile, &p->s[i]),
				 0);
		assert_int_equal(p->d->ops->sequence_position(p->s[i]), 0);
	}
}

void predictor_rig_drop(struct predictor_rig *p)
{
	for (uint32_t i = 0; i < SEQUENCES; i++)
		p->s[i] = p->d->ops->sequence_free(p->s[i]);
}

void predictor_rig_decode(struct predictor_rig *p, uint32_t i, uint32_t b)
{
	struct device_task *t = &p->task[i][b];

	*t = (struct device_task){ .op = DEVICE_DECODE,
				   .region = &p->region[i][b],
				   .position = b * tokens_of(p),
				   .sequence = p->s[i],
				   .tokens = p->r->s[i].ids + b * tokens_of(p),
				   .profile = p->r->profile,
				   .in = p->coded[i][b],
				   .in_bytes = p->info[i][b].encoded_bytes,
				   .expect_xxh3 = p->info[i][b].raw_xxh3 };
	memset(p->page[i][b], 0x5a, p->r->g.raw_bytes);
	assert_int_equal(p->d->ops->start(p->d, t), 0);
}

void predictor_rig_encode(struct predictor_rig *p, uint32_t i, uint32_t b, void *out)
{
	struct device_task *t = &p->task[i][b];

	*t = (struct device_task){ .op = DEVICE_ENCODE,
				   .region = &p->region[i][b],
				   .speculator = p->info[i][b].speculator,
				   .position = b * tokens_of(p),
				   .sequence = p->s[i],
				   .tokens = p->r->s[i].ids + b * tokens_of(p),
				   .profile = p->r->profile,
				   .out = out,
				   .out_cap_bytes = p->cap };
	memcpy(p->page[i][b], p->r->s[i].raw[b], p->r->g.raw_bytes);
	assert_int_equal(p->d->ops->start(p->d, t), 0);
}

/* Those of one sequence come in the order of their blocks. */
void predictor_rig_wait(struct predictor_rig *p, unsigned count)
{
	const struct device_task *last[SEQUENCES] = { NULL };

	while (count > 0) {
		struct device_task *done[4];
		unsigned n = p->d->ops->poll(p->d, done, 4);

		assert_true(n <= count);
		count -= n;
		if (n == 0)
			(void)sched_yield();
		for (unsigned k = 0; k < n; k++)
			for (uint32_t i = 0; i < SEQUENCES; i++)
				if (done[k]->sequence == p->s[i]) {
					assert_true(!last[i] || done[k] > last[i]);
					last[i] = done[k];
				}
	}
}

static void exact(struct predictor_rig *p, uint32_t i, uint32_t b)
{
	assert_int_equal(p->task[i][b].res, 0);
	assert_memory_equal(p->page[i][b], p->r->s[i].raw[b], p->r->g.raw_bytes);
}

/* ---- tests ---- */

void predictor_rig_check_encode(struct predictor_rig *p)
{
	uint8_t *out[SEQUENCES][PREDICTOR_RIG_BLOCKS];

	predictor_rig_sequences(p);
	for (uint32_t b = 0; b < PREDICTOR_RIG_BLOCKS; b++)
		for (uint32_t i = 0; i < SEQUENCES; i++) {
			if (b >= p->r->s[i].blocks)
				continue;
			out[i][b] = calloc(1, p->cap);
			assert_non_null(out[i][b]);
			predictor_rig_encode(p, i, b, out[i][b]);
		}
	predictor_rig_wait(p, blocks_all(p));
	for (uint32_t i = 0; i < SEQUENCES; i++) {
		for (uint32_t b = 0; b < p->r->s[i].blocks; b++) {
			const struct codec_info *info = &p->task[i][b].info;

			assert_int_equal(p->task[i][b].res, 0);
			assert_int_equal(info->encoded_bytes, p->info[i][b].encoded_bytes);
			assert_int_equal(info->raw_xxh3, p->info[i][b].raw_xxh3);
			assert_int_equal(info->speculator, p->info[i][b].speculator);
			assert_int_equal(info->escapes, p->info[i][b].escapes);
			assert_memory_equal(out[i][b], p->coded[i][b], info->encoded_bytes);
			free(out[i][b]);
		}
		assert_int_equal(p->d->ops->sequence_position(p->s[i]),
				 p->r->s[i].blocks * tokens_of(p));
		assert_true(!p->r->s[i].blocks || p->d->ops->sequence_bytes(p->s[i]) > 0);
	}
	predictor_rig_drop(p);
}

/* All at once; then from the middle on, once more. */
void predictor_rig_check_decode(struct predictor_rig *p)
{
	predictor_rig_sequences(p);
	for (uint32_t round = 0; round < 3; round++) {
		unsigned n = 0;

		for (uint32_t b = 0; b < PREDICTOR_RIG_BLOCKS; b++)
			for (uint32_t i = 0; i < SEQUENCES; i++) {
				const uint32_t first = round ? p->r->s[i].blocks / 2u : 0;

				if (b < first || b >= p->r->s[i].blocks)
					continue;
				predictor_rig_decode(p, i, b);
				n++;
			}
		predictor_rig_wait(p, n);
		for (uint32_t i = 0; i < SEQUENCES; i++) {
			for (uint32_t b = round ? p->r->s[i].blocks / 2u : 0; b < p->r->s[i].blocks;
			     b++)
				exact(p, i, b);
			p->d->ops->sequence_truncate(p->s[i],
						     p->r->s[i].blocks / 2u * tokens_of(p));
		}
	}
	predictor_rig_drop(p);
}

/* The prefix without its bytes, then the last block into a region with strides, but for some tokens. */
void predictor_rig_check_prefix_only(struct predictor_rig *p)
{
	const struct codec_geometry *g = &p->r->g;
	const uint32_t last = p->r->s[0].blocks - 1u, skip = 5;
	struct codec_stride stride[SEQUENCE_RIG_SEGMENTS];
	uint64_t block_stride[SEQUENCE_RIG_SEGMENTS];
	struct device_region wide;
	uint8_t *pages = calloc(1, 4u * g->raw_bytes);

	assert_non_null(pages);
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		const uint64_t head = (uint64_t)s->head_dim * codec_dtype_bytes(s->dtype);

		stride[i] = (struct codec_stride){ 2u * g->segment_off[i], 2u * head * s->heads,
						   2u * head };
		block_stride[i] = 2u * g->raw_bytes;
	}
	assert_int_equal(
		device_region_init(&wide, g, pages, 4u * g->raw_bytes, 2, stride, block_stride), 0);
	predictor_rig_sequences(p);
	for (uint32_t b = 0; b <= last; b++) {
		struct device_task *t = &p->task[0][b];

		predictor_rig_decode(p, 0, b); /* its like, for all but what follows */
		predictor_rig_wait(p, 1);
		p->d->ops->sequence_truncate(p->s[0], b * tokens_of(p));
		memset(p->page[0][b], 0x33, g->raw_bytes);
		t->prefix_only = b < last;
		if (b == last) {
			t->region = &wide;
			t->block_index = 1;
			t->skip_tokens = skip;
		}
		assert_int_equal(p->d->ops->start(p->d, t), 0);
		predictor_rig_wait(p, 1);
		assert_int_equal(t->res, 0);
	}
	for (uint32_t i = 0; i < g->segments_count; i++) {
		const struct codec_segment *s = &g->segments[i];
		const size_t head = (size_t)s->head_dim * codec_dtype_bytes(s->dtype);

		for (uint32_t t = 0; t < g->block_tokens * s->heads; t++) {
			const uint8_t *got = pages +
					     2u * (g->raw_bytes + g->segment_off[i] + t * head);
			const uint8_t *want = p->r->s[0].raw[last] + g->segment_off[i] + t * head;

			if (t / s->heads >= skip)
				assert_memory_equal(got, want, head);
			else
				for (size_t k = 0; k < head; k++)
					assert_int_equal(got[k], 0);
		}
	}
	predictor_rig_drop(p);
	device_region_deinit(&wide);
	free(pages);
}

/* One byte of one block: that one is refused, those behind it are not run, other sequences do not care. */
void predictor_rig_check_damage(struct predictor_rig *p)
{
	struct rng *rng = &p->r->base->rng;

	predictor_rig_sequences(p);
	for (uint32_t round = 0; round < 24; round++) {
		const uint32_t b = rng_below(rng, p->r->s[0].blocks);
		const size_t at = rng_below(rng, (uint32_t)p->info[0][b].encoded_bytes);
		const uint8_t was = p->coded[0][b][at];
		unsigned n = 0;

		p->coded[0][b][at] ^= (uint8_t)(1u << rng_below(rng, 8));
		for (uint32_t k = 0; k < p->r->s[0].blocks; k++, n++)
			predictor_rig_decode(p, 0, k);
		for (uint32_t k = 0; k < p->r->s[1].blocks; k++, n++)
			predictor_rig_decode(p, 1, k);
		predictor_rig_wait(p, n);
		for (uint32_t k = 0; k < b; k++)
			exact(p, 0, k);
		assert_true(p->task[0][b].res == -EBADMSG || p->task[0][b].res == -ESTALE);
		for (uint32_t k = b + 1u; k < p->r->s[0].blocks; k++)
			assert_int_equal(p->task[0][k].res, -ECANCELED);
		for (uint32_t k = 0; k < p->r->s[1].blocks; k++)
			exact(p, 1, k);
		assert_int_equal(p->d->ops->sequence_position(p->s[0]), b * tokens_of(p));
		p->coded[0][b][at] = was;
		/* It goes on from there. */
		predictor_rig_decode(p, 0, b);
		predictor_rig_wait(p, 1);
		exact(p, 0, b);
		p->d->ops->sequence_truncate(p->s[0], 0);
		p->d->ops->sequence_truncate(p->s[1], 0);
	}
	predictor_rig_drop(p);
}

void predictor_rig_check_refusals(struct predictor_rig *p)
{
	struct device_task *t = &p->task[0][0];
	uint8_t *out = calloc(1, p->cap);
	const int32_t own = p->r->s[0].ids[3];
	struct device_sequence *none = NULL;

	assert_non_null(out);
	assert_int_equal(p->d->ops->sequence_new(p->d, &p->r->g, p->r->base->channel, &none),
			 -ENODATA);
	predictor_rig_sequences(p);
	/* A block that is not the next one. */
	predictor_rig_decode(p, 0, 1);
	predictor_rig_wait(p, 1);
	assert_int_equal(p->task[0][1].res, -ESTALE);
	assert_int_equal(p->task[0][1].refusal, CODEC_REFUSAL_PREFIX);
	/* A checksum that the caller did not expect. */
	predictor_rig_decode(p, 0, 0);
	predictor_rig_wait(p, 1);
	p->d->ops->sequence_truncate(p->s[0], 0);
	t->expect_xxh3 ^= 1;
	assert_int_equal(p->d->ops->start(p->d, t), 0);
	predictor_rig_wait(p, 1);
	assert_int_equal(t->res, -EBADMSG);
	assert_int_equal(p->d->ops->sequence_position(p->s[0]), 0);
	/* No room for what comes out of it. */
	predictor_rig_encode(p, 0, 0, out);
	predictor_rig_wait(p, 1);
	assert_int_equal(t->res, 0);
	p->d->ops->sequence_truncate(p->s[0], 0);
	t->out_cap_bytes = 100;
	assert_int_equal(p->d->ops->start(p->d, t), 0);
	predictor_rig_wait(p, 1);
	assert_int_equal(t->res, -ENOSPC);
	assert_int_equal(p->d->ops->sequence_position(p->s[0]), 0);
	/* An id that is none: coded without the model, and the prefix for the next one all the same, but of a draft. */
	p->r->s[0].ids[3] = -7;
	predictor_rig_encode(p, 0, 0, out);
	predictor_rig_wait(p, 1);
	p->r->s[0].ids[3] = own;
	assert_int_equal(t->res, p->r->shape.draft ? -ENODATA : 0);
	if (p->r->shape.draft) {
		assert_int_equal(p->d->ops->sequence_position(p->s[0]), 0);
		predictor_rig_decode(p, 0, 0);
		predictor_rig_wait(p, 1);
	} else if (p->r->shape.ids) {
		assert_true(t->info.speculator < CODEC_SPEC_MODEL);
	}
	predictor_rig_decode(p, 0, 1);
	predictor_rig_wait(p, 1);
	exact(p, 0, 1);
	/* Tasks that are none of its. */
	predictor_rig_drop(p);
	assert_int_equal(p->d->ops->start(p->d, &(struct device_task){ .op = DEVICE_COPY_OUT }),
			 -EINVAL);
	free(out);
}
