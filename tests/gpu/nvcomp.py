#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""nvcomp.py --kv FILE [--bytes N] [--rounds N] - nvCOMP's ANS, a yardstick for skvc-bench codec.

On the same KV cache: ratio, and GB/s of raw bytes both ways by CUDA events.  One JSON object.

nvCOMP is asked in several ways (types, chunk sizes, and bytes split into planes beforehand, which
costs it nothing here); `best` has the best ratio and the best speeds of all, each for itself.

Exit status: 0; 1: something came back other than it was; 77: no nvCOMP, no torch or no GPU here.
The wheels: nvidia-nvcomp-cu13, nvidia-libnvcomp-cu13.
"""
import argparse
import json
import statistics
import struct
import sys

TYPES = {"BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def skip(why):
    print("nvcomp:", why)
    sys.exit(77)


def blocks_of(path, block_tokens, whole):
    """The blocks that skvc-bench measures: [block][k.0 v.0 k.1 ...][token][head * dim], as bytes;
    and what type they are.  Without `whole` the second half, as without --calibrate there."""
    with open(path, "rb") as f:
        data = f.read()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_bytes])
    base = 8 + header_bytes

    def tensor(name):
        t = header[name]
        begin, end = t["data_offsets"]
        return t, memoryview(data)[base + begin : base + end]

    names = []
    while f"k.{len(names) // 2}" in header and f"v.{len(names) // 2}" in header:
        names += [f"k.{len(names) // 2}", f"v.{len(names) // 2}"]
    if not names:
        sys.exit(f"{path}: no tensors k.0 and v.0")
    dtype = header[names[0]]["dtype"]
    tokens = header[names[0]]["shape"][0]
    starts = []
    sequences = [0, tokens]
    if "seq_start" in header and header["seq_start"]["dtype"] == "I32":
        _, raw = tensor("seq_start")
        sequences = list(struct.unpack(f"<{len(raw) // 4}i", raw))
    for begin, end in zip(sequences, sequences[1:]):
        starts += range(begin, end - block_tokens + 1, block_tokens)
    if not whole:
        starts = starts[len(starts) // 2 :]
    out = bytearray()
    for start in starts:
        for name in names:
            t, raw = tensor(name)
            row = t["shape"][1] * t["shape"][2] * TYPES[dtype]
            out += raw[start * row : (start + block_tokens) * row]
    return out, dtype


def measure(torch, stream, rounds, work):
    """Median seconds of work() by the GPU's clock, after two that warm up."""
    times = []
    for i in range(rounds + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        work()
        end.record(stream)
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def coded_bytes(array):
    """An nvCOMP array's used size, in whichever way this version tells it."""
    for name in ("buffer_size", "size"):
        n = getattr(array, name, None)
        if isinstance(n, int):
            return n
    return array.size * array.item_size


def variant(torch, nvcomp, stream, raw, rounds, options):
    """One way to ask nvCOMP: raw is a tensor of bytes on the GPU."""
    codec = nvcomp.Codec(algorithm="ANS", cuda_stream=stream.cuda_stream, **options)
    source = nvcomp.as_array(raw, cuda_stream=stream.cuda_stream)
    coded = codec.encode(source)
    stream.synchronize()
    result = {"options": {k: str(v) for k, v in options.items()}, "coded_bytes": coded_bytes(coded)}
    result["ratio"] = raw.numel() / result["coded_bytes"]
    decoded = codec.decode(coded)
    stream.synchronize()
    back = torch.as_tensor(decoded, device="cuda").view(torch.uint8).reshape(-1)
    result["verified"] = bool(torch.equal(back, raw))
    # Without an allocation and a synchronisation in each call, where this version can do so.
    try:
        plan = codec.compression_config(raw.numel())
        plan_back = codec.decompression_config(plan)
        codec.decode(codec.encode(source, out=coded, compression_config=plan), out=decoded,
                     decompression_config=plan_back)
        stream.synchronize()
        encode = lambda: codec.encode(source, out=coded, compression_config=plan)
        decode = lambda: codec.decode(coded, out=decoded, decompression_config=plan_back)
        result["preconfigured"] = True
    except Exception as e:  # an older nvCOMP: its plain calls
        encode = lambda: codec.encode(source)
        decode = lambda: codec.decode(coded)
        result["preconfigured"] = False
        result["why_not"] = repr(e)[:200]
    gb = raw.numel() * 1e-9
    result["encode_gbps"] = gb / measure(torch, stream, rounds, encode)
    stream.synchronize()
    result["decode_gbps"] = gb / measure(torch, stream, rounds, decode)
    stream.synchronize()
    back = torch.as_tensor(decoded, device="cuda").view(torch.uint8).reshape(-1)
    result["verified"] = result["verified"] and bool(torch.equal(back, raw))
    return result


def planes(torch, raw):
    """All low bytes, then all high bytes."""
    return raw.view(-1, 2).t().contiguous().reshape(-1)


def ways(nvcomp, dtype):
    """Name, whether in planes, options."""
    yield "u1", False, {}
    yield "u1, chunks of 256 KiB", False, {"uncomp_chunk_size": 262144}
    if hasattr(nvcomp, "ExecutionPolicy"):
        yield "u1, for latency", False, {"execution_policy": nvcomp.ExecutionPolicy.LATENCY}
    if TYPES[dtype] == 2:
        yield "f2", False, {"data_type": "<f2"}
        yield "f2, chunks of 256 KiB", False, {"data_type": "<f2", "uncomp_chunk_size": 262144}
        yield "planes beforehand, u1", True, {"data_type": "|u1"}
    elif dtype == "F8_E4M3":
        yield "f1", False, {"data_type": "|f1"}
        yield "f1, chunks of 256 KiB", False, {"data_type": "|f1", "uncomp_chunk_size": 262144}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kv", required=True)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--block-tokens", type=int, default=16)
    parser.add_argument("--whole", action="store_true", help="not only the file's second half")
    args = parser.parse_args()
    blocks, dtype = blocks_of(args.kv, args.block_tokens, args.whole)
    if dtype not in TYPES:
        sys.exit(f"{args.kv}: type {dtype}")
    try:
        import torch
    except ImportError as e:
        skip(f"no torch ({e})")
    if not torch.cuda.is_available():
        skip("no GPU that torch can use")
    try:
        from nvidia import nvcomp
    except ImportError as e:
        skip(f"no nvCOMP ({e})")
    copies = -(-args.bytes // len(blocks))
    raw = torch.frombuffer(blocks, dtype=torch.uint8).to("cuda").repeat(copies)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    results, failed = {}, 0
    with torch.cuda.stream(stream):
        for name, split, options in ways(nvcomp, dtype):
            try:
                source = planes(torch, raw) if split else raw
                stream.synchronize()
                results[name] = variant(torch, nvcomp, stream, source, args.rounds, options)
                failed += not results[name]["verified"]
            except Exception as e:  # one way it does not know is no reason to lose the others
                results[name] = {"error": repr(e)[:300]}
            torch.cuda.empty_cache()
    good = [r for r in results.values() if "ratio" in r]
    keys = ("ratio", "encode_gbps", "decode_gbps")
    best = {k: max(r[k] for r in good) for k in keys} if good else None
    print(json.dumps({
        "benchmark": "nvcomp",
        "version": str(getattr(nvcomp, "__version__", "?")),
        "gpu": torch.cuda.get_device_name(),
        "file": args.kv,
        "dtype": dtype,
        "raw_bytes": raw.numel(),
        "best": best,
        "ways": results,
    }, indent=1))
    return 1 if failed or not good else 0


if __name__ == "__main__":
    sys.exit(main())
