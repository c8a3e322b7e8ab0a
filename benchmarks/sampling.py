"""Sampling: tokens per second and peak memory, of llamactl, of transformers' generate and of llama.cpp.

What is measured, in two tables for each shape of pretraining.py and precision, on the CPU:

    in batch    many prompts, K = 8 samples of each, of at most 128 new tokens, which end where a stop token is drawn:
                its probability is about 1/64 at every step, so that lengths are uneven, and 55.5 on average. A turn's
                figure is the tokens that were drawn, stop tokens among them, over the seconds that took, from ids to
                ids: the prompts are part of it, loading is not. Prompts have 64 to 200 random ids
    alone       one prompt of 128 ids, one sample of 128 tokens, without a stop: tokens a second from the first one to
                the last, so without the prompt

Temperature 1, and the whole distribution (top-p 1, top-k 0). All read the same weights, which are numbers that bf16
holds exactly: random ones, of a network in which context counts (scores of attention and of the next token have
standard deviations of about 2 and 1.3), but for one channel of the residual stream. That has the same large number
in all embeddings, no layer reads or writes it, and the stop token's row of the head has nothing else: so its score
is the same in every context, as large as the share of 1/64 needs, which is measured. The rest of the stream is small
beside that channel, and the norms' weights make up for it. Alone, that row has the number that makes it never drawn.
The candidates:

    llamactl            the sampler of ``llamactl generate``, with its own choice of how much is decoded at a time, and
                        with its compiled kernels, which take bf16 weights as fp32 numbers as they read them (without
                        numba, and without instructions for bf16, fp32 copies are made where there is more than one
                        sample)
    transformers        LlamaForCausalLM.generate with sdpa attention, num_return_sequences=K, on batches padded on the
                        left, of prompts of like lengths; in bf16 its weights are bf16
    transformers, fp32  in the tables of bf16: the same in fp32, which is the faster one where the processor has no
                        instructions for bf16 (left out where it has)
    llama.cpp           by llama-cpp-python's low-level interface, compiled for this processor: continuous batching (a
                        finished sample's place is taken at once), each prompt decoded once, and its cache shared by
                        its samples, prompts decoded together with the other sequences' next tokens; a chain of
                        temperature and dist samples each sequence. Keys and values are f16 in the tables of bf16, its
                        default, and f32 in those of fp32, where its flash attention would take them as f16

Peers are taken as they are fastest: before the rounds each is tried, on a part of the work, with 64, 32 and 128
sequences at a time; then transformers with its dynamic and its static cache; and llama.cpp with one cache for all
sequences, which samples can share without a copy, or one for each, with its chains run one by one or, as its newest
versions can, within the graph, and in bf16 with flash attention or plain. The column "how" says what was best.
``--how`` gives it, and nothing is tried.

How: each candidate is a process of its own, so that its peak memory is its own; the processes take turns, in rounds,
and each does a little before it is timed. The figure is the median of the turns, with the slowest and the fastest, and
ratios are of medians; each round has its own seed. Memory is the peak of the process, and beside it what it had
before the first token: libraries and model. (On a GPU: of torch's allocator.)

The bound, measured in the same rounds by a process of its own: the bandwidth of memory (the fastest of copying,
summing, and multiplying by a vector what is too large for a cache), and the seconds that the products of the model's
own linear layers take, one after the other, on 64 rows, as many as a step is taken to have, and on 512, as of prompts;
in the precision of the table, or in fp32 where that is faster. What a turn's tokens need at these rates is

    in batch    of each step, the seconds of the products, or of reading the weights where that takes longer, and of
                reading the keys and values that its tokens attend to, a prompt's only once for its K samples; and of
                the prompts, the products
    alone       the reading of the weights, keys and values

and "of the bound" is that over the seconds that were taken. Products of attention, norms and the sampling itself are
not in it, so 100 % is out of reach; but weights that fit into a cache of the processor (those of A may) can be read
faster than memory, so that alone the bound is none for them.

The check that the work is equal, before the rounds: each peer gives the logits of a fixed prompt at all of its places,
which must agree with those of llamactl's plain forward pass in fp32; llamactl itself samples, and its log-probabilities
must agree with those of the forward pass over what it sampled. "Off" is the largest difference. After the rounds, the
mean length of the samples must be what the stop token's share makes it, as far as chance lets it.

Run: benchmarks/run.sh makes the peers' environments and runs this with its defaults; or, once they are there,

    python benchmarks/sampling.py --shape A --precision bf16 --threads 2 --rounds 3 --json results.jsonl
    python benchmarks/sampling.py --shape tiny --rounds 1    # to try it out

On a GPU: ``--device cuda`` measures the 7b (random weights, bf16), 64 sequences at a time, llamactl beside
transformers, if that can be imported by the same Python; nothing else than torch with CUDA, transformers and what
llamactl itself needs. It writes 14 GB into the folder for temporary files. ``--device cpu --shape tiny`` is the same
code.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from measure import Clock, Spread, append_json, count_of_threads, memory, note, python_of, table
from pretraining import SEED, SHAPES, Shape

SHAPES = {
    **SHAPES,
    "7b": Shape(dim=4096, layers=32, heads=32, kv_heads=32, ffn=11008, vocab=32000, batch=1, context=4096),
}
K = 8
EOS = 2
ROWS = 64  # sequences of a step, of which the bound is reckoned
PREFILL = 512  # places of a product of prompts
CHECKED = 64  # ids of the prompt of the check, at most
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2}  # of logits, whose standard deviation is 1.3
OURS, HUGGING, HUGGING_FP32, GGML = "llamactl", "transformers", "transformers, fp32", "llama.cpp"
CANDIDATES = {"fp32": [OURS, HUGGING, GGML], "bf16": [OURS, HUGGING, HUGGING_FP32, GGML]}
ENVIRONMENT = {HUGGING: "transformers", HUGGING_FP32: "transformers", GGML: "llamacpp"}
PARTS = ("batch", "alone")
CHANNEL = 4.0  # the constant channel beside the whole rest of the residual stream, about
SCORES, LOGITS = 2.0, 1.3  # standard deviations that the random weights aim at


class Load(NamedTuple):
    """What there is to sample."""

    prompts: int
    shortest: int
    longest: int
    new: int  # tokens, at most
    stop: float  # probability of the stop token
    repeats: int  # of the single stream

    @property
    def mean(self) -> float:
        """Length of a sample, the stop token counted."""
        return (1 - (1 - self.stop) ** self.new) / self.stop

    @property
    def deviation(self) -> float:
        """Of that length."""
        shares = [self.stop * (1 - self.stop) ** n for n in range(self.new)]
        square = sum(share * (n + 1) ** 2 for n, share in enumerate(shares)) + (1 - sum(shares)) * self.new**2
        return math.sqrt(square - self.mean**2)


USUAL = Load(prompts=48, shortest=64, longest=200, new=128, stop=1 / 64, repeats=4)
LOADS = {
    "A": USUAL,
    "B": USUAL._replace(prompts=12, repeats=2),
    "7b": USUAL._replace(prompts=64, repeats=2),
    "tiny": Load(prompts=12, shortest=8, longest=25, new=16, stop=1 / 8, repeats=2),
}

# What a peer is tried with: one setting after the other, the best kept. The first value is where it starts.
CACHES = {"dynamic": {}, "static": {"cache_implementation": "static"}}
SETTINGS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "batch": {
        HUGGING: {"rows": [64, 32, 128], "cache": list(CACHES)},
        GGML: {
            "rows": [64, 32, 128],
            "cache": ["one", "each"],
            "sampling": ["chains", "graph"],
            "attention": ["flash", "plain"],
        },
    },
    "alone": {
        HUGGING: {"cache": list(CACHES)},
        GGML: {"sampling": ["chains", "graph"], "attention": ["flash", "plain"]},
    },
}
SETTINGS = {part: {**peers, HUGGING_FP32: peers[HUGGING]} for part, peers in SETTINGS.items()}


class Task(NamedTuple):
    """What a worker is given."""

    shape: Shape
    load: Load
    precision: str
    device: str
    threads: int
    weights: Path  # with a folder for each precision and part
    how: dict[str, Any]

    def folder(self, part: str) -> Path:
        """A model directory."""
        return self.weights / self.precision / part


class Engine(NamedTuple):
    """A candidate with its model loaded."""

    batch: Callable[[list[list[int]], int, int], list[int]]  # prompts, new tokens, seed: tokens drawn of each sample
    alone: Callable[[list[int], int, int], list[float]]  # a prompt, new tokens, seed: the moment of each token
    off: Callable[[list[int]], float]  # a prompt: how far its logits are from those of the forward pass


# --- the prompts and the weights ---


def prompts_of(shape: Shape, load: Load) -> list[list[int]]:
    """The same ones in every process."""
    dice = random.Random(SEED)
    return [ids_of(dice, shape, dice.randint(load.shortest, load.longest)) for _ in range(load.prompts)]


def ids_of(dice: random.Random, shape: Shape, number: int) -> list[int]:
    """Without BOS, EOS and padding."""
    return [dice.randrange(3, shape.vocab) for _ in range(number)]


def save_weights(task: Task, parts: Iterable[str]) -> None:
    """Model directories: for the batch with a stop token, alone without."""
    import torch
    from safetensors.torch import save_file

    from llamactl.artifacts.checkpoint import hf_name
    from llamactl.model.config import Config
    from llamactl.model.device import PRECISIONS, STORED
    from llamactl.model.llama import Llama

    shape, device = task.shape, torch.device(task.device)
    size = Config(shape.dim, shape.layers, shape.heads, shape.kv_heads, shape.ffn, shape.vocab, shape.context)
    with torch.device("meta"):
        names = {name: tuple(one.shape) for name, one in Llama(size).named_parameters()}
    constant = 2.0 ** round(math.log2(CHANNEL * math.sqrt(shape.dim)))
    gain = math.hypot(constant, math.sqrt(shape.dim)) / math.sqrt(shape.dim)
    # what is read has standard deviation 1 in all channels; what layers add is small beside it
    scale = {
        "tok_embeddings": 1.0, "wq": SCORES**0.5, "wk": SCORES**0.5, "output": LOGITS,
        "wo": (2 * shape.layers) ** -0.5, "w2": (2 * shape.layers) ** -0.5,
    }  # fmt: skip
    state = {}
    for number, (name, wanted) in enumerate(names.items()):
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if len(wanted) == 1:
            tensor = torch.full(wanted, gain)
            tensor[0] = float(name == "norm.weight")
        else:
            generator = torch.Generator(device).manual_seed(SEED + number)
            deviation = scale.get(kind, 1.0) / (1.0 if kind == "tok_embeddings" else math.sqrt(wanted[1]))
            tensor = torch.empty(wanted, device=device).normal_(0.0, deviation, generator=generator)
            if kind == "tok_embeddings":
                tensor[:, 0] = constant
            elif kind in ("wo", "w2"):
                tensor[0] = 0.0
            elif kind == "output":
                tensor[:, 0] = tensor[EOS] = 0.0
        state[hf_name(name)] = tensor.bfloat16().to("cpu", PRECISIONS[task.precision])

    def save(part: str) -> None:
        task.folder(part).mkdir(parents=True, exist_ok=True)
        save_file(state, task.folder(part) / "model.safetensors", {"format": "pt"})
        (task.folder(part) / "config.json").write_text(json.dumps(size.to_hf(STORED[task.precision])))

    head = state[hf_name("output.weight")]
    first, *others = parts
    save(first)
    with torch.inference_mode():
        model = Llama.load(task.folder(first), device)
        length = min(shape.context, task.load.longest + task.load.new)
        dice = random.Random(SEED)
        hidden = model(torch.tensor([ids_of(dice, shape, length) for _ in range(4)], device=device))
        scores = model.logits(hidden)
        scores[..., EOS] = -math.inf
        rest, channel = scores.logsumexp(-1), hidden[..., 0].float()
        low, high = 0.0, 1.0  # the stop token's weight, by halving
        for _ in range(30):
            middle = (low + high) / 2
            often = float((middle * channel - rest).sigmoid().mean()) > task.load.stop
            low, high = (low, middle) if often else (middle, high)
    weight = {"batch": middle, "alone": -1.0}
    for part in (*others, first):
        head[EOS, 0] = torch.tensor(weight[part]).bfloat16()
        save(part)


def save_gguf(task: Task, part: str) -> None:
    """The same weights as llama.cpp reads them; it rotates the pairs (2i, 2i + 1) of a head, not (i, i + E/2)."""
    import gguf
    import numpy as np

    shape = task.shape
    writer = gguf.GGUFWriter(task.folder(part) / "model.gguf", "llama")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.dim)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.dim // shape.heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(json.loads((task.folder(part) / "config.json").read_text())["rms_norm_eps"])
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if task.precision == "bf16" else gguf.LlamaFileType.ALL_F32)
    names = {
        "model.layers": "blk", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down",
        "mlp.up_proj": "ffn_up", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    file = task.folder(part) / "model.safetensors"
    raw = np.memmap(file, np.uint8, "r")
    header_bytes = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + header_bytes].tobytes())
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + header_bytes + offset for offset in about["data_offsets"])
        data = np.frombuffer(raw[start:end].tobytes(), {"BF16": np.uint16, "F32": np.float32}[about["dtype"]])
        data = data.reshape(about["shape"])
        if "q_proj" in name or "k_proj" in name:
            pairs = data.reshape(-1, 2, shape.dim // shape.heads // 2, data.shape[-1])
            data = pairs.swapaxes(1, 2).reshape(data.shape)
        if data.ndim == 1 and data.dtype == np.uint16:  # norms
            data = (data.astype(np.uint32) << 16).view(np.float32)
        for theirs, its in names.items():
            name = name.replace(theirs, its)
        if data.dtype == np.uint16:
            writer.add_tensor(name, data.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_reference(task: Task) -> None:
    """Logits of the check's prompt by llamactl's forward pass in fp32."""
    import numpy as np
    import torch

    from llamactl.model.llama import Llama

    model = Llama.load(task.folder("batch"), torch.device(task.device), torch.float32)
    with torch.inference_mode():
        scores = model.logits(model(torch.tensor([checked(task)], device=task.device)))[0]
    np.save(task.weights / f"{task.precision}.npy", scores.float().cpu().numpy())


def checked(task: Task) -> list[int]:
    """The prompt of the check."""
    return ids_of(random.Random(SEED + 1), task.shape, min(CHECKED, task.shape.context // 2))


def off_reference(task: Task, scores: Any) -> float:
    """The largest difference from the forward pass; the stop token's, alone, is another one."""
    import numpy as np

    expected = np.load(task.weights / f"{task.precision}.npy")
    return float(np.abs(np.asarray(scores, np.float32) - expected).max())


