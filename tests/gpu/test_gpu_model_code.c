/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_gpu_model_code.c - blocks through the `model` speculator on a real GPU against sequence.c: payloads equal byte
 * for byte, each takes the other's, and what is damaged is refused with the same word.
 *
 *   test_gpu_model_code [TEST]   tiny models, batches of several sequences cut anywhere
 *
 * Speed is test_gpu_model's to tell.  Exits 77 where there is no GPU.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include <cuda_runtime_api.h>

#include "gpu/codec/cuda_model_code.h"
#include "tests/lib/model_code_rig.h"

#define SEQUENCES CODE_RIG_SEQUENCES
#define HOSTILE 12u	  /* sequences in a batch of damaged payloads */
#define BLOCKS_MAX 64u	  /* of a batch */
#define HOSTILE_BLOCKS 3u /* of each sequence */

struct gpu_rig {
	struct code_rig *r;
	struct rng *rng;
	cudaStream_t stream;
	struct cuda_model *m;
	struct cuda_model_coder *coder;
	struct cuda_model_place places[SEQUENCE_RIG_SEGMENTS];
	uint32_t segments, row, head; /* bytes */
	uint8_t *pages;		      /* device */
	uint32_t pages_off;	      /* to the first block */
};

struct batch {
	struct cuda_model_part parts[HOSTILE];
	struct cuda_model_block blocks[BLOCKS_MAX];
	struct cuda_model_result results[BLOCKS_MAX];
	uint32_t sequence[BLOCKS_MAX], block[BLOCKS_MAX];
	uint32_t parts_count, blocks_count;
};

static void good(int cuda)
{
	if (cuda)
		fail_msg("CUDA: %s", cudaGetErrorString((cudaError_t)cuda));
}

/* ---- pages ---- */

/* Heads before tokens in some, addresses that are no multiples of 16 in others. */
static void places_set(struct gpu_rig *g)
{
	const struct model_config *c = g->r->base->c;
	const uint32_t tokens = g->r->shape.block_tokens;
	const bool heads_first = g->r->shape.kind == 1;

	g->segments = 2u * c->layers;
	g->head = c->head_dim * codec_dtype_bytes(g->r->shape.dtype);
	g->row = g->head * c->kv_heads;
	g->pages_off = g->r->shape.kind == 2 ? 8 : 0;
	for (uint32_t i = 0; i < g->segments; i++)
		g->places[i] = (struct cuda_model_place){
			.off = code_rig_segment_off(g->r, i),
			.block_stride = g->r->g.raw_bytes,
			.token_stride = heads_first ? g->head : g->row,
			.head_stride = heads_first ? tokens * g->head : g->head,
		};
}

/* A block between its canonical form and its page. */
static void page_turn(const struct gpu_rig *g, uint8_t *page, uint8_t *raw, bool out)
{
	for (uint32_t i = 0; i < g->segments; i++) {
		const struct cuda_model_place *p = &g->places[i];

		for (uint32_t t = 0; t < g->r->shape.block_tokens; t++)
			for (uint32_t h = 0; h < g->row / g->head; h++) {
				uint8_t *a = page + p->off + t * p->token_stride +
					     h * p->head_stride;
				uint8_t *b = raw + p->off + (uint64_t)t * g->row +
					     (uint64_t)h * g->head;

				memcpy(out ? b : a, out ? a : b, g->head);
			}
	}
}

static uint8_t *page_of(const struct gpu_rig *g, uint32_t index)
{
	return g->pages + g->pages_off + index * g->r->g.raw_bytes;
}

static void page_put(const struct gpu_rig *g, uint32_t index, uint8_t *raw)
{
	uint8_t *page = malloc(g->r->g.raw_bytes);

	assert_non_null(page);
	page_turn(g, page, raw, false);
	good((int)cudaMemcpy(page_of(g, index), page, g->r->g.raw_bytes, cudaMemcpyHostToDevice));
	free(page);
}

