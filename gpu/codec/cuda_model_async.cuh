/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_model_async.cuh - pieces on their way to shared memory, and what tells the tensor cores where they lie.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_MODEL_ASYNC_CUH
#define SKVCD_GPU_CODEC_CUDA_MODEL_ASYNC_CUH

#include "gpu/codec/cuda_model.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ static void mbar_init(uint32_t at, uint32_t count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at), "r"(count) : "memory");
}

__device__ __forceinline__ static void mbar_arrive(uint32_t at)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at) : "memory");
}

__device__ __forceinline__ static void mbar_expect(uint32_t at, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(at), "r"(bytes)
		     : "memory");
}

__device__ __forceinline__ static void mbar_wait(uint32_t at, uint32_t parity)
{
	uint32_t done = 0;

	while (!done)
		asm volatile("{\n.reg .pred p;\n"
			     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
			     "selp.u32 %0, 1, 0, p;\n}"
			     : "=r"(done)
			     : "r"(at), "r"(parity)
			     : "memory");
}

__device__ __forceinline__ static void mpiece_fetch(uint32_t to, const uint8_t *from,
						    uint32_t barrier)
{
	asm volatile(
		"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
		"%2, [%3];" ::"r"(to),
		"l"(__cvta_generic_to_global(from)), "r"(MPIECE_BYTES), "r"(barrier)
		: "memory");
}

/* 128-byte rows, swizzled, eight of them (1024 bytes) after another. */
__device__ __forceinline__ static uint64_t mpiece_descriptor(uint32_t at)
{
	return (uint64_t)(at >> 4 & 0x3fffu) | (uint64_t)1 << 16 | (uint64_t)(1024u >> 4) << 32 |
	       (uint64_t)1 << 62;
}

#endif

#endif
