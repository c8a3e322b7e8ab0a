"""The lineage of an artifact: what it was made from, and that in its turn, by the digests that manifests hold.

In: an artifact, and folders to look for its ancestors in. Out: a tree, JSON, a graph, or the model's card.
"""

from pathlib import Path
from typing import Annotated

import typer

from llamactl import options


def lineage(
    artifact: Annotated[Path, typer.Argument(help="A directory or file that llamactl has made.")],
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders to look in for what is no longer where it was.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, the oldest first.")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="As a graph for Graphviz: ... | dot -Tsvg > lineage.svg.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files anew, and say which have changed since.")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="Write the card of a model, its README.md, anew from its lineage.")
    ] = False,
    scores: Annotated[list[str], typer.Option(help="Scores of the model that its card is to show; repeatable.")] = [],  # noqa: B006
    licence: Annotated[
        str | None, typer.Option("--license", help="The licence that its card names.", show_default="unknown")
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """The tree of everything an artifact was made from, with settings, tokens, hours and carbon.

    An ancestor is told by its manifest's digest: what was moved is found in the folders that are named, what was made
    again since is not taken for it. Carbon is at the paper's 0.385 kg/kWh; ``llamactl carbon --lineage`` counts it all.
    With --verify the exit status is 1 where something has changed. With --card the model's README.md is written
    anew, with --scores as its evaluation; one that somebody has edited is replaced with --overwrite only. A card is no
    part of what is verified.

    Example: llamactl lineage chat-ppo runs/ --verify
    """
    from llamactl import cards, ui
    from llamactl import lineage as tree
    from llamactl.artifacts import ancestry, jsonl
    from llamactl.errors import Fault

    if (scores or licence or overwrite) and not card:
        raise Fault("--card", "is not given, and --scores, --license and --overwrite are of a card", "give it too")
    if card and (json or dot):
        raise Fault("--card", "is given together with --json or --dot", "give one of them")
    if json and dot:
        raise Fault("--json", "is given together with --dot", "give one of them")
    found = ancestry.lineage(artifact, folders or [])
    if card:
        cards.write(artifact, found, scores, licence or cards.UNKNOWN, overwrite)
    with jsonl.reader_may_leave():
        if card:
            print(artifact, flush=True)
        elif json or dot:
            print(tree.as_json(found) if json else tree.as_dot(found), flush=True)
        else:
            ui.table(str(artifact), tree.rows(found), tree.HEADER, asked=True)
    if found.missing:
        ui.warn(f"{len(found.missing)} inputs lead no further back; name the folders where they are")
    if verify:
        changes = list(tree.changed(found))
        for path, how in changes:
            ui.warn(f"{path}: {how}")
        if changes:
            raise Fault(artifact, f"{len(changes)} files of its lineage have changed", "restore them, or make it again")
        ui.note(f"all files of {len(found.found)} artifacts are as they were made")
