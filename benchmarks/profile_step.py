"""Where the time of a training step goes, by groups of operators, in llamactl or a peer.

What is measured: torch.profiler's own time of each operator (that of what it calls is theirs) over a few steps, after
warm-up steps; CPU time on a CPU, time of kernels on a GPU. An operator belongs to the first of these groups that it, or
what has called it, can be told to be:

    optimizer           AdamW
    clipping            the gradient's norm, and its scaling
    loss                cross-entropy and its backward pass, without the output layer's product
    attention           scaled_dot_product_attention and its backward pass
    matrix products     of the linear layers, forward and backward
    embedding           rows looked up, and their gradient
    fused               what torch.compile has generated; norms, SwiGLU and rotation by llamactl's kernel
    casts and copies    between precisions and layouts, and zeroing
    elementwise         all other operators of torch: norms, rotation, SwiGLU, residuals, sums of gradients
    outside operators   Python, autograd's bookkeeping, waiting; on a GPU: the time that no kernel ran

The profiler itself slows a step: the title has the step's time without it and with it; shares are of the latter.

Run (peers need the environments that benchmarks/run.sh makes; on a GPU, see gpu.py):

    python benchmarks/profile_step.py --shape A --precision bf16 --threads 2 --candidate llamactl
    PYTHONPATH=. python benchmarks/profile_step.py --device cuda --layers 8 --candidate llamactl
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretraining
from measure import Clock, append_json, note, python_of, table

OUTSIDE = "outside operators"
WITHIN = {  # of an operator or what has called it: parts of names
    "optimizer": ("Optimizer.step", "fused_adam"),
    "clipping": ("clip_grad_norm", "foreach_norm"),
    "loss": (
        "CrossEntropy",
        "cross_entropy",
        "log_softmax",
        "LogSoftmax",
        "nll_loss",
        "NllLoss",
        "NegativeLogLikelihood",
    ),
    "attention": ("scaled_dot_product", "ScaledDotProduct", "flash_attention", "causal_attention"),
    "embedding": ("embedding", "Embedding"),
}
ITSELF = {
    "matrix products": (
        "aten::mm", "aten::addmm", "aten::bmm", "aten::mv", "linear_pointwise", "mkl_linear", "llamactl::product"
    ),
    "fused": ("cpp_fused", "triton_", "_Norm", "_SwiGLU", "_Rotation"),
    "casts and copies": ("copy", "aten::clone", "aten::cat", "aten::zero", "aten::fill", "aten::to"),
    "elementwise": ("aten::",),
}  # fmt: skip
GROUPS = [*WITHIN, *ITSELF, OUTSIDE]


def group_of(event: Any) -> str:
    """By the names of the operator and of what it was called by."""
    names, caller = [event.name], event.cpu_parent
    while caller is not None:
        names.append(caller.name)
        caller = caller.cpu_parent
    for group, parts in WITHIN.items():
        if any(part in name for name in names for part in parts):
            return group
    for group, parts in ITSELF.items():
        if any(part in event.name for part in parts):
            return group
    return OUTSIDE


def work(candidate: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step, without and with the profiler, and of each group in it."""
    import torch
    from torch.profiler import DeviceType, ProfilerActivity, profile, record_function

    clip = torch.nn.utils.clip_grad_norm_

    def recorded(*given: Any, **named: Any) -> Any:
        with record_function("clip_grad_norm_"):
            return clip(*given, **named)

    torch.nn.utils.clip_grad_norm_ = recorded
    torch.set_num_threads(asked.threads)
    cuda = asked.device != "cpu"
    steps = on_gpu(candidate, asked) if cuda else on_cpu(candidate, asked)

    def take() -> float:
        start = time.perf_counter()
        next(steps)  # each waits for its loss
        return time.perf_counter() - start

    for _ in range(asked.warmup):
        take()
    without = min(take() for _ in range(asked.steps))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiled:
        whole = sum(take() for _ in range(asked.steps))
    groups: Counter[str] = Counter()
    for event in profiled.events():
        if event.device_type == DeviceType.CPU:
            groups[group_of(event)] += event.self_device_time_total if cuda else event.self_cpu_time_total
    seconds = {group: groups[group] / 1e6 / asked.steps for group in GROUPS if group != OUTSIDE}
    seconds[OUTSIDE] = max(0.0, whole / asked.steps - sum(seconds.values()))
    return {"candidate": candidate, "step": without, "profiled_step": whole / asked.steps, "seconds": seconds}


