/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layer_rig.h - blocks whose layers are noisy linear functions of the layers before them, with turned keys,
 * and a profile whose `layer` part was fitted on some of them; for unit tests and fuzz targets.
 */
#ifndef SKVCD_TESTS_LIB_LAYER_RIG_H
#define SKVCD_TESTS_LIB_LAYER_RIG_H

#include <stdint.h>

#include "gpu/codec/layer_fit.h"

enum layer_rig_turn { LAYER_RIG_STILL, LAYER_RIG_HALF, LAYER_RIG_INTERLEAVED };

struct layer_rig_options {
	uint8_t dtype;
	uint8_t round_bf16; /* sines and cosines */
	enum layer_rig_turn turn;
	double theta;
	float spread;	   /* of a channel about its mean; the means are of magnitude one */
	float noise;	   /* of a layer, beside what it has from the one before; of spread */
	uint32_t previous; /* layers that the profile looks back */
	uint32_t layers, heads, head_dim, block_tokens;
	uint32_t blocks; /* one sequence, from position 0 on */
	uint32_t fitted; /* of these, the first ones; 0: no profile */
	uint64_t seed;
};

struct layer_rig {
	struct codec_geometry g;
	struct codec_workspace *ws;    /* owned */
	struct codec_profile *profile; /* owned */
	uint8_t *blocks;	       /* owned; canonical packing */
	uint32_t *positions;	       /* owned */
	uint8_t *back;		       /* owned; one block */
	uint8_t *coded;		       /* owned; codec_bound */
	size_t cap;
	struct codec_info info; /* of the last encode */
};

/* bf16, three layers of 2 x 16, keys turned by halves: change what matters. */
struct layer_rig_options layer_rig_defaults(void);
/* Aborts the process on failure: a test has nothing to go on with. */
void layer_rig_init(struct layer_rig *r, const struct layer_rig_options *o);
void layer_rig_deinit(struct layer_rig *r);
/* How the rig's keys are turned. */
struct layer_rotary layer_rig_rotary(const struct layer_rig_options *o);
/* The statistics of `channel` on these blocks, and maps over a known rotation: no search for it. */
struct codec_profile *layer_rig_fit(const struct layer_sample *s, const struct layer_rotary *rotary,
				    uint32_t previous);

uint8_t *layer_rig_block(const struct layer_rig *r, uint32_t i);
/* Encode a block, by LAYER unless its profile cannot, as if it began at this position. */
int layer_rig_encode(struct layer_rig *r, const uint8_t *block, uint32_t position, unsigned flags);
/* Guesses of a block's tokens [from, from + tokens), of which the first has this position, from their exact
 * values alone: into mu, [tokens][columns of all segments]. */
void layer_rig_guesses(const struct layer_rig *r, uint32_t from, uint32_t tokens, uint32_t position,
		       const uint8_t *block, int32_t *mu);
/* Decode r->coded into r->back. */
int layer_rig_decode(struct layer_rig *r);

#endif
