# SPDX-License-Identifier: Apache-2.0
"""What another process needs to know to reach GPU memory and events of this one.

Asks the CUDA driver (libcuda.so.1) through ctypes: no private function of torch is needed, and the
pointer may come from anybody.  Only memory of cudaMalloc can be exported so: that of torch's
default allocator.
"""
from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

from . import _abi
from .layout import Stride, View, check_range

_HANDLE_BYTES = 64
# CUpointer_attribute of cuda.h
_DEVICE_ORDINAL = 9
_IS_LEGACY_IPC_CAPABLE = 10

_Handle = ctypes.c_uint8 * _HANDLE_BYTES  # CUipcMemHandle
_Uuid = ctypes.c_uint8 * 16

_PROTOTYPES = {
    "cuInit": (ctypes.c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuMemGetAddressRange_v2": (POINTER(c_uint64), POINTER(c_size_t), c_uint64),
    "cuIpcGetMemHandle": (POINTER(_Handle), c_uint64),
}


class CudaError(RuntimeError):
    """The CUDA driver is not there, or refused."""


@dataclass(frozen=True)
class GpuMemory:
    """An allocation of the GPU, exported (struct skvc_gpu_export)."""
    device_uuid: bytes
    allocation_bytes: int
    ipc_handle: bytes = b""  # cudaIpcMemHandle_t, or
    fd: int = -1  # of a POSIX export (VMM); borrowed for the call
    offset: int = 0  # added to the strides' offsets
    address: int = 0  # of the allocation here; not sent

    def __post_init__(self) -> None:
        check_range("length of device_uuid", len(self.device_uuid), 16, 16)
        if self.ipc_handle:
            check_range("length of ipc_handle", len(self.ipc_handle), _HANDLE_BYTES, _HANDLE_BYTES)
        check_range("allocation_bytes", self.allocation_bytes, 0, (1 << 64) - 1)
        check_range("offset", self.offset, 0, (1 << 64) - 1)

    @property
    def type(self) -> int:
        return _abi.GPU_IPC_HANDLE if self.ipc_handle else _abi.GPU_POSIX_FD


_driver: Optional[ctypes.CDLL] = None


def _cuda() -> ctypes.CDLL:
    global _driver
    if _driver is None:
        try:
            lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(f"no CUDA driver: {error}") from None
        for name, arguments in _PROTOTYPES.items():
            function = getattr(lib, name)
            function.restype = c_int
            function.argtypes = arguments
        # The newer of the two tells MIG instances apart; it came with CUDA 11.4.
        uuid = getattr(lib, "cuDeviceGetUuid_v2", None) or lib.cuDeviceGetUuid
        uuid.restype = c_int
        uuid.argtypes = (POINTER(_Uuid), c_int)
        setattr(lib, "skvc_device_uuid", uuid)
        _check(lib, "cuInit", lib.cuInit(0))
        _driver = lib
    return _driver


def _check(lib: ctypes.CDLL, call: str, result: int, hint: str = "") -> None:
    if result:
        name = c_char_p()
        lib.cuGetErrorName(result, byref(name))
        what = name.value.decode() if name.value else "unknown error"
        raise CudaError(f"{call}: {what} ({result}){hint}")


def _attribute(lib: ctypes.CDLL, which: int, address: int) -> int:
    value = c_int()
    _check(lib, "cuPointerGetAttribute",
           lib.cuPointerGetAttribute(byref(value), which, address),
           f"; is 0x{address:x} GPU memory, and CUDA in use on this thread?")
    return value.value


class _PrimaryContext:
    """The context that the CUDA run-time and torch use, current on this thread for a while."""

    def __init__(self, lib: ctypes.CDLL, ordinal: int):
        self._lib = lib
        self.device = c_int()
        _check(lib, "cuDeviceGet", lib.cuDeviceGet(byref(self.device), ordinal))

    def __enter__(self) -> "_PrimaryContext":
        context = c_void_p()
        _check(self._lib, "cuDevicePrimaryCtxRetain",
               self._lib.cuDevicePrimaryCtxRetain(byref(context), self.device))
        result = self._lib.cuCtxPushCurrent_v2(context)
        if result:
            self._lib.cuDevicePrimaryCtxRelease_v2(self.device)
            _check(self._lib, "cuCtxPushCurrent", result)
        return self

    def __exit__(self, *_: Any) -> None:
        self._lib.cuCtxPopCurrent_v2(byref(c_void_p()))
        self._lib.cuDevicePrimaryCtxRelease_v2(self.device)


def _uuid_of(lib: ctypes.CDLL, device: c_int) -> bytes:
    uuid = _Uuid()
    _check(lib, "cuDeviceGetUuid", lib.skvc_device_uuid(byref(uuid), device))
    return bytes(uuid)


def export_cuda_pointer(address: int, device: Optional[int] = None) -> GpuMemory:
    """The allocation that this pointer lies in.  `device`: the ordinal of its GPU in this process,
    when known (torch: tensor.device.index).  The handle names the whole allocation: with torch's
    caching allocator that is more than the tensor."""
    lib = _cuda()
    if device is None:
        device = _attribute(lib, _DEVICE_ORDINAL, address)
    with _PrimaryContext(lib, device) as context:
        base, size, handle = c_uint64(), c_size_t(), _Handle()
        _check(lib, "cuMemGetAddressRange",
               lib.cuMemGetAddressRange_v2(byref(base), byref(size), address))
        hint = ""
        result = lib.cuIpcGetMemHandle(byref(handle), address)
        if result and not _attribute(lib, _IS_LEGACY_IPC_CAPABLE, address):
            hint = ("; this memory is not of cudaMalloc: run torch without expandable_segments and"
                    " without the cudaMallocAsync backend (PYTORCH_CUDA_ALLOC_CONF)")
        _check(lib, "cuIpcGetMemHandle", result, hint)
        return GpuMemory(_uuid_of(lib, context.device), size.value, ipc_handle=bytes(handle),
                         address=base.value)


def export_torch_storage(tensor: Any) -> GpuMemory:
    """The same by torch's own sharing, for where libcuda cannot be asked about the pointer.

    Prefer export_cuda_pointer(): this one uses a private function whose result changed over
    versions, and torch keeps the storage alive for a receiver that never reports back.
    """
    storage = tensor.untyped_storage()
    ordinal, handle, storage_bytes, storage_offset = storage._share_cuda_()[:4]
    # Since 2.5: a version byte, then the type: 'c' for cudaMalloc, 'e' for expandable segments.
    if len(handle) == _HANDLE_BYTES + 2 and handle[1:2] in (b"c", b"\0"):
        handle = handle[2:]
    if len(handle) != _HANDLE_BYTES:
        raise CudaError(f"torch shares this storage with a handle of {len(handle)} bytes that is"
                        " not of cudaMalloc (expandable segments?)")
    lib = _cuda()
    with _PrimaryContext(lib, ordinal) as context:
        # torch tells no size of the allocation; up to the storage's end it is there for certain.
        return GpuMemory(_uuid_of(lib, context.device), storage_offset + storage_bytes,
                         ipc_handle=bytes(handle), address=storage.data_ptr() - storage_offset)


def export_event(event: Any) -> bytes:
    """cudaIpcEventHandle_t of a torch.cuda.Event(interprocess=True), or the 64 bytes themselves."""
    handle = bytes(event if isinstance(event, (bytes, bytearray)) else event.ipc_handle())
    if len(handle) != _HANDLE_BYTES:
        raise ValueError(f"an event's handle has {_HANDLE_BYTES} bytes, not {len(handle)}")
    return handle


def export_views(views: Sequence[View]) -> Tuple[List[GpuMemory], List[Stride]]:
    """Each allocation that the views lie in, once, and each view's stride in its allocation."""
    memories: List[GpuMemory] = []
    strides = []
    for view in views:
        for index, memory in enumerate(memories):
            if memory.address <= view.address < memory.address + memory.allocation_bytes:
                break
        else:
            index = len(memories)
            device = getattr(getattr(view.owner, "device", None), "index", None)
            memories.append(export_cuda_pointer(view.address, device))
        strides.append(view.stride(memories[index].address, index))
    return memories, strides
