/* SPDX-License-Identifier: Apache-2.0 */
/*
 * guess_rig.h - sequences of random token ids and values, and what the CPU's stages guess of them, all rows at once:
 * what another implementation of the `model` speculator's pass must guess.
 */
#ifndef SKVCD_TESTS_LIB_GUESS_RIG_H
#define SKVCD_TESTS_LIB_GUESS_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/codec/model_internal.h"
#include "tests/lib/rng.h"

struct guess_sequence {
	uint32_t count;
	int32_t *ids;
	uint8_t **patterns; /* of each segment */
	int32_t **mu;	    /* the CPU's; NULL before guess_sequence_run() */
	uint32_t digest;
};

/* Values about as large as keys are, and with `wild` now and then any pattern at all. */
void guess_sequence_init(struct guess_sequence *s, struct rng *rng, const struct mspec_params *p,
			 uint32_t count, bool wild);
void guess_sequence_run(struct guess_sequence *s, const struct mspec_params *p,
			const struct mspec_runner *runner);
void guess_sequence_deinit(struct guess_sequence *s, const struct mspec_params *p);

#endif