def on_cpu(candidate: str, asked: argparse.Namespace) -> Iterator[Any]:
    """Steps as pretraining.py takes them."""
    from torch._inductor import config

    config.cpp.enable_kernel_profile = True
    shape = pretraining.SHAPES[asked.shape]
    made = pretraining.make(candidate, shape, asked.precision, asked.weights)
    yield from made.steps(pretraining.random_batches(shape, asked.warmup + 2 * asked.steps))


def on_gpu(candidate: str, asked: argparse.Namespace) -> Iterator[Any]:
    """Steps as gpu.py takes them."""
    import gpu
    import torch

    shape, device = gpu.FULL._replace(layers=asked.layers), torch.device(asked.device)
    peer, comma, how = candidate.partition(",")
    step = gpu.MAKERS[peer](shape, device, comma + how)
    while True:
        yield step(torch.randint(0, shape.vocab, (4 * shape.batch, shape.context + 1)).to(device))


def report(found: dict[str, Any], title: str, others: float, asked: argparse.Namespace) -> None:
    """A candidate's table, the largest group first."""
    whole = found["profiled_step"]
    rows = [
        [group, f"{1000 * seconds:,.1f}", f"{seconds / whole:.1%}"]
        for group, seconds in sorted(found["seconds"].items(), key=lambda row: -row[1])
        if seconds
    ]
    times = f"{1000 * found['step']:,.1f} ms a step, {1000 * whole:,.1f} under the profiler"
    table(f"{found['candidate']}, {title}: {times}", ["", "ms a step", "share"], rows, others)
    append_json(asked.json, {"benchmark": "profile_step", "of": title, "others": others, **found})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidate", action="append", help="as pretraining.py or gpu.py names it; default: llamactl")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=pretraining.SHAPES, default="A", help="on a CPU")
    parser.add_argument("--precision", choices=pretraining.CANDIDATES, default="bf16", help="on a CPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8, help="on a GPU")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path, help="append the results to this file, as JSON lines")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        out, sys.stdout = sys.stdout, sys.stderr  # what a peer prints is no result
        print(json.dumps(work(asked.candidate[0], asked)), file=out)
        return
    cuda = asked.device != "cpu"
    title = f"{asked.layers} layers on {asked.device}" if cuda else f"{asked.shape}, {asked.precision}"
    title += f", {asked.threads} thread{'s' * (asked.threads > 1)}" * (not cuda)
    with tempfile.TemporaryDirectory() as weights:
        if not cuda:
            pretraining.save_weights(pretraining.SHAPES[asked.shape], Path(weights))
        for candidate in asked.candidate or ["llamactl"]:
            peer = candidate.partition(",")[0]
            if peer == "HF Trainer":
                sys.exit("HF Trainer takes its steps by itself: it cannot be profiled step by step here")
            note(f"{title}: {candidate}")
            clock = Clock.now()
            python = python_of(None if cuda else pretraining.ENVIRONMENT[peer])
            env = {**os.environ, "OMP_NUM_THREADS": str(asked.threads)}
            command = [python, __file__, *sys.argv[1:], "--work", "--weights", weights]
            command[2:2] = ["--candidate", candidate]  # the first one is taken
            done = subprocess.run(command, stdout=subprocess.PIPE, env=env, check=True)
            report(json.loads(done.stdout), title, clock.others(), asked)


if __name__ == "__main__":
    main()