static void page_check(const struct gpu_rig *g, uint32_t index, const uint8_t *raw)
{
	const size_t bytes = g->r->g.raw_bytes;
	uint8_t *page = malloc(2u * bytes);

	assert_non_null(page);
	good((int)cudaMemcpy(page, page_of(g, index), bytes, cudaMemcpyDeviceToHost));
	page_turn(g, page, page + bytes, true);
	assert_memory_equal(page + bytes, raw, bytes);
	free(page);
}

/* ---- rigs ---- */

static void rig_open(struct gpu_rig *g, const struct code_rig_shape *shape)
{
	struct cuda_model_shape s = { .block_tokens = shape->block_tokens,
				      .streams_count = shape->streams_count,
				      .blocks_max = BLOCKS_MAX,
				      .parts_max = HOSTILE,
				      .positions_max = 2048,
				      .encodes = 1 };

	*g = (struct gpu_rig){ .r = code_rig_new(shape) };
	g->rng = &g->r->base->rng;
	places_set(g);
	s.places = g->places;
	good((int)cudaStreamCreate(&g->stream));
	good(cuda_model_new(g->r->p->params, g->stream, &g->m));
	good(cuda_model_coder_new(g->m, &s, g->stream, &g->coder));
	good((int)cudaMalloc((void **)&g->pages, g->pages_off + BLOCKS_MAX * g->r->g.raw_bytes));
}

static void rig_close(struct gpu_rig *g)
{
	good((int)cudaFree(g->pages));
	cuda_model_coder_free(g->coder);
	cuda_model_free(g->m);
	good((int)cudaStreamDestroy(g->stream));
	code_rig_free(g->r);
}

/* ---- batches ---- */

static void batch_add(struct gpu_rig *g, struct batch *b, struct cuda_model_context *c,
		      uint32_t sequence, uint32_t first, uint32_t count)
{
	const uint32_t tokens = g->r->shape.block_tokens;

	if (!count)
		return;
	b->parts[b->parts_count++] = (struct cuda_model_part){
		.context = c, .ids = g->r->s[sequence].ids + first * tokens, .count = count * tokens
	};
	for (uint32_t i = first; i < first + count; i++, b->blocks_count++) {
		assert_true(b->blocks_count < BLOCKS_MAX);
		b->sequence[b->blocks_count] = sequence;
		b->block[b->blocks_count] = i;
		b->blocks[b->blocks_count] =
			(struct cuda_model_block){ .base = (uint64_t)(g->pages + g->pages_off),
						   .index = BLOCKS_MAX - 1u - b->blocks_count };
	}
}

/* An allocation of its own, and no longer than must be. */
static void payload_new(struct cuda_model_block *b, const uint8_t *bytes, size_t count)
{
	const size_t room = (count + 7u) / 8u * 8u;

	good((int)cudaMalloc((void **)&b->payload, room ? room : 8u));
	b->payload_bytes = (uint32_t)count;
	if (bytes)
		good((int)cudaMemcpy(b->payload, bytes, count, cudaMemcpyHostToDevice));
}

static void batch_drop(struct batch *b)
{
	for (uint32_t i = 0; i < b->blocks_count; i++)
		good((int)cudaFree(b->blocks[i].payload));
	*b = (struct batch){ .parts_count = 0 };
}

