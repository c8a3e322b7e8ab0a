"""Measure whether models keep an instruction given once (paper, section 3.3 and appendix A.3.5; Table 30, Figure 10).

In: models, for example one without and one with Ghost Attention; dialogues, of which the user's messages are taken;
constraints. Out: Scores on stdout, tables as the paper's, and what the dialogue attends to, as data and as a figure.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llamactl import options


def gatt(
    models: Annotated[list[Path], typer.Argument(help="Model directories, side by side.")],
    constraints: Annotated[Path, typer.Option(help="JSON lines of constraints, for example those of gatt-synth.")],
    data: Annotated[list[str] | None, typer.Option(help="JSON lines of Dialogues; repeatable.")] = None,
    unseen: Annotated[
        Path | None, typer.Option(help="Constraints that the models have not seen in training; measured apart.")
    ] = None,
    place: Annotated[
        Literal["user", "system"],
        typer.Option(help="Where the instruction stands: before the first message of the user, or as system message."),
    ] = "user",
    turns: Annotated[
        int, typer.Option(help="Turns of a conversation, if the context holds so many.", min=1)
    ] = 20,
    samples: Annotated[Path | None, typer.Option(help="Write the conversations here, with the verdicts.")] = None,
    attention: Annotated[Path | None, typer.Option(help="Write what tokens attend to here, as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw that as Figure 10: a .png or .svg.")] = None,
    out: options.Records = None,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    max_new_tokens: options.MaxNewTokens = 256,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    cache_memory: options.CacheMemory = None,
    seed: options.Seed = 0,
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Whether models keep an instruction, turn by turn, and how much the dialogue attends to it.

    Each dialogue of --data (or stdin) is gone through once with each constraint, in its long wording or, half of the
    time, its terse one; the models give all answers themselves, greedily unless --temperature is given. Where a
    dialogue's messages of the user run out, those of the dialogues after it follow. A conversation ends when the context
    is full: an answer that this cuts off does not count, and later turns are of the conversations that came so far.
    Judged are a language, by a language identifier; the name of a hobby or figure; and formats: capitals, lower case,
    one sentence, json, "last word: WORD". Intervals are of 95 %, by bootstrap over dialogues, drawn with --seed.

    Example: llamactl eval gatt chat chat-gatt --data dialogues.jsonl --constraints constraints.jsonl --plot gatt.png
    """
    settings = dict(locals())

    import gc
    from hashlib import sha256

    import orjson

    from llamactl import bootstrap, hardware, ui
    from llamactl.artifacts import files, jsonl, manifest
    from llamactl.artifacts.records import Dialogue, Score
    from llamactl.errors import Fault
    from llamactl.evals import attention as attending
    from llamactl.evals import gatt as measuring
    from llamactl.evals.gatt_tables import tables
    from llamactl.evals.keeping import judge
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.llama import Llama
    from llamactl.pictures import attention as picture
    from llamactl.text import constraints as wishes
    from llamactl.text import dialogue
    from llamactl.text.judging import prompt_key
    from llamactl.text.tokenizer import Tokenizer

    names, beside = data or [jsonl.STDIN], {"--samples": samples, "--attention": attention, "--plot": plot}
    wanted = {flag: path for flag, path in beside.items() if path}
    form = picture.form(plot) if plot else ""
    shapes = {model: Llama.described(model) for model in models}
    if len({model.resolve() for model in models}) < len(models):
        raise Fault(models[-1], "is given twice", "name each model once")
    tokenizers = {model: Tokenizer.load(model) for model in models}
    for model, (config, _) in shapes.items():
        tokenizers[model].fitting(config.vocab, model)
    settings |= {"precision": [precision or stored for _, stored in shapes.values()], "attention": bool(attention or plot)}
    settings = {name: value for name, value in settings.items() if name not in ("samples", "plot")}
    lists = {measuring.SEEN: constraints} | ({measuring.UNSEEN: unseen} if unseen else {})
    given = {"models": models, "data": names, "constraints": [constraints], "unseen": [unseen] if unseen else []}
    run = manifest.Run("eval gatt", settings, given, out)
    if run.already_made(announce=False):
        for flag, path in wanted.items():
            if not path.exists():
                raise Fault(path, f"is not there, and {out} was made without it", f"--overwrite to measure with {flag}")
        return
    for path in wanted.values():
        files.make_room(path)
    target = devices.chosen(device)
    run.use(devices.title(target), devices.gpus(target))
    sampling = Sampling(top_p, top_k, max_new_tokens, seed)
    memory = None if cache_memory is None else int(cache_memory * hardware.GIB)

    asked: list[tuple[str, wishes.Constraint]] = []
    known: dict[tuple[str, str], Path] = {}
    for part, path in lists.items():
        for one in wishes.read(path, allow_tags):
            if (first := known.setdefault(one.key, path)) != path:
                raise Fault(path, f"has the {one.kind} {one.name}, as {first} has", "leave it out of one of them")
            if judge(one):
                asked.append((part, one))
            else:
                problem = "cannot be judged by a program: its language or format is none that is known here"
                run.refuse(Fault(f"{path}: {one.kind} {one.name}", problem))

    found = []
    for record in jsonl.read(names, Dialogue, refuse=run.refuse, max_line=max_line):
        try:
            dialogue.check(record.record.messages, record.where, allow_tags)
            if "gatt" in record.raw:
                problem = "it holds an instruction already"
                raise Fault(f"{record.where}: gatt", problem, "give the dialogues that it was made from")
            found.append(record.record)
        except Fault as fault:
            run.refuse(fault)
    users = [[message.content for message in one.messages if message.role == "user"] for one in found]
    digest, cases = sha256(), []
    for number, one in enumerate(found):
        own, key = [message for message in one.messages[:1] if message.role == "system"], prompt_key(one.messages)
        run.noted["dialogues that went on with the user's messages of others"] += len(users[number]) < turns
        for part, constraint in asked:
            drawn = wishes.drawn([constraint], seed, key + f"{constraint.kind} {constraint.name}".encode())
            judges = [found_judge for wish in drawn.constraints if (found_judge := judge(wish))]
            spoken = measuring.continued(users, number, turns)
            cases.append(measuring.Case(key, one.id, own, spoken, drawn, judges, part, place == "system"))
            digest.update(orjson.dumps([drawn.text, place, *spoken]))
    if not cases:
        raise Fault(", ".join(names), "and the constraints leave nothing to measure", "look at what was skipped")
