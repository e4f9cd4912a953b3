/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_xxh3_any.cuh - XXH3-64 (seed 0, the default secret) of any length but below 9 bytes, by a thread block: the
 * checksum of a payload.  Sums of 1024-byte blocks are made by all warps; the chain that ties them together is eight
 * threads' work.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_XXH3_ANY_CUH
#define SKVCD_GPU_CODEC_CUDA_XXH3_ANY_CUH

#include "gpu/codec/cuda_xxh3.cuh"

#define XXH3_ANY_BYTES_MIN 9u
#define XXH3_ANY_WARPS 16u
#define XXH3_ANY_BLOCKS 64u /* between two turns of the chain */

struct xxh3_any_shared {
	uint64_t sum[XXH3_ANY_BLOCKS][8];
	uint64_t result;
};

__device__ static inline uint64_t xxh3_read64(const uint8_t *p)
{
	uint64_t v = 0;

	for (uint32_t i = 0; i < 8; i++)
		v |= (uint64_t)p[i] << 8u * i;
	return v;
}

/* p: 4-byte aligned. */
__device__ static inline uint64_t xxh3_read64_words(const uint8_t *p)
{
	const uint32_t *w = (const uint32_t *)p;

	return w[0] | (uint64_t)w[1] << 32;
}

__device__ static inline uint64_t xxh3_fold(uint64_t a, uint64_t b)
{
	return (a * b) ^ __umul64hi(a, b);
}

__device__ static inline uint64_t xxh3_avalanche(uint64_t h)
{
	h ^= h >> 37;
	h *= 0x165667919E3779F9ull;
	return h ^ h >> 32;
}

__device__ static inline uint64_t xxh3_mix16(const uint8_t *p, uint32_t secret)
{
	return xxh3_fold(xxh3_read64(p) ^ xxh3_secret64(secret),
			 xxh3_read64(p + 8) ^ xxh3_secret64(secret + 8u));
}

/* 9 to 240 bytes, by one thread. */
__device__ static __noinline__ uint64_t xxh3_short(const uint8_t *in, uint32_t bytes)
{
	uint64_t h = bytes * XXH3_P64_1;

	if (bytes <= 16u) {
		const uint64_t a = xxh3_read64(in) ^ xxh3_secret64(24) ^ xxh3_secret64(32),
			       b = xxh3_read64(in + bytes - 8u) ^ xxh3_secret64(40) ^
				   xxh3_secret64(48);
		uint64_t swapped = 0;

		for (uint32_t i = 0; i < 8; i++)
			swapped |= (a >> 8u * i & 0xffu) << (56u - 8u * i);
		return xxh3_avalanche(bytes + swapped + b + xxh3_fold(a, b));
	}
	if (bytes <= 128u) {
		for (uint32_t i = (bytes - 1u) / 32u + 1u; i-- > 0;) {
			h += xxh3_mix16(in + 16u * i, 32u * i);
			h += xxh3_mix16(in + bytes - 16u * (i + 1u), 32u * i + 16u);
		}
		return xxh3_avalanche(h);
	}
	for (uint32_t i = 0; i < 8; i++)
		h += xxh3_mix16(in + 16u * i, 16u * i);
	h = xxh3_avalanche(h);
	for (uint32_t i = 8; i < bytes / 16u; i++)
		h += xxh3_mix16(in + 16u * i, 16u * (i - 8u) + 3u);
	h += xxh3_mix16(in + bytes - 16u, 136u - 17u);
	return xxh3_avalanche(h);
}

/* What the lanes' stripes add to accumulator lane & 7. */
__device__ static inline uint64_t xxh3_lanes(uint64_t product, uint64_t sum)
{
	product += xxh3_shfl(sum, 1);
	product += xxh3_shfl(product, 8);
	product += xxh3_shfl(product, 16);
	return product;
}

__device__ static inline uint64_t xxh3_product(uint64_t k)
{
	return (uint64_t)(uint32_t)k * (uint32_t)(k >> 32);
}

