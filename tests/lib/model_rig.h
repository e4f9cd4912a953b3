/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_rig.h - a tiny model, one sequence of its vocabulary and a cache of any values with it, and blocks of that
 * there and back through the `model` speculator in either mode.  For cmocka tests: what fails, fails the test.
 */
#ifndef SKVCD_TESTS_LIB_MODEL_RIG_H
#define SKVCD_TESTS_LIB_MODEL_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/codec/model_internal.h"
#include "tests/lib/rng.h"
#include "tests/lib/tiny_model.h"
#include "tools/model_threads.h"

#define MODEL_RIG_TOKENS 48u
#define MODEL_RIG_SEGMENTS_MAX 8u

struct model_rig {
	struct rng rng;
	struct tiny_model *tiny;
	struct mspec_model *m;
	struct mspec_params *p; /* the test's, or NULL; model_rig_free() frees it */
	struct mspec_shape shape;
	uint32_t dtype, segments;
	size_t row_bytes;
	int32_t ids[MODEL_RIG_TOKENS];
	uint8_t *values[MODEL_RIG_SEGMENTS_MAX], *back[MODEL_RIG_SEGMENTS_MAX];
	uint8_t *coded;
};

/* cache: of a draft; NULL: the model's own.  Values are wild. */
struct model_rig *model_rig_new(uint64_t seed, uint32_t kind, uint32_t dtype,
				const struct mspec_shape *cache);
void model_rig_free(struct model_rig *r);
/* Values near 1, so that something can be learnt; wild: now and then any pattern at all, infinities, NaN. */
void model_rig_fill(struct model_rig *r, bool wild);
/* Every element of the cache the same. */
void model_rig_fill_with(struct model_rig *r, uint32_t pattern);
/* On all of it, and some of it again as a second sequence. */
struct mspec_params *model_rig_fit(const struct model_rig *r, const struct mspec_fit_options *o);

/* `count` tokens behind those of the context, to r->coded; the bytes. */
size_t model_rig_encode(struct model_rig *r, struct mspec_coder *w, struct mspec_context *c,
			uint32_t count, struct mspec_result *ret);
/*
 * All tokens but the first `known` in blocks of `block` (0: random ones) there and back.  Contexts learn the known ones
 * without coding: a copy from the values, a draft from the ids.  Returns the guesses' digest.
 */
uint32_t model_rig_round_trip(struct model_rig *r, const struct mspec_params *p, uint32_t block,
			      uint32_t known, const struct mspec_runner *runner);
/* The same guesses, however the sequence is cut. */
void model_rig_cut_anywhere(struct model_rig *r);
/* What is known is as good as what was coded. */
void model_rig_known_prefix(struct model_rig *r);

/* Of these threads: for mspec_runner.run, its self. */
void model_rig_run_threads(void *self, uint32_t items, void (*fn)(void *, uint32_t, uint32_t),
			   void *context);

#endif
