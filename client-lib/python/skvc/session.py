# SPDX-License-Identifier: Apache-2.0
"""A session with skvcd: the calls of skvc.h, with objects for its handles.

Submitting calls (lookup, load, store, release, touch, drop, pin, nop) return a Job at once.  Its
end comes as a Completion, from poll() or from wait(); whichever takes it, job.completion has it
from then on.  A job's failure is in its completion and is not raised; a failure of the call is.

Threads may share a session: calls take turns.  wait() lets others in every 10 ms.

KeyboardInterrupt may come at any time.  A job whose submission was interrupted may have been
submitted; its completion comes all the same.  What register_*() or arena() had made is given back.

A child of fork() has no session: calls there raise SkvcError EOWNERDEAD; the parent's goes on.
"""
from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
import time
import weakref
from array import array
from ctypes import byref
from dataclasses import dataclass, field
from typing import (TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple,
                    Union)

from . import _abi, cuda
from .errors import SkvcError
from .layout import Geometry, Layout, Stride, check_range

if TYPE_CHECKING:
    import numpy

DONE = 0  # final; a store is COMMITTED: it can be found
SOURCE_FREE = 1  # store: the source pages may be reused; DONE follows

_SLICE_NS = 10_000_000
_U32_MAX = (1 << 32) - 1
_U64_MAX = (1 << 64) - 1
_KEY = struct.Struct(f"={_abi.KEY_BYTES}sIB3x")
assert _KEY.size == ctypes.sizeof(_abi.Key)


def _ns(seconds: Optional[float]) -> int:
    """None and infinity: for ever."""
    if seconds is None or seconds == float("inf"):
        return _abi.WAIT_FOREVER
    if seconds < 0:
        raise ValueError(f"{seconds} seconds")
    return min(int(seconds * 1e9), _abi.WAIT_FOREVER - 1)


@dataclass(frozen=True)
class Key:
    """A block's name: the engine's chained block hash, 16..32 bytes, and its group."""
    bytes: bytes
    group: int = 0


AnyKey = Union[Key, bytes]


def _keys(keys: Iterable[AnyKey]) -> "ctypes.Array[_abi.Key]":
    packed = []
    for key in keys:
        name, group = (key.bytes, key.group) if isinstance(key, Key) else (key, 0)
        check_range("a key's length", len(name), _abi.KEY_BYTES_MIN, _abi.KEY_BYTES)
        packed.append(_KEY.pack(name, check_range("a key's group", group, 0, _U32_MAX), len(name)))
    return (_abi.Key * len(packed)).from_buffer_copy(b"".join(packed))


def _u32_array(values: Any) -> "ctypes.Array[ctypes.c_uint32]":
    """Of a list, or of anything with tolist(): arrays of numpy, tensors of torch."""
    numbers = array("I", values.tolist() if hasattr(values, "tolist") else values)
    return (ctypes.c_uint32 * len(numbers)).from_buffer_copy(numbers)


@dataclass(frozen=True)
class LeaseStatus:
    blocks_hit: int  # length of the leased prefix
    blocks_ready: int  # leading blocks that a load need not wait for (lost ones too)
    blocks_lost: int  # of these, will be reported as misses by a load
    deadline: float  # time.monotonic()


@dataclass(frozen=True, eq=False)
class Lease:
    """A prefix that a lookup found, kept for a while.  `with lease:` releases it at the end."""
    session: "Session" = field(repr=False)
    handle: int
    count: int  # blocks
    pending: int  # of these, on their way from NVMe when the lookup was answered

    def poll(self) -> LeaseStatus:
        """Its progress; reads memory, asks nobody.  -ESTALE: the lease is over."""
        return self.session.lease_poll(self)

    def release(self, timeout: float = 1.0) -> None:
        """Give it back, and wait for that.  Never fails: a lease also ends by itself."""
        try:
            self.session.release(self).wait(timeout)
        except SkvcError:
            pass

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


