"""Ghost Attention (paper, section 3.3): dialogues that teach a model to keep an instruction it was given once.

In: a model, Dialogues (or first Prompts), constraints that instructions are made of. Out: Dialogues for ``sft`` on
stdout, in input order, with the instruction in the first turn alone and loss on the last answer alone.
"""

from typing import Annotated, Literal

import typer

from llamactl import options
from llamactl.artifacts.records import Shard


def gatt_synth(
    model: options.Model,
    dialogues: Annotated[
        list[str] | None, typer.Argument(help="JSON lines of Dialogues or Prompts; stdin if none.")
    ] = None,
    constraints: options.Constraints = None,
    make_constraints: Annotated[
        int | None,
        typer.Option(
            help="Ask the model for so many hobbies, languages and public figures; no dialogue is made.",
            show_default=False,
            min=1,
        ),
    ] = None,
    out: options.Records = None,
    turns: Annotated[
        int | None,
        typer.Option(
            help="Have the model play the user too, where a dialogue has fewer turns.",
            show_default="those it has",
            min=1,
        ),
    ] = None,
    earlier: Annotated[
        Literal["sampled", "given"],
        typer.Option(help="Answers before the last: sampled with the instruction, or the dialogue's own."),
    ] = "sampled",
    place: options.Place = "user",
    temperature: options.Temperature = 0.6,
    top_p: options.TopP = 0.9,
    top_k: options.TopK = 0,
    max_new_tokens: options.MaxNewTokens = 512,
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
    """Make dialogues that keep an instruction, to fine-tune on.

    Of each dialogue the user's messages are taken. An instruction is drawn for it, a random combination of constraints,
    terse half of the time, and stands before every one of them while the answers are sampled. Written, it stands in the
    first turn alone, and all answers but the last have weight 0. A system message is kept: with --place system the
    instruction follows it. With --turns the model is also asked, without the instruction, for the user's next message.

    A dialogue ends with a whole turn: before one that outgrows the context, or whose answer has no text, and not on an
    answer that was cut off. The first turn is never cut. All of it is counted. With --out a run that was killed goes on
    with the dialogues that were left.

    The paper is open on the earlier answers (--earlier) and the place; these defaults, those of sampling and the
    wordings are ours. The paper asks the model for the lists, so that it knows what they name: --make-constraints N
    writes them for a person to edit.

    Example: llamactl gatt-synth chat dialogues.jsonl --constraints constraints.jsonl -o gatt.jsonl
    """
    settings = dict(locals())

    from collections.abc import Iterator, Sequence
    from functools import partial
    from typing import Any

    from llamactl import hardware, ui
    from llamactl.align import gatt
    from llamactl.artifacts import journal, jsonl
    from llamactl.artifacts.records import Dialogue, Sample
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.llama import Llama
    from llamactl.text import constraints as wishes
    from llamactl.text import dialogue
    from llamactl.text.tokenizer import Tokenizer
    from llamactl.train import parallel, planning

    if make_constraints and (dialogues or constraints):
        given = dialogues[0] if dialogues else f"--constraints {constraints}"
        raise Fault("--make-constraints", f"given together with {given}", "give one of them: no dialogue is made")
    if make_constraints and ui.world_size() > 1:
        raise Fault("--make-constraints", "is the work of one process", "run it without torchrun")
    if turns and earlier == "given":
        raise Fault("--turns", "given with --earlier given", "leave one of them off: what is played on has no answers")
    names = [] if make_constraints else dialogues or [jsonl.STDIN]
    jsonl.by_every_process(names)
    config, stored = Llama.described(model)
    tokenizer, target = Tokenizer.load(model), devices.chosen(device)
    tokenizer.fitting(config.vocab, model)
    if fault := planning.undivided([config], ui.world_size(), tensor_parallel):
        raise fault
    how = gatt.How(tokenizer, config.context, turns or 1, earlier == "given", place == "system", allow_tags)
    listed = wishes.read(constraints, allow_tags) if constraints else wishes.ours()
    gatt.check(listed, constraints or "the list of ours", how)
    settings["precision"] = precision or stored
    run = Run(
        "gatt-synth", settings,
        {"model": [model], "constraints": [constraints] if constraints else [], "dialogues": names}, out,
    )  # fmt: skip
    if run.already_made(announce=False):
        return
    run.effort.use(devices.title(target), devices.gpus(target))
    sampling = Sampling(top_p, top_k, max_new_tokens, seed)
    memory = None if cache_memory is None else int(cache_memory * hardware.GIB)
    beside = {
        "sampling": {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}, "model": str(model)
    }  # fmt: skip

    plays: list[gatt.Play] = []
    for found in jsonl.read(names, Sample, Dialogue, shard=shard, refuse=run.refuse):
        try:
            plays.append(gatt.play(found, listed, seed, how))
        except Fault as fault:
            run.refuse(fault)
    if problem := dialogue.stranger(model):
        ui.warn(f"{model}: {problem}")
    if not (constraints or make_constraints):
        ui.note(f"instructions are made of {len(listed)} constraints of ours: --constraints names a file of others")
    load = partial(sampler.load, model, target, devices.PRECISIONS[precision or stored])
    devices.keep_freed_memory()

    def drawn(asked: Sequence[list[int]], times: int = 1) -> Iterator[tuple[int, Sequence[int], bool]]:
        """What the model says to each, and whether it ended by itself."""
        requests = (sampler.Request(ids, (temperature,) * times) for ids in asked)
        for number, answers in sampler.finished(network, requests, sampling, memory):
            yield from ((number, answer.ids, answer.stopped) for answer in answers)

    if make_constraints:
        network = load()
        made, noted = gatt.lists(make_constraints, tokenizer, lambda asked: drawn(asked, gatt.TRIES))
        if not made:
            problem = "names no hobby, language or public figure when it is asked"
            raise Fault(model, problem, 'write the list yourself, a line each: {"kind": "figure", "name": "Napoleon"}')
        run.done.update(constraints=len(made))
        run.noted.update(noted)
        with run.records() as writer:
            for one in made:
                writer.write(one.named)
        return

    def over(some: Sequence[gatt.Play]) -> Iterator[tuple[int, Any]]:
        """Of each, as it is over, the dialogue that is written, why it has no more turns, and counts."""
        for number, play in gatt.played(some, drawn):
            yield number, (play.record, play.ended, play.done, play.noted)

    with parallel.joined(target, tensor_parallel, stops=False) as job, journal.kept(run) as through, job.metered(run):
        network = load(part=job.part)
        with ui.Working("gatt-synth", len(plays), "dialogues", start=len(through)) as bar:
            for number, (record, ended, done, noted) in job.rest(through, plays, over):
                run.done.update(done)
                run.noted.update(noted)
                if not record:
                    run.skip(Fault(plays[number].where, ended), "dialogues without a whole turn")
                through.add(number, [record | beside] if record else [])
                bar.advance(1, turns=run.done["turns"], tokens=run.done["tokens"])
