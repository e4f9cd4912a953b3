/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequence_rig.h - a tiny model, one sequence of its own keys and values cut into blocks, and profiles fitted on
 * it: for tests of blocks that the `model` speculator codes.
 */
#ifndef SKVCD_TESTS_LIB_SEQUENCE_RIG_H
#define SKVCD_TESTS_LIB_SEQUENCE_RIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"
#include "gpu/codec/model.h"
#include "tests/lib/rng.h"
#include "tests/lib/tiny_model.h"

#define SEQUENCE_RIG_TOKENS 16u /* of a block */
#define SEQUENCE_RIG_BLOCKS 5u
#define SEQUENCE_RIG_ALL (SEQUENCE_RIG_TOKENS * SEQUENCE_RIG_BLOCKS)
#define SEQUENCE_RIG_SEGMENTS 8u /* of the model, at most */

struct sequence_rig {
	struct rng rng;
	struct tiny_model *tiny;    /* whose cache it is */
	struct tiny_model *smaller; /* NULL, or a draft for it */
	struct mspec_model *target; /* of `tiny`; NULL: m is */
	struct mspec_model *m;	    /* that guesses */
	struct mspec_params *params;
	const struct model_config *c; /* of `tiny` */
	double bits;		      /* that the fit promises */
	struct codec_geometry g;
	struct codec_workspace *ws;
	struct codec_profile *channel, *layer; /* without a model part, and with a layer part */
	struct codec_profile *model;	       /* channel, layer, model */
	int32_t ids[SEQUENCE_RIG_ALL];
	uint8_t *block[SEQUENCE_RIG_BLOCKS]; /* raw, canonical */
	uint8_t *coded[SEQUENCE_RIG_BLOCKS]; /* cap bytes each */
	uint8_t *back;
	size_t cap;
	struct codec_info info[SEQUENCE_RIG_BLOCKS];
};

/* Never NULL.  kind: of a tiny model; its last segment is of opaque bytes.  reversed: layers lie in the block from
 * the last to the first, values before keys. */
struct sequence_rig *sequence_rig_new(uint32_t kind, uint8_t dtype, bool ids, bool reversed);
/* One whose blocks are all of the model: no opaque bytes. */
struct sequence_rig *sequence_rig_plain(uint32_t kind, uint8_t dtype, bool ids);
/* One of which another kind of tiny model is the draft. */
struct sequence_rig *sequence_rig_draft(uint32_t kind, uint32_t draft_kind, uint8_t dtype);
struct sequence_rig *sequence_rig_free(struct sequence_rig *r);

/* Block b after s, which may be NULL; into coded[b] and info[b]. */
int sequence_rig_encode(struct sequence_rig *r, const struct codec_profile *p, uint8_t speculator,
			unsigned flags, struct codec_sequence *s, uint32_t b);
/* coded[b] into back. */
int sequence_rig_decode(struct sequence_rig *r, const struct codec_profile *p,
			struct codec_sequence *s, uint32_t b);
/* The same profile after its way through bytes; m NULL: without its model.  Aborts on failure. */
struct codec_profile *sequence_rig_again(const struct sequence_rig *r,
					 const struct codec_profile *p,
					 const struct mspec_model *m);
/* A new one; aborts on failure. */
struct codec_sequence *sequence_rig_sequence(const struct sequence_rig *r,
					     const struct codec_profile *p);

#endif
