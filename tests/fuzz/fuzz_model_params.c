/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_model_params.c - parameters of the model speculator with bytes changed and a right digest: refused, or
 * they code a block that decodes to what it was.
 *
 * Input: triples of an offset, u16 little endian, and the byte that goes there.  With a byte more they are a draft's,
 * without a copy's.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sodium.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/model.h"
#include "tests/lib/rng.h"
#include "tests/lib/tiny_model.h"

#define TOKENS 6u
#define SEGMENTS 4u   /* two layers */
#define ROW_BYTES 64u /* one head of 32, bf16 */
#define CODED_MAX 65536u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct mspec_model *model;
static uint8_t values[SEGMENTS][TOKENS * ROW_BYTES], back[SEGMENTS][TOKENS * ROW_BYTES];
static struct {
	uint8_t *bytes;
	size_t count;
} forms[MSPEC_MODE_COUNT];
static const int32_t ids[TOKENS] = { 1, 2, 3, 5, 8, 13 };

static void fit(enum mspec_mode mode)
{
	const struct mspec_fit_options o = { .mode = mode,
					     .cache = { 2, 2, 16 },
					     .previous = 1,
					     .dtype = CODEC_DTYPE_BF16,
					     .ids = mode == MSPEC_DRAFT,
					     .precision = mspec_precision_default() };
	const uint8_t *in[SEGMENTS] = { values[0], values[1], values[2], values[3] };
	struct mspec_params *p = NULL;
	struct mspec_fit *f = NULL;
	int r = mspec_fit_new(model, &o, &f);

	assert(r == 0);
	r = mspec_fit_add(f, ids, in, TOKENS);
	assert(r == 0);
	r = mspec_fit_finish(f, &p);
	assert(r == 0);
	r = mspec_params_serialise(p, &forms[mode].bytes, &forms[mode].count);
	assert(r == 0);
	mspec_params_free(p);
	mspec_fit_free(f);
}

/* Once: what all inputs are edits of. */
static void prepare(void)
{
	struct tiny_model *t = tiny_model_new(2);
	struct rng rng;
	int r;

	rng_init(&rng, 1);
	for (uint32_t i = 0; i < SEGMENTS; i++)
		for (uint32_t at = 0; at < sizeof(values[0]); at += 2) {
			values[i][at] = (uint8_t)rng_next(&rng);
			values[i][at + 1] = (uint8_t)(0x3f | (rng_next(&rng) & 0x80u));
		}
	r = mspec_model_load(tiny_model_folder(t), true, &model, NULL, 0);
	assert(r == 0);
	fit(MSPEC_COPY);
	fit(MSPEC_DRAFT);
	tiny_model_free(t);
}

static void code(const struct mspec_params *p)
{
	static uint8_t coded[CODED_MAX];
	const uint8_t *in[SEGMENTS] = { values[0], values[1], values[2], values[3] };
	uint8_t *out[SEGMENTS] = { back[0], back[1], back[2], back[3] };
	struct mspec_coder *w = NULL;
	struct mspec_context *c = NULL;
	struct residual_encoder *e = NULL;
	struct residual_decoder *d = NULL;
	struct mspec_result result;
	uint32_t digest;
	size_t bytes = 0;
	int r = mspec_coder_new(p, NULL, &w) | mspec_context_new(p, &c) | residual_encoder_new(&e) |
		residual_decoder_new(&d);

	assert(r == 0);
	residual_encoder_start(e, 1);
	r = mspec_encode(w, c, ids, TOKENS, in, e, &result);
	assert(r == 0);
	digest = result.mu_digest;
	r = residual_encoder_finish(e, coded, sizeof(coded), &bytes);
	assert(r == 0);
	mspec_context_reset(c);
	r = residual_decoder_start(d, 1, coded, bytes);
	assert(r == 0);
	r = mspec_decode(w, c, ids, TOKENS, d, out, &result);
	assert(r == 0 && result.mu_digest == digest);
	assert(memcmp(values, back, sizeof(values)) == 0);
	mspec_coder_free(w);
	mspec_context_free(c);
	residual_encoder_free(e);
	residual_decoder_free(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const enum mspec_mode mode = size % 3 == 1 ? MSPEC_DRAFT : MSPEC_COPY;
	struct mspec_params *p = NULL;
	uint8_t *edited;
	size_t body, form_bytes;

	if (!model)
		prepare();
	form_bytes = forms[mode].count;
	body = form_bytes - MODEL_DIGEST_BYTES;
	edited = malloc(form_bytes);
	assert(edited);
	memcpy(edited, forms[mode].bytes, form_bytes);
	for (size_t i = 0; i + 3 <= size; i += 3)
		edited[(data[i] | (size_t)data[i + 1] << 8) % body] = data[i + 2];
	crypto_generichash(edited + body, MODEL_DIGEST_BYTES, edited, body, NULL, 0);
	if (mspec_params_parse(model, edited, form_bytes, &p) == 0) {
		code(p);
		mspec_params_free(p);
	}
	free(edited);
	return 0;
}
