# SPDX-License-Identifier: Apache-2.0
"""skvc.h in ctypes: its structs, its constants, and the library with the types of its calls.

Nothing here is meant for users.  tests/e2e/test_python compares every size and offset with the
header's.
"""
import ctypes
import os
from ctypes import (CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_int32, c_size_t, c_uint,
                    c_uint8, c_uint16, c_uint32, c_uint64, c_void_p)
from typing import Optional

KEY_BYTES = 32
KEY_BYTES_MIN = 16
WAIT_FOREVER = (1 << 64) - 1
GPU_IPC_HANDLE = 1
GPU_POSIX_FD = 2

LogFunction = CFUNCTYPE(None, c_void_p, c_char_p)


class Key(Structure):
    _fields_ = [("bytes", c_uint8 * KEY_BYTES), ("group", c_uint32), ("len", c_uint8),
                ("reserved", c_uint8 * 3)]


class Segment(Structure):
    _fields_ = [("kind", c_uint8), ("dtype", c_uint8), ("layer", c_uint16), ("heads", c_uint16),
                ("head_dim", c_uint16)]


class Geometry(Structure):
    _fields_ = [("model", c_char_p), ("salt", c_char_p), ("salt_bytes", c_size_t),
                ("block_tokens", c_uint32), ("segments_count", c_uint32),
                ("segments", POINTER(Segment))]


class Stride(Structure):
    _fields_ = [("off", c_uint64), ("block_stride", c_uint64), ("token_stride", c_uint64),
                ("head_stride", c_uint64)]


class Options(Structure):
    _fields_ = [("role", c_uint32), ("sq_entries", c_uint32), ("args_bytes", c_uint64),
                ("connect_timeout_ns", c_uint64), ("spin_ns", c_uint64), ("name", c_char_p),
                ("log", LogFunction), ("log_user", c_void_p), ("timeout_ns", c_uint64)]


class GpuExport(Structure):
    _fields_ = [("type", c_uint32), ("fd", c_int), ("ipc_handle", c_uint8 * 64),
                ("device_uuid", c_uint8 * 16), ("allocation_bytes", c_uint64),
                ("offset", c_uint64)]


class GpuStride(Structure):
    _fields_ = [("memory", c_uint32), ("reserved", c_uint32), ("off", c_uint64),
                ("block_stride", c_uint64), ("token_stride", c_uint64), ("head_stride", c_uint64)]


class Lookup(Structure):
    _fields_ = [("ns", c_uint32), ("count", c_uint32), ("keys", POINTER(Key)),
                ("parent", POINTER(Key)), ("tokens", POINTER(c_uint32)),
                ("lease_ttl_ns", c_uint64)]


class Load(Structure):
    _fields_ = [("lease", c_uint64), ("region", c_uint32), ("first", c_uint32),
                ("count", c_uint32), ("blocks", POINTER(c_uint32)), ("skip_tokens", c_uint32),
                ("ready_event", c_uint32), ("done_event", c_uint32),
                ("ret_bitmap", POINTER(c_uint64)), ("ret_segments_ready", POINTER(c_uint32))]


class Store(Structure):
    _fields_ = [("ns", c_uint32), ("region", c_uint32), ("count", c_uint32),
                ("keys", POINTER(Key)), ("parent", POINTER(Key)), ("tokens", POINTER(c_uint32)),
                ("blocks", POINTER(c_uint32)), ("ready_event", c_uint32),
                ("ret_bitmap", POINTER(c_uint64))]


class Completion(Structure):
    _fields_ = [("job", c_uint64), ("res", c_int32), ("reason", c_uint16), ("event", c_uint16),
                ("count", c_uint32), ("pending", c_uint32), ("lease", c_uint64),
                ("raw_bytes", c_uint64), ("stored_bytes", c_uint64), ("elapsed_ns", c_uint64)]


class LeaseStatus(Structure):
    _fields_ = [("blocks_hit", c_uint32), ("blocks_ready", c_uint32), ("blocks_lost", c_uint32),
                ("deadline_ns", c_uint64)]