/* The stripes behind the last whole block, and the end: the digest in lane 0.  By one warp. */
__device__ static inline uint64_t xxh3_long_end(const uint8_t *in, uint32_t bytes, uint64_t acc,
						uint64_t *accs, uint32_t lane)
{
	const uint32_t at = (bytes - 1u) / XXH3_BLOCK_BYTES * XXH3_BLOCK_BYTES;
	const uint32_t stripes = (bytes - 1u - at) / 64u, i = lane & 7u;
	uint64_t product = 0, sum = 0, h = bytes * XXH3_P64_1;

	for (uint32_t s = lane >> 3; s < stripes; s += 4u) {
		const uint64_t d = xxh3_read64_words(in + at + 64u * s + 8u * i);

		product += xxh3_product(d ^ xxh3_secret64(8u * s + 8u * i));
		sum += d;
	}
	if (lane < 8u) {
		const uint64_t d = xxh3_read64(in + bytes - 64u + 8u * i);

		product += xxh3_product(d ^ xxh3_secret64(XXH3_SECRET_BYTES - 64u - 7u + 8u * i));
		sum += d;
	}
	acc += xxh3_lanes(product, sum);
	if (lane < 8u)
		accs[lane] = acc ^ xxh3_secret64(11u + 8u * i);
	__syncwarp();
	for (uint32_t k = 0; k < 8; k += 2)
		h += xxh3_fold(accs[k], accs[k + 1]);
	return xxh3_avalanche(h);
}

/* More than 240 bytes.  in: 4-byte aligned. */
__device__ static uint64_t xxh3_any_long(const uint8_t *in, uint32_t bytes,
					 struct xxh3_any_shared *sh)
{
	const uint32_t blocks = (bytes - 1u) / XXH3_BLOCK_BYTES;
	const uint32_t lane = threadIdx.x % 32u, warp = threadIdx.x / 32u, i = lane & 7u;
	const uint64_t scramble = xxh3_secret64(XXH3_SECRET_BYTES - 64u + 8u * i);
	uint64_t key[4], acc = xxh3_init(i);

	for (uint32_t j = 0; j < 4; j++)
		key[j] = xxh3_secret64(8u * ((lane >> 3) + 4u * j) + 8u * i);
	for (uint32_t first = 0; first < blocks; first += XXH3_ANY_BLOCKS) {
		const uint32_t count = min(XXH3_ANY_BLOCKS, blocks - first);

		for (uint32_t b = warp; b < count; b += XXH3_ANY_WARPS) {
			const uint8_t *from = in + (uint64_t)(first + b) * XXH3_BLOCK_BYTES;
			uint64_t product = 0, sum = 0;

#pragma unroll
			for (uint32_t j = 0; j < 4; j++) {
				const uint64_t d = xxh3_read64_words(from + 8u * (lane + 32u * j));

				product += xxh3_product(d ^ key[j]);
				sum += d;
			}
			product = xxh3_lanes(product, sum);
			if (lane < 8u)
				sh->sum[b][lane] = product;
		}
		__syncthreads();
		for (uint32_t b = 0; threadIdx.x < 8u && b < count; b++) {
			acc += sh->sum[b][threadIdx.x];
			acc = (acc ^ acc >> 47 ^ scramble) * XXH3_P32_1;
		}
		__syncthreads();
	}
	if (warp == 0) {
		const uint64_t h = xxh3_long_end(in, bytes, acc, sh->sum[0], lane);

		if (lane == 0)
			sh->result = h;
	}
	__syncthreads();
	return sh->result;
}

/*
 * By XXH3_ANY_WARPS warps, all of which get it.  in: 4-byte aligned; bytes: XXH3_ANY_BYTES_MIN or more.  A barrier must
 * be between this and another use of sh.
 */
__device__ static inline uint64_t xxh3_any(const uint8_t *in, uint32_t bytes,
					   struct xxh3_any_shared *sh)
{
	if (bytes > 240u)
		return xxh3_any_long(in, bytes, sh);
	if (threadIdx.x == 0)
		sh->result = xxh3_short(in, bytes);
	__syncthreads();
	return sh->result;
}

#endif
