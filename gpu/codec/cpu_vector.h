/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_vector.h - what the vector kernels share before their row steps: where a stream stands.
 */
#ifndef SKVCD_GPU_CODEC_CPU_VECTOR_H
#define SKVCD_GPU_CODEC_CPU_VECTOR_H

#include <errno.h>
#include <string.h>

#include "gpu/codec/cpu_leaves.h"
#include "gpu/codec/internal.h"

/* Row steps must not become calls, nor their arrays memory, whatever -O says. */
#define KERNEL static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")
#define WORDS_READ (CODEC_LANES + 8u) /* a row's loads reach no farther */

#define TOKENS_BITS 7u /* of an encoder entry's index */
/* A decoder's entry shifted down so that its context is in place for a slot's index: context * 1024. */
#define CONTEXT_DOWN (CODEC_DEC_CONTEXT_SHIFT - CODEC_PROB_BITS)
#define CONTEXT_SLOTS (7u << CODEC_PROB_BITS)

static_assert(CODEC_TOKENS_PITCH == 1u << TOKENS_BITS, "index of an encoder entry");
static_assert(FORMAT_TABLES_MAX * CODEC_PROB_SUM <= 65536, "a slot's index in 16 bits");

/* Where a stream stands: its next row. */
struct cursor {
	const struct codec_run *run, *run_end;
	uint32_t group, token;
	const uint8_t *words, *words_end;
	uint8_t *tokens;
};

KERNEL bool cursor_done(const struct cursor *c)
{
	return c->run == c->run_end;
}

KERNEL const uint16_t *cursor_table(const struct cursor *c)
{
	return c->run->table + c->group * CODEC_LANES;
}

/* The row before, where a context comes from; NULL: there is none. */
KERNEL const uint8_t *cursor_previous(const struct cursor *c)
{
	return c->run->context && c->token > 0 ? c->tokens - CODEC_LANES : NULL;
}

KERNEL bool cursor_whole(const struct cursor *c)
{
	return codec_group_lanes(c->run, c->group) == CODEC_LANES;
}

/* More words than a row's loads can reach. */
KERNEL bool cursor_words(const struct cursor *c)
{
	return (size_t)(c->words_end - c->words) >= 2u * WORDS_READ;
}

/* After rows, at most to the end of the group, were done and c->tokens moved on. */
KERNEL void cursor_advance(struct cursor *c, uint32_t rows_count)
{
	c->token += rows_count;
	if (c->token < c->run->tokens_count)
		return;
	c->token = 0;
	if (++c->group < c->run->rows_per_token)
		return;
	c->group = 0;
	c->run++;
}

#endif
