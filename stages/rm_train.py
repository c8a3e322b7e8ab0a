"""Train a reward model on comparisons (paper, section 3.2.2): the better answer gets the higher score, by a margin.

In: a chat model and Comparisons. Out: a model directory whose head gives one number, and what was held out.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llamactl import options


def rm_train(
    model: options.Model,
    kind: Annotated[
        Literal["helpfulness", "safety"], typer.Option(help="What it judges: decides --mix-share and --safety-loss.")
    ],
    comparisons: Annotated[list[str] | None, typer.Argument(help="JSON lines of Comparisons; stdin if none.")] = None,
    out: options.Out = Path("reward-model"),
    margin: Annotated[
        Literal["none", "small", "large"],
        typer.Option(help="By how much the chosen answer's score is to be higher, by its rating (paper, Table 27)."),
    ] = "small",
    safety_loss: Annotated[
        float | None,
        typer.Option(help="Weight of the loss on safety labels.", show_default="1 for safety, else 0", min=0.0),
    ] = None,
    mix: Annotated[
        list[str] | None, typer.Option(help="Comparisons of another kind to draw from, uniformly; repeatable.")
    ] = None,
    mix_share: Annotated[
        float | None,
        typer.Option(
            help="Their share of all that is trained on.",
            show_default="0.5 for helpfulness, 0.1 for safety",
            min=0.0,
            max=0.99,
        ),
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(help="Comparisons to set aside, with all of their prompt: so many, or below 1 a share.", min=0.0),
    ] = 0.0,
    eval: options.Evaluation = None,
    eval_every: options.EvalEvery = None,
    truncate: options.Truncate = False,
    lr: Annotated[
        float | None, typer.Option(help=options.LR, metavar=options.ABOVE_0, show_default="5e-6 for 70b, else 1e-5")
    ] = None,
    batch_size: options.BatchSize = 512,
    micro_batch: options.MicroBatch = None,
    context: options.Context = None,
    steps: options.Steps = None,
    tokens: options.Tokens = None,
    epochs: Annotated[float | None, typer.Option(help=options.EPOCHS, show_default="1")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Warm-up steps.", show_default="3 % of the steps, at least 5", min=0)
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Of matrices; norms are not decayed.", min=0.0)] = 0.1,
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
    dry_run: options.DryRun = False,
    verify: options.Verify = True,
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a reward model on comparisons: one epoch, 512 pairs a step, a margin by rating, as the paper did.

    Killed at any moment, the same command goes on from the newest state, to the same bits.

    Example: llamactl rm-train chat helpful.jsonl --mix harmless.jsonl --kind helpfulness --hold-out 1000 -o helpful-rm
    """
    from dataclasses import replace

    from llamactl import ui
    from llamactl.align import reward
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import SAFE
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.model import trees
    from llamactl.model.config import Size
    from llamactl.model.llama import Llama
    from llamactl.text.judging import Judging
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import comparisons as data
    from llamactl.train import planning, schedule

    if not dry_run:
        planning.refuse(device, devices, mfu)
    config, _ = Llama.described(model)
    if context and context > config.context:
        raise Fault("--context", f"{context:,} is longer than the model's, {config.context:,}", "make it shorter")
    if hold_out and eval:
        raise Fault("--hold-out", "given together with --eval", "give one of them")
    if 1 < hold_out != int(hold_out):
        raise Fault("--hold-out", f"{hold_out} is neither a number of comparisons nor a share", "give 1000, or 0.05")
    shape = replace(config, context=context or config.context, scored=True)
    tokenizer = Tokenizer.load(model)
    tokenizer.fitting(config.vocab, model)
    names, others = comparisons or [jsonl.STDIN], mix or []
    jsonl.by_every_process([*names, *others])
    settings = {
        "kind": kind, "margin": margin, "hold_out": hold_out, "truncate": truncate, "allow_tags": allow_tags,
        "context": shape.context, "weight_decay": weight_decay, "precision": precision, "seed": seed,
        "overwrite": overwrite, "skip_bad": skip_bad,
    }  # fmt: skip
    inputs: dict[str, list[str | Path]] = {
        "model": [model], "comparisons": [*names], "mix": [*others], "eval": [eval] if eval else [],
    }  # fmt: skip
    run = Run("rm-train", settings, inputs, out, verify and not dry_run, directory=True)

    how = Judging(shape.context, truncate, allow_tags)
    everything = data.Comparisons(tokenizer, how, reward.MARGINS[margin], SAFE, run, max_line)
    share = (0.5 if kind == "helpfulness" else 0.1) if mix_share is None else mix_share
    mixture = everything.mixture(names, others, share, hold_out, [str(eval)] if eval else [])
    pairs = mixture.pairs
    weight = float(kind == "safety") if safety_loss is None else safety_loss
    run.settings |= {"mix_share": share if others else None, "safety_loss": weight if pairs.labelled else 0.0}

    plan = schedule.planned(
        -(-pairs.places // len(pairs)), Size(shape, 0.0, 5e-6 if config.parameters > 5e10 else 1e-5, 512), lr=lr,
        warmup=(lambda steps: max(5, -(-3 * steps // 100))) if warmup is None else warmup, steps=steps, tokens=tokens,
        epochs=epochs or (None if steps or tokens else 1.0), epoch=len(pairs), batch_size=batch_size,
        micro_batch=micro_batch, save_every=save_every, keep=keep, devices=devices, unit="pairs",
    )  # fmt: skip
    run.settings |= plan.settings()
    if not dry_run and run.already_made():
        return
    if trees.MULTIPLE % tensor_parallel:
        problem = f"{tensor_parallel} does not divide {trees.MULTIPLE}, of which a row of pairs is a multiple"
        raise Fault("--tensor-parallel", problem, "choose a divisor")
    length = plan.targets // plan.batch_size
    layout = planning.Layout(
        plan.batch_size, -(-length // tensor_parallel) * tensor_parallel, plan.micro_batch, precision,
        activation_checkpointing, tensor_parallel, replicas, devices or ui.world_size(),
    )  # fmt: skip
    said = planning.asked(shape, layout, plan.schedule.steps * plan.targets, device, mfu, dry_run)
    said = [*mixture.rows(), *run.odd(), *pairs.rows(), *plan.rows(len(pairs)), *said]
    ui.table(f"rm-train {model} -> {out}", said)
    if dry_run:
        return

    from functools import partial

    from llamactl import cards
    from llamactl.artifacts import checkpoint
    from llamactl.artifacts.metrics import Metrics
    from llamactl.model import device as machine
    from llamactl.model.heads import RewardModel
    from llamactl.text import dialogue
    from llamactl.train import loop, optim, parallel
    from llamactl.train.held_out import HeldOut
    from llamactl.train.pairs import compared
    from llamactl.train.training import Training

    target = machine.chosen(device)
    run.effort.use(machine.title(target), machine.gpus(target))
    machine.keep_freed_memory(activation_checkpointing)
    loss = partial(compared, objective=partial(reward.loss, safety_weight=weight))
    with (
        parallel.joined(target, tensor_parallel, replicas) as job,
        job.filling(run, fresh=not resume) as (directory, outputs),
    ):
        arrange = partial(job.arrange, checkpointing=activation_checkpointing, compiled=compile)
        network = RewardModel.begun(model, machine.PRECISIONS[precision], target, arrange)
        optimizer = optim.AdamW(network, plan.schedule, weight_decay)
        training = Training(network, optimizer, run, directory, job, plan.keep)
        training.resume()
        metrics = Metrics(directory, training.step, plan.schedule.steps, log_every)
        before = metrics.column("eval_loss")
        held_out = HeldOut(mixture.tested, loss, job, plan, eval_every, before, reward.MEASURED)
        if missed := held_out.missed(network, training.step):
            metrics.amend({"step": training.step, **missed})
        with ui.Working("rm-train", plan.schedule.steps, "steps", start=training.step) as bar:
            taking = loss, plan, lambda _, size: size, reward.MEASURED, held_out.due
            for step in loop.steps(training, pairs.batch, *taking):
                measured = held_out.at(network, step.step)
                metrics.log(step.line() | measured, due=held_out.due(step.step))
                if measured:
                    bar.advance(0, eval=f"{measured['eval_accuracy']:.1%}")
                rate = step.tokens_per_second / length
                bar.advance(
                    1, loss=f"{step.loss:.3f}", right=f"{step.beside['accuracy']:.0%}", **{"pairs/s": f"{rate:.1f}"}
                )
        held_out.check(directory)
        samples = (training.step + training.refused) * plan.batch_size
        run.done.update(tokens=pairs.seen(0, samples), samples=samples)
        run.facts |= {
            "job": job.facts(), "save_seconds": round(training.stalled, 3), "epochs": round(samples / len(pairs), 4),
            **mixture.facts(),
            "held_out_loss": held_out.measured,
        }  # fmt: skip
        outputs += checkpoint.save(
            directory,
            shape.to_hf(machine.STORED[precision]),
            network.hf_state(machine.PRECISIONS[precision]),
            tokenizer.proto,
            dialogue.tokenizer_config(shape.context, pad="<unk>"),
            cards.of_run(run),
        )
        outputs += mixture.save_held_out(directory)
        outputs.append(metrics.close())
