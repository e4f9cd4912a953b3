/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_layer_launch.cuh - how kernels of `layer` are launched.
 */
#ifndef SKVCD_GPU_CODEC_CUDA_LAYER_LAUNCH_CUH
#define SKVCD_GPU_CODEC_CUDA_LAYER_LAUNCH_CUH

#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

/*
 * The kernels between gemm and gemm are launched while the one before still runs, so that their tables are loaded and
 * their blocks are there when it ends.  Each waits for the end of all before it touches what they wrote.
 */
template <typename... Params, typename... Args>
static cudaError_t launch_early(void (*kernel)(Params...), dim3 grid, uint32_t threads,
				uint32_t bytes, cudaStream_t stream, Args... args)
{
	cudaLaunchAttribute early;
	cudaLaunchConfig_t config;

	memset(&config, 0, sizeof(config));
	memset(&early, 0, sizeof(early));
	early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
	early.val.programmaticStreamSerializationAllowed = 1;
	config.gridDim = grid;
	config.blockDim = dim3(threads);
	config.dynamicSmemBytes = bytes;
	config.stream = stream;
	config.attrs = &early;
	config.numAttrs = 1;
	return cudaLaunchKernelEx(&config, kernel, args...);
}

/* So much shared memory, and the multiprocessor set for more, so that different kernels may meet there. */
static cudaError_t shared_allow(const void *kernel, uint32_t bytes)
{
	const cudaError_t e = cudaFuncSetAttribute(
		kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);

	return e != cudaSuccess
		       ? e
		       : cudaFuncSetAttribute(kernel,
					      cudaFuncAttributePreferredSharedMemoryCarveout,
					      (int)cudaSharedmemCarveoutMaxShared);
}

static uint32_t sms_count(void)
{
	int device = 0, sms = 1;

	(void)cudaGetDevice(&device);
	(void)cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
	return (uint32_t)sms;
}

/* Thread blocks for so many items, `each` in one, but no more than `most` to a multiprocessor. */
static uint32_t blocks_of(uint32_t items, uint32_t each, uint32_t most)
{
	const uint32_t blocks = (items + each - 1u) / each;

	return blocks < most * sms_count() ? blocks : most * sms_count();
}

#endif
