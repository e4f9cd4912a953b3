/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuda_error.c - the one place where errors of CUDA become errors of ours.  The driver's CUresult has the
 * numbers of the runtime's cudaError_t wherever both have a name for it, so this serves both.
 */
#include "gpu/cuda_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include <cuda_runtime_api.h>

int gpu_errno(int cuda_error)
{
	switch (cuda_error) { /* flat switch */
	case cudaSuccess:
		return 0;
	case cudaErrorNotReady:
		return -EAGAIN;
	case cudaErrorMemoryAllocation:
	case cudaErrorLaunchOutOfResources:
		return -ENOMEM;
	case cudaErrorNoDevice:
	case cudaErrorInvalidDevice:
	case cudaErrorDevicesUnavailable:
	case cudaErrorInsufficientDriver:
	case cudaErrorStubLibrary:
	case cudaErrorSystemNotReady:
		return -ENODEV;
	case cudaErrorInvalidValue:
	case cudaErrorInvalidConfiguration:
	case cudaErrorInvalidDevicePointer:
	case cudaErrorInvalidHostPointer:
	case cudaErrorInvalidMemcpyDirection:
	case cudaErrorInvalidResourceHandle:
	case cudaErrorInvalidSymbol:
	case cudaErrorMapBufferObjectFailed:
	case cudaErrorHostMemoryNotRegistered:
		return -EINVAL;
	case cudaErrorNotSupported:
	case cudaErrorNoKernelImageForDevice:
	case cudaErrorInvalidDeviceFunction:
	case cudaErrorUnsupportedPtxVersion:
	case cudaErrorCallRequiresNewerDriver:
	case cudaErrorPeerAccessUnsupported:
		return -EOPNOTSUPP;
	case cudaErrorNotPermitted:
		return -EPERM;
	case cudaErrorHostMemoryAlreadyRegistered:
		return -EEXIST;
	default:
		return -EIO;
	}
}

bool gpu_error_sticky(int cuda_error)
{
	switch (cuda_error) { /* flat switch */
	case cudaErrorCudartUnloading:
	case cudaErrorDevicesUnavailable:
	case cudaErrorECCUncorrectable:
	case cudaErrorNvlinkUncorrectable:
	case cudaErrorContained:
	case cudaErrorIllegalAddress:
	case cudaErrorLaunchTimeout:
	case cudaErrorContextIsDestroyed:
	case cudaErrorAssert:
	case cudaErrorHardwareStackError:
	case cudaErrorIllegalInstruction:
	case cudaErrorMisalignedAddress:
	case cudaErrorInvalidAddressSpace:
	case cudaErrorInvalidPc:
	case cudaErrorLaunchFailure:
	case cudaErrorTensorMemoryLeak:
	case cudaErrorMpsRpcFailure:
	case cudaErrorMpsClientTerminated:
	case cudaErrorExternalDevice:
		return true;
	default:
		return false;
	}
}

bool gpu_error_absent(int cuda_error)
{
	return cuda_error == cudaErrorNoDevice || cuda_error == cudaErrorInsufficientDriver ||
	       cuda_error == cudaErrorStubLibrary || cuda_error == cudaErrorSystemNotReady;
}

const char *gpu_error_name(int cuda_error)
{
	return cudaGetErrorName((cudaError_t)cuda_error);
}

int gpu_say(char *err, int res, const char *format, ...)
{
	va_list ap;

	if (!err)
		return res;
	va_start(ap, format);
	(void)vsnprintf(err, DEVICE_ERR_BYTES, format, ap);
	va_end(ap);
	return res;
}