@dataclass(frozen=True, eq=False)
class Completion:
    """struct skvc_completion."""
    job: "Job" = field(repr=False)
    event: int  # DONE, or SOURCE_FREE of a store
    res: int  # 0 or a negative errno of the closed list in skvc.h
    reason_code: int
    count: int  # lookup: length of the prefix; others: blocks done
    pending: int
    lease: Optional[Lease]  # lookup that found something
    raw_bytes: int
    stored_bytes: int
    elapsed: float  # seconds inside the daemon
    bitmap: Optional[List[bool]]  # load: block i is exact; store: was taken, or was there already

    @property
    def ok(self) -> bool:
        return self.res == 0

    @property
    def reason(self) -> str:
        name: bytes = _abi.library().skvc_reason_name(self.reason_code)
        return name.decode()

    def check(self) -> "Completion":
        """Itself, or SkvcError when the job failed."""
        if self.res:
            text = _abi.library().skvc_reason_text(self.reason_code).decode()
            raise SkvcError(-self.res, text, self.reason)
        return self


class Job:
    """A submitted operation.  Holds the memory that the library writes results to."""

    def __init__(self, session: "Session", blocks_count: int = 0, progress: bool = False):
        self.session = session
        self._handle = ctypes.c_uint64()  # the library writes it
        self.source_free = False  # store: SOURCE_FREE was taken
        self.completion: Optional[Completion] = None  # DONE, once it was taken
        self.tag: Any = None  # the user's
        self._count = blocks_count
        self._bitmap = (ctypes.c_uint64 * ((blocks_count + 63) // 64))()
        self._segments_ready = ctypes.c_uint32() if progress else None

    @property
    def handle(self) -> int:
        return self._handle.value

    @property
    def segments_ready(self) -> int:
        """Leading segments written for all blocks; a hint, as of the last poll() or wait()."""
        return self._segments_ready.value if self._segments_ready is not None else 0

    def wait(self, timeout: Optional[float] = None) -> Completion:
        """Its completion.  SkvcError ETIME: not done within so many seconds, and still going on."""
        return self.session.wait([self], timeout)[0]

    def abort(self) -> Completion:
        return self.session.abort(self)

    def _bits(self) -> Optional[List[bool]]:
        if not self._count:
            return None
        bits = int.from_bytes(bytes(self._bitmap), "little")
        return [bool(bits >> i & 1) for i in range(self._count)]


@dataclass(frozen=True, eq=False)
class Namespace:
    session: "Session" = field(repr=False)
    handle: int
    geometry: Geometry

    @property
    def block_bytes(self) -> int:
        return self.geometry.block_bytes


@dataclass(frozen=True, eq=False)
class Region:
    """Registered memory.  `keep` is what must live as long: an arena, or tensors.  On the GPU it
    does so until unregister() or the session's end, whoever still has this object."""
    session: "Session" = field(repr=False)
    handle: int
    ns: Namespace
    blocks_count: int
    keep: Any = field(repr=False, default=None)

    def unregister(self) -> None:
        """Waits until no job uses it."""
        self.session._unregister(self.handle)


@dataclass(frozen=True, eq=False)
class Event:
    """A registered interprocess event of CUDA."""
    session: "Session" = field(repr=False)
    handle: int
    keep: Any = field(repr=False, default=None)

    def unregister(self) -> None:
        self.session._unregister(self.handle)


class Arena:
    """Host memory shared with the daemon.  .view is a memoryview of it; numpy.frombuffer() and
    torch.frombuffer() take that, and keep it alive."""

    def __init__(self, session: "Session", pointer: int, handle: "_Handle"):
        lib = _abi.library()
        self.session = session
        self.address: int = lib.skvc_arena_ptr(pointer)
        self.bytes: int = lib.skvc_arena_bytes(pointer)
        self._pointer: Optional[int] = pointer
        self._mark = object()  # what is kept of its regions
        self._handle = weakref.ref(handle)
        # A class of its own: unlike a plain array its objects have attributes.
        self._type: Any = type("ArenaBytes", (ctypes.c_uint8 * self.bytes,), {})
        self._array: Callable[[], Any] = lambda: None

    @property
    def view(self) -> memoryview:
        """All of it, writable.  Memory stays mapped as long as a view lives, also after close()."""
        owner = self._handle()
        if self._pointer is None or owner is None:
            raise SkvcError(errno.EBADF, "the arena is gone")
        memory = self._array()
        if memory is None:
            memory = self._type.from_address(self.address)
            memory.owner = owner
            self._array = weakref.ref(memory)
        return memoryview(memory).cast("B")

    def __buffer__(self, _flags: int) -> memoryview:  # Python 3.12
        return self.view

    def numpy(self, dtype: Any = "uint8") -> "numpy.ndarray":
        import numpy as np
        return np.frombuffer(self.view, dtype=dtype)

    def free(self) -> None:
        """Unregisters its regions and unmaps it; else that comes with the session's end."""
        if self._array() is not None:
            raise BufferError("views of the arena are still in use")
        with self.session._lock:
            owner = self._handle()
            if self._pointer is not None and owner is not None:
                if owner.forked:
                    self.session._open()
                pointer, self._pointer = self._pointer, None
                _abi.library().skvc_arena_free(pointer)
                for number in [n for n, keep in owner.kept.items() if keep is self._mark]:
                    owner.kept.pop(number, None)
            self._pointer = None


class _Turns(type(threading.RLock())):  # type: ignore[misc]
    """A lock that goes to who waits for it before it goes to its last holder.  KeyboardInterrupt
    leaves it taken inside of the `with` and free outside: to give it back is one call of C, in
    which none can come.  Its holder may take it again, in a signal's handler; the session's calls
    do not, since there an interrupt could come between taking it and knowing that."""

    def __init__(self) -> None:
        self._next = threading.Lock()  # of those who wait, one holds this

    def __enter__(self) -> None:  # type: ignore[override]
        if self._is_owned():
            self.acquire()
            return
        try:
            with self._next:
                self.acquire()
        except BaseException:
            if self._is_owned():
                self.release()
            raise


class _Handle:
    """Owns the C session: it ends when nobody holds this any more.  Holders are the Session, and
    what may still touch the session's memory: views of arenas."""

    def __init__(self) -> None:
        self.lib = _abi.library()
        self.pointer = ctypes.c_void_p()
        self.log: Any = None  # the C callback
        # Whose DONE was not taken.  Until skvc_close() is over the library writes to their buffers.
        self.jobs: Dict[int, Job] = {}
        # By handle, what the daemon has opened: GPU memory of regions, and events; of regions in
        # an arena, the arena's mark.
        self.kept: Dict[int, Any] = {}
        # What a call was at when it was interrupted; the next one sees to it, in settle().
        self.submitting: Optional[Job] = None
        self.registering: Any = None  # its c_uint32, and what it must keep
        self.taken = (_abi.Completion * 64)()  # the library writes here; job 0: nothing
        self.taking = False
        # Completions that were taken, and not told to anybody yet; by job and event.
        self.found: Dict[Tuple[int, int], Completion] = {}
        self.forked = False  # this process is a child of the session's

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.lib.skvc_close(self.pointer)

    def settle(self, session: "Session") -> None:
        job = self.submitting
        if job is not None:
            if job.handle:  # the library has it, and writes to its buffers
                self.jobs[job.handle] = job
            self.submitting = None
        if self.registering is not None:
            slot, keep = self.registering
            if slot.value:
                self.kept.setdefault(slot.value, keep)
            self.registering = None
        if self.taking:
            self.collect(session, len(self.taken))

    def collect(self, session: "Session", count: int) -> None:
        """Of self.taken, what is there.  After an interrupt at any place it may be done again."""
        for c in self.taken[:count]:
            job = self.jobs.get(c.job)
            if job is not None:
                at = (c.job, c.event)
                completion = self.found.get(at) or session._completion(job, c)
                self.found[at] = completion
                if c.event == DONE:
                    job.completion = completion
                    self.jobs.pop(c.job, None)
                else:
                    job.source_free = True
            c.job = 0
        self.taking = False


def _strides(struct_type: Any, strides: Optional[Sequence[Stride]], ns: Namespace) -> Any:
    """As a C array, one per segment: the library reads that many.  None: the packed form."""
    if strides is None:
        return None
    if len(strides) != len(ns.geometry.segments):
        raise ValueError(f"{len(strides)} strides for {len(ns.geometry.segments)} segments")
    gpu = struct_type is _abi.GpuStride
    return (struct_type * len(strides))(*(
        ((s.memory, 0) if gpu else ()) + (s.off, s.block, s.token, s.head) for s in strides))


# Those that a forked child would inherit.
_sessions: "weakref.WeakSet[Session]" = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_sessions):
        session._after_fork()


os.register_at_fork(after_in_child=_after_fork)


class Session:
    """A connection to skvcd.

    path             its socket; None: $SKVC_SOCKET, or /run/skvcd/skvcd.sock
    scheduler        the role that looks up and leases but has no memory
    name             shown by `skvcctl stats`
    connect_timeout  seconds; 0: 5
    timeout          seconds that a call without a timeout of its own waits for a daemon that is
                     stopped, or hangs; 0: 60; math.inf: as long as it takes.  Then SkvcError:
                     ETIME, it goes on, call again; or ETIMEDOUT, the connection is given up: free
                     no exported memory until reconnect() or unregister() has succeeded
    spin             seconds that a wait polls before it sleeps; None: the library's default
    log              called with each line of diagnostics; must not call the session
    """

    def __init__(self, path: Union[str, "os.PathLike[str]", None] = None, *,
                 scheduler: bool = False, name: str = "skvc-python", sq_entries: int = 0,
                 args_bytes: int = 0, connect_timeout: float = 0, spin: Optional[float] = None,
                 log: Optional[Callable[[str], None]] = None, timeout: float = 0):
        handle = _Handle()
        lines: List[str] = []  # what skvc_open() says: there is no session yet that could be asked

        def on_line(_user: Any, line: bytes) -> None:
            text = line.decode(errors="replace")
            if not handle_is_open:
                lines.append(text)
            if log:
                log(text)

        handle_is_open = False
        handle.log = _abi.LogFunction(on_line)
        options = _abi.Options(
            role=int(scheduler), sq_entries=check_range("sq_entries", sq_entries, 0, _U32_MAX),
            args_bytes=check_range("args_bytes", args_bytes, 0, _U64_MAX),
            connect_timeout_ns=_ns(connect_timeout), spin_ns=0 if spin is None else _ns(spin),
            name=name.encode(), log=handle.log, timeout_ns=_ns(timeout))
        r = handle.lib.skvc_open(None if path is None else os.fsencode(path), byref(options),
                                 byref(handle.pointer))
        if r < 0:
            raise SkvcError(-r, lines[-1] if lines else "")
        handle_is_open = True
        self._lib = handle.lib
        self._lock = _Turns()
        self._handle: Optional[_Handle] = handle
        _sessions.add(self)

    # ---- its life

    def close(self) -> None:
        """Ends it.  Jobs are over when this returns, unless views of arenas are still in use: then
        the session ends with the last of them."""
        with self._lock:
            self._handle = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def reconnect(self) -> None:
        """After EPIPE: namespaces, arenas and regions work again, leases are gone."""
        self._call("skvc_reconnect")

    @property
    def pending(self) -> int:
        """Jobs whose DONE has not been taken."""
        with self._lock:
            handle = self._open()
            handle.settle(self)
            untold = sum(event == DONE for _, event in handle.found)
            return int(self._lib.skvc_pending(handle.pointer)) + untold

    def _after_fork(self) -> None:
        """In the child.  Who held the lock is in the parent: here nobody gives it back.  And who
        was inside the library left its tables as they were just then: they are not freed here."""
        busy = self._lock._is_owned() or not self._lock.acquire(False)
        self._lock = _Turns()
        if self._handle is not None:
            self._handle.forked = True
            if busy:
                self._handle.pointer = ctypes.c_void_p()

    def _open(self) -> _Handle:
        if self._handle is None:
            raise SkvcError(errno.EBADF, "the session is closed")
        if self._handle.forked:
            raise SkvcError(errno.EOWNERDEAD, "a session does not survive fork()")
        return self._handle

    def _call(self, function: str, *arguments: Any) -> int:
        with self._lock:
            return self._call_locked(function, *arguments)

    def _call_locked(self, function: str, *arguments: Any) -> int:
        r = getattr(self._lib, function)(self._open().pointer, *arguments)
        return r if r >= 0 else self._fail(r)

    def _fail(self, r: int) -> int:
        text = self._lib.skvc_last_error(self._open().pointer).decode(errors="replace")
        raise SkvcError(-r, text)

    def _own(self, *things: Any) -> None:
        """Handles are small numbers that mean something else in another session."""
        for thing in things:
            if thing is not None and thing.session is not self:
                raise ValueError(f"{thing!r} is of another session")

    def _register(self, slot: ctypes.c_uint32, function: str, keep: Any, *arguments: Any) -> None:
        """A new handle into slot.  What it names lives until _unregister(), whoever still holds it
        here.  Who is interrupted before his caller has it calls _forget()."""
        with self._lock:
            handle = self._open()
            handle.settle(self)
            handle.registering = (slot, keep)
            self._call_locked(function, *arguments, byref(slot))
            handle.settle(self)

    def _forget(self, slot: ctypes.c_uint32) -> None:
        if slot.value:
            try:
                self._unregister(slot.value)
            except SkvcError:
                return  # it is kept, until the session's end
            slot.value = 0

    def _unregister(self, number: int) -> None:
        with self._lock:
            handle = self._open()
            handle.settle(self)
            try:
                self._call_locked("skvc_unregister", number)
            except SkvcError as error:
                # One that was interrupted had been done: this is its second half.
                if error.errno != errno.ESTALE or number not in handle.kept:
                    raise
            handle.kept.pop(number, None)

    # ---- namespaces and memory

    def namespace(self, geometry: Geometry) -> Namespace:
        segments = (_abi.Segment * len(geometry.segments))(*[
            _abi.Segment(s.kind, s.dtype, s.layer, s.heads, s.head_dim)
            for s in geometry.segments])
        c_geometry = _abi.Geometry(
            model=geometry.model.encode(), salt=geometry.salt, salt_bytes=len(geometry.salt),
            block_tokens=geometry.block_tokens, segments_count=len(segments), segments=segments)
        handle = ctypes.c_uint32()
        self._call("skvc_namespace_open", byref(c_geometry), byref(handle))
        return Namespace(self, handle.value, geometry)

    def prefill_rate(self, namespace: Namespace, tokens_per_s: int) -> None:
        """How fast the engine computes what it does not find.

        Lookups end before blocks that take longer to restore; 0 finds whatever is there, as in
        the beginning.
        """
        self._own(namespace)
        rate = check_range("tokens_per_s", tokens_per_s, 0, _U64_MAX)
        self._call("skvc_namespace_prefill", namespace.handle, rate)

    def arena(self, size: int) -> Arena:
        """Host memory of at least so many bytes (whole pages), made by the daemon."""
        pointer = ctypes.c_void_p()
        try:
            with self._lock:
                self._call_locked("skvc_arena_new", check_range("size", size, 1, _U64_MAX),
                                  byref(pointer))
                assert pointer.value
                return Arena(self, pointer.value, self._open())
        except BaseException:  # an interrupt: the caller never has it
            if pointer.value:
                with self._lock:
                    self._lib.skvc_arena_free(pointer)
            raise

    def register_host(self, ns: Namespace, arena: Arena, blocks_count: int,
                      strides: Optional[Sequence[Stride]] = None, offset: int = 0) -> Region:
        """Blocks of ns in an arena.  strides: Layout.strides(arena.address); None: packed."""
        self._own(ns, arena)
        if arena._pointer is None:
            raise SkvcError(errno.EBADF, "the arena is gone")
        slot = ctypes.c_uint32()
        try:
            self._register(slot, "skvc_register_host", arena._mark, ns.handle, arena._pointer,
                           check_range("offset", offset, 0, _U64_MAX),
                           check_range("blocks_count", blocks_count, 0, _U32_MAX),
                           _strides(_abi.Stride, strides, ns))
            return Region(self, slot.value, ns, blocks_count, arena)
        except BaseException:
            self._forget(slot)
            raise

    def register_gpu(self, ns: Namespace, memories: Sequence[cuda.GpuMemory], blocks_count: int,
                     strides: Optional[Sequence[Stride]] = None, keep: Any = None) -> Region:
        """Blocks of ns in exported GPU memory; Stride.memory is an index into memories.  `keep`
        must hold the memory: it lives as long as the region is registered, for so long the daemon
        may touch it."""
        self._own(ns)
        exports = (_abi.GpuExport * len(memories))()
        for export, memory in zip(exports, memories):
            export.type = memory.type
            export.fd = memory.fd
            export.ipc_handle[:len(memory.ipc_handle)] = memory.ipc_handle
            export.device_uuid[:] = memory.device_uuid
            export.allocation_bytes = memory.allocation_bytes
            export.offset = memory.offset
        slot = ctypes.c_uint32()
        try:
            self._register(slot, "skvc_register_gpu", keep, ns.handle, exports, len(memories),
                           check_range("blocks_count", blocks_count, 0, _U32_MAX),
                           _strides(_abi.GpuStride, strides, ns))
            return Region(self, slot.value, ns, blocks_count, keep)
        except BaseException:
            self._forget(slot)
            raise

    def register_torch(self, ns: Namespace, layout: Layout) -> Region:
        """Blocks of ns in CUDA tensors, which the region keeps alive.  See skvc.layout."""
        if layout.segments != ns.geometry.segments or (
                layout.block_tokens != ns.geometry.block_tokens):
            raise ValueError("the layout's segments or tokens are not the namespace's")
        memories, strides = cuda.export_views(layout.views)
        return self.register_gpu(ns, memories, layout.blocks_count, strides, layout)

    def register_event(self, event: Any) -> Event:
        """A torch.cuda.Event(interprocess=True), or the 64 bytes of a cudaIpcEventHandle_t."""
        slot = ctypes.c_uint32()
        try:
            self._register(slot, "skvc_register_gpu_event", event, cuda.export_event(event))
            return Event(self, slot.value, event)
        except BaseException:
            self._forget(slot)
            raise

    # ---- jobs

    def _submit(self, function: str, job: Job, *arguments: Any) -> Job:
        with self._lock:
            handle = self._open()
            handle.settle(self)
            handle.submitting = job  # before the library writes to it
            self._call_locked(function, *arguments, byref(job._handle))
            handle.settle(self)
        return job

    @staticmethod
    def _tokens(tokens: Any, count: int, ns: Namespace) -> Any:
        if tokens is None:
            return None
        numbers = _u32_array(tokens)
        if len(numbers) != count * ns.geometry.block_tokens:
            raise ValueError(f"{len(numbers)} tokens for {count} blocks of "
                             f"{ns.geometry.block_tokens}")
        return numbers

    def lookup(self, ns: Namespace, keys: Sequence[AnyKey], *, tokens: Any = None,
               parent: Optional[AnyKey] = None, ttl: float = 0) -> Job:
        """How long a prefix of keys is there; its completion has the lease.  ttl 0: the default."""
        self._own(ns)
        c_keys = _keys(keys)
        args = _abi.Lookup(ns=ns.handle, count=len(c_keys), keys=c_keys,
                           parent=_keys([parent]) if parent is not None else None,
                           tokens=self._tokens(tokens, len(c_keys), ns), lease_ttl_ns=_ns(ttl))
        return self._submit("skvc_lookup", Job(self), byref(args))

    def load(self, lease: Union[Lease, int], region: Region, blocks: Any, *, first: int = 0,
             skip_tokens: int = 0, ready_event: Optional[Event] = None,
             done_event: Optional[Event] = None, progress: bool = False) -> Job:
        """Blocks first.. of the leased prefix into these blocks of the region."""
        self._own(region, ready_event, done_event)
        c_blocks = _u32_array(blocks)
        job = Job(self, len(c_blocks), progress)
        args = _abi.Load(
            lease=lease.handle if isinstance(lease, Lease) else lease, region=region.handle,
            first=check_range("first", first, 0, _U32_MAX), count=len(c_blocks), blocks=c_blocks,
            skip_tokens=check_range("skip_tokens", skip_tokens, 0, _U32_MAX),
            ready_event=ready_event.handle if ready_event else 0,
            done_event=done_event.handle if done_event else 0, ret_bitmap=job._bitmap)
        if job._segments_ready is not None:
            args.ret_segments_ready = ctypes.pointer(job._segments_ready)
        return self._submit("skvc_load", job, byref(args))

    def store(self, region: Region, keys: Sequence[AnyKey], blocks: Any, *, tokens: Any = None,
              parent: Optional[AnyKey] = None, ready_event: Optional[Event] = None) -> Job:
        """These blocks of the region under these keys.  Completes twice: SOURCE_FREE, then DONE."""
        self._own(region, ready_event)
        c_keys, c_blocks = _keys(keys), _u32_array(blocks)
        if len(c_keys) != len(c_blocks):
            raise ValueError(f"{len(c_keys)} keys for {len(c_blocks)} blocks")
        job = Job(self, len(c_blocks))
        args = _abi.Store(
            ns=region.ns.handle, region=region.handle, count=len(c_keys), keys=c_keys,
            parent=_keys([parent]) if parent is not None else None,
            tokens=self._tokens(tokens, len(c_keys), region.ns), blocks=c_blocks,
            ready_event=ready_event.handle if ready_event else 0, ret_bitmap=job._bitmap)
        return self._submit("skvc_store", job, byref(args))

    def release(self, lease: Union[Lease, int]) -> Job:
        handle = lease.handle if isinstance(lease, Lease) else lease
        return self._submit("skvc_release", Job(self), handle)

    def touch(self, ns: Namespace, keys: Sequence[AnyKey]) -> Job:
        self._own(ns)
        return self._submit("skvc_touch", Job(self), ns.handle, _keys(keys), len(keys))

    def drop(self, ns: Namespace, keys: Sequence[AnyKey]) -> Job:
        self._own(ns)
        return self._submit("skvc_drop", Job(self), ns.handle, _keys(keys), len(keys))

    def pin(self, ns: Namespace, keys: Sequence[AnyKey], ttl: float) -> Job:
        """Keep blocks from eviction for so many seconds; 0: no longer.

        The count ends, with reason "lease-share", before the key that is too much."""
        self._own(ns)
        return self._submit("skvc_pin", Job(self), ns.handle, _keys(keys), len(keys), _ns(ttl))

    def nop(self) -> Job:
        """A round trip."""
        return self._submit("skvc_nop", Job(self))

    # ---- completions

    def _completion(self, job: Job, c: _abi.Completion) -> Completion:
        return Completion(
            job, c.event, c.res, c.reason, c.count, c.pending,
            Lease(self, c.lease, c.count, c.pending) if c.lease else None, c.raw_bytes,
            c.stored_bytes, c.elapsed_ns * 1e-9, job._bits() if c.event == DONE else None)

    def _take_result(self, job: Job) -> Completion:
        """Of a job that is done."""
        handle = self._open()
        handle.settle(self)
        if job.completion is None:
            handle.taking = True
            self._call_locked("skvc_result", job.handle, handle.taken)
            handle.collect(self, 1)
        assert job.completion is not None
        handle.found.pop((job.handle, DONE), None)  # told here
        return job.completion

    def poll(self, count: int = 64) -> List[Completion]:
        """Up to so many completions, without waiting.  SkvcError EPIPE: the daemon is gone, and all
        jobs' completions have been taken.  What an interrupted call took comes with the next one,
        and is in job.completion in any case."""
        check_range("count", count, 1, 1 << 20)
        with self._lock:
            handle = self._open()
            handle.settle(self)
            if not handle.found:
                if count > len(handle.taken):
                    handle.taken = (_abi.Completion * count)()
                handle.taking = True
                handle.collect(self, self._call_locked("skvc_poll", handle.taken, count))
            if len(handle.found) <= count:
                found, handle.found = handle.found, {}
                return list(found.values())
            first = list(handle.found)[:count]
            return [handle.found.pop(at) for at in first]

    def wait(self, jobs: Iterable[Job], timeout: Optional[float] = None) -> List[Completion]:
        """Wait until all of them are done and take their completions, failed ones too.  SkvcError
        ETIME: some are not done after so many seconds; they go on, and nothing was taken."""
        jobs = list(jobs)
        self._own(*jobs)
        until_ns = _ns(timeout)
        if until_ns != _abi.WAIT_FOREVER:
            until_ns += time.monotonic_ns()
        while True:
            # In slices: for KeyboardInterrupt, and for other threads.
            slice_ns = max(0, min(until_ns - time.monotonic_ns(), _SLICE_NS))
            with self._lock:
                self._open().settle(self)
                live = [job.handle for job in jobs if job.completion is None]
                if not live:
                    return [self._take_result(job) for job in jobs]
                r = self._lib.skvc_wait(self._open().pointer, (ctypes.c_uint64 * len(live))(*live),
                                        len(live), slice_ns)
                if r in (0, -errno.EPIPE):  # EPIPE: all are done now, some with that result
                    return [self._take_result(job) for job in jobs]
                if r != -errno.ETIME or time.monotonic_ns() >= until_ns:
                    self._fail(r)

    def abort(self, job: Job) -> Completion:
        """Cancel a job and wait until it is over; then nothing of the daemon touches its pages.
        Cannot be interrupted, and keeps other threads out of the session meanwhile."""
        self._own(job)
        with self._lock:
            self._open().settle(self)
            if job.completion is None:
                r = self._lib.skvc_abort(self._open().pointer, job.handle)
                if r not in (0, -errno.EPIPE):
                    self._fail(r)
            return self._take_result(job)

    def lease_poll(self, lease: Lease) -> LeaseStatus:
        c = _abi.LeaseStatus()
        with self._lock:
            r = self._lib.skvc_lease_poll(self._open().pointer, lease.handle, byref(c))
        if r < 0:
            raise SkvcError(-r)
        return LeaseStatus(c.blocks_hit, c.blocks_ready, c.blocks_lost, c.deadline_ns * 1e-9)

    def fileno(self) -> int:
        """For select and its like: readable when completions have come, or the daemon is gone.
        Call arm() before sleeping on it; never read it."""
        return self._call("skvc_event_fd")

    def arm(self) -> bool:
        """True: sleep on fileno() now.  False: poll() first."""
        return bool(self._call("skvc_arm"))

    # ---- one block, any memory, synchronous

    def put(self, ns: Namespace, key: AnyKey, data: Any) -> bool:
        """Store one block in the packed form.  False: it was there already."""
        self._own(ns)
        view = memoryview(data).cast("B")
        copy = (ctypes.c_char * len(view)).from_buffer_copy(view)
        try:
            self._call("skvc_put", ns.handle, _keys([key]), copy, len(copy))
        except SkvcError as error:
            if error.errno != errno.EEXIST:
                raise
            return False
        return True

    def get(self, ns: Namespace, key: AnyKey) -> Optional[bytearray]:
        """One block in the packed form, byte-exact.  None: a miss."""
        self._own(ns)
        data = bytearray(ns.block_bytes)
        try:
            self._call("skvc_get", ns.handle, _keys([key]),
                       (ctypes.c_char * len(data)).from_buffer(data), len(data))
        except SkvcError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return data
