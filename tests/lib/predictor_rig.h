/* SPDX-License-Identifier: Apache-2.0 */
/*
 * predictor_rig.h - what any predictor (gpu/predictor.h) must do, whatever runs its models: blocks of several
 * sequences there and back, byte for byte those of the CPU device; and what becomes of those that are wrong.
 */
#ifndef SKVCD_TESTS_LIB_PREDICTOR_RIG_H
#define SKVCD_TESTS_LIB_PREDICTOR_RIG_H

#include "gpu/device.h"
#include "tests/lib/model_code_rig.h"

#define PREDICTOR_RIG_BLOCKS 12u /* of a sequence, at most */

struct predictor_rig {
	struct code_rig *r;
	struct device *d; /* the predictor; owned */
	size_t cap;
	/* of each sequence's blocks: as codec_encode() makes them */
	uint8_t *coded[CODE_RIG_SEQUENCES][PREDICTOR_RIG_BLOCKS];
	struct codec_info info[CODE_RIG_SEQUENCES][PREDICTOR_RIG_BLOCKS];
	/* one of each, for whoever starts tasks */
	struct device_task task[CODE_RIG_SEQUENCES][PREDICTOR_RIG_BLOCKS];
	struct device_region region[CODE_RIG_SEQUENCES][PREDICTOR_RIG_BLOCKS];
	uint8_t *page[CODE_RIG_SEQUENCES][PREDICTOR_RIG_BLOCKS];
	struct device_sequence *s[CODE_RIG_SEQUENCES];
};

/* A small one, for tests of all but shapes. */
extern const struct code_rig_shape predictor_rig_shape;

/* shape: blocks <= PREDICTOR_RIG_BLOCKS; all model coded, but for block `others` of each sequence (channel). */
struct predictor_rig *predictor_rig_new(const struct code_rig_shape *shape, uint32_t others);
/* Frees the device too. */
struct predictor_rig *predictor_rig_free(struct predictor_rig *p);
/* Frees the device: its thread is gone, and what it had. */
void predictor_rig_unuse(struct predictor_rig *p);
/* The device to be used from now on. */
void predictor_rig_use(struct predictor_rig *p, struct device *d);

/* Start DECODE or ENCODE of a block; wait until so many came back. */
void predictor_rig_decode(struct predictor_rig *p, uint32_t sequence, uint32_t block);
void predictor_rig_encode(struct predictor_rig *p, uint32_t sequence, uint32_t block, void *out);
void predictor_rig_wait(struct predictor_rig *p, unsigned count);
void predictor_rig_sequences(struct predictor_rig *p); /* new ones, of all */
void predictor_rig_drop(struct predictor_rig *p);      /* and away with them */

/* The tests: all there, all back, also in part, also with a block that the model did not code. */
void predictor_rig_check_encode(struct predictor_rig *p);
void predictor_rig_check_decode(struct predictor_rig *p);
void predictor_rig_check_prefix_only(struct predictor_rig *p);
void predictor_rig_check_damage(struct predictor_rig *p);
void predictor_rig_check_refusals(struct predictor_rig *p);

#endif
