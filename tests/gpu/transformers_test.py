# SPDX-License-Identifier: Apache-2.0
"""transformers_test.py [MODEL-FOLDER...] - a real model's KV cache from the GPU to skvcd and back.

Prefill with transformers, copy the cache into paged tensors that skvcd knows, store them, clear
them, load them into other pages, rebuild the cache from those, and go on generating.  The pages
must have the same bytes, and every step's logits the same bits as in the run that was never
interrupted.  Twice: with a tensor per layer, and with one tensor for all layers.

Needs a GPU, torch and transformers; exits 77, the reason in the last line, where one is missing.
--host: the same with pages in an arena and the model on the CPU, to try the test itself.
"""
import argparse
import hashlib
import inspect
import os
import random
import re
import subprocess
import sys
import time
import traceback

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts: deterministic
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../lib"))
from private_daemon import BUILD, ROOT, Daemon  # noqa: E402

BLOCK = 16
MODEL_WAIT = 200  # until all is coded with the model
WAIT = 60  # seconds that any job may take
WARM_ROUNDS = 12  # stores of other tokens until the profile must be there
CANARY = 0x5A5A


def skip(reason):
    print(reason)
    sys.exit(77)


def check(condition, what):
    if not condition:
        raise AssertionError(what)


try:
    import torch
    import transformers
    from tokenizers import Tokenizer
    from transformers import DynamicCache, Qwen3ForCausalLM
except ImportError as error:
    skip(f"no torch with transformers: {error}")

import skvc  # noqa: E402
from skvc import layout  # noqa: E402


# ---- the model

def load_model(folder, device, attention):
    named = {"attn_implementation": attention, "local_files_only": True}
    try:
        model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **named)
    except TypeError:  # transformers 4 before 4.56
        model = Qwen3ForCausalLM.from_pretrained(folder, torch_dtype=torch.bfloat16, **named)
    check(model.dtype == torch.bfloat16, f"the model came as {model.dtype}")
    return model.to(device).eval()


def prompt_ids(folder):
    """Token ids of two texts: one to measure, one for the daemon's statistics."""
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    texts = []
    for name in ("prompt.txt", "prompt-other.txt"):
        with open(os.path.join(ROOT, "tools/models", name), encoding="utf-8") as f:
            texts.append(tokenizer.encode(f.read(), add_special_tokens=False).ids)
    return texts


def cache_pairs(cache):
    """Per layer (keys, values), [1, heads, tokens, dim] each."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache))  # transformers before 4.54


def make_cache(pairs=()):
    cache = DynamicCache()
    for index, (keys, values) in enumerate(pairs):
        cache.update(keys, values, index)
    return cache


# transformers 5 gave the argument another name.
CACHE = "cache" if "cache" in inspect.signature(Qwen3ForCausalLM.forward).parameters else (
    "past_key_values")


def forward(model, ids, cache):
    """The last token's logits; the cache grows."""
    tokens = torch.tensor([ids], dtype=torch.long, device=model.device)
    return model(input_ids=tokens, use_cache=True, **{CACHE: cache}).logits[0, -1].clone()


def generate(model, cache, rest, steps):
    """The prompt's rest, then greedy steps.  Logits of each, and the tokens."""
    logits, tokens, ids = [], [], rest
    for _ in range(steps + 1):
        logits.append(forward(model, ids, cache))
        ids = [int(logits[-1].float().argmax())]
        tokens += ids
    return torch.stack(logits), tokens[:steps]


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.int16), b.contiguous().view(torch.int16))


# ---- the pages

