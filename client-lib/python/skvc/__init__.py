# SPDX-License-Identifier: Apache-2.0
"""skvc: keep blocks of a KV cache with skvcd, get them back byte-exact.

The whole of libskvc through ctypes: no compiled part, no dependency.  torch and numpy are used only
where their tensors are handed in.
"""
from .cuda import (CudaError, GpuMemory, export_cuda_pointer, export_event,
                   export_torch_storage)
from .errors import SkvcError
from .layout import Dtype, Geometry, Kind, Layout, Segment, Stride, View
from .session import (DONE, SOURCE_FREE, Arena, Completion, Event, Job, Key, Lease, LeaseStatus,
                      Namespace, Region, Session)

__version__ = "0.1.0"

__all__ = [
    "DONE", "SOURCE_FREE", "Arena", "Completion", "CudaError", "Dtype", "Event", "Geometry",
    "GpuMemory", "Job", "Key", "Kind", "Layout", "Lease", "LeaseStatus", "Namespace", "Region",
    "Segment", "Session", "SkvcError", "Stride", "View", "export_cuda_pointer", "export_event",
    "export_torch_storage",
]