# The C name of each struct, for the layout test.
STRUCTS = {
    "skvc_key": Key, "skvc_segment": Segment, "skvc_geometry": Geometry, "skvc_stride": Stride,
    "skvc_options": Options, "skvc_gpu_export": GpuExport, "skvc_gpu_stride": GpuStride,
    "skvc_lookup": Lookup, "skvc_load": Load, "skvc_store": Store,
    "skvc_completion": Completion, "skvc_lease_status": LeaseStatus,
}

_S = c_void_p  # struct skvc_session *, struct skvc_arena *
_JOB = POINTER(c_uint64)
_U32 = POINTER(c_uint32)

# What each call returns and takes.
_PROTOTYPES = {
    "skvc_open": (c_int, c_char_p, POINTER(Options), POINTER(_S)),
    "skvc_close": (c_void_p, _S),
    "skvc_reconnect": (c_int, _S),
    "skvc_last_error": (c_char_p, _S),
    "skvc_reason_name": (c_char_p, c_uint16),
    "skvc_reason_text": (c_char_p, c_uint16),
    "skvc_version": (c_char_p,),
    "skvc_namespace_open": (c_int, _S, POINTER(Geometry), _U32),
    "skvc_namespace_prefill": (c_int, _S, c_uint32, c_uint64),
    "skvc_arena_new": (c_int, _S, c_uint64, POINTER(_S)),
    "skvc_arena_free": (c_void_p, _S),
    "skvc_arena_ptr": (c_void_p, _S),
    "skvc_arena_bytes": (c_uint64, _S),
    "skvc_register_host": (c_int, _S, c_uint32, _S, c_uint64, c_uint32, POINTER(Stride), _U32),
    "skvc_register_gpu": (c_int, _S, c_uint32, POINTER(GpuExport), c_uint32, c_uint32,
                          POINTER(GpuStride), _U32),
    "skvc_register_gpu_event": (c_int, _S, c_char_p, _U32),
    "skvc_unregister": (c_int, _S, c_uint32),
    "skvc_lookup": (c_int, _S, POINTER(Lookup), _JOB),
    "skvc_load": (c_int, _S, POINTER(Load), _JOB),
    "skvc_store": (c_int, _S, POINTER(Store), _JOB),
    "skvc_release": (c_int, _S, c_uint64, _JOB),
    "skvc_touch": (c_int, _S, c_uint32, POINTER(Key), c_uint32, _JOB),
    "skvc_drop": (c_int, _S, c_uint32, POINTER(Key), c_uint32, _JOB),
    "skvc_pin": (c_int, _S, c_uint32, POINTER(Key), c_uint32, c_uint64, _JOB),
    "skvc_nop": (c_int, _S, _JOB),
    "skvc_poll": (c_int, _S, POINTER(Completion), c_uint),
    "skvc_wait": (c_int, _S, _JOB, c_uint, c_uint64),
    "skvc_result": (c_int, _S, c_uint64, POINTER(Completion)),
    "skvc_abort": (c_int, _S, c_uint64),
    "skvc_pending": (c_uint, _S),
    "skvc_event_fd": (c_int, _S),
    "skvc_arm": (c_int, _S),
    "skvc_lease_poll": (c_int, _S, c_uint64, POINTER(LeaseStatus)),
    "skvc_put": (c_int, _S, c_uint32, POINTER(Key), c_void_p, c_size_t),
    "skvc_get": (c_int, _S, c_uint32, POINTER(Key), c_void_p, c_size_t),
}

_library: Optional[ctypes.CDLL] = None


def library() -> ctypes.CDLL:
    """libskvc, loaded once: $SKVC_LIBRARY, else libskvc.so.0 as the loader finds it.  OSError."""
    global _library
    if _library is None:
        # CDLL lets go of the interpreter's lock during a call: other threads run while one waits.
        lib = ctypes.CDLL(os.environ.get("SKVC_LIBRARY") or "libskvc.so.0")
        for name, (result, *arguments) in _PROTOTYPES.items():
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
        _library = lib
    return _library
