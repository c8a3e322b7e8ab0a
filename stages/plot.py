"""The paper's figures, of what the stages have written.

In: metrics, reports, Samples, Scores. Out: a picture, or a drawing in the terminal.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options


def plot(
    kind: Annotated[
        str,
        typer.Argument(
            help="loss, scaling, reward, temperature, progress, safety-scaling, distribution, self-bleu, margins or "
            "calibration."
        ),
    ],
    files: Annotated[list[str] | None, typer.Argument(help="What it is drawn from; stdin if none.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .png, .svg or .html file (which holds all numbers as well)."),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Draw it in the terminal; needs no matplotlib.")] = False,
    label: Annotated[
        list[str],
        typer.Option(help="What a run, file or model is called, in the order of the files; repeatable."),
    ] = [],  # noqa: B006
    title: Annotated[str, typer.Option(help="Stands above it all.")] = "",
    skip_bad: options.SkipBad = False,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw a figure of the paper from what the stages have written.

    loss (Figure 5): model directories or their metrics.jsonl. reward, temperature (7, 8): reports of reject-sample.
    distribution, progress (20, 11): a file of scored Samples for each version; progress takes runs of ppo as well.
    self-bleu (21): Samples of several answers to a prompt, at several temperatures, by kind or source of the prompts.
    margins, calibration, scaling (27, 29, 6): Scores of eval reward. safety-scaling (15): what
    examples/safety-scaling.sh leaves. Intervals are of 95 %. The same files give the same bytes, and lines can be told
    apart in grey.

    Example: llamactl plot loss base chat -o loss.png
    """
    settings = dict(locals())

    from llamactl.artifacts import jsonl
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault
    from llamactl.pictures import ink, kinds, terminal
    from llamactl.pictures.asked import Asked, source

    figure, names = kinds.kind(kind), files or [jsonl.STDIN]
    form = out.suffix[1:].lower() if out else ""
    if out is None and not text:
        raise Fault("--out", "is not given", "name a picture: -o figure.png, or draw it in the terminal with --text")
    if out and form not in ink.FORMATS:
        remedy = f"name it {out.with_suffix('.png').name}, .svg or .html"
        raise Fault(out, "has a name that is of none of png, svg, html", remedy)
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise Fault(twice, "is given twice", "name each file once")
    if out:
        ink.needed()
    settings["label"] = label
    run = Run("plot", settings, {"files": map(source, names)}, out, verify=False)
    if out and run.already_made(announce=not text):
        if not text:
            return
        run.out = None  # it is there, and is shown
    charts = figure.charts(Asked(names, label, run, seed))
    if text:
        with jsonl.reader_may_leave():
            print(terminal.written(charts, title), flush=True)
    if run.out is None:
        with run.records():  # of which there are none; it says what was left out
            return
    run.done.update(points=sum(len(series.points) for chart in charts for series in chart.series))
    picture = ink.drawn(charts, title, form)
    with run.file(announce=not text) as file:
        file.write(picture)
