/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_code_rig.h - sequences of a tiny model's keys and values in blocks of a size of choice, with the payloads that
 * sequence_encode() makes of them: what another implementation must make, and take.
 */
#ifndef SKVCD_TESTS_LIB_MODEL_CODE_RIG_H
#define SKVCD_TESTS_LIB_MODEL_CODE_RIG_H

#include "gpu/codec/model_profile.h"
#include "gpu/codec/sequence.h"
#include "tests/lib/sequence_rig.h"

#define CODE_RIG_SEQUENCES 4u

struct code_rig_sequence {
	uint32_t blocks;
	int32_t *ids;
	uint8_t **raw; /* of each block: canonical */
	uint8_t **payload;
	size_t *bytes;
	uint64_t *escapes;
};

struct code_rig_shape {
	uint32_t kind;	/* tiny_model.h */
	uint32_t draft; /* 0, or one more than the kind of a draft for it, which wants ids */
	uint8_t dtype;
	bool ids;
	bool wild; /* any pattern now and then, and rows of noise and of zeros */
	uint32_t block_tokens;
	uint32_t streams_count; /* instead of what suits so small a model */
	uint32_t blocks[CODE_RIG_SEQUENCES];
};

struct code_rig {
	struct code_rig_shape shape;
	struct sequence_rig *base; /* the model and its parameters */
	struct codec_geometry g;
	struct codec_profile *profile;
	const struct model_profile *p; /* the profile's, with the model attached */
	struct code_rig_sequence s[CODE_RIG_SEQUENCES];
};

/* Never NULL. */
struct code_rig *code_rig_new(const struct code_rig_shape *shape);
struct code_rig *code_rig_free(struct code_rig *r);
struct codec_sequence *code_rig_sequence(const struct code_rig *r);
/* Of a segment in the model's order, where it lies in a raw block. */
uint64_t code_rig_segment_off(const struct code_rig *r, uint32_t segment);

#endif
