/* SPDX-License-Identifier: Apache-2.0 */
/*
 * codec_rig.h - a geometry, blocks that look like KV cache in every element type, and a profile fitted
 * on some of them; for the codec's unit tests and fuzz targets.
 */
#ifndef SKVCD_TESTS_LIB_CODEC_RIG_H
#define SKVCD_TESTS_LIB_CODEC_RIG_H

#include <stddef.h>
#include <stdint.h>

#include "gpu/codec/codec.h"
#include "tests/lib/rng.h"

struct codec_rig {
	struct codec_geometry g;
	struct codec_workspace *ws;    /* owned */
	struct codec_profile *profile; /* owned */
	uint8_t *block;		       /* owned; g.raw_bytes, canonical */
	uint8_t *back;		       /* owned; the same */
	uint8_t *coded;		       /* owned; codec_bound */
	size_t cap;
	struct codec_info info; /* of the last encode */
};

/* Aborts the process on failure: a test has nothing to go on with. */
void codec_rig_init(struct codec_rig *r, uint32_t block_tokens,
		    const struct codec_segment *segments, uint32_t segments_count, uint64_t seed,
		    uint32_t fitted_blocks);
void codec_rig_deinit(struct codec_rig *r);

/* One block: normal values about a mean per channel, spread and mean from the seed; U8 and opaque
 * segments are text-like bytes. */
void codec_rig_fill(const struct codec_geometry *g, uint64_t seed, struct rng *rng, uint8_t *block);

/* x as an element of a type, rounded toward zero (a test's data need not be rounded well). */
uint16_t codec_rig_element(uint8_t dtype, float x);

/* Encode r->block; returns codec_encode's result. */
int codec_rig_encode(struct codec_rig *r, uint8_t speculator, unsigned flags);
/* Decode r->coded into r->back. */
int codec_rig_decode(struct codec_rig *r);

#endif
