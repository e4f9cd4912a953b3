/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_hopper.cuh - what `layer` and `model` use of Hopper: bulk copies into shared memory, barriers that count their
 * bytes, and int8 products by warp groups.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_HOPPER_CUH
#define SKVCD_GPU_CODEC_CUDA_HOPPER_CUH

#include <stdint.h>

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

__device__ __forceinline__ static void bulk_fetch(uint32_t to, const uint8_t *from, uint32_t bytes,
						  uint32_t barrier)
{
	asm volatile(
		"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], "
		"%2, [%3];" ::"r"(to),
		"l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
		: "memory");
}

/* 128-byte rows, swizzled, eight of them (1024 bytes) after another. */
__device__ __forceinline__ static uint64_t tile_descriptor(uint32_t at)
{
	return (uint64_t)(at >> 4 & 0x3fffu) | (uint64_t)1 << 16 | (uint64_t)(1024u >> 4) << 32 |
	       (uint64_t)1 << 62;
}

/* Adds the products of 64 rows and 128 columns over 32 bytes of depth; a thread has 64 of the sums. */
__device__ __forceinline__ static void multiply_64x128(int32_t (&d)[64], uint64_t a, uint64_t b)
{
	asm volatile(
		"wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 "
		"{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
		"%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
		"%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
		"%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, 1;"
		: "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]),
		  "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
		  "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]),
		  "+r"(d[18]), "+r"(d[19]), "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
		  "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]), "+r"(d[28]), "+r"(d[29]),
		  "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]), "+r"(d[35]),
		  "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]),
		  "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]),
		  "+r"(d[48]), "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]),
		  "+r"(d[54]), "+r"(d[55]), "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]),
		  "+r"(d[60]), "+r"(d[61]), "+r"(d[62]), "+r"(d[63])
		: "l"(a), "l"(b));
}

#endif

#endif