# --- the candidates: each runs in its own environment ---


def llamactl(task: Task, part: str) -> Engine:
    """As ``stages/generate.py`` does, without texts and records."""
    import torch

    from llamactl.model import generate as sampler
    from llamactl.model.device import PRECISIONS, keep_freed_memory
    from llamactl.model.drawing import Sampling
    from llamactl.model.llama import Llama

    keep_freed_memory()

    device = torch.device(task.device)
    model = sampler.load(task.folder(part), device, PRECISIONS[task.precision], 1 if part == "alone" else K)

    def sampling(new: int, seed: int) -> Sampling:
        return Sampling(top_p=1.0, top_k=0, max_new_tokens=new, seed=seed)

    def batch(prompts: list[list[int]], new: int, seed: int) -> list[int]:
        requests = [sampler.Request(prompt, (1.0,) * K) for prompt in prompts]
        answers = sampler.generate(model, requests, sampling(new, seed))
        return [len(one.ids) + one.stopped for samples in answers for one in samples]

    def alone(prompt: list[int], new: int, seed: int) -> list[float]:
        drawn = sampler.decode(model, [sampler.Request(prompt, (1.0,))], sampling(new, seed))
        return [time.perf_counter() for _ in drawn]

    def off(prompt: list[int]) -> float:
        reference = Llama.load(task.folder(part), device, torch.float32)
        answers = next(sampler.generate(model, [sampler.Request(prompt, (1.0,) * K)], sampling(task.load.new, SEED)))
        worst = 0.0
        for one in answers:
            ids = [*prompt, *one.ids, *[EOS] * one.stopped]
            with torch.inference_mode():
                scores = reference.logits(reference(torch.tensor([ids], device=device)))[0].log_softmax(-1)
            new = len(ids) - len(prompt)
            expected = scores[-new - 1 : -1].gather(-1, torch.tensor(ids[-new:], device=device)[:, None])[:, 0]
            worst = max(worst, float((torch.tensor(one.log_probs, device=device) - expected).abs().max()))
        return worst

    return Engine(batch, alone, off)


