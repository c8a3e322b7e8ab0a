"""Fine-tune a model on dialogues (paper, section 3.1): loss on the answers alone, examples packed into sequences.

In: a model and Dialogues (or Samples: the response is the last answer). Out: a model directory.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llamactl import options


def sft(
    model: options.Model,
    dialogues: Annotated[
        list[str] | None, typer.Argument(help="JSON lines of Dialogues or Samples; stdin if none.")
    ] = None,
    out: options.Out = Path("sft"),
    loss: Annotated[Literal["all", "last"], typer.Option(help="Learn all answers of a dialogue, or the last.")] = "all",
    document_mask: Annotated[
        bool,
        typer.Option(help="Examples in a sequence do not see each other; without it they do, as in the paper."),
    ] = True,
    truncate: options.Truncate = False,
    eval: options.Evaluation = None,
    eval_every: options.EvalEvery = None,
    lr: options.LearningRate = 2e-5,
    batch_size: options.BatchSize = 64,
    micro_batch: options.MicroBatch = None,
    context: options.Context = None,
    steps: options.Steps = None,
    tokens: options.Tokens = None,
    epochs: Annotated[float | None, typer.Option(help=options.EPOCHS, show_default="2")] = None,
    warmup: Annotated[int, typer.Option(help="Warm-up steps.", min=0)] = 0,
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
    """Fine-tune a model on dialogues: cosine from 2e-5, batches of 64 sequences, 2 epochs, as the paper did.

    Killed at any moment, the same command goes on from the newest state, to the same bits.

    Example: llamactl sft base dialogues.jsonl --eval held-out.jsonl -o chat
    """
    from dataclasses import replace

    from llamactl import ui
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import Dialogue, Sample, to_last_question
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.model.config import Size
    from llamactl.model.llama import Llama
    from llamactl.text.judging import prompt_key
    from llamactl.text.learning import Learning, lesson
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import packing, planning, schedule

    if not dry_run:
        planning.refuse(device, devices, mfu)
    config, _ = Llama.described(model)
    if context and context > config.context:
        raise Fault("--context", f"{context:,} is longer than the model's, {config.context:,}", "make it shorter")
    shape = replace(config, context=context or config.context)
    tokenizer = Tokenizer.load(model)
    tokenizer.fitting(config.vocab, model)
    names = dialogues or [jsonl.STDIN]
    jsonl.by_every_process(names)
    settings = {
        "loss": loss, "document_mask": document_mask, "truncate": truncate, "allow_tags": allow_tags,
        "context": shape.context, "weight_decay": weight_decay, "precision": precision, "seed": seed,
        "overwrite": overwrite, "skip_bad": skip_bad,
    }  # fmt: skip

    held_out_prompts: set[bytes] = set()

    def packed(files: list[str], run: Run, aside: bool = False) -> packing.Packs:
        examples = packing.Examples()
        how = Learning(shape.context, loss == "last", truncate, allow_tags)
        with ui.Working(f"read {', '.join(files)}", None, "dialogues") as bar:
            for found in jsonl.read(files, Sample, Dialogue, refuse=run.refuse, max_line=max_line):
                try:
                    ids, learned, cut = lesson(found, tokenizer, how)
                except Fault as fault:
                    run.refuse(fault)
                    continue
                if aside:
                    held_out_prompts.add(prompt_key(to_last_question(found.record.turns)))
                elif held_out_prompts and prompt_key(to_last_question(found.record.turns)) in held_out_prompts:
                    run.noted["dialogues whose prompt is held out, too: that loss says little of new ones"] += 1
                examples.add(ids, learned)
                whose = "held-out " if aside else ""
                run.noted.update({f"{whose}dialogues cut": 1, f"{whose}tokens cut off": cut} if cut else {})
                bar.advance(tokens=examples.tokens)
        if not len(examples):
            raise Fault(", ".join(files), "holds no dialogue to learn from", "look at what was skipped")
        return packing.Packs(examples, shape.context, seed, document_mask)

    inputs: dict[str, list[str | Path]] = {"model": [model], "dialogues": [*names], "eval": [eval] if eval else []}
    run = Run("sft", settings, inputs, out, verify and not dry_run, directory=True)
    evaluation = packed([str(eval)], run, aside=True) if eval else None
    packs = packed(names, run)
    plan = schedule.planned(
        shape.context, Size(shape, 0.0, 2e-5, 64), lr=lr, warmup=warmup, steps=steps, tokens=tokens,
        epochs=epochs or (None if steps or tokens else 2.0), epoch=len(packs.packs), batch_size=batch_size,
        micro_batch=micro_batch, save_every=save_every, keep=keep, devices=devices,
    )  # fmt: skip
    run.settings |= plan.settings()
    if not dry_run and run.already_made():
        return
    layout = planning.Layout(
        plan.batch_size, shape.context, plan.micro_batch, precision, activation_checkpointing, tensor_parallel,
        replicas, devices or ui.world_size(),
    )  # fmt: skip
    places = plan.schedule.steps * plan.targets
    said = planning.asked(config, layout, places, device, mfu, dry_run)
    ui.table(f"sft {model} -> {out}", [*packs.rows(), *run.odd(), *plan.rows(len(packs.packs)), *said])
    if dry_run:
        return

    from functools import partial

    from llamactl import cards
    from llamactl.artifacts import checkpoint
    from llamactl.artifacts.metrics import Metrics
    from llamactl.model import device as machine
    from llamactl.text import dialogue
    from llamactl.train import loop, optim, parallel
    from llamactl.train.held_out import HeldOut
    from llamactl.train.training import Training

    target = machine.chosen(device)
    run.effort.use(machine.title(target), machine.gpus(target))
    machine.keep_freed_memory(activation_checkpointing)
    with (
        parallel.joined(target, tensor_parallel, replicas) as job,
        job.filling(run, fresh=not resume) as (directory, outputs),
    ):
        arrange = partial(job.arrange, checkpointing=activation_checkpointing, compiled=compile)
        network = Llama.trainable(model, machine.PRECISIONS[precision], target, arrange)
        optimizer = optim.AdamW(network, plan.schedule, weight_decay)
        training = Training(network, optimizer, run, directory, job, plan.keep)
        training.resume()
        metrics = Metrics(directory, training.step, plan.schedule.steps, log_every)
        before = metrics.column("eval_loss")
        held_out = HeldOut(evaluation, packing.answer_loss, job, plan, eval_every, before)
        at_start = held_out.missed(network, training.step) if training.step else held_out.at(network, 0)
        if at_start:
            metrics.amend({"step": training.step, **at_start})
        with ui.Working("sft", plan.schedule.steps, "steps", start=training.step) as bar:
            taking = packing.answer_loss, plan, packs.targets, (), held_out.due
            for step in loop.steps(training, packs.batch, *taking):
                measured = held_out.at(network, step.step)
                metrics.log(step.line() | measured, due=held_out.due(step.step))
                if measured:
                    bar.advance(0, eval=f"{measured['eval_loss']:.3f}")
                bar.advance(1, loss=f"{step.loss:.3f}", **{"tok/s": ui.count(step.tokens_per_second)})
        held_out.check(directory)
        samples = (training.step + training.refused) * plan.batch_size
        run.done.update(tokens=packs.seen(0, samples), samples=samples, learned=packs.targets(0, samples))
        run.facts |= {
            "job": job.facts(), "save_seconds": round(training.stalled, 3),
            "epochs": round(samples / len(packs.packs), 4), "examples": len(packs.examples),
            "sequences": len(packs.packs), "fill": round(packs.fill, 4), "held_out": held_out.measured,
        }  # fmt: skip
        outputs += checkpoint.save(
            directory,
            config.to_hf(machine.STORED[precision]),
            network.hf_state(machine.PRECISIONS[precision]),
            tokenizer.proto,
            dialogue.tokenizer_config(config.context),
            cards.of_run(run),
        )
        outputs.append(metrics.close())
