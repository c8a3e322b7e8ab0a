"""Safety context distillation (paper, section 4.2.4): answers given under a safety pre-prompt, learned without it.

In: a model, Prompts that ask for harm, with their risk ``category``, and a safety reward model. Out: Dialogues on
stdout, in the order of the prompts, for ``sft``: those answers that are better than the model's own; and a report:
scores before and after (Figure 16), by category.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options
from llamactl.artifacts.records import Shard


def _print(wanted: bool) -> None:
    if wanted:
        from llamactl.align import preprompts
        from llamactl.artifacts import jsonl

        writer = jsonl.Writer(jsonl.stdout(), eager=True)
        for record in preprompts.DEFAULT:
            writer.write(record)
        raise typer.Exit


def distill_safety(
    model: options.Model,
    safety: Annotated[Path, typer.Option(help="The reward model for safety: it decides which answers are kept.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="JSON lines of Prompts; stdin if none.")] = None,
    out: options.Records = None,
    only_tagged: Annotated[
        bool,
        typer.Option(
            "--only-tagged",
            help="Prompts not tagged safety pass unchanged: with their answer, or else one given without a pre-prompt.",
        ),
    ] = False,
    templates: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines: {"pre_prompt": "You are a {adjective} assistant."}, with "category" for prompts of that '
            'alone; {"adjective": "wise"}.',
            show_default="ours",
        ),
    ] = None,
    default_templates: Annotated[
        bool,
        typer.Option(
            "--default-templates", help="Print ours, to be edited, and do nothing.", callback=_print, is_eager=True
        ),
    ] = False,
    report: options.Report = None,
    temperature: options.Temperature = 0.6,
    top_p: options.TopP = 0.9,
    top_k: options.TopK = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    truncate: options.Truncate = False,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    cache_memory: options.CacheMemory = None,
    tensor_parallel: options.TensorParallel = 1,
    shard: options.ShardOf = Shard(),
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Distill safety pre-prompts: keep the answers under them that the safety model likes better.

    Each prompt is answered as it is, under a generic pre-prompt, and under one for its category, if that has one; the
    best under a pre-prompt is kept where it scores above the first, both scored without the pre-prompt. A pre-prompt is
    a system message, and stands before one that is there, which is kept. Without --only-tagged all prompts are taken to
    ask for harm. With --out a run that was killed goes on with the prompts that were left.

    Example: llamactl distill-safety chat prompts.jsonl --safety safe-rm --only-tagged -o distilled.jsonl
    """
    settings = dict(locals())
    del settings["default_templates"]  # it only prints them

    from collections import defaultdict
    from collections.abc import Iterator, Sequence
    from typing import Any

    from llamactl import hardware, ui
    from llamactl.align import distillation, questions
    from llamactl.align.choice import SAFETY
    from llamactl.align.distillation import Answer, Trial
    from llamactl.align.judges import Judges
    from llamactl.align.preprompts import Templates
    from llamactl.align.questions import Question, RiskyPrompt, RiskySample
    from llamactl.artifacts import journal, jsonl
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.heads import RewardModel
    from llamactl.model.llama import Llama
    from llamactl.text import dialogue
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import parallel, planning

    config, stored = Llama.described(model)
    tokenizer = Tokenizer.load(model)
    tokenizer.fitting(config.vocab, model)
    RewardModel.described(safety)  # raises Fault where it is none, which is to be said first
    if Tokenizer.load(safety).proto != tokenizer.proto:
        remedy = "llamactl rm-train makes one of a model with this tokenizer"
        raise Fault(safety, f"has another tokenizer than {model}", remedy)
    judges = Judges({SAFETY: safety}, truncate, allow_tags)
    if fault := planning.undivided([config, *judges.shapes], ui.world_size(), tensor_parallel):
        raise fault
    settings["precision"] = precision or [stored, judges.stored]
    wording = Templates.read(templates, allow_tags) if templates else Templates.default()
    names = prompts or [jsonl.STDIN]
    jsonl.by_every_process(names)
    wordings = [templates] if templates else []
    run = Run(
        "distill-safety", settings,
        {"model": [model], "safety": [safety], "templates": wordings, "prompts": names}, out,
        aside={"--report": report},
    )  # fmt: skip
    if run.already_made(announce=False):
        return
    target = devices.chosen(device)
    run.effort.use(devices.title(target), devices.gpus(target))
    devices.keep_freed_memory()
    digests = {one["as"]: one["sha256"] for one in run.inputs}

    asked: list[Question] = []
    for found in jsonl.read(names, RiskySample, RiskyPrompt, shard=shard, refuse=run.refuse):
        try:
            if only_tagged and not found.record.safety:
                one = questions.unchanged(found, tokenizer, config.context, allow_tags)
            else:
                one = questions.question(found, wording.drawn(found, seed), tokenizer, config.context, allow_tags)
                judges.check(one.prompt)
        except Fault as fault:
            run.refuse(fault)
            continue
        run.noted.update(one.notes)
        asked.append(one)
    if problem := dialogue.stranger(model):
        ui.warn(f"{model}: {problem}")
    sampling = Sampling(top_p, top_k, max_new_tokens, seed)
    memory = None if cache_memory is None else int(cache_memory * hardware.GIB)

    def rounds(some: Sequence[Question]) -> Iterator[tuple[int, Any]]:
        """Of each record, as its answers are there, what is learned, their tokens, and what is to be said of them."""
        yield from ((place, ([one.prompt.raw], 0, {})) for place, one in enumerate(some) if not one.asked)
        ways = [(place, way) for place, one in enumerate(some) for way in one.asked]
        requests = (sampler.Request(some[place].asked[way].ids, (temperature,)) for place, way in ways)
        drawn: dict[int, dict[str, Answer]] = defaultdict(dict)
        for number, (answer,) in sampler.finished(network, requests, sampling, memory):
            place, way = ways[number]
            sample = some[place].asked[way].sampled(
                answer.ids, answer.stopped, tokenizer, model,
                temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, index=0,
            )  # fmt: skip
            drawn[place][way] = Answer(sample | {"model_sha256": digests["model"]}, len(answer.ids))
            if len(drawn[place]) == len(some[place].asked):
                answers = {way: drawn[place][way] for way in some[place].asked}
                del drawn[place]
                yield place, distillation.outcome(some[place], answers, judges, digests["safety"])

    with parallel.joined(target, tensor_parallel, stops=False) as job, journal.kept(run) as through, job.metered(run):
        network = sampler.load(model, target, devices.PRECISIONS[precision or stored], part=job.part)
        judges.load(target, devices.PRECISIONS[precision or judges.stored], part=job.part)
        with ui.Working("distill-safety", len(asked), "prompts", start=len(through)) as bar:
            for number, (kept, tokens, facts) in job.rest(through, asked, rounds):
                one = asked[number]
                run.done.update(prompts=1, samples=len(one.asked), tokens=tokens, **{one.fate: len(kept)})
                if facts:
                    trial = Trial(**facts)
                    for where, problem in trial.refused:
                        run.skip(Fault(where, problem), "answers that cannot be judged")
                    run.noted.update({what: times for what, times in trial.notes.items() if times})
                elif not kept:
                    run.noted["answers without a text, or with the chat format's tags, not kept"] += 1
                through.add(number, kept, facts)
                bar.advance(1, tokens=run.done["tokens"], kept=run.done["distilled"])
        if job.rank:
            return
        trials = [Trial(**facts) for facts in through.facts if facts]
        run.facts["report"] = made = distillation.report(trials, seed)
    run.write_report()
    for title, rows, header in distillation.tables(made):
        ui.note("")
        ui.table(title, rows, header)
