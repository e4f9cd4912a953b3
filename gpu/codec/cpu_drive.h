/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cpu_drive.h - the loops over runs, tokens and rows, which are the same for every vector instruction
 * set.  A kernel file includes cpu_vector.h, defines its row steps, then includes this:
 *
 *   struct vec_states, struct vec_tokens       32 coder states, 32 tokens, in registers
 *   states_load, states_store                  from and to uint32_t[32]
 *   decode_row_begin, decode_row_end           one row, before and after its words' places are known
 *   encode_row, tokenize_row, rebuild_row      one row
 *
 * Rows that do not fill the lanes, and those near the end of the words, go through the scalar rows.
 */
#ifndef SKVCD_GPU_CODEC_CPU_DRIVE_H
#define SKVCD_GPU_CODEC_CPU_DRIVE_H

/* Rows of both streams while both have whole ones: two chains of latency side by side. */
static void decode_pair(const struct codec_profile *p, struct cursor *a, struct cursor *b,
			uint32_t *states_a, uint32_t *states_b)
{
	struct cursor ca = *a, cb = *b;
	struct vec_states x = states_load(states_a), y = states_load(states_b);
	struct vec_tokens t, u;

	while (ca.run < ca.run_end && cb.run < cb.run_end && cursor_fast(&ca) && cursor_fast(&cb)) {
		decode_row_begin(p->dec, &ca, &x, &t);
		decode_row_begin(p->dec, &cb, &y, &u);
		decode_row_end(&ca, &x, &t);
		decode_row_end(&cb, &y, &u);
	}
	states_store(states_a, &x);
	states_store(states_b, &y);
	*a = ca;
	*b = cb;
}

/* The rest of one stream. */
static int decode_one(const struct codec_profile *p, struct cursor *c, uint32_t *states)
{
	struct vec_states x = states_load(states);
	struct vec_tokens t;

	while (c->run < c->run_end) {
		uint32_t lanes = c->run->columns - c->row * CODEC_LANES;
		int64_t n;

		if (cursor_fast(c)) {
			decode_row_begin(p->dec, c, &x, &t);
			decode_row_end(c, &x, &t);
			continue;
		}
		states_store(states, &x);
		n = codec_scalar_decode_row(p, cursor_table(c), cursor_previous(c),
					    lanes < CODEC_LANES ? lanes : CODEC_LANES, c->words,
					    (uint32_t)((size_t)(c->words_end - c->words) / 2u),
					    states, c->tokens);
		if (n < 0)
			return (int)n;
		c->words += 2u * (size_t)n;
		cursor_advance(c);
		x = states_load(states);
	}
	states_store(states, &x);
	return 0;
}

static void drive_decode(const struct codec_profile *p, struct codec_stream *streams,
			 uint32_t streams_count)
{
	struct cursor c[CODEC_STREAMS_MAX];

	for (uint32_t i = 0; i < streams_count; i++)
		c[i] = (struct cursor){
			.run = streams[i].runs,
			.run_end = streams[i].runs + streams[i].runs_count,
			.words = streams[i].words,
			.words_end = streams[i].words + 2u * (size_t)streams[i].words_count,
			.tokens = streams[i].tokens,
		};
	if (streams_count == 2)
		decode_pair(p, &c[0], &c[1], streams[0].states, streams[1].states);
	for (uint32_t i = 0; i < streams_count; i++) {
		int r = decode_one(p, &c[i], streams[i].states);

		if (r == 0 && c[i].words != c[i].words_end)
			r = -EBADMSG;
		streams[i].res = r;
	}
}

static uint16_t *drive_encode(const struct codec_profile *p, const struct codec_run *runs,
			      uint32_t runs_count, const uint8_t *tokens, uint32_t *states,
			      uint16_t *end)
{
	struct vec_states x = states_load(states);

	for (uint32_t i = 0; i < runs_count; i++)
		tokens += (size_t)runs[i].tokens_count * runs[i].rows_per_token * CODEC_LANES;
	for (uint32_t i = runs_count; i-- > 0;) {
		const struct codec_run *run = &runs[i];
		size_t pitch = (size_t)run->rows_per_token * CODEC_LANES;

		for (uint32_t t = run->tokens_count; t-- > 0;)
			for (uint32_t r = run->rows_per_token; r-- > 0;) {
				const uint16_t *table = run->table + r * CODEC_LANES;
				uint32_t lanes = run->columns - r * CODEC_LANES;
				const uint8_t *previous;

				tokens -= CODEC_LANES;
				previous = run->context && t > 0 ? tokens - pitch : NULL;
				if (lanes >= CODEC_LANES) {
					end = encode_row(p->enc, table, previous, tokens, &x, end);
					continue;
				}
				states_store(states, &x);
				end = codec_scalar_encode_row(p, table, previous, tokens, lanes,
							      states, end);
				x = states_load(states);
			}
	}
	states_store(states, &x);
	return end;
}