class Pages:
    """Paged KV tensors of one layout, known to skvcd: subclasses say how they lie."""

    def __init__(self, session, config, blocks, device):
        self.session, self.blocks, self.device = session, blocks, device
        self.layers = config.num_hidden_layers
        self.heads = config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads)
        self.arena = None
        self.tensors = self.make(self.shapes())
        self.layout = self.describe()

    def make(self, shapes):
        if self.device != "cpu":
            return [torch.zeros(shape, dtype=torch.bfloat16, device=self.device)
                    for shape in shapes]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self.arena = self.session.arena(2 * sum(sizes))
        elements = torch.frombuffer(self.arena.view, dtype=torch.bfloat16)
        return [part.view(shape) for part, shape in
                zip(elements[:sum(sizes)].split(sizes), shapes)]

    def register(self, ns):
        if self.device != "cpu":
            return self.session.register_torch(ns, self.layout)
        return self.session.register_host(ns, self.arena, self.blocks,
                                          self.layout.strides(self.arena.address))

    def fill(self, pattern):
        for tensor in self.tensors:
            tensor.view(torch.int16).fill_(pattern)

    def write(self, table, pairs):
        """The caches' tokens, all of them full blocks, into the blocks that the table names."""
        index = torch.tensor(table, device=self.device)
        for layer, pair in enumerate(pairs):
            for kv, cached in enumerate(pair):
                blocks = cached[0].transpose(0, 1).reshape(len(table), BLOCK, self.heads, self.dim)
                self.of(layer, kv)[index] = blocks

    def read(self, table):
        """As a cache has it."""
        index = torch.tensor(table, device=self.device)
        return [tuple(self.of(layer, kv)[index].reshape(-1, self.heads, self.dim).transpose(0, 1)
                      .contiguous().unsqueeze(0) for kv in range(2))
                for layer in range(self.layers)]

    def untouched(self, table, pattern):
        """Blocks that the table does not name have the pattern everywhere."""
        others = torch.tensor(sorted(set(range(self.blocks)) - set(table)), device=self.device)
        return all(bool((self.of(layer, kv)[others].view(torch.int16) == pattern).all())
                   for layer in range(self.layers) for kv in range(2))


class LayerPages(Pages):
    """vLLM's: per layer [2, blocks, tokens, heads, dim]."""
    name = "tensor per layer"

    def shapes(self):
        return [(2, self.blocks, BLOCK, self.heads, self.dim)] * self.layers

    def describe(self):
        return layout.kv_first(self.tensors)

    def of(self, layer, kv):
        return self.tensors[layer][kv]


class CrossLayerPages(Pages):
    """[blocks, layers, 2, tokens, heads, dim]"""
    name = "one tensor for all layers"

    def shapes(self):
        return [(self.blocks, self.layers, 2, BLOCK, self.heads, self.dim)]

    def describe(self):
        return layout.cross_layer(self.tensors[0])

    def of(self, layer, kv):
        return self.tensors[0][:, layer, kv]


# ---- through skvcd

class Engine:
    """Stores and loads with events, when there is a GPU that has them."""

    def __init__(self, daemon, session, device):
        self.daemon, self.session = daemon, session
        self.events = {}
        self.registered = {}
        if device != "cpu":
            for name in ("ready", "done"):
                self.events[name] = torch.cuda.Event(interprocess=True)
                self.registered[name] = session.register_event(self.events[name])

    def ready(self):
        """What was launched so far comes before what the daemon does."""
        if self.events:
            self.events["ready"].record()
        return self.registered.get("ready")

    def store(self, region, keys, table, ids):
        job = self.session.store(region, keys, table, tokens=ids, ready_event=self.ready())
        done = job.wait(WAIT).check()
        check(all(done.bitmap), f"store: {done.bitmap.count(True)} of {len(keys)} blocks taken"
                                f" ({done.reason})")
        return done

    def load(self, ns, region, keys, table, ids):
        found = self.session.lookup(ns, keys, tokens=ids).wait(WAIT).check()
        check(found.count == len(keys), f"lookup: {found.count} of {len(keys)} blocks found")
        with found.lease as lease:
            job = self.session.load(lease, region, table, ready_event=self.ready(),
                                    done_event=self.registered.get("done"))
            done = job.wait(WAIT).check()
        check(all(done.bitmap), f"load: {done.bitmap.count(True)} of {len(keys)} blocks exact"
                                f" ({done.reason})")
        if self.events:
            torch.cuda.current_stream().wait_event(self.events["done"])
        return done


def block_keys(name, ids):
    """Chained hashes of full blocks."""
    keys, parent = [], name.encode()
    for start in range(0, len(ids), BLOCK):
        parent = hashlib.sha256(parent + repr(ids[start:start + BLOCK]).encode()).digest()
        keys.append(parent)
    return keys