def transformers(task: Task, part: str) -> Engine:
    """``generate`` of the model as it is loaded."""
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[task.precision]
    model = LlamaForCausalLM.from_pretrained(task.folder(part), dtype=dtype, attn_implementation="sdpa")
    model = model.to(task.device).eval()
    chosen = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "eos_token_id": EOS, "pad_token_id": 0}
    chosen |= CACHES[task.how.get("cache", "dynamic")]

    def batch(prompts: list[list[int]], new: int, seed: int) -> list[int]:
        torch.manual_seed(seed)
        at_once = max(1, task.how["rows"] // K)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        lengths: dict[int, list[int]] = {}
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            # a static cache is made anew, and compiled for, where its size changes
            width = task.load.longest if task.how["cache"] == "static" else max(len(prompts[number]) for number in some)
            pads = [width - len(prompts[number]) for number in some]
            ids = [[0] * pad + prompts[number] for pad, number in zip(pads, some, strict=True)]
            mask = [[0] * pad + [1] * (width - pad) for pad in pads]
            out = model.generate(
                input_ids=torch.tensor(ids, device=task.device),
                attention_mask=torch.tensor(mask, device=task.device),
                num_return_sequences=K, max_new_tokens=new, **chosen,
            )[:, width:]  # fmt: skip
            ends = out == EOS
            drawn = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, out.shape[1]).tolist()
            lengths |= {number: drawn[place * K : (place + 1) * K] for place, number in enumerate(some)}
        return [length for number in range(len(prompts)) for length in lengths[number]]

    class Watch:
        """A streamer: it is given the prompt, and then each token."""

        def __init__(self) -> None:
            self.moments: list[float] = []

        def put(self, value: Any) -> None:
            self.moments.append(time.perf_counter())

        def end(self) -> None:
            pass

    def alone(prompt: list[int], new: int, seed: int) -> list[float]:
        torch.manual_seed(seed)
        watch, ids = Watch(), torch.tensor([prompt], device=task.device)
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "streamer": watch}
        model.generate(input_ids=ids, **given, **chosen)
        return watch.moments[1:]

    def off(prompt: list[int]) -> float:
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([prompt], device=task.device)).logits[0]
        return off_reference(task, scores.float().cpu())

    return Engine(batch, alone, off)


