# SPDX-License-Identifier: Apache-2.0
"""How an engine's KV tensors become blocks: segments, and where each lies, in bytes.

Every stride comes from the tensor itself (torch: data_ptr(), stride(), element_size(); numpy: its
array interface); nothing is assumed to be contiguous but the elements of one head.  Pure
arithmetic: neither torch nor numpy is imported here.

A block of a segment is (tokens, heads, dim).  The functions at the end take the tensors of the
usual layouts; `order` says whether tokens come before heads ("NHD") or after them ("HND").
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Iterable, List, Optional, Sequence, Tuple


class Kind(IntEnum):
    OPAQUE = 0
    K = 1
    V = 2
    LATENT = 3


class Dtype(IntEnum):
    U8 = 0  # bytes of unknown meaning
    BF16 = 1
    FP16 = 2
    E4M3 = 3
    E5M2 = 4

    @property
    def itemsize(self) -> int:
        return 2 if self in (Dtype.BF16, Dtype.FP16) else 1


_DTYPES = {
    "bfloat16": Dtype.BF16, "float16": Dtype.FP16, "float8_e4m3fn": Dtype.E4M3,
    "float8_e5m2": Dtype.E5M2, "uint8": Dtype.U8, "int8": Dtype.U8,
}


def check_range(what: str, value: int, low: int, high: int) -> int:
    """ctypes would cut a number that does not fit: say so instead."""
    if not low <= value <= high:
        raise ValueError(f"{what} is {value}, outside {low}..{high}")
    return value


@dataclass(frozen=True)
class Segment:
    """One tensor's share of a block: block_tokens x heads x head_dim elements."""
    kind: Kind
    dtype: Dtype
    layer: int
    heads: int
    head_dim: int

    def __post_init__(self) -> None:
        check_range("layer", self.layer, 0, 65535)
        check_range("heads", self.heads, 1, 65535)
        check_range("head_dim", self.head_dim, 1, 65535)


@dataclass(frozen=True)
class Geometry:
    """All of it is part of the identity of the blocks: who shares blocks has the same geometry."""
    model: str
    block_tokens: int
    segments: Tuple[Segment, ...]
    salt: bytes = b""

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        check_range("block_tokens", self.block_tokens, 1, 1024)

    @property
    def block_bytes(self) -> int:
        return self.block_tokens * sum(
            s.heads * s.head_dim * s.dtype.itemsize for s in self.segments)


@dataclass(frozen=True)
class Stride:
    """Where a segment lies in a registered memory, bytes.  `off` is of block 0, token 0, head 0."""
    off: int
    block: int
    token: int
    head: int
    memory: int = 0  # GPU: index of the allocation among the registered ones

    def __post_init__(self) -> None:
        for name in ("off", "block", "token", "head"):
            check_range(f"stride.{name}", getattr(self, name), 0, (1 << 64) - 1)
        check_range("stride.memory", self.memory, 0, (1 << 32) - 1)


@dataclass(frozen=True, eq=False)
class View:
    """Where a tensor's elements lie: an address; per dimension a length and a stride in bytes."""
    address: int
    shape: Tuple[int, ...]
    strides: Tuple[int, ...]
    itemsize: int
    dtype: str = ""  # "bfloat16" ...
    owner: Any = None  # the tensor: whoever keeps the view keeps its memory

    @classmethod
    def of(cls, tensor: Any) -> "View":
        """Of a torch tensor, a numpy array, or a view itself."""
        if isinstance(tensor, cls):
            return tensor
        if hasattr(tensor, "data_ptr"):
            size = tensor.element_size()
            return cls(tensor.data_ptr(), tuple(tensor.shape),
                       tuple(n * size for n in tensor.stride()), size,
                       str(tensor.dtype).rpartition(".")[2], tensor)
        address = tensor.__array_interface__["data"][0]
        return cls(address, tuple(tensor.shape), tuple(tensor.strides), tensor.itemsize,
                   tensor.dtype.name, tensor)

    def select(self, dim: int, index: int) -> "View":
        check_range("index", index, 0, self.shape[dim] - 1)
        return replace(self, address=self.address + index * self.strides[dim],
                       shape=self.shape[:dim] + self.shape[dim + 1:],
                       strides=self.strides[:dim] + self.strides[dim + 1:])

    def narrow_last(self, start: int, length: int) -> "View":
        return replace(self, address=self.address + start * self.strides[-1],
                       shape=self.shape[:-1] + (length,))

    def swap(self, a: int, b: int) -> "View":
        shape, strides = list(self.shape), list(self.strides)
        shape[a], shape[b] = shape[b], shape[a]
        strides[a], strides[b] = strides[b], strides[a]
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def one_head(self) -> "View":
        """(blocks, tokens, dim) as (blocks, tokens, 1, dim)."""
        return replace(self, shape=self.shape[:2] + (1,) + self.shape[2:],
                       strides=self.strides[:2] + (self.strides[1],) + self.strides[2:])

    def stride(self, base: int, memory: int = 0) -> Stride:
        """Of a view (blocks, tokens, heads, dim), in the memory that begins at this address."""
        block, token, head, _ = self.strides
        return Stride(self.address - base, block, token, head, memory)


