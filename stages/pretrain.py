"""Pretrain a base model (paper, section 2): next-token prediction over weighted sources of token shards.

In: token shards. Out: a model directory; while it trains, ``metrics.jsonl`` and ``state/`` in it.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options


def pretrain(
    size: options.Size = "7b",
    data: Annotated[
        list[str],
        typer.Option(help="A shards directory, or DIR=WEIGHT; repeatable. Weights are shares of the samples."),
    ] = ["shards"],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The model directory.", show_default="pretrain-SIZE")
    ] = None,
    lr: options.LearningRateBySize = None,
    batch_size: options.BatchSizeBySize = None,
    micro_batch: options.MicroBatch = None,
    context: options.Context = None,
    steps: options.Steps = None,
    tokens: options.TokensBySize = None,
    epochs: options.Epochs = None,
    warmup: Annotated[
        int | None, typer.Option(help="Warm-up steps.", show_default="2,000, at most a tenth of the run", min=0)
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Of matrices; norms are not decayed.", min=0.0)] = 0.1,
    dim: Annotated[int | None, typer.Option(help="Width.", show_default="by size", min=1)] = None,
    layers: Annotated[int | None, typer.Option(help="Layers.", show_default="by size", min=1)] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads.", show_default="by size", min=1)] = None,
    kv_heads: Annotated[
        int | None, typer.Option(help="Key/value heads: = heads is MHA, 1 is MQA.", show_default="by size", min=1)
    ] = None,
    ffn: Annotated[int | None, typer.Option(help="Feed-forward width.", show_default="by size", min=1)] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Rows of the embedding.", show_default="the tokenizer's", min=1)
    ] = None,
    precision: options.Precision = "bf16",
    activation_checkpointing: options.Checkpointing = "none",
    tensor_parallel: options.TensorParallel = 1,
    replicas: options.Replicas = 1,
    compile: options.Compile = False,
    device: options.DeviceOrPlanned = None,
    devices: options.Devices = None,
    mfu: options.Mfu = None,
    save_every: options.SaveEvery = None,
    keep: options.Keep = 2,
    log_every: options.LogEvery = 1,
    resume: options.Resume = True,
    verify_resume: Annotated[
        bool, typer.Option("--verify-resume", help="Train some steps whole and interrupted, compare all bits; no more.")
    ] = False,
    dry_run: options.DryRun = False,
    verify: options.Verify = True,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a base model on token shards: AdamW, cosine, 4 M tokens a step at the paper's sizes.

    Killed at any moment, the same command goes on from the newest state, to the same bits.

    Example: llamactl pretrain --size 15m --data shards/books=0.7 --data shards/code=0.3 -o base
    """
    from dataclasses import asdict

    from llamactl import ui
    from llamactl.artifacts.shards import Shards
    from llamactl.model import config as sizes
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import batches, planning, schedule

    row, out = sizes.size(size), out or Path(f"pretrain-{size}")
    if not dry_run:
        planning.refuse(device, devices, mfu)
    places = [batches.weighted(name) for name in data]
    if dry_run and not any(path.exists() for path, _ in places):
        places = []  # a plan is made without data too
    shards = [Shards(path) for path, _ in places]
    tokenizer = Tokenizer.shared([path for path, _ in places]) if places else None
    vocab = vocab_size or (tokenizer or row.config).vocab
    if tokenizer:
        tokenizer.fitting(vocab, "--vocab-size")
    config = row.changed(dim=dim, layers=layers, heads=heads, kv_heads=kv_heads, ffn=ffn, context=context, vocab=vocab)
    mix = batches.Mix(batches.shares([weight for _, weight in places], shards), config.context, vocab, seed)
    plan = schedule.planned(
        config.context, row, lr=lr, warmup=warmup, steps=steps, tokens=tokens, epochs=epochs,
        epoch=sum(mix.counts), batch_size=batch_size, micro_batch=micro_batch, save_every=save_every, keep=keep,
        devices=devices,
    )  # fmt: skip
    settings = {
        "size": size, **asdict(config), **plan.settings(), "weight_decay": weight_decay, "precision": precision,
        "shares": [str(source.share) for source in mix.sources], "seed": seed,
        "overwrite": overwrite,
    }  # fmt: skip
    del settings["scored"]  # which no base model is, and no older run.json has
    samples = plan.schedule.steps * plan.batch_size
    said = [("parameters", f"{config.parameters:,}"), *plan.rows(), *mix.rows(samples)]
    if tokenizer is None:
        said.append(("data", f"{', '.join(data)} is not there: planned without, for {vocab:,} ids"))
    layout = planning.Layout(
        plan.batch_size, config.context, plan.micro_batch, precision, activation_checkpointing, tensor_parallel,
        replicas, devices or ui.world_size(),
    )  # fmt: skip
    said += planning.asked(config, layout, samples * config.context, device, mfu, dry_run)
    ui.table(f"pretrain {size} -> {out}", said)
    if dry_run or tokenizer is None:
        return

    from functools import partial

    from llamactl import cards
    from llamactl.artifacts import checkpoint, files
    from llamactl.artifacts.metrics import Metrics
    from llamactl.artifacts.run import Run
    from llamactl.model import device as machine
    from llamactl.model.llama import Llama
    from llamactl.text import dialogue
    from llamactl.train import loop, optim, parallel
    from llamactl.train.step import next_token_loss
    from llamactl.train.training import Training
    from llamactl.train.verify import resume_is_exact

    run = Run("pretrain", settings, {"data": [path for path, _ in places]}, out, verify, directory=True)
    if not verify_resume and run.already_made():
        return
    target = machine.chosen(device)
    run.effort.use(machine.title(target), machine.gpus(target))
    machine.keep_freed_memory(activation_checkpointing)
    with parallel.joined(target, tensor_parallel, replicas) as job:

        def begin(directory: Path) -> Training:
            arrange = partial(job.arrange, checkpointing=activation_checkpointing, compiled=compile)
            model = Llama.create(config, machine.PRECISIONS[precision], target, seed, arrange)
            optimizer = optim.AdamW(model, plan.schedule, weight_decay)
            return Training(model, optimizer, run, directory, job, plan.keep)

        if verify_resume:
            resume_is_exact(begin, mix.batch, next_token_loss, plan, files.partial(run.out or out))
            return
        with job.filling(run, fresh=not resume) as (directory, outputs):
            training = begin(directory)
            training.resume()
            metrics = Metrics(directory, training.step, plan.schedule.steps, log_every)
            with ui.Working("pretrain", plan.schedule.steps, "steps", start=training.step) as bar:
                for step in loop.steps(training, mix.batch, next_token_loss, plan):
                    metrics.log(step.line())
                    bar.advance(
                        1,
                        loss=f"{step.loss:.3f}",
                        tokens=step.tokens,
                        **{"tok/s": ui.count(step.tokens_per_second)},
                    )
            samples += training.refused * plan.batch_size
            run.done.update(tokens=training.step * plan.targets, samples=samples)
            run.facts |= {"job": job.facts(), "save_seconds": round(training.stalled, 3)}
            run.facts["sources"] = [source._asdict() for source in mix.epochs(samples)]
            outputs += checkpoint.save(
                directory,
                config.to_hf(machine.STORED[precision]),
                training.model.hf_state(machine.PRECISIONS[precision]),
                tokenizer.proto,
                dialogue.tokenizer_config(config.context),
                cards.of_run(run),
            )
            outputs.append(metrics.close())
