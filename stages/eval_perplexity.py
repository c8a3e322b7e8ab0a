"""Measure a language model (paper, Figure 5): the perplexity of a corpus.

In: a model, and a corpus as ``tokenize`` takes it. Out: Scores on stdout.
"""

from collections.abc import Iterator
from typing import Annotated

import typer

from llamactl import options


def perplexity(
    model: options.Model,
    corpus: options.Corpus,
    window: Annotated[
        int | None, typer.Option(help="Tokens a prediction can see.", show_default="the model's context", min=1)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens the window moves on by.", show_default="half the window", min=1)
    ] = None,
    out: options.Records = None,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    tensor_parallel: options.TensorParallel = 1,
    encoding: options.Encoding = None,
    skip_bad: options.SkipBad = False,
    max_line: options.MaxLine = 16 << 20,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Perplexity of a corpus, by a sliding window: nats per token, bits per byte, word perplexity.

    Example: llamactl eval perplexity base valid.txt > scores.jsonl
    """
    settings = dict(locals())

    from hashlib import sha256

    from llamactl import ui
    from llamactl.artifacts import corpus as texts
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import Score
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.evals import perplexity as measuring
    from llamactl.model import device as devices
    from llamactl.model.llama import Llama
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import parallel, planning

    names, passed_over = texts.files(corpus)
    jsonl.by_every_process(names)
    config, stored = Llama.described(model)
    if fault := planning.apart([config], ui.world_size(), tensor_parallel):
        raise fault
    window = window or config.context
    stride = stride or max(1, window // 2)
    if window > config.context:
        raise Fault("--window", f"{window} is longer than the model's context {config.context}", "make it shorter")
    if stride > window:
        raise Fault("--stride", f"{stride} is longer than the window {window}: tokens are left out", "make it shorter")
    settings |= {"window": window, "stride": stride, "precision": precision or stored}
    run = Run("eval perplexity", settings, {"model": [model], "corpus": names}, out)
    run.skipped.update(passed_over)
    if run.already_made(announce=False):
        return
    tokenizer, target = Tokenizer.load(model), devices.chosen(device)
    tokenizer.fitting(config.vocab, model)
    run.effort.use(devices.title(target), devices.gpus(target))

    total, read = measuring.Measured(), sha256()
    with (
        parallel.joined(target, tensor_parallel, stops=False) as job,
        run.records() as writer,
        ui.Working("perplexity", None, "tokens") as bar,
        job.metered(run),
    ):
        network = Llama.load(model, target, devices.PRECISIONS[precision or stored], part=job.part)

        def documents() -> "Iterator[str]":
            for document in texts.read(names, texts.Reading(encoding, max_line=max_line), run):
                read.update(document.text.encode() + b"\0")
                yield document.text

        for measured in measuring.measure(network, tokenizer, documents(), window, stride):
            total.add(measured)
            bar.advance(measured.tokens, **{"nats/token": f"{total.nats / max(1, total.tokens):.3f}"})
        if not total.tokens:
            raise Fault(", ".join(corpus), "holds no token to measure", "look at what was skipped")
        run.done.update(tokens=total.tokens, bytes=total.bytes)
        how = f"sliding window {window}, stride {stride}, BOS before each document, words by white space"
        for metric, value, n, stderr in total.metrics():
            writer.write(
                Score(
                    task="perplexity",
                    metric=metric,
                    value=value,
                    n=n,
                    stderr=stderr,
                    model=str(model),
                    shots=0,
                    prompt_sha256=read.hexdigest(),
                    scoring=how,
                )
            )
    rows = [(metric, f"{value:.4f}", f"{n:,}") for metric, value, n, _ in total.metrics()]
    ui.table(f"{model} on {', '.join(corpus)}", rows, ("metric", "value", "n"))