def stat(daemon, name):
    out = subprocess.run([BUILD + "/bin/skvcctl", "--bus", daemon.bus, "--json", "stats"],
                         stdout=subprocess.PIPE, check=True).stdout.decode()
    return int(re.search(rf'"{name}":\s*(\d+)', out).group(1))


def profiles_fitted(daemon):
    """How many namespaces have their statistics: from then on `channel` encodes."""
    return stat(daemon, "profiles_fitted")


def coded_again(engine, pages, ns, keys, before):
    """Wait until the daemon has coded these blocks with the model: it ends with what is hottest."""
    began, last, quiet = time.monotonic(), -1, 0
    while quiet < 10:
        check(time.monotonic() - began < MODEL_WAIT, "the blocks are not coded with the model")
        time.sleep(0.2)
        now = stat(engine.daemon, "model_blocks")
        quiet = quiet + 1 if now == last and now >= before + len(keys) else 0
        last = now
    raw, coded = stat(engine.daemon, "raw_bytes"), stat(engine.daemon, "coded_bytes")
    print(f"  {pages.name}: {last - before} blocks coded with the model in "
          f"{time.monotonic() - began - 2:.1f} s with the fit, {ns.block_bytes} bytes each; "
          f"all that the daemon has: {raw} to {coded} bytes; "
          f"{stat(engine.daemon, 'sequences_gpu')} prefixes on the GPU")