static void encode_check(struct gpu_rig *g, struct batch *b, struct codec_sequence **cpu)
{
	for (uint32_t i = 0; i < b->blocks_count; i++) {
		const struct code_rig_sequence *s = &g->r->s[b->sequence[i]];
		const size_t bytes = s->bytes[b->block[i]];

		payload_new(&b->blocks[i], NULL, i % 5u == 3u ? bytes - 1u : bytes);
		page_put(g, b->blocks[i].index, s->raw[b->block[i]]);
	}
	good(cuda_model_encode(g->coder, b->parts, b->parts_count, b->blocks, g->stream));
	good(cuda_model_coded(g->coder, g->stream, b->results));
	for (uint32_t i = 0; i < b->blocks_count; i++) {
		const struct code_rig_sequence *s = &g->r->s[b->sequence[i]];
		const size_t bytes = s->bytes[b->block[i]];
		uint8_t *got = malloc(bytes + g->r->g.raw_bytes), refusal = 0;

		assert_non_null(got);
		assert_int_equal(b->results[i].res, i % 5u == 3u ? -ENOSPC : 0);
		assert_int_equal(b->results[i].escapes, s->escapes[b->block[i]]);
		if (b->results[i].res == 0) {
			assert_int_equal(b->results[i].payload_bytes, bytes);
			good((int)cudaMemcpy(got, b->blocks[i].payload, bytes,
					     cudaMemcpyDeviceToHost));
			assert_memory_equal(got, s->payload[b->block[i]], bytes);
			assert_int_equal(sequence_decode(cpu[b->sequence[i]], got, bytes,
							 got + bytes, &refusal),
					 0);
			assert_memory_equal(got + bytes, s->raw[b->block[i]], g->r->g.raw_bytes);
		} else {
			const int32_t *ids = s->ids +
					     (size_t)b->block[i] * g->r->shape.block_tokens;

			assert_int_equal(
				sequence_append_raw(cpu[b->sequence[i]], s->raw[b->block[i]], ids),
				0);
		}
		free(got);
	}
}

static void decode_check(struct gpu_rig *g, struct batch *b)
{
	good((int)cudaMemset(g->pages, 0x5a, g->pages_off + BLOCKS_MAX * g->r->g.raw_bytes));
	for (uint32_t i = 0; i < b->blocks_count; i++) {
		const struct code_rig_sequence *s = &g->r->s[b->sequence[i]];

		payload_new(&b->blocks[i], s->payload[b->block[i]], s->bytes[b->block[i]]);
	}
	for (uint32_t i = 0; i < b->parts_count; i++)
		b->parts[i].ids = NULL;
	good(cuda_model_decode(g->coder, b->parts, b->parts_count, b->blocks, g->stream));
	good(cuda_model_coded(g->coder, g->stream, b->results));
	for (uint32_t i = 0; i < b->blocks_count; i++) {
		assert_int_equal(b->results[i].res, 0);
		page_check(g, b->blocks[i].index, g->r->s[b->sequence[i]].raw[b->block[i]]);
	}
}

/* All sequences, in `rounds` batches cut anywhere. */
static void check_all(struct gpu_rig *g, uint32_t rounds, bool encode)
{
	struct cuda_model_context *contexts[SEQUENCES] = { NULL };
	struct codec_sequence *cpu[SEQUENCES] = { NULL };
	uint32_t first[SEQUENCES] = { 0 };
	struct batch b = { .parts_count = 0 };

	for (uint32_t i = 0; i < SEQUENCES; i++) {
		good(cuda_model_context_new(g->m, g->r->s[i].blocks * g->r->shape.block_tokens + 1u,
					    g->stream, &contexts[i]));
		cpu[i] = code_rig_sequence(g->r);
	}
	for (uint32_t n = 0; n < rounds; n++) {
		for (uint32_t i = 0; i < SEQUENCES; i++) {
			const uint32_t left = g->r->s[i].blocks - first[i];
			const uint32_t count = n + 1u == rounds ? left
								: rng_below(g->rng, left + 1u);

			batch_add(g, &b, contexts[i], i, first[i], count);
			first[i] += count;
		}
		if (b.blocks_count && encode)
			encode_check(g, &b, cpu);
		else if (b.blocks_count)
			decode_check(g, &b);
		batch_drop(&b);
	}
	for (uint32_t i = 0; i < SEQUENCES; i++) {
		assert_int_equal(cuda_model_context_count(contexts[i]),
				 g->r->s[i].blocks * g->r->shape.block_tokens);
		cuda_model_context_free(contexts[i]);
		codec_sequence_free(cpu[i]);
	}
}

/* ---- damage ---- */

struct damaged {
	uint8_t *bytes;
	size_t count;
};

