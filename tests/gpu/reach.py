#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""reach.py FOLDER - what tests/gpu/run measured, in one table beside what was aimed at.

Reads the JSON files that it left in the folder; what is not there is not shown.  Says nothing about
correctness."""
import glob
import json
import os
import sys


def read(folder, name):
    try:
        with open(os.path.join(folder, name + ".json"), encoding="utf-8") as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def line(what, value, aim="", met=None):
    print(f"  {what:<58} {value:>12}  {aim:<12} {'' if met is None else 'yes' if met else 'NO'}")


def at_least(what, value, aim, unit=""):
    line(what, f"{value:.2f}", f">= {aim:g}{unit}", value >= aim)


def at_most(what, value, aim, unit=""):
    line(what, f"{value:.2f}", f"<= {aim:g}{unit}", value <= aim)


def codec(folder):
    for path in sorted(glob.glob(os.path.join(folder, "codec-*.json"))):
        name = os.path.basename(path)[:-5]
        j = read(folder, name)
        if not j or "gpu" not in j:
            continue
        g = j["gpu"]
        print(f"{name}: {g['model']}, {g['raw_bytes'] / 1e9:.2f} GB, "
              f"{g['identical_payloads']} of {g['compared_payloads']} payloads are the CPU's, "
              f"{g['verified_blocks']} of {g['blocks']} blocks restored")
        bf16 = j["dtype"] == "BF16"
        line("ratio (the CPU's)", f"{g['ratio']:.3f}", f"{j['ratio']:.3f}")
        for what, key, aim in (("encode", "encode", 400),
                               ("encode + verify", "encode_verify", None),
                               ("decode", "decode", 600)):
            if bf16 and aim:
                at_least(f"{what}, GB/s", g[key]["gbps"], aim)
            else:
                line(f"{what}, GB/s", f"{g[key]['gbps']:.2f}")
            line(f"{what}, GB/s seen from outside", f"{g[key]['wall_gbps']:.2f}")
        line("times faster than one CPU thread: encode, decode",
             f"{g['encode']['gbps'] / j['encode_gbps']:.0f}, "
             f"{g['decode']['gbps'] / j['decode_gbps']:.0f}")
        n = read(folder, "nvcomp-" + name.split("-")[1])
        if n and n.get("best"):
            b = n["best"]
            at_least(f"ratio against nvCOMP ANS, its best {b['ratio']:.3f}",
                     g["ratio"] / b["ratio"], 1)
            at_least(f"encode against its best, {b['encode_gbps']:.0f} GB/s",
                     g["encode"]["gbps"] / b["encode_gbps"], 1)
            at_least(f"decode against its best, {b['decode_gbps']:.0f} GB/s",
                     g["decode"]["gbps"] / b["decode_gbps"], 1)
        print()


def tier(folder):
    for path in sorted(glob.glob(os.path.join(folder, "tier*.json"))):
        name = os.path.basename(path)[:-5]
        j = read(folder, name)
        if not j:
            continue
        print(f"{name}: {j['gpu']}, blocks of {j['block_bytes']} bytes")
        for z in j["sizes"]:
            n = z["blocks"]
            raw_out = max(z["raw_out"]["gbps"], z["raw_out_blocks"]["gbps"])
            raw_in = max(z["raw_in"]["gbps"], z["raw_in_blocks"]["gbps"])
            line(f"{n} blocks: store GB/s, p50 us, p99 us", f"{z['store_source_free']['gbps']:.2f}",
                 f"{z['store_source_free']['p50_us']:.0f}, {z['store_source_free']['p99_us']:.0f}")
            line(f"{n} blocks: ... until committed", f"{z['store_committed']['gbps']:.2f}",
                 f"{z['store_committed']['p50_us']:.0f}, {z['store_committed']['p99_us']:.0f}")
            line(f"{n} blocks: load GB/s, p50 us, p99 us", f"{z['load']['gbps']:.2f}",
                 f"{z['load']['p50_us']:.0f}, {z['load']['p99_us']:.0f}")
            line(f"{n} blocks: raw copy GB/s out, in", f"{raw_out:.2f}, {raw_in:.2f}")
            if n == 512:
                at_least("512 blocks: store against the raw copy", z["store_against_raw"], 1.3)
                at_least("512 blocks: load against the raw copy", z["load_against_raw"], 1.3)
            else:
                line(f"{n} blocks: store, load against the raw copy",
                     f"{z['store_against_raw']:.2f}, {z['load_against_raw']:.2f}")
        at_most("load of one block minus the raw copy, us", j["load_minus_raw_us"], 150)
        print()


def neighbour(folder):
    for name in ("neighbour", "mps"):
        j = read(folder, name)
        if not j:
            continue
        print(f"{name}: {j['engine']}, MPS {'on' if j['mps'] else 'off'}")
        for r in j["loops"]:
            if r["beside"] == "alone":
                line(f"{r['loop']} alone, us a step", f"{r['mean_us']:.1f}")
                continue
            text = (f"{r['loop']} beside {r['beside']} "
                    f"({r['out_gbps']:.1f} out, {r['in_gbps']:.1f} in GB/s)")
            ours = r["beside"] in ("store", "load", "store_and_load") and name == "neighbour"
            if ours:
                at_most(text + ": slower %", r["slowdown_percent"], 5)
                at_most(text + ": p99 x", r["p99_ratio"], 1.2)
            else:
                line(text + ": %, p99 x", f"{r['slowdown_percent']:.2f}, {r['p99_ratio']:.3f}")
        print()


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: reach.py FOLDER")
    for part in (codec, tier, neighbour):
        part(sys.argv[1])


if __name__ == "__main__":
    main()
