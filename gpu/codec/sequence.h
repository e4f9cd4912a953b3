/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequence.h - blocks of one sequence through the `model` speculator, as codec's own files see it.
 *
 * Payload of a block, little endian:
 *
 *   0   4  low half of the XXH3-64 (seed 0) of all that follows: tells corrupt bytes, which are not worth running a
 *          model for, from sound ones that the guesses here do not suit
 *   4   4  tokens of the sequence before this block
 *   8   4  digest of all guesses (model.c)
 *  12   2  streams
 *  14   1  flags: 1, token ids follow
 *  15   1  reserved
 *      ..  token ids, if so: of each the bits that the vocabulary's largest takes, the first in the low bits of the
 *          first byte; zeros to a multiple of 8 bytes
 *      ..  the streams (residual_code.h): K of layer 0, V of layer 0, K of layer 1, ...
 */
#ifndef SKVCD_GPU_CODEC_SEQUENCE_H
#define SKVCD_GPU_CODEC_SEQUENCE_H

#include "gpu/codec/internal.h"

/* Same geometry; and for MODEL, the same profile. */
bool sequence_of_geometry(const struct codec_sequence *s, const struct codec_geometry *g);
bool sequence_of_profile(const struct codec_sequence *s, const struct codec_profile *p);
/* Is there room for a block more? */
bool sequence_has_room(const struct codec_sequence *s);

/*
 * raw, here and below: canonical packing of a whole block.  tokens: its ids, NULL when they are not known.  -ENODATA: a
 * draft goes by ids, and there are none, or none of its vocabulary; -ENOMEM, -E2BIG.
 */
int sequence_append_raw(struct codec_sequence *s, const uint8_t *raw, const int32_t *tokens);

/*
 * Code the predicted segments of the next block and append it.  tokens: may be NULL when the parameters do not want
 * them.  -EINVAL: an id that is not in the vocabulary; -ENOMEM; -ENOSPC.  *escapes and *bits are set.
 */
int sequence_encode(struct codec_sequence *s, const uint8_t *raw, const int32_t *tokens,
		    uint8_t *out, size_t cap, size_t *ret_bytes, uint64_t *escapes, double *bits);
/*
 * Decode them into raw and append.  -EBADMSG: not what an encoder wrote; -ESTALE: something that one wrote after
 * another prefix, *refusal says more; -ENOMEM.
 */
int sequence_decode(struct codec_sequence *s, const uint8_t *in, size_t in_bytes, uint8_t *raw,
		    uint8_t *refusal);

#endif
