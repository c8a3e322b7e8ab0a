"""Account for energy and carbon (paper, section 2.2.1, Table 2): device-hours x watts x PUE x carbon intensity.

In: runs, as their manifests, metrics, JSON lines or Slurm have recorded them. Out: a table, JSON, CSV, a card's block.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llamactl import options


def _tables(wanted: bool) -> None:
    if wanted:
        from llamactl import footprints, ui
        from llamactl.artifacts.jsonl import reader_may_leave

        with reader_may_leave():
            for title, rows, header in footprints.known():
                ui.table(title, rows, header, asked=True)
        raise typer.Exit


def carbon(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Artifacts, run.json files, folders of them; metrics.jsonl; JSON lines of runs from elsewhere; the "
            "output of sacct --parsable2. Stdin if none. With --lineage: folders to look for ancestors in."
        ),
    ] = None,
    lineage: Annotated[
        Path | None, typer.Option(help="An artifact: count it and all that it was made from, each once.")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="Table 2 of the paper, from its inputs.")] = False,
    watts: Annotated[
        list[str],
        typer.Option(
            help="Power of one device, where it is not known, or of those with a word in their name: cpu=250.",
            metavar="[DEVICE=]W",
        ),
    ] = [],  # noqa: B006
    pue: Annotated[float, typer.Option(help="Power of the building over that of its devices.", min=1.0)] = 1.1,
    country: Annotated[
        str | None,
        typer.Option(
            help="Whose electricity: an ISO 3166 code (FRA, US-VA), or a cloud zone (europe-west9, us-east-1, eastus).",
            show_default="the paper's 0.385 kg/kWh",
        ),
    ] = None,
    intensity: Annotated[
        float | None, typer.Option(help="kg CO2eq a kWh, instead of --country.", min=0.0, max=3.0)
    ] = None,
    offset: Annotated[
        float, typer.Option(help="Share of the emissions that is offset, as the paper's are by 1.", min=0.0, max=1.0)
    ] = 0.0,
    compare: Annotated[
        list[str],
        typer.Option(
            help="The same work on other devices, by watts and relative speed; repeatable.", metavar="WATTS@SPEED"
        ),
    ] = [],  # noqa: B006
    format: Annotated[
        Literal["table", "json", "csv", "card"],
        typer.Option(help="csv: as codecarbon's emissions.csv. card: a model card's co2_eq_emissions."),
    ] = "table",
    tables: Annotated[
        bool, typer.Option("--tables", help="List power and grids, with sources.", callback=_tables, is_eager=True)
    ] = False,
    skip_bad: options.SkipBad = False,
    quiet: options.Quiet = False,
) -> None:
    """Energy and carbon of runs: device-hours, watts, kWh and tonnes of CO2eq, of each and in all.

    Energy is what a meter has counted (NVML of GPUs, RAPL of processors), else device-hours x TDP. An hour is a GPU's,
    or a machine's where its processors did the work. A line of JSON has at least device_hours, and device or watts.

    Example: llamactl carbon --lineage chat --country FRA --compare 350@0.9
    """
    from llamactl import accounts, footprints, grid, ui
    from llamactl import carbon as counting
    from llamactl.artifacts import ancestry, jsonl
    from llamactl.artifacts.run import Run
    from llamactl.errors import Fault

    if paper and (paths or lineage):
        raise Fault("--paper", "counts the paper's runs, and others are named", "leave one of them out")
    if country and intensity is not None:
        raise Fault("--intensity", "is given together with --country", "give one of them")
    where = counting.PAPERS_GRID
    if country:
        where = grid.grid(country)
    elif intensity is not None:
        where = grid.Grid("", "as given", 1000 * intensity, "")
    powers = counting.powers(watts)
    clusters = [counting.cluster(text) for text in compare] or list(counting.CLUSTERS if paper else ())

    run, tree = Run("carbon", {"skip_bad": skip_bad}, {}), None
    if paper:
        works = list(counting.PAPER)
    elif lineage:
        tree = ancestry.lineage(lineage, [Path(name) for name in paths or []])
        works = list(accounts.of_lineage(tree.found, run))
    else:
        works = list(accounts.read(paths or [jsonl.STDIN], run))
    if not works:
        raise Fault(", ".join(paths or ["stdin"]), "holds no run that can be counted", "look at what was skipped")
    counted = [counting.footprint(work, powers, pue, where) for work in works]
    report = footprints.Report(counted, clusters, offset, tree)
    with run.records(), jsonl.reader_may_leave():
        if format == "table":
            for title, rows, header in (footprints.table_2 if paper else footprints.tables)(report):
                ui.table(title, rows, header, asked=True)
        else:
            print(footprints.FORMATS[format](report), flush=True)