@dataclass(frozen=True, eq=False)
class Layout:
    """The segments of a block in their order, and each one's view (blocks, tokens, heads, dim)."""
    segments: Tuple[Segment, ...]
    views: Tuple[View, ...]

    @property
    def blocks_count(self) -> int:
        return self.views[0].shape[0]

    @property
    def block_tokens(self) -> int:
        return self.views[0].shape[1]

    def geometry(self, model: str, salt: bytes = b"") -> Geometry:
        return Geometry(model, self.block_tokens, self.segments, salt)

    def strides(self, base: int) -> List[Stride]:
        """All in one memory that begins at this address: an arena."""
        return [view.stride(base) for view in self.views]


def views(parts: Iterable[Tuple[Kind, int, Any]], dtype: Optional[Dtype] = None) -> Layout:
    """The general one: per segment (kind, layer, tensor of shape (blocks, tokens, heads, dim)).

    A tensor may have any strides, but its last dimension must be contiguous.  `dtype` overrides the
    tensors' own: engines keep fp8 in tensors of uint8.
    """
    segments: List[Segment] = []
    found: List[View] = []
    for kind, layer, tensor in parts:
        view = View.of(tensor)
        what = f"segment {len(segments)} (layer {layer})"
        if len(view.shape) != 4:
            raise ValueError(f"{what}: shape {view.shape} is not (blocks, tokens, heads, dim)")
        if view.strides[3] != view.itemsize:
            raise ValueError(f"{what}: elements of a head are not contiguous")
        if found and view.shape[:2] != found[0].shape[:2]:
            raise ValueError(f"{what}: shape {view.shape}, but others have {found[0].shape[:2]}"
                             " blocks and tokens")
        element = dtype if dtype is not None else _DTYPES.get(view.dtype)
        if element is None:
            raise ValueError(f"{what}: dtype {view.dtype} has no place in skvc.h")
        if element.itemsize != view.itemsize:
            raise ValueError(f"{what}: elements of {view.itemsize} bytes are not {element.name}")
        segments.append(Segment(kind, element, layer, view.shape[2], view.shape[3]))
        found.append(view)
    if not found:
        raise ValueError("no segments")
    return Layout(tuple(segments), tuple(found))


def _tokens_first(view: View, order: str) -> View:
    if order not in ("NHD", "HND"):
        raise ValueError(f"order {order!r} is neither NHD nor HND")
    if len(view.shape) != 4:
        raise ValueError(f"shape {view.shape} has no 4 dimensions left for blocks and {order}")
    return view if order == "NHD" else view.swap(1, 2)


def _pairs(pairs: Iterable[Tuple[Any, Any]], order: str, dtype: Optional[Dtype]) -> Layout:
    return views([(kind, layer, _tokens_first(View.of(tensor), order))
                  for layer, pair in enumerate(pairs)
                  for kind, tensor in zip((Kind.K, Kind.V), pair)], dtype)


def _select_pair(view: View, dim: int) -> Tuple[View, View]:
    if view.shape[dim] != 2:
        raise ValueError(f"dimension {dim} of shape {view.shape} is not K and V")
    return view.select(dim, 0), view.select(dim, 1)


def separate(keys: Sequence[Any], values: Sequence[Any], order: str = "NHD",
             dtype: Optional[Dtype] = None) -> Layout:
    """Per layer a tensor of keys and one of values, [blocks, tokens, heads, dim] each."""
    if len(keys) != len(values):
        raise ValueError(f"{len(keys)} tensors of keys, {len(values)} of values")
    return _pairs(zip(keys, values), order, dtype)


def kv_first(layers: Sequence[Any], order: str = "NHD", dtype: Optional[Dtype] = None) -> Layout:
    """Per layer [2, blocks, tokens, heads, dim]."""
    return _pairs([_select_pair(View.of(t), 0) for t in layers], order, dtype)


def blocks_first(layers: Sequence[Any], order: str = "NHD",
                 dtype: Optional[Dtype] = None) -> Layout:
    """Per layer [blocks, 2, tokens, heads, dim]."""
    return _pairs([_select_pair(View.of(t), 1) for t in layers], order, dtype)


def fused(layers: Sequence[Any], order: str = "NHD", dtype: Optional[Dtype] = None) -> Layout:
    """Per layer [blocks, tokens, heads, 2 * dim]: a head's key, then its value."""
    pairs = []
    for view in map(View.of, layers):
        half = view.shape[-1] // 2
        if view.shape[-1] != 2 * half:
            raise ValueError(f"last dimension of shape {view.shape} is odd")
        pairs.append((view.narrow_last(0, half), view.narrow_last(half, half)))
    return _pairs(pairs, order, dtype)


def cross_layer(tensor: Any, order: str = "NHD", dtype: Optional[Dtype] = None) -> Layout:
    """One tensor [blocks, layers, 2, tokens, heads, dim]."""
    view = View.of(tensor)
    if len(view.shape) != 6:
        raise ValueError(f"shape {view.shape} is not [blocks, layers, 2, tokens, heads, dim]")
    return blocks_first([view.select(1, layer) for layer in range(view.shape[1])], order, dtype)


def mla(layers: Sequence[Any], dtype: Optional[Dtype] = None) -> Layout:
    """Per layer [blocks, tokens, dim]: a latent and its rope part, 576 elements in DeepSeek's."""
    found = [View.of(tensor) for tensor in layers]
    for view in found:
        if len(view.shape) != 3:
            raise ValueError(f"shape {view.shape} is not [blocks, tokens, dim]")
    return views([(Kind.LATENT, layer, view.one_head()) for layer, view in enumerate(found)], dtype)