static void flip(struct rng *rng, struct damaged *d, size_t first, size_t count)
{
	if (first < d->count && count > 0) {
		const size_t left = d->count - first;
		const uint32_t n = (uint32_t)(count < left ? count : left);

		d->bytes[first + rng_below(rng, n)] ^= (uint8_t)(1u << rng_below(rng, 8));
	}
}

/* One of many ways; all but the first leave the checksum right. */
static void damage(struct gpu_rig *g, struct damaged *d, uint32_t way)
{
	const size_t ids = (g->r->shape.block_tokens * g->r->p->id_bits + 63u) / 64u * 8u;
	const size_t states = 16u + ids + (g->r->p->streams_count * 4u + 7u) / 8u * 8u,
		     words = states + 128u * g->r->p->streams_count;

	switch (way) {
	case 0:
		flip(g->rng, d, 0, d->count);
		return;
	case 1:
		d->count = rng_below(g->rng, (uint32_t)d->count);
		break;
	case 2:
		flip(g->rng, d, 4, 12);
		break;
	case 3:
		flip(g->rng, d, 16, ids ? ids : 8u);
		break;
	case 4:
		flip(g->rng, d, 16u + ids, states - 16u - ids);
		break;
	case 5:
		d->bytes[states + rng_below(g->rng, (uint32_t)(words - states))] = 0;
		break;
	case 6:
		flip(g->rng, d, words, d->count);
		break;
	default: /* little is left, or no more than a head */
		d->count = rng_below(g->rng, 300);
		break;
	}
	if (d->count >= 4u) {
		const uint32_t check = (uint32_t)XXH3_64bits(d->bytes + 4, d->count - 4u);

		memcpy(d->bytes, &check, 4);
	}
}

/* What the CPU says of a part's blocks one after another. */
static void expect_part(struct gpu_rig *g, struct codec_sequence *cpu, const struct damaged *d,
			const struct cuda_model_result *got, const uint32_t *index, uint32_t way)
{
	uint8_t *raw = calloc(1, g->r->g.raw_bytes);

	assert_non_null(raw);
	assert_int_equal(codec_sequence_truncate(cpu, 0), 0);
	for (uint32_t b = 0; b < HOSTILE_BLOCKS; b++) {
		uint8_t refusal = 0;
		const int res = sequence_decode(cpu, d[b].bytes, d[b].count, raw, &refusal);

		if (got[b].res != res || got[b].refusal != refusal)
			fail_msg("way %u block %u: %d, %u, not %d, %u", way, b, got[b].res,
				 got[b].refusal, res, refusal);
		if (res == 0)
			page_check(g, index[b], raw);
	}
	free(raw);
}