def llama_cpp(task: Task, part: str) -> Engine:
    """Continuous batching as its server does it, with what a prompt's samples share decoded once."""
    import llama_cpp as lib
    import numpy as np

    @lib.llama_log_callback
    def errors(level: int, text: bytes, _: Any) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            sys.stderr.write(text.decode(errors="replace"))

    lib.llama_log_set(errors, None)
    kept = [errors]  # nobody else holds what C calls
    lib.llama_backend_init()
    given = lib.llama_model_default_params()
    given.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(task.folder(part) / "model.gguf").encode(), given)
    inside = task.how.get("sampling") == "graph"

    def chain(seed: int) -> Any:
        made = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(made, lib.llama_sampler_init_temp(1.0))
        lib.llama_sampler_chain_add(made, lib.llama_sampler_init_dist(seed % 2**32))
        return made

    @contextlib.contextmanager
    def context(cells: int, sequences: int, chains: list[Any], one: bool = True) -> Iterator[Any]:
        """A cache of so many places for so many sequences; the first of them are sampled in the graph by ``chains``."""
        about = lib.llama_context_default_params()
        about.n_ctx, about.n_seq_max, about.kv_unified = cells, sequences, one
        about.n_threads = about.n_threads_batch = task.threads
        if task.precision == "fp32":
            about.type_k = about.type_v = lib.GGML_TYPE_F32
        plain = task.precision == "fp32" or task.how.get("attention") == "plain"
        about.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED if plain else lib.LLAMA_FLASH_ATTN_TYPE_AUTO
        pairs = (lib.llama_sampler_seq_config * len(chains))(
            *((row, ctypes.cast(one, ctypes.c_void_p)) for row, one in enumerate(chains))
        )
        about.samplers, about.n_samplers = pairs, len(chains)
        kept.append(pairs)
        made = lib.llama_init_from_model(model, about)
        if not made:
            raise SystemExit("llama.cpp has made no context")
        try:
            yield made
        finally:
            lib.llama_free(made)
            kept[1:] = []

    def numbers(kind: Any, size: int) -> tuple[Any, Any]:
        array = np.zeros(size, kind)
        return array, np.ctypeslib.as_ctypes(array)

    class Batch:
        """A llama_batch over arrays of numpy: tokens, each of one sequence."""

        def __init__(self, room: int) -> None:
            self.tokens, tokens = numbers(np.int32, room)
            self.places, places = numbers(np.int32, room)
            self.sequences, sequences = numbers(np.int32, room)
            self.wanted, wanted = numbers(np.int8, room)
            self.counts, counts = numbers(np.int32, room)
            self.counts[:] = 1
            start = ctypes.addressof(sequences)
            self.pointers = (ctypes.POINTER(ctypes.c_int32) * (room + 1))(
                *(ctypes.cast(start + 4 * number, ctypes.POINTER(ctypes.c_int32)) for number in range(room))
            )
            self.batch = lib.llama_batch(0, tokens, None, places, counts, self.pointers, wanted)
            self.room = room

        def put(self, start: int, tokens: list[int], places: Any, sequences: Any, wanted: Any) -> int:
            end = start + len(tokens)
            self.tokens[start:end], self.places[start:end] = tokens, places
            self.sequences[start:end], self.wanted[start:end] = sequences, wanted
            return end

        def decode(self, made: Any, number: int) -> None:
            self.batch.n_tokens = number
            if status := lib.llama_decode(made, self.batch):
                raise SystemExit(f"llama_decode returned {status}")

    def batch(prompts: list[list[int]], new: int, seed: int) -> list[int]:
        rows = task.how["rows"]
        holders = rows // K + 2  # prompts whose samples have not all begun
        one = task.how["cache"] == "one"
        longest = max(map(len, prompts))
        shared = (2 * rows // K + 2) * longest  # places for prompts
        cells = rows * new + shared if one else (rows + holders) * -(-(longest + new) // 256) * 256
        lengths: list[list[int]] = [[] for _ in prompts]
        waiting = deque(range(len(prompts)))
        ready: deque[tuple[int, int, int]] = deque()  # prompt, holder, first token
        free_holders, free_rows = list(range(rows, rows + holders)), list(range(rows))[::-1]
        unbegun, unfinished = {}, {}  # samples of a prompt
        live = 0  # places taken by prompts
        active: dict[int, list[int]] = {}  # row: prompt, place of the next token, that token, tokens drawn
        chains = [chain(seed * 1_000_003 + number) for number in range(rows + holders)]
        filled = Batch(lib.llama_context_default_params().n_batch)

        def finished(prompt: int, tokens: int) -> int:
            lengths[prompt].append(tokens)
            unfinished[prompt] -= 1
            return 0 if unfinished[prompt] else len(prompts[prompt])

        with context(cells, rows + holders, chains[:rows] if inside else [], one) as made:
            cache = lib.llama_get_memory(made)
            while waiting or ready or active:
                while ready and free_rows:
                    prompt, holder, token = ready.popleft()
                    unbegun[prompt] -= 1
                    if token == EOS or new == 1:
                        live -= finished(prompt, 1)
                    else:
                        row = free_rows.pop()
                        lib.llama_memory_seq_cp(cache, holder, row, -1, -1)
                        active[row] = [prompt, len(prompts[prompt]), token, 1]
                    if not unbegun[prompt]:
                        lib.llama_memory_seq_rm(cache, holder, -1, -1)
                        free_holders.append(holder)
                order = list(active)
                state = list(active.values())
                end = filled.put(0, [one[2] for one in state], [one[1] for one in state], order, 1) if order else 0
                begun = []
                room = len(free_rows)
                while waiting and free_holders and room > 0:
                    prompt, ids = waiting[0], prompts[waiting[0]]
                    if end + len(ids) > filled.room or live + len(ids) > shared:
                        break
                    waiting.popleft()
                    holder = free_holders.pop()
                    end = filled.put(end, ids, range(len(ids)), holder, 0)
                    filled.wanted[end - 1] = 1
                    begun.append((prompt, holder, end - 1))
                    unbegun[prompt] = unfinished[prompt] = K
                    live += len(ids)
                    room -= K
                if not end:
                    continue
                filled.decode(made, end)
                for number, (row, sample) in enumerate(zip(order, state, strict=True)):
                    token = lib.llama_sampler_sample(chains[row], made, number)
                    sample[1:] = sample[1] + 1, token, sample[3] + 1
                    if token == EOS or sample[3] >= new:
                        live -= finished(sample[0], sample[3])
                        lib.llama_memory_seq_rm(cache, row, -1, -1)
                        free_rows.append(row)
                        del active[row]
                for prompt, holder, number in begun:
                    first = [lib.llama_sampler_sample(chains[holder], made, number) for _ in range(K)]
                    ready.extend((prompt, holder, token) for token in first)
        for made_chain in chains:
            lib.llama_sampler_free(made_chain)
        return [length for lengths_of in lengths for length in lengths_of]

    def alone(prompt: list[int], new: int, seed: int) -> list[float]:
        sampler, moments = chain(seed), []
        with context(len(prompt) + new, 1, [sampler] if inside else []) as made:
            some = (lib.llama_token * len(prompt))(*prompt)
            number = len(prompt)
            for _ in range(new):
                if status := lib.llama_decode(made, lib.llama_batch_get_one(some, number)):
                    raise SystemExit(f"llama_decode returned {status}")
                some, number = (lib.llama_token * 1)(lib.llama_sampler_sample(sampler, made, -1)), 1
                moments.append(time.perf_counter())
        lib.llama_sampler_free(sampler)
        return moments

    def off(prompt: list[int]) -> float:
        with context(len(prompt), 1, []) as made:
            whole = Batch(len(prompt))
            whole.decode(made, whole.put(0, prompt, range(len(prompt)), 0, 1))
            scores = [
                np.ctypeslib.as_array(lib.llama_get_logits_ith(made, place), (task.shape.vocab,)).copy()
                for place in range(len(prompt))
            ]
        return off_reference(task, scores)

    return Engine(batch, alone, off)


ENGINES = {OURS: llamactl, HUGGING: transformers, HUGGING_FP32: transformers, GGML: llama_cpp}


def limits(task: Task) -> dict[str, float]:
    """Bytes a second from memory, and seconds of the products of one step and of ``PREFILL`` places of prompts."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    device = torch.device(task.device)
    on_cpu = device.type == "cpu"

    def seconds_of(function: Callable[[], Any], repeats: int = 7, enough: float = 5.0) -> float:
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            if not on_cpu:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
            if sum(taken) > enough:
                break
        return statistics.median(taken[1:] or taken)

    def bandwidth() -> float:
        side = 2**14 if on_cpu else 2**15
        large, vector = torch.ones(side, side, device=device), torch.ones(side, device=device)
        other = torch.empty_like(large)
        read = large.numel() * large.element_size()
        ways = {large.sum: read, lambda: large @ vector: read, lambda: other.copy_(large): 2 * read}
        return max(number / seconds_of(way) for way, number in ways.items())

    best = {"step": math.inf, "prompt": math.inf}
    for dtype in {torch.bfloat16 if task.precision == "bf16" else torch.float32, *[torch.float32] * on_cpu}:
        weights = [
            torch.randn(outputs, inputs, device=device).to(dtype)
            for inputs, outputs, number in task.shape.products
            for _ in range(number)
        ]
        for what, rows in (("step", ROWS), ("prompt", PREFILL)):
            widths = {weight.shape[1] for weight in weights}
            given = {width: torch.randn(rows, width, device=device).to(dtype) for width in widths}
            some = weights if what == "step" else weights[:-1]  # of a prompt only the last place has scores

            def products(given: dict[int, Any] = given, some: list[Any] = some) -> None:
                for weight in some:
                    F.linear(given[weight.shape[1]], weight)

            best[what] = min(best[what], seconds_of(products))
        del weights
    return {"bandwidth": bandwidth(), **best}


# --- the worker: one candidate, one turn; a JSON line on stdout ---


def work(asked: argparse.Namespace) -> None:
    """What the driver wants of a process."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no result
    name, load = asked.shape[0], LOADS[asked.shape[0]]
    load = load._replace(prompts=asked.prompts or load.prompts)
    precision = "fp32" if asked.work == HUGGING_FP32 else asked.precision[0]
    how = json.loads(asked.settings)
    task = Task(SHAPES[name], load, precision, asked.device, asked.threads, asked.weights, how)
    if asked.work != GGML and asked.do != "gguf":
        import torch

        torch.set_num_threads(task.threads)
    if asked.do == "weights":
        save_weights(task, asked.part)
    elif asked.do == "gguf":
        save_gguf(task, asked.part[0])
    elif asked.do == "reference":
        save_reference(task)
    elif asked.do == "limits":
        print(json.dumps(limits(task)), file=out)
    elif asked.do == "check":
        print(json.dumps({"off": ENGINES[asked.work](task, "batch").off(checked(task))}), file=out)
    else:
        print(json.dumps(timed(task, asked.work, asked.do, asked.seed)), file=out)


def timed(task: Task, candidate: str, part: str, seed: int) -> dict[str, Any]:
    """A turn."""
    load, on_cpu = task.load, task.device == "cpu"
    engine = ENGINES[candidate](task, part)
    at_start = memory("VmRSS") if on_cpu else allocated()[0]
    result: dict[str, Any] = {}
    if part == "batch":
        prompts = prompts_of(task.shape, load)
        # a GPU's kernels are compiled and captured for the sizes that come
        engine.batch(prompts[: 2 if on_cpu else ROWS // K], 4 if on_cpu else load.new, seed + 1)
        start = time.perf_counter()
        result["lengths"] = engine.batch(prompts, load.new, seed)
        result["seconds"] = time.perf_counter() - start
        result["tokens"] = sum(result["lengths"])
    else:
        dice = random.Random(seed)
        streams = []
        for number in range(1 + load.repeats):
            prompt = ids_of(dice, task.shape, min(128, task.shape.context // 2))
            moments = engine.alone(prompt, load.new, seed + number)
            if len(moments) != load.new:
                raise SystemExit(f"{candidate} has drawn {len(moments)} tokens, not {load.new}")
            streams.append(moments)
        result["seconds"] = sum(moments[-1] - moments[0] for moments in streams[1:])
        result["tokens"] = load.repeats * (load.new - 1)
    return {**result, "at_start": at_start, "peak": memory("VmHWM") if on_cpu else allocated()[1]}


def allocated() -> tuple[int, int]:
    """Bytes of torch's allocator on the GPU, now and at the peak."""
    import torch

    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


# --- the driver ---


class Cell(NamedTuple):
    """A shape in a precision, and how its workers are called."""

    name: str
    precision: str
    folder: Path
    asked: argparse.Namespace

    @property
    def load(self) -> Load:
        """With as many prompts as are asked for."""
        load = LOADS[self.name]
        return load._replace(prompts=self.asked.prompts or load.prompts)

    def turn(self, do: str, candidate: str = OURS, **given: Any) -> dict[str, Any]:
        """A process, from its start to its end."""
        asked = self.asked
        environment = ENVIRONMENT.get(candidate) if asked.device == "cpu" else None
        env = {**os.environ, "OMP_NUM_THREADS": str(asked.threads), "HF_HUB_OFFLINE": "1"}
        how = given.pop("how", {})
        given = {
            "shape": self.name, "precision": self.precision, "device": asked.device, "threads": asked.threads,
            "weights": self.folder, "prompts": self.load.prompts, "do": do, "work": candidate,
            "settings": json.dumps(how), **given,
        }  # fmt: skip
        call = [python_of(environment), __file__, *(f"--{key}={value}" for key, value in given.items())]
        done = subprocess.run(call, stdout=subprocess.PIPE, env=env, check=True)
        return json.loads(done.stdout or "{}")

    def prepare(self, candidates: list[str]) -> dict[str, float]:
        """Weights for all, and how far each candidate's logits are off."""
        parts = list(dict.fromkeys(["batch", *self.asked.part]))
        for precision in {self.precision, *["fp32"] * (HUGGING_FP32 in candidates)}:
            one = self._replace(precision=precision)
            one.turn("weights", part=",".join(parts))
            one.turn("reference")
        if GGML in candidates:
            for part in parts:
                self.turn("gguf", GGML, part=part)
        off = {}
        for candidate in candidates:
            note(f"check: {candidate}")
            off[candidate] = self.turn("check", candidate)["off"]
        return off

    def chosen(self, part: str, candidate: str) -> dict[str, Any]:
        """The settings with which a candidate is fastest, one after the other."""
        settings = dict(SETTINGS[part].get(candidate, {}))
        if candidate == GGML and self.precision == "fp32":
            settings["attention"] = ["plain"]  # flash attention takes keys and values as f16
        how = {key: values[0] for key, values in settings.items()}
        if candidate in self.asked.how:
            return {key: self.asked.how[candidate].get(key, value) for key, value in how.items()}
        if self.asked.device != "cpu" and "rows" in settings:
            settings = {**settings, "rows": [ROWS]}
        rates: dict[str, float] = {}

        def rate(how: dict[str, Any]) -> float:
            key = json.dumps(how)
            if key not in rates:
                fewer = max(1, min(self.load.prompts, 2 * ROWS // K))
                seen = self.turn(part, candidate, how=how, seed=SEED, prompts=fewer)
                rates[key] = seen["tokens"] / seen["seconds"]
                note(
                    f"{self.name} {self.precision} {part}, tried: {candidate}, {shown(how)}: {rates[key]:,.1f} tokens/s"
                )
            return rates[key]

        for key, values in settings.items():
            how[key] = max(values, key=lambda value: rate({**how, key: value}))
        return how


def shown(how: dict[str, Any]) -> str:
    """Settings in words."""
    words = {"rows": "{} at a time", "cache": "cache: {}", "sampling": "sampling: {}", "attention": "{} attention"}
    return ", ".join(words[key].format(value) for key, value in how.items())


def bound(cell: Cell, part: str, turn: dict[str, Any], limit: dict[str, float]) -> float:
    """Seconds that a turn would take if the products and the reading were all, at the rates of this machine."""
    shape, load = SHAPES[cell.name], cell.load
    a_number = 2 if cell.precision == "bf16" else 4
    a_place = 2 * shape.layers * shape.kv_heads * (shape.dim // shape.heads) * a_number  # keys and values
    weights = shape.weights * a_number / limit["bandwidth"]
    if part == "alone":
        places = min(128, shape.context // 2) + load.new / 2
        return turn["tokens"] * (weights + places * a_place / limit["bandwidth"])
    prompts = prompts_of(shape, load)
    steps = turn["tokens"] / ROWS
    samples = [turn["lengths"][start : start + K] for start in range(0, len(turn["lengths"]), K)]
    own = sum(length * (length - 1) / 2 for lengths in samples for length in lengths)
    shared = sum(len(prompt) * sum(lengths) / K for prompt, lengths in zip(prompts, samples, strict=True))
    products = sum(map(len, prompts)) / PREFILL * limit["prompt"] + steps * max(limit["step"], weights)
    return products + (own + shared) * a_place / limit["bandwidth"]


def has_bf16() -> bool:
    """Whether the processor has instructions for products in bf16."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text().split()
        return "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
    return True


def measure(name: str, precision: str, asked: argparse.Namespace) -> None:
    """The tables of a shape in a precision."""
    candidates = [one for one in CANDIDATES[precision] if one in asked.candidate]
    with tempfile.TemporaryDirectory() as made:
        cell = Cell(name, precision, Path(made), asked)
        off = cell.prepare(candidates)
        how = {part: {candidate: cell.chosen(part, candidate) for candidate in candidates} for part in asked.part}
        turns: dict[str, dict[str, list[dict[str, Any]]]] = {
            part: {candidate: [] for candidate in candidates} for part in asked.part
        }
        limit: list[dict[str, float]] = []
        clock = Clock.now()
        for number in range(asked.rounds):
            for candidate in candidates:
                for part in asked.part:
                    note(f"{name} {precision} {part}, round {number + 1}/{asked.rounds}: {candidate}")
                    turns[part][candidate].append(
                        cell.turn(part, candidate, how=how[part][candidate], seed=SEED + number)
                    )
            note(f"{name} {precision}, round {number + 1}/{asked.rounds}: limits")
            limit.append(cell.turn("limits"))
        others = clock.others()
    rates = {key: statistics.median(one[key] for one in limit) for key in limit[0]}
    for part in asked.part:
        report(cell, part, turns[part], how[part], off, rates, others)
    for candidate, distance in off.items():
        if not distance <= TOLERANCE[precision]:
            print(f"NOT EQUAL WORK: {candidate}: logits are off by {distance:.1e}")


def report(
    cell: Cell,
    part: str,
    turns: dict[str, list[dict[str, Any]]],
    how: dict[str, dict[str, Any]],
    off: dict[str, float],
    limit: dict[str, float],
    others: float,
) -> None:
    """A table, its JSON lines, and what of it is no equal work."""
    asked, load, shape = cell.asked, cell.load, SHAPES[cell.name]
    facts = {
        "benchmark": "sampling", "part": part, "shape": cell.name, "precision": cell.precision,
        "device": asked.device, "threads": asked.threads, "others": others, "prompts": load.prompts, "k": K,
        "limits": limit,
    }  # fmt: skip
    speeds: dict[str, Spread] = {}
    rows, doubts = [], []
    for candidate, mine in turns.items():
        speed = speeds[candidate] = Spread.of([one["tokens"] / one["seconds"] for one in mine])
        ratio = speeds[OURS].median / speed.median if OURS in speeds else None
        peak, at_start = (max(one[key] for one in mine) for key in ("peak", "at_start"))
        share = statistics.median(bound(cell, part, one, limit) / one["seconds"] for one in mine)
        lengths = [length for one in mine for length in one.get("lengths", [])]
        mean = statistics.mean(lengths) if lengths else load.new
        rows.append(
            [
                candidate,
                speed.show(0 if speed.median > 100 else 1),
                f"{ratio:.2f}" if ratio else "",
                f"{share:.0%}",
                *([f"{mean:.1f}"] if part == "batch" else []),
                f"{peak / 2**20:,.0f}",
                f"{at_start / 2**20:,.0f}",
                *([f"{off[candidate]:.1e}"] if part == "batch" else []),
                shown(how[candidate]),
            ]
        )
        if part == "batch" and abs(mean - load.mean) > 0.03 * load.mean + 4 * load.deviation / math.sqrt(len(lengths)):
            doubts.append(f"NOT EQUAL WORK: {candidate}: samples have {mean:.1f} tokens, expected are {load.mean:.1f}")
        numbers = {
            "candidate": candidate, "tokens_per_second": speed._asdict(), "llamactl_over_it": ratio,
            "of_the_bound": share, "tokens_a_sample": mean, "peak_bytes": peak, "bytes_at_start": at_start,
            "off": off[candidate], "how": how[candidate], "turns": [one["tokens"] / one["seconds"] for one in mine],
        }  # fmt: skip
        append_json(asked.json, facts | numbers)
    gflops = 2 * ROWS * shape.weights / limit["step"] / 1e9
    if part == "batch":
        about = f"{load.prompts} prompts of {load.shortest} to {load.longest} tokens, K = {K}, at most {load.new} new"
    else:
        about = f"one prompt, one sample of {load.new} tokens"
    place = count_of_threads(asked.threads) if asked.device == "cpu" else asked.device
    title = (
        f"Shape {cell.name}, {cell.precision}, {place}: {about}; memory {limit['bandwidth'] / 1e9:.1f} GB/s, "
        f"products of {ROWS} rows {gflops:,.0f} GFLOP/s"
    )
    batch_only = part == "batch"
    head = [
        "", "tokens/s", "llamactl / it", "of the bound", *["tokens a sample"] * batch_only, "peak MiB", "at start",
        *["off"] * batch_only, "how",
    ]  # fmt: skip
    table(title, head, rows, others)
    print("\n".join(doubts), end="\n" * bool(doubts))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = CANDIDATES["bf16"]
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: A and B; on a GPU 7b")
    parser.add_argument("--precision", choices=CANDIDATES, action="append", help="default: all; on a GPU bf16")
    parser.add_argument("--part", type=parts_of, default=list(PARTS), help="batch or alone; default: batch,alone")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=0, help="in batch; default: what the shape has")
    parser.add_argument("--candidate", choices=every, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--how",
        type=settings_of,
        action="append",
        default=[],
        help="settings of a peer, which is then not tried, for example 'llama.cpp:rows=64,cache=one,sampling=chains'",
    )
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    for hidden in ("work", "do", "settings"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked)
        return
    on_cpu = asked.device == "cpu"
    asked.how = dict(asked.how)
    if not asked.candidate:
        there = on_cpu or importlib.util.find_spec("transformers")
        asked.candidate = [OURS, *[HUGGING] * bool(there), *[GGML] * on_cpu]
        asked.candidate += [HUGGING_FP32] * (on_cpu and not has_bf16())
    for name in asked.shape or (["A", "B"] if on_cpu else ["7b"]):
        for precision in asked.precision or (["bf16", "fp32"] if on_cpu else ["bf16"]):
            measure(name, precision, asked)


def parts_of(text: str) -> list[str]:
    """Some of ``PARTS``, with commas."""
    parts = text.split(",")
    if not set(parts) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"{text}: not of {PARTS}")
    return parts


def settings_of(text: str) -> tuple[str, dict[str, Any]]:
    """A peer's."""
    peer, _, pairs = text.partition(":")
    if peer not in ENVIRONMENT:
        raise argparse.ArgumentTypeError(f"{peer}: no peer")
    given = dict(pair.split("=", 1) for pair in pairs.split(",") if pair)
    return peer, {key: int(value) if value.isdigit() else value for key, value in given.items()}


if __name__ == "__main__":
    main()