/* One body; `bits` and `shift` are constants in the calls that matter, so that it is unrolled. */
KERNEL uint32_t tokenize_run(const struct codec_run *run, const uint8_t *raw, uint8_t *tokens,
			     uint32_t *planes, int bits, unsigned shift)
{
	uint32_t escapes = 0, bytes = (uint32_t)bits / 8u;

	for (uint32_t t = 0; t < run->tokens_count; t++)
		for (uint32_t c = 0; c < run->columns; c += CODEC_LANES) {
			uint32_t lanes = run->columns - c;

			if (lanes >= CODEC_LANES) {
				lanes = CODEC_LANES;
				escapes += tokenize_row(run, c, raw, tokens, planes, bits, shift);
			} else {
				escapes += codec_scalar_tokenize_row(run, c, lanes, raw, tokens,
								     planes);
			}
			raw += (size_t)lanes * bytes;
			tokens += CODEC_LANES;
			planes += shift;
		}
	return escapes;
}

static uint32_t drive_tokenize(const struct codec_run *run, const uint8_t *raw, uint8_t *tokens,
			       uint32_t *planes)
{
	if (run->bits == 16)
		return run->shift == 5 ? tokenize_run(run, raw, tokens, planes, 16, 5)
				       : tokenize_run(run, raw, tokens, planes, 16, run->shift);
	return run->shift == 1 ? tokenize_run(run, raw, tokens, planes, 8, 1)
			       : tokenize_run(run, raw, tokens, planes, 8, run->shift);
}

/* Put the escaped lanes right.  Returns how many there are, present or not. */
static uint32_t escapes_place(unsigned mask, const uint8_t *escapes, uint32_t escapes_count,
			      uint8_t *raw, uint32_t bytes)
{
	uint32_t used = 0;

	for (; mask; mask &= mask - 1u, used++)
		if (used < escapes_count)
			memcpy(raw + (uint32_t)__builtin_ctz(mask) * bytes, escapes + bytes * used,
			       bytes);
	return used;
}

KERNEL uint32_t rebuild_run(const struct codec_run *run, const uint8_t *tokens,
			    const uint32_t *planes, const uint8_t *escapes, uint32_t escapes_count,
			    uint8_t *raw, int bits, unsigned shift)
{
	uint32_t used = 0, bytes = (uint32_t)bits / 8u;

	for (uint32_t t = 0; t < run->tokens_count; t++)
		for (uint32_t c = 0; c < run->columns; c += CODEC_LANES) {
			uint32_t lanes = run->columns - c;
			const uint8_t *from = escapes + (size_t)bytes * used;

			if (used > escapes_count)
				return used;
			if (lanes >= CODEC_LANES) {
				unsigned mask = rebuild_row(run, c, tokens, planes, raw, bits,
							    shift);

				lanes = CODEC_LANES;
				if (mask)
					used += escapes_place(mask, from, escapes_count - used, raw,
							      bytes);
			} else {
				used += codec_scalar_rebuild_row(run, c, lanes, tokens, planes,
								 from, escapes_count - used, raw);
			}
			raw += (size_t)lanes * bytes;
			tokens += CODEC_LANES;
			planes += shift;
		}
	return used;
}

static uint32_t drive_rebuild(const struct codec_run *run, const uint8_t *tokens,
			      const uint32_t *planes, const uint8_t *escapes,
			      uint32_t escapes_count, uint8_t *raw)
{
	if (run->bits == 16 && run->shift == 5)
		return rebuild_run(run, tokens, planes, escapes, escapes_count, raw, 16, 5);
	if (run->bits == 16)
		return rebuild_run(run, tokens, planes, escapes, escapes_count, raw, 16,
				   run->shift);
	if (run->shift == 1)
		return rebuild_run(run, tokens, planes, escapes, escapes_count, raw, 8, 1);
	return rebuild_run(run, tokens, planes, escapes, escapes_count, raw, 8, run->shift);
}

#endif
