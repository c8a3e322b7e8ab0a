"""Measure reward models (paper, section 3.2.2; Tables 7, 8 and 29, Figure 29): do they judge as people did?

In: reward models, and Comparisons that none of them was trained on. Out: Scores on stdout, tables as the paper's.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options


def reward(
    models: Annotated[list[Path], typer.Argument(help="Reward model directories.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="JSON lines of Comparisons; repeatable. Answers with a likert rating may be among them."),
    ] = None,
    out: options.Records = None,
    truncate: options.Truncate = False,
    precision: options.StoredPrecision = None,
    device: options.Device = None,
    tensor_parallel: options.TensorParallel = 1,
    seed: options.Seed = 0,
    skip_bad: options.SkipBad = False,
    allow_tags: options.AllowTags = False,
    max_line: options.MaxLine = 16 << 20,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Reward models on comparisons: accuracy by source and rating, calibration, unsafe answers found.

    A chosen answer that is scored as high as the other is half right. Errors are by bootstrap over prompts, drawn with
    --seed. Without --data comparisons are read from stdin. All models judge the same records: --skip-bad leaves out
    what one of them cannot judge. People's ratings of single answers ("likert": 7 of a Sample or a Dialogue, "likert":
    [7, 3] of a Comparison) are held against scores.

    Example: llamactl eval reward helpful-rm safe-rm --data held-out.jsonl > scores.jsonl
    """
    settings = dict(locals())

    from llamactl import bootstrap, ui
    from llamactl.align.judges import Judges
    from llamactl.artifacts import jsonl, manifest
    from llamactl.artifacts.records import Score
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.evals import reward as measuring
    from llamactl.evals.reward_tables import tables
    from llamactl.model import device as devices
    from llamactl.model.heads import RewardModel
    from llamactl.train import parallel, planning

    files = data or [jsonl.STDIN]
    jsonl.by_every_process(files)
    panel: dict[Path, Judges] = {}  # each a panel of one: their tokenizers may differ
    for model in models:
        if any(model.resolve() == other.resolve() for other in panel):
            raise Fault(model, "is given twice", "name each model once")
        panel[model] = Judges({"score": model}, truncate, allow_tags)
    shapes = [shape for judges in panel.values() for shape in judges.shapes]
    if fault := planning.apart(shapes, ui.world_size(), tensor_parallel):
        raise fault
    settings["precision"] = precision or [judges.stored for judges in panel.values()]
    run = Run("eval reward", settings, {"models": models, "data": files}, out)
    if run.already_made(announce=False):
        return
    digests = {one["sha256"]: one["path"] for one in run.inputs if one["sha256"]}  # of stdin there is none
    about: dict[Path, dict[str, float | str] | None] = {}  # that by which reward models are compared (Figure 6)
    for model in models:
        made = manifest.load(own) if (own := manifest.beside(model)).exists() else {"inputs": []}
        if made.get("stage") == "rm-train" and "comparisons" in made:
            begun = next((one["path"] for one in made["inputs"] if one["as"] == "model"), "")
            size = RewardModel.described(model)[0].parameters
            about[model] = {"model": begun, "parameters": size, "comparisons": made["comparisons"]}
        learned = {one["sha256"] for one in made["inputs"] if one["as"] in ("comparisons", "mix")}
        for digest in digests.keys() & learned:
            ui.warn(f"{model} was trained on {digests[digest]}: its accuracy there tells nothing of other data")
    target = devices.chosen(device)
    run.effort.use(devices.title(target), devices.gpus(target))

    kinds = measuring.RatedComparison, measuring.RatedSample, measuring.RatedDialogue
    records = []  # those that every model can judge, which is found out before the first begins
    with ui.Working(f"read {', '.join(files)}", None, "records") as bar:
        for read in jsonl.read(files, *kinds, refuse=run.refuse, max_line=max_line):
            try:
                cut = max(judges.case(read).cut for judges in panel.values())
            except Fault as fault:
                run.refuse(fault)
                continue
            run.noted.update({"records cut": 1, "tokens cut off": cut} if cut else {})
            records.append(read)
            bar.advance()
    if not records:
        raise Fault(", ".join(files), "holds no comparison that can be judged", "look at what was skipped")
    found: dict[str, list[measuring.Measurement]] = {}
    scores: list[Score] = []
    with (
        parallel.joined(target, tensor_parallel, stops=False) as job,
        ui.Working("eval reward", len(records) * len(models), "records") as bar,
        job.metered(run),
    ):
        for model in models:
            judges = panel.pop(model)  # taken out, so that its weights leave memory before the next one's come
            used = precision or judges.stored
            judges.load(target, devices.PRECISIONS[used], part=job.part)
            judged = measuring.Judged()
            for window in judges.verdicts(records, jsonl.refuse):
                for (record, _, _), case, sides in window:
                    values = [by["score"] for by in sides.values()]
                    run.done.update(samples=len(values))
                    judged.add(record, case.prompt, values)
                bar.advance(len(window), model=model.name)
            found[str(model)] = list(judged.measured(seed))
            how = f"raw score at the answer's end, {used}{', longer records cut' if truncate else ''}; a tie is half "
            how += f"right; bootstrap of {bootstrap.RESAMPLES:,} resamples by prompt, seed {seed}"
            scores += [
                Score(
                    task="reward",
                    model=str(model),
                    shots=0,
                    prompt_sha256=judged.prompts.hexdigest(),
                    scoring=how,
                    about=about.get(model),
                    **one._asdict(),
                )
                for one in found[str(model)]
            ]
    with run.records() as writer:
        for score in scores:
            writer.write(score)
    for title, rows, header in tables(found):
        ui.note("")
        ui.table(title, rows, header)
