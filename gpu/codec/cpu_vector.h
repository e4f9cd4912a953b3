/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_vector.h - what the vector kernels share before their row steps: where a stream stands.
 */
#ifndef SKVCD_GPU_CODEC_CPU_VECTOR_H
#define SKVCD_GPU_CODEC_CPU_VECTOR_H

#include <errno.h>
#include <string.h>

#include "gpu/codec/checksum.h"
#include "gpu/codec/internal.h"

/* Row steps must not become calls, nor their arrays memory, whatever -O says. */
#define KERNEL static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")
#define WORDS_READ (CODEC_LANES + 8u) /* a row's loads reach no farther */

static_assert(CODEC_TOKENS_PITCH == 1u << 7, "index of an encoder entry");
static_assert(FORMAT_TABLES_MAX * CODEC_PROB_SUM <= 65536, "a slot's index in 16 bits");

/* Where a stream stands: its next row. */
struct cursor {
	const struct codec_run *run, *run_end;
	uint32_t token, row;
	const uint8_t *words, *words_end;
	uint8_t *tokens;
};

KERNEL const uint16_t *cursor_table(const struct cursor *c)
{
	return c->run->table + c->row * CODEC_LANES;
}

KERNEL const uint8_t *cursor_previous(const struct cursor *c)
{
	if (!c->run->context || c->token == 0)
		return NULL;
	return c->tokens - (size_t)c->run->rows_per_token * CODEC_LANES;
}

/* A whole row of lanes, and more words than it can read. */
KERNEL bool cursor_fast(const struct cursor *c)
{
	return c->run->columns - c->row * CODEC_LANES >= CODEC_LANES &&
	       (size_t)(c->words_end - c->words) >= 2u * WORDS_READ;
}

KERNEL void cursor_advance(struct cursor *c)
{
	c->tokens += CODEC_LANES;
	if (++c->row < c->run->rows_per_token)
		return;
	c->row = 0;
	if (++c->token < c->run->tokens_count)
		return;
	c->token = 0;
	c->run++;
}

#endif
