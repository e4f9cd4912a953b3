/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_xxh3.cuh - XXH3-64 by a warp, for lengths that are multiples of 1024 bytes: all that the checksum
 * tree of codec.h asks for.  The values are those of the xxHash library (its long-input path with the
 * default secret), which the CPU uses; tests compare the two.
 *
 * XXH3 keeps 8 accumulators and takes 64-byte stripes; within 1024 bytes the 16 stripes only add to them, in
 * any order.  So lane l handles accumulator l & 7 of stripes l >> 3, + 4, + 8, + 12, and three shuffles sum up.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_XXH3_CUH
#define SKVCD_GPU_CODEC_CUDA_XXH3_CUH

#include <stdint.h>

#define XXH3_SECRET_BYTES 192u
#define XXH3_BLOCK_BYTES 1024u /* 16 stripes: one round of the default secret */
#define XXH3_P32_1 0x9E3779B1u
#define XXH3_P32_2 0x85EBCA77u
#define XXH3_P32_3 0xC2B2AE3Du
#define XXH3_P64_1 0x9E3779B185EBCA87ull
#define XXH3_P64_2 0xC2B2AE3D27D4EB4Full
#define XXH3_P64_3 0x165667B19E3779F9ull
#define XXH3_P64_4 0x85EBCA77C2B2AE63ull
#define XXH3_P64_5 0x27D4EB2F165667C5ull

/* The library's default secret; cuda_codec_init() copies it here. */
__constant__ uint8_t xxh3_secret[XXH3_SECRET_BYTES];

/* What a lane needs, in shared memory: registers are dearer.  [field][lane] */
enum xxh3_field {
	XXH3_STRIPE = 0, /* and 1, 2, 3: secret of its four stripes */
	XXH3_LAST = 4,	 /* instead of stripe 3 at the end of the input */
	XXH3_SCRAMBLE = 5,
	XXH3_MERGE = 6,
	XXH3_INIT = 7,
	XXH3_FIELDS = 8
};
#define XXH3_TABLE_BYTES (XXH3_FIELDS * 32u * 8u)

struct xxh3_lane {
	const uint64_t *table; /* shared, this lane's column */
};

__device__ static inline uint64_t xxh3_secret64(uint32_t off)
{
	uint64_t v = 0;

	for (uint32_t i = 0; i < 8; i++)
		v |= (uint64_t)xxh3_secret[off + i] << (8 * i);
	return v;
}

__device__ static inline uint64_t xxh3_init(uint32_t i)
{
	switch (i) {
	case 0:
		return XXH3_P32_3;
	case 1:
		return XXH3_P64_1;
	case 2:
		return XXH3_P64_2;
	case 3:
		return XXH3_P64_3;
	case 4:
		return XXH3_P64_4;
	case 5:
		return XXH3_P32_2;
	case 6:
		return XXH3_P64_5;
	default:
		return XXH3_P32_1;
	}
}

/* One field of the table, by a warp: lanes' bytes come one after another, so others are better filled beside it. */
__device__ static inline void xxh3_table_field(uint64_t *table, uint32_t field, uint32_t lane)
{
	const uint32_t i = lane & 7u, g = lane >> 3, last = XXH3_SECRET_BYTES - 64u;
	const uint32_t off = field < XXH3_LAST	  ? 8u * (g + 4u * field + i)
			     : field == XXH3_LAST ? (g == 3 ? last - 7u : 8u * (g + 12u)) + 8u * i
			     : field == XXH3_SCRAMBLE ? last + 8u * i
						      : 11u + 8u * i;

	table[field * 32u + lane] = field == XXH3_INIT ? xxh3_init(i) : xxh3_secret64(off);
}

/* By the first warp; a barrier must follow before it is read. */
__device__ static inline void xxh3_table_fill(uint64_t *table, uint32_t lane)
{
	for (uint32_t field = 0; field < XXH3_FIELDS; field++)
		xxh3_table_field(table, field, lane);
}

__device__ static inline uint64_t xxh3_shfl(uint64_t v, int mask)
{
	return __shfl_xor_sync(0xffffffffu, (unsigned long long)v, mask);
}

/* What 1024 bytes add to accumulator lane & 7; all four lanes of an accumulator get the sum. */
__device__ static inline uint64_t xxh3_block(const struct xxh3_lane *x, const uint64_t *data,
					     uint32_t lane, bool last)
{
	uint64_t product = 0, sum = 0;

#pragma unroll
	for (uint32_t j = 0; j < 4; j++) {
		uint64_t d = data[lane + 32u * j];
		uint64_t k = d ^ (x->table[(j == 3 && last ? XXH3_LAST : j) * 32u]);

		product += (uint64_t)(uint32_t)k * (uint32_t)(k >> 32);
		sum += d;
	}
	product += xxh3_shfl(sum, 1);
	product += xxh3_shfl(product, 8);
	product += xxh3_shfl(product, 16);
	return product;
}

__device__ static inline uint64_t xxh3_merge(const struct xxh3_lane *x, uint64_t acc,
					     uint64_t bytes)
{
	uint64_t v = acc ^ x->table[XXH3_MERGE * 32u], other = xxh3_shfl(v, 1), h;

	h = (v * other) ^ __umul64hi(v, other);
	h += xxh3_shfl(h, 2);
	h += xxh3_shfl(h, 4);
	h += bytes * XXH3_P64_1;
	h ^= h >> 37;
	h *= 0x165667919E3779F9ull;
	return h ^ h >> 32;
}

/*
 * A leaf as its eight accumulators, number lane & 7 in every lane: 1024 bytes, 8-byte aligned, visible to the whole
 * warp.  The digest is made of them later, for many leaves at once (xxh3_digest).
 */
__device__ static inline uint64_t xxh3_leaf(const struct xxh3_lane *x, const uint64_t *data,
					    uint32_t lane)
{
	return x->table[XXH3_INIT * 32u] + xxh3_block(x, data, lane, true);
}

/* A leaf's digest from its accumulators, by one thread.  table: the block's, not the lane's. */
__device__ static inline uint64_t xxh3_digest(const uint64_t *table, const uint64_t *acc)
{
	uint64_t h = XXH3_BLOCK_BYTES * XXH3_P64_1;

#pragma unroll
	for (uint32_t i = 0; i < 8; i += 2) {
		uint64_t a = acc[i] ^ table[XXH3_MERGE * 32u + i],
			 b = acc[i + 1] ^ table[XXH3_MERGE * 32u + i + 1];

		h += (a * b) ^ __umul64hi(a, b);
	}
	h ^= h >> 37;
	h *= 0x165667919E3779F9ull;
	return h ^ h >> 32;
}

/* blocks * 1024 bytes. */
__device__ static inline uint64_t xxh3_long(const struct xxh3_lane *x, const uint64_t *data,
					    uint32_t blocks, uint32_t lane)
{
	uint64_t acc = x->table[XXH3_INIT * 32u];

	for (uint32_t b = 0; b + 1 < blocks; b++) {
		acc += xxh3_block(x, data + b * 128u, lane, false);
		acc = (acc ^ acc >> 47 ^ x->table[XXH3_SCRAMBLE * 32u]) * XXH3_P32_1;
	}
	acc += xxh3_block(x, data + (blocks - 1u) * 128u, lane, true);
	return xxh3_merge(x, acc, (uint64_t)blocks * XXH3_BLOCK_BYTES);
}

#endif