/* Three blocks of one sequence, many times over, each time one or two of them damaged in some way. */
static void check_damage(struct gpu_rig *g, uint32_t round)
{
	const struct code_rig_sequence *s = &g->r->s[SEQUENCES - 1u];
	struct damaged d[HOSTILE * HOSTILE_BLOCKS];
	struct cuda_model_context *contexts[HOSTILE] = { NULL };
	struct codec_sequence *cpu = code_rig_sequence(g->r);
	struct batch b = { .parts_count = 0 };
	uint32_t index[HOSTILE * HOSTILE_BLOCKS];

	assert_true(s->blocks >= HOSTILE_BLOCKS);
	for (uint32_t i = 0; i < HOSTILE; i++) {
		good(cuda_model_context_new(g->m, HOSTILE_BLOCKS * g->r->shape.block_tokens,
					    g->stream, &contexts[i]));
		batch_add(g, &b, contexts[i], SEQUENCES - 1u, 0, HOSTILE_BLOCKS);
	}
	for (uint32_t i = 0; i < b.blocks_count; i++) {
		const uint32_t part = i / HOSTILE_BLOCKS, block = b.block[i];

		d[i].count = s->bytes[block];
		d[i].bytes = malloc(d[i].count + 300u);
		assert_non_null(d[i].bytes);
		memcpy(d[i].bytes, s->payload[block], d[i].count);
		if (block == (round + part) % HOSTILE_BLOCKS || (part == 3u && block == 2u))
			damage(g, &d[i], (round + part) % 8u);
		payload_new(&b.blocks[i], d[i].bytes, d[i].count);
		index[i] = b.blocks[i].index;
	}
	good(cuda_model_decode(g->coder, b.parts, b.parts_count, b.blocks, g->stream));
	good(cuda_model_coded(g->coder, g->stream, b.results));
	for (uint32_t i = 0; i < HOSTILE; i++) {
		const uint32_t at = i * HOSTILE_BLOCKS;

		expect_part(g, cpu, d + at, b.results + at, index + at, (round + i) % 8u);
		assert_int_equal(cuda_model_context_count(contexts[i]),
				 codec_sequence_position(cpu));
	}
	batch_drop(&b);
	/* And on from there, with what is right. */
	for (uint32_t i = 0; i < HOSTILE; i++) {
		const uint32_t have = cuda_model_context_count(contexts[i]) /
				      g->r->shape.block_tokens;

		batch_add(g, &b, contexts[i], SEQUENCES - 1u, have, HOSTILE_BLOCKS - have);
	}
	if (b.blocks_count)
		decode_check(g, &b);
	batch_drop(&b);
	for (uint32_t i = 0; i < HOSTILE * HOSTILE_BLOCKS; i++)
		free(d[i].bytes);
	for (uint32_t i = 0; i < HOSTILE; i++)
		cuda_model_context_free(contexts[i]);
	codec_sequence_free(cpu);
}

/* ---- tests ---- */

static void check(const struct code_rig_shape *shape)
{
	struct gpu_rig g;

	rig_open(&g, shape);
	check_all(&g, 1, true);
	check_all(&g, 4, true);
	check_all(&g, 1, false);
	check_all(&g, 4, false);
	rig_close(&g);
}

static void test_small(void **state)
{
	const struct code_rig_shape shape = { .kind = TINY_WIDE,
					      .dtype = CODEC_DTYPE_BF16,
					      .ids = true,
					      .wild = true,
					      .block_tokens = 16,
					      .streams_count = 2,
					      .blocks = { 1, 2, 3, 3 } };
	struct gpu_rig g;

	(void)state;
	rig_open(&g, &shape);
	check_all(&g, 2, true);
	check_all(&g, 2, false);
	check_damage(&g, 0);
	rig_close(&g);
}

static void test_blocks(void **state)
{
	static const uint32_t tokens[] = { 16, 48, 112 };

	(void)state;
	for (uint32_t kind = 0; kind <= TINY_WIDE; kind++)
		for (uint32_t dtype = CODEC_DTYPE_BF16; dtype <= CODEC_DTYPE_E5M2; dtype++) {
			const struct code_rig_shape shape = {
				.kind = kind,
				.dtype = (uint8_t)dtype,
				.ids = (kind + dtype) % 2u,
				.wild = (kind + dtype) % 3u == 0,
				.block_tokens = tokens[(kind + dtype) % 3u],
				.streams_count = kind == TINY_WIDE ? 1u + dtype % 2u : 1u,
				.blocks = { 3, 1, 2, 4 },
			};

			check(&shape);
		}
}

/* Drafts of other shapes than the cache. */
static void test_drafts(void **state)
{
	(void)state;
	for (uint32_t kind = 0; kind <= TINY_WIDE; kind++) {
		const struct code_rig_shape shape = {
			.kind = kind,
			.draft = 1u + (kind + 1u) % TINY_KINDS,
			.dtype = kind % 2u ? CODEC_DTYPE_E4M3 : CODEC_DTYPE_BF16,
			.ids = true,
			.wild = kind == 2,
			.block_tokens = kind == 1 ? 48 : 16,
			.streams_count = kind == TINY_WIDE ? 2 : 1,
			.blocks = { 3, 1, 5, HOSTILE_BLOCKS },
		};
		struct gpu_rig g;

		check(&shape);
		rig_open(&g, &shape);
		for (uint32_t round = 0; round < 4; round++)
			check_damage(&g, round);
		rig_close(&g);
	}
}

