#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""model_rate.py --test PROGRAM [--layers N] [--sequences N] [--tokens N] - is it worth it?

Keys and values rebuilt by the `model` speculator against a bf16 prefill of the same model, which
makes them too, on the same GPU, one after the other and once more: tokens a second, and how often
the one is the other.

The model has the shape of Qwen3-8B, few layers and random weights, so that it says nothing of
sizes.  PROGRAM is tests/gpu/test_gpu_model of the build; the prefill is transformers', with sdpa.

Exit status: 0; 1: something failed; 77: no torch, no transformers or no GPU here.
"""
import argparse
import json
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time

HIDDEN, MLP, HEADS, KV_HEADS, DIM, VOCAB = 4096, 12288, 32, 8, 128, 1024


def words(count, mask, base):
    """So many random bf16 of about one size: the bits of mask at random, and those of base."""
    x = int.from_bytes(os.urandom(2 * count), "little")
    x &= int.from_bytes(struct.pack("<H", mask) * count, "little")
    x |= int.from_bytes(struct.pack("<H", base) * count, "little")
    return x.to_bytes(2 * count, "little")


def shapes(layers):
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (HIDDEN,)
        yield p + "post_attention_layernorm.weight", (HIDDEN,)
        yield p + "self_attn.q_proj.weight", (HEADS * DIM, HIDDEN)
        yield p + "self_attn.k_proj.weight", (KV_HEADS * DIM, HIDDEN)
        yield p + "self_attn.v_proj.weight", (KV_HEADS * DIM, HIDDEN)
        yield p + "self_attn.o_proj.weight", (HIDDEN, HEADS * DIM)
        yield p + "self_attn.q_norm.weight", (DIM,)
        yield p + "self_attn.k_norm.weight", (DIM,)
        yield p + "mlp.gate_proj.weight", (MLP, HIDDEN)
        yield p + "mlp.up_proj.weight", (MLP, HIDDEN)
        yield p + "mlp.down_proj.weight", (HIDDEN, MLP)


def bytes_of(shape):
    count = 2
    for n in shape:
        count *= n
    return count


def folder_write(folder, layers):
    header, at = {}, 0
    for name, shape in shapes(layers):
        end = at + bytes_of(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights, ones = words(1 << 21, 0x807F, 0x3C80), words(MLP, 0x001F, 0x3F80)
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for i, (_, shape) in enumerate(shapes(layers)):
            left = bytes_of(shape)
            source = ones if len(shape) == 1 else weights
            off = i * 7919 * 2 % len(source) if len(shape) > 1 else 0
            source = source[off:] + source[:off]
            while left > 0:
                f.write(source[:left])
                left -= min(left, len(source))
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": DIM,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": 40960,
    }
    with open(os.path.join(folder, "config.json"), "w", encoding="ascii") as f:
        json.dump(config, f)


def skip(why):
    print("model_rate:", why)
    sys.exit(77)


def prefill(folder, sequences, tokens):
    """Tokens a second of a prefill that keeps its cache, of one batch; a process of its own."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as e:
        skip(e)
    if not torch.cuda.is_available():
        skip("no GPU here")
    m = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    m = m.cuda().eval()
    ids = torch.randint(0, VOCAB, (sequences, tokens), device="cuda")
    times = []
    with torch.inference_mode():
        for _ in range(16):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            m(ids, use_cache=True, logits_to_keep=1)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
    print(sequences * tokens / statistics.median(times[4:]))


def run_prefill(args, folder):
    command = [sys.executable, __file__, "--prefill", folder]
    command += ["--sequences", str(args.sequences), "--tokens", str(args.tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 77:
        skip(done.stdout.strip())
    if done.returncode:
        sys.exit(1)
    return float(done.stdout.split()[-1])


def run_model(args, folder):
    """{"encode 16": tokens a second, ...}: the best of one batch and of two together."""
    command = [args.test, "--model", folder, "--check", "100", "--repeats", "4", "--lanes", "2"]
    command += ["--sequences", str(args.sequences), "--tokens", str(args.tokens)]
    command += ["--block", "16", "--block", "256"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="")
    if done.returncode:
        sys.exit(done.returncode)
    best = {}
    for line in done.stdout.splitlines():
        m = re.match(r"gpu (encode|decode): blocks of (\d+) tokens.*, (\d+) tokens/s", line)
        if m:
            name = f"{m[1]}, blocks of {m[2]}"
            best[name] = max(best.get(name, 0), int(m[3]))
    return best


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--test")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--sequences", type=int, default=8)
    p.add_argument("--tokens", type=int, default=1024)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--prefill", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.prefill:
        prefill(args.prefill, args.sequences, args.tokens)
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        folder_write(folder, args.layers)
        for _ in range(args.rounds):
            base = run_prefill(args, folder)
            print(f"prefill, bf16, transformers: {base:.0f} tokens/s")
            for name, rate in run_model(args, folder).items():
                print(f"model {name} tokens: {rate} tokens/s, {rate / base:.2f} of the prefill")


main()
