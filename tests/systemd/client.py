#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""client.py WHAT - the engine's side of tests/systemd/test_service, inside of the container: the
package skvc as python3-skvc installed it, against skvcd as systemd runs it.

    offload N       store N blocks, get them back, compare
    count N         how many of these N blocks are there
    on SECONDS      store and load for so long, and reconnect whenever the daemon is gone
    until-gone      store and load until the daemon is gone, then end
    freeze PID      stop that daemon's data path alone, until it is killed
"""
import ctypes
import errno
import os
import random
import sys
import time

import skvc

EPIPE_SECONDS_MAX = 60
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000


def open_session():
    session = skvc.Session(name="test_service")
    ns = session.namespace(skvc.Geometry("test@1", block_tokens=16, segments=[
        skvc.Segment(kind, skvc.Dtype.BF16, layer=0, heads=8, head_dim=128)
        for kind in (skvc.Kind.K, skvc.Kind.V)]))
    return session, ns


def block(ns, number):
    return random.Random(number).randbytes(ns.block_bytes)


def key(number):
    return b"tests/systemd" + number.to_bytes(8, "little")


def offload(count):
    session, ns = open_session()
    for i in range(count):
        session.put(ns, key(i), block(ns, i))
    for i in range(count):
        if session.get(ns, key(i)) != block(ns, i):
            sys.exit(f"block {i} is not what was stored")
    print(f"{count} blocks of {ns.block_bytes} bytes stored and restored byte-exact")


def count_blocks(count):
    session, ns = open_session()
    there = 0
    for i in range(count):
        data = session.get(ns, key(i))
        if data is not None and data != block(ns, i):
            sys.exit(f"block {i} is not what was stored")
        there += data is not None
    print(there)


def step(session, ns, number):
    """One block there and back; what is gone meanwhile is a miss."""
    session.put(ns, key(number), block(ns, number))
    data = session.get(ns, key(number))
    if data is not None and data != block(ns, number):
        sys.exit(f"block {number} is not what was stored")


def reconnect(session):
    start = time.monotonic()
    while True:
        try:
            session.reconnect()
            return time.monotonic() - start
        except skvc.SkvcError as error:
            if time.monotonic() - start > EPIPE_SECONDS_MAX:
                sys.exit(f"no connection within {EPIPE_SECONDS_MAX} s: {error}")
            time.sleep(0.02)


def go_on(seconds):
    session, ns = open_session()
    until, number, gaps, since = time.monotonic() + seconds, 1 << 32, [], 0
    print("begun", os.getpid(), flush=True)
    while time.monotonic() < until:
        try:
            step(session, ns, number)
            number, since = number + 1, since + 1
        except skvc.SkvcError as error:
            if error.errno != errno.EPIPE:
                raise
            gaps.append(f"{1000 * reconnect(session):.0f}")
            until, since = max(until, time.monotonic() + 1), 0
    print(f"gone {len(gaps)} times, back after {' '.join(gaps) or 'no'} ms, "
          f"then {since} blocks there and back")
    if gaps and not since:
        sys.exit("nothing was served after the last reconnection")


def until_gone():
    session, ns = open_session()
    number, canceled = 1 << 33, 0
    print("begun", flush=True)
    while True:
        try:
            step(session, ns, number)
            number += 1
        except skvc.SkvcError as error:
            if error.errno == errno.EPIPE:
                break
            if error.errno != errno.ECANCELED:
                raise
            canceled += 1  # the daemon is stopping, and says so before it goes
    print(f"{number - (1 << 33)} blocks, {canceled} canceled, then EPIPE")


def freeze(pid):
    """A thread that is traced and interrupted stops, the others run on."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/comm", encoding="ascii") as f:
            if f.read().strip() != "skvcd-lane":
                continue
        for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
            if libc.ptrace(request, int(tid), None, None) < 0:
                sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
        print("frozen", flush=True)
        while True:  # until it is gone: only who traces a thread can bury it
            _, status = os.waitpid(int(tid), WALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                return
    sys.exit(f"process {pid} has no thread skvcd-lane")


if __name__ == "__main__":
    commands = {"offload": offload, "count": count_blocks, "on": go_on, "until-gone": until_gone,
                "freeze": freeze}
    try:
        commands[sys.argv[1]](*map(int, sys.argv[2:]))
    except skvc.SkvcError as problem:
        sys.exit(f"{os.strerror(problem.errno)}: {problem.strerror}")
