/* SPDX-License-Identifier: Apache-2.0 */
/*
 * random_params.h - parameters of the `model` speculator that nobody fitted: for tests that compare two of its
 * implementations, and for measuring speed.
 */
#ifndef SKVCD_TESTS_LIB_RANDOM_PARAMS_H
#define SKVCD_TESTS_LIB_RANDOM_PARAMS_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/codec/model_internal.h"
#include "tests/lib/rng.h"

/* Never NULL.  m is borrowed.  Without tables, which guesses do not need. */
struct mspec_params *random_params_new(struct rng *rng, const struct mspec_model *m, uint32_t dtype,
				       bool ids, struct mspec_precision precision);
/* ... of a draft, with flat tables, so that blocks can be coded. */
struct mspec_params *random_params_new_draft(struct rng *rng, const struct mspec_model *m,
					     struct mspec_shape shape, uint32_t previous,
					     uint32_t dtype, struct mspec_precision precision);

#endif