static void test_many(void **state)
{
	const struct code_rig_shape shape = { .dtype = CODEC_DTYPE_BF16,
					      .ids = true,
					      .block_tokens = 16,
					      .streams_count = 1,
					      .blocks = { 20, 1, 13, 9 } };

	(void)state;
	check(&shape);
}

static void test_damage(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < 4; i++) {
		const struct code_rig_shape shape = {
			.kind = i % 2u ? TINY_WIDE : 0,
			.dtype = i < 2 ? CODEC_DTYPE_BF16 : CODEC_DTYPE_E4M3,
			.ids = i == 0 || i == 3,
			.wild = i == 1,
			.block_tokens = i == 2 ? 32 : 16,
			.streams_count = 1u + i % 2u,
			.blocks = { 1, 1, 1, HOSTILE_BLOCKS },
		};
		struct gpu_rig g;

		rig_open(&g, &shape);
		for (uint32_t round = 0; round < 8; round++)
			check_damage(&g, round);
		rig_close(&g);
	}
}

static void test_refused(void **state)
{
	const struct code_rig_shape shape = { .kind = TINY_WIDE,
					      .dtype = CODEC_DTYPE_E4M3,
					      .block_tokens = 16,
					      .streams_count = 1,
					      .blocks = { 1, 1, 1, 1 } };
	struct cuda_model_shape s = { .block_tokens = 20,
				      .streams_count = 1,
				      .blocks_max = 1,
				      .parts_max = 1,
				      .positions_max = 64 };
	struct cuda_model_coder *coder = NULL;
	struct cuda_model_context *context = NULL;
	struct cuda_model_part part = { .count = 16 };
	struct cuda_model_block block = { .payload = NULL };
	struct cuda_model_result result;
	struct gpu_rig g;

	(void)state;
	rig_open(&g, &shape);
	s.places = g.places;
	assert_int_equal(cuda_model_coder_new(g.m, &s, g.stream, &coder), cudaErrorNotSupported);
	s.block_tokens = 16;
	s.streams_count = 16; /* more than groups of columns */
	assert_int_equal(cuda_model_coder_new(g.m, &s, g.stream, &coder), cudaErrorNotSupported);
	s.streams_count = 4; /* two would share a scale */
	assert_int_equal(cuda_model_coder_new(g.m, &s, g.stream, &coder), cudaErrorNotSupported);
	s.streams_count = 1;
	good(cuda_model_coder_new(g.m, &s, g.stream, &coder));
	assert_true(cuda_model_coder_bytes(coder) < cuda_model_coder_bytes(g.coder));
	good(cuda_model_context_new(g.m, 48, g.stream, &context));
	part.context = context;
	assert_int_equal(cuda_model_encode(coder, &part, 1, &block, g.stream),
			 cudaErrorNotSupported);
	assert_int_equal(cuda_model_coded(coder, g.stream, &result), cudaErrorInvalidValue);
	part.count = 24;
	assert_int_equal(cuda_model_decode(coder, &part, 1, &block, g.stream),
			 cudaErrorInvalidValue);
	part.count = 32; /* two blocks */
	assert_int_equal(cuda_model_decode(coder, &part, 1, &block, g.stream),
			 cudaErrorInvalidValue);
	cuda_model_context_free(context);
	cuda_model_coder_free(coder);
	rig_close(&g);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_small),  cmocka_unit_test(test_blocks),
		cmocka_unit_test(test_drafts), cmocka_unit_test(test_many),
		cmocka_unit_test(test_damage), cmocka_unit_test(test_refused),
	};
	int devices = 0;

	if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0 ||
	    getenv("SKVC_TEST_DEVICE")) {
		(void)printf("no GPU\n");
		return 77;
	}
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
