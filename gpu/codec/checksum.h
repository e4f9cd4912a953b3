/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checksum.h - XXH3-64 over a block, piece by piece.  xxHash is compiled into each kernel file, since
 * the packaged library is built for the oldest processors: 10 GB/s where AVX2 does 35.  The value is
 * the same, and so is the state, which kernels of different files may share.
 */
#ifndef SKVCD_GPU_CODEC_CHECKSUM_H
#define SKVCD_GPU_CODEC_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

struct checksum {
	XXH3_state_t state; /* aligned to 64 by its type */
};

static inline void checksum_start(struct checksum *c)
{
	(void)XXH3_64bits_reset(&c->state);
}

static inline void checksum_update(struct checksum *c, const void *buf, size_t bytes)
{
	(void)XXH3_64bits_update(&c->state, buf, bytes);
}

static inline uint64_t checksum_end(const struct checksum *c)
{
	return XXH3_64bits_digest(&c->state);
}

#endif