def warm_up(engine, model, pages, region, name, ids):
    """Store other tokens until the namespace has its statistics.  How many tokens that took."""
    table = list(range(len(ids) // BLOCK))
    before = profiles_fitted(engine.daemon)
    for turn in range(WARM_ROUNDS):
        ids = ids[7:] + ids[:7]  # another sequence each time, of the same text
        cache = make_cache()
        forward(model, ids, cache)
        pages.write(table, cache_pairs(cache))
        engine.store(region, block_keys(f"{name} {turn}", ids), table, ids)
        if profiles_fitted(engine.daemon) > before:
            return (turn + 1) * len(ids)
    raise AssertionError(f"no profile after {WARM_ROUNDS} rounds of {len(ids)} tokens")


def through_skvcd(engine, model, pages, ns, name, ids, warm_ids, pairs, by_model):
    """The caches' pairs as they come back.  Prints what it took."""
    region = pages.register(ns)
    before = stat(engine.daemon, "model_blocks")
    warm_tokens = warm_up(engine, model, pages, region, name, warm_ids)
    keys = block_keys(name, ids)
    blocks = list(range(pages.blocks))
    random.Random(1).shuffle(blocks)
    source, target = blocks[:len(keys)], blocks[len(keys):2 * len(keys)]
    pages.write(source, pairs)
    stored = engine.store(region, keys, source, ids)
    check(stored.raw_bytes == len(keys) * ns.block_bytes, f"raw_bytes {stored.raw_bytes}")
    check(stored.stored_bytes < stored.raw_bytes, "the blocks were stored raw")
    if by_model:
        coded_again(engine, pages, ns, keys, before)
    pages.fill(CANARY)
    loaded = engine.load(ns, region, keys, target, ids)
    back = pages.read(target)
    for layer, (ours, theirs) in enumerate(zip(back, pairs)):
        for what, a, b in zip("KV", ours, theirs):
            check(same_bits(a, b), f"{what} of layer {layer} came back with other bytes")
    check(pages.untouched(target, CANARY), "a load wrote outside its blocks")
    print(f"  {pages.name}: {len(keys)} blocks byte-exact, {stored.raw_bytes} to "
          f"{stored.stored_bytes} bytes: ratio {stored.raw_bytes / stored.stored_bytes:.3f}; "
          f"store {stored.elapsed * 1e3:.2f} ms, load {loaded.elapsed * 1e3:.2f} ms; "
          f"a profile after {warm_tokens} tokens")
    region.unregister()
    return back


def one_model(daemon, folder, options, device):
    model = load_model(folder, device, options.attention)
    first, other = prompt_ids(folder)
    ids = (first * (options.tokens // len(first) + 1))[:options.tokens]
    full = len(ids) // BLOCK * BLOCK
    rest = ids[full:] or [ids.pop()]
    ids, warm_ids = ids[:full], (other * (full // len(other) + 1))[:full]
    print(f"{os.path.basename(os.path.normpath(folder))}: {full} tokens in {full // BLOCK} blocks, "
          f"{len(rest)} more, then {options.steps} steps; attention {options.attention}")

    cache = make_cache()
    forward(model, ids, cache)
    pairs = cache_pairs(cache)  # the tensors stay as they are: a cache grows by making new ones
    kept = [tuple(t.clone() for t in pair) for pair in pairs]
    logits, tokens = generate(model, cache, rest, options.steps)
    again, _ = generate(model, make_cache(kept), rest, options.steps)
    check(same_bits(logits, again), "two runs without skvcd differ: nothing can be compared")
    check(not any(same_bits(logits[0], row) for row in logits[1:]), "steps have the same logits")

    with skvc.Session(daemon.socket, name="transformers_test") as session:
        engine = Engine(daemon, session, device)
        made = [kind(session, model.config, 2 * full // BLOCK + 5, device)
                for kind in (LayerPages, CrossLayerPages)]
        for pages in made:
            # Each layout with a namespace of its own: what the other stored would be duplicates.
            ns = session.namespace(pages.layout.geometry(folder, salt=pages.name.encode()))
            back = through_skvcd(engine, model, pages, ns, folder, ids, warm_ids, kept,
                                 options.model)
            restored, restored_tokens = generate(model, make_cache(back), rest, options.steps)
            differ = [i for i in range(len(logits)) if not same_bits(logits[i], restored[i])]
            check(not differ, f"logits differ at steps {differ}")
            check(tokens == restored_tokens, "other tokens")
            print(f"    logits of {len(logits)} steps bit-identical, {len(tokens)} tokens the same")
            # What this layout stored, into the pages of the other.
            target = made[1] if pages is made[0] else made[0]
            region = target.register(ns)
            table = list(range(full // BLOCK))
            target.fill(CANARY)
            engine.load(ns, region, block_keys(folder, ids), table, ids)
            for ours, theirs in zip(target.read(table), kept):
                check(all(map(same_bits, ours, theirs)), "other bytes in the other layout")
            region.unregister()
        print("  each layout's blocks load into the other's pages")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", metavar="MODEL-FOLDER")
    parser.add_argument("--tokens", type=int, default=2048 + 11)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    parser.add_argument("--host", action="store_true")
    parser.add_argument("--model", action="store_true", help="code with a copy of the model too")
    options = parser.parse_args()
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}, skvc {skvc.__version__}")
    try:
        library = skvc._abi.library()
    except OSError as error:
        skip(f"no libskvc: {error}")
    print(f"libskvc {library.skvc_version().decode()} of {BUILD}")
    device = "cpu" if options.host else "cuda:0"
    if not options.host:
        if not torch.cuda.is_available():
            skip("no GPU that torch can use")
        print(f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")
        torch.cuda.set_device(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    if not options.folders:
        options.folders = [os.path.join(ROOT, "tools/models/qwen3-7m")]
        bigger = os.path.join(ROOT, "../shared/data/models/qwen3-52m")
        if os.path.isdir(bigger):
            options.folders.append(bigger)

    overrides = ["host.pool=512M", "daemon.cpu_workers=2"]
    if options.model:
        overrides += ["codec.speculator=model", "profile.priority=normal", "profile.sample=4M",
                      "model.fit_tokens=1024"]
    if not options.host:
        overrides.append("gpu.device=auto")
    daemon = Daemon(*overrides)
    try:
        with torch.no_grad():
            for folder in options.folders:
                if options.model:
                    subprocess.run([BUILD + "/bin/skvcctl", "--bus", daemon.bus, "model", "add",
                                    re.sub(r"[^A-Za-z0-9.-]", "_", folder), folder], check=True)
                one_model(daemon, folder, options, device)
        stats = subprocess.run([BUILD + "/bin/skvcctl", "--bus", daemon.bus, "stats"],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        print(stats.stdout.decode(errors="replace"))
    except BaseException:
        daemon.stop()
        raise
    check(daemon.stop() == 0, "skvcd did not end well")
    print("ok: byte-exact pages, bit-identical logits")


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc(file=sys.stdout)
        sys.exit(1)
