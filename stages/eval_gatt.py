"""Measure whether models keep an instruction given once (paper, section 3.3 and appendix A.3.5; Table 30, Figure 10).

In: models, for example one without and one with Ghost Attention; dialogues, of which the user's messages are taken;
constraints. Out: Scores on stdout, tables as the paper's, and what the dialogue attends to, as data and as a figure.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options


def gatt(
    models: Annotated[list[Path], typer.Argument(help="Model directories, side by side.")],
    data: Annotated[list[str] | None, typer.Option(help="JSON lines of Dialogues; repeatable.")] = None,
    constraints: options.Constraints = None,
    unseen: Annotated[
        Path | None, typer.Option(help="Constraints that the models have not seen in training; measured apart.")
    ] = None,
    place: options.Place = "user",
    turns: Annotated[int, typer.Option(help="Turns of a conversation, if the context holds so many.", min=1)] = 20,
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
    dialogue's messages of the user run out, those of the dialogues after it follow. A conversation ends when the
    context is full: an answer that this cuts off does not count, and later turns are of the conversations that came so
    far. Judged are a language, by a language identifier; the name of a hobby or figure; and formats: capitals, lower
    case, one sentence, json, "last word: WORD". Intervals are of 95 %, by bootstrap over dialogues, drawn with --seed.

    Example: llamactl eval gatt chat chat-gatt --data dialogues.jsonl --constraints constraints.jsonl --plot gatt.png
    """
    settings = dict(locals())

    from hashlib import sha256
    from itertools import count

    import orjson
    from msgspec import to_builtins

    from llamactl import bootstrap, hardware, ui
    from llamactl.align.gatt import FIELD
    from llamactl.artifacts import jsonl
    from llamactl.artifacts.records import Dialogue, Score
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.evals import attention as attending
    from llamactl.evals import gatt as measuring
    from llamactl.evals.gatt_tables import tables
    from llamactl.evals.keeping import judge
    from llamactl.evals.reward import Measurement
    from llamactl.model import device as devices
    from llamactl.model import generate as sampler
    from llamactl.model.drawing import Sampling
    from llamactl.model.llama import Llama
    from llamactl.pictures import attention as picture
    from llamactl.pictures.chart import named
    from llamactl.text import constraints as wishes
    from llamactl.text import dialogue
    from llamactl.text.tokenizer import Tokenizer

    names, beside = data or [jsonl.STDIN], {"--samples": samples, "--attention": attention, "--plot": plot}
    form = picture.form(plot) if plot else ""
    shapes = {model: Llama.described(model) for model in models}
    if len({model.resolve() for model in models}) < len(models):
        raise Fault(models[-1], "is given twice", "name each model once")
    tokenizers = {model: Tokenizer.load(model) for model in models}
    for model, (config, _) in shapes.items():
        tokenizers[model].fitting(config.vocab, model)
    settings |= {
        "precision": [precision or stored for _, stored in shapes.values()],
        "attention": bool(attention or plot),
    }
    settings = {name: value for name, value in settings.items() if name not in ("samples", "plot")}
    lists = {"constraints": [constraints] if constraints else [], "unseen": [unseen] if unseen else []}
    run = Run("eval gatt", settings, {"models": models, "data": names, **lists}, out, aside=beside)
    if run.already_made(announce=False):
        return
    target = devices.chosen(device)
    run.effort.use(devices.title(target), devices.gpus(target))
    sampling = Sampling(top_p, top_k, max_new_tokens, seed)
    memory = None if cache_memory is None else int(cache_memory * hardware.GIB)

    asked: list[measuring.Wish] = []
    listed = {measuring.SEEN: wishes.read(constraints, allow_tags) if constraints else wishes.ours()}
    if not constraints:
        ui.note(f"asked are {len(listed[measuring.SEEN])} constraints of ours: --constraints names a file of others")
    listed[measuring.UNSEEN] = wishes.read(unseen, allow_tags) if unseen else []
    for part, some in listed.items():
        for wish in some:
            if any(wish.key == other.constraint.key for other in asked):
                problem = f"has the {wish.kind} {wish.name}, which is among those seen"
                raise Fault(unseen, problem, "leave it out of one of them")
            if judged := judge(wish):
                asked.append(measuring.Wish(wish, judged, part))
            else:
                problem = f"has the {wish.kind} {wish.name}, of which no program here can tell whether it is kept"
                run.refuse(Fault(constraints if part == measuring.SEEN else unseen, problem))
    dialogues: list[Dialogue] = []
    for found in jsonl.read(names, Dialogue, refuse=run.refuse, max_line=max_line):
        try:
            dialogue.check(found.record.messages, found.where, allow_tags)
            if FIELD in found.raw:
                problem = "was made by gatt-synth: it holds an instruction already"
                raise Fault(f"{found.where}: {FIELD}", problem, "give the dialogues that it was made from")
            dialogues.append(found.record)
        except Fault as fault:
            run.refuse(fault)
    cases = measuring.cases(dialogues, asked, turns, place == "system", seed)
    if not cases:
        raise Fault(", ".join(names), "leaves nothing to measure", "look at what was skipped")
    short = sum(sum(one.role == "user" for one in found.messages) < turns for found in dialogues)
    if short:
        run.noted["dialogues with fewer turns, which went on with the user's messages of the next ones"] = short
    digest = sha256(orjson.dumps([[one.opening, one.users] for one in cases], default=to_builtins)).hexdigest()

    def gone_through(model: Path) -> list[measuring.Conversation]:
        """All conversations of a model, a turn of all at a time; then what they attend to, where that is asked for."""
        used = precision or shapes[model][1]
        network = sampler.load(model, target, devices.PRECISIONS[used], len(cases))
        tokenizer, context = tokenizers[model], shapes[model][0].context
        if problem := dialogue.stranger(model):
            ui.warn(f"{model}: {problem}")
        talks = [measuring.Conversation(case, tokenizer, context) for case in cases]
        for turn in count(1):
            if not (under_way := [one for one in talks if one.asks]):
                break
            requests = (sampler.Request(one.asks or [], (temperature,)) for one in under_way)
            for number, (answer,) in sampler.finished(network, requests, sampling, memory):
                under_way[number].hears(answer.ids, answer.stopped)
                run.done.update(answers=1, tokens=len(answer.ids))
                bar.advance(1, model=model.name, turn=turn)
        if attention or plot:
            shown.append(max(range(len(talks)), key=lambda number: len(talks[number].verdicts)))
            looked[model] = attending.looked(network, tokenizer, talks, width, shown[0])
            if beyond := looked[model].left_out:
                run.noted["tokens beyond the context, left out of the attention"] += beyond
        return talks

    width = -(-max(config.context for config, _ in shapes.values()) // attending.BINS)
    looked: dict[Path, attending.Looked] = {}
    shown: list[int] = []  # by each model its longest conversation; that of the first is mapped of all
    with ui.Working("eval gatt", None, "answers") as bar:
        talks = {model: gone_through(model) for model in models}
    measurements: dict[str, list[Measurement]] = {}
    for model, conversations in talks.items():
        run.noted.update(measuring.endings(conversations))
        measurements[str(model)] = [*measuring.measured(conversations, seed)]
        if looked:
            measurements[str(model)] += attending.measured(looked[model].curve, seed)
    how = f"a turn is a message of the user and its answer; instruction in the {place} message of turn 1, half terse; "
    how += "greedy" if temperature == 0 else f"temperature {temperature:g}, top-p {top_p:g}, top-k {top_k}"
    how += f", at most {max_new_tokens} new tokens, until turn {turns} or the context is full; "
    how += f"bootstrap of {bootstrap.RESAMPLES:,} resamples by dialogue, seed {seed}"
    with (  # which have their names when the Scores have theirs: a run that is killed finds nothing in its way
        run.side("--samples") as said,
        run.side("--attention") as numbers,
        run.side("--plot") as figure,
    ):
        if said and samples:
            with jsonl.compressed(said, samples.name) as packed:
                for model, conversations in talks.items():
                    for one in conversations:
                        jsonl.Writer(packed).write(one.record(str(model)))
        if looked:
            names_of = named([str(model) for model in models], [], "models")
            told = {names_of[str(model)]: (looked[model], talks[model]) for model in models}
            drawing = attending.data(told, shown[0], seed)
            if numbers:
                numbers.write(orjson.dumps(drawing, default=to_builtins, option=orjson.OPT_APPEND_NEWLINE))
            if figure:
                figure.write(picture.drawn(drawing, form))
        with run.records() as writer:
            for name, several in measurements.items():
                for measured in several:
                    facts = {"model": name, "shots": 0, "prompt_sha256": digest, "scoring": how, **measured._asdict()}
                    writer.write(Score(task="gatt", **facts))
    for title, rows, header in tables(measurements):
        ui.note("")
        ui.table(title, rows, header)
