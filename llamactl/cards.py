"""The model card, ``README.md`` of a model directory: what its lineage says of it, for the people who will use it.

A stage writes it as it ends; ``llamactl lineage MODEL --card`` writes it anew, with Scores that were measured since. It
is no part of what manifests hold a model against: a card may be written anew, and be edited.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from llamactl import accounts, carbon, footprints, ui
from llamactl.artifacts import ancestry, checkpoint, files, jsonl, manifest
from llamactl.artifacts.ancestry import Lineage, Made
from llamactl.artifacts.records import Score
from llamactl.artifacts.run import Run
from llamactl.errors import Fault
from llamactl.lineage import MATTERING

UNKNOWN = "unknown"  # a licence, as model hubs spell it
TASKS = {"rm-train": "text-classification"}  # all others generate text
WHAT = {
    "pretrain": "a base model: it continues texts, and has not learned to answer",
    "sft": "a chat model, fine-tuned on dialogues",
    "rm-train": "a reward model: it scores answers, the higher the better, and generates none",
    "ppo": "a chat model, trained by PPO against reward models",
}
MODELS = ("model", "reference", "critic", "helpfulness", "safety", "general")  # inputs that are models

OPERATING = 0.15  # below which sigmoid(safety score) is taken for unsafe (section 3.2.3)

# Settings that are told besides those that matter in any lineage.
OWN = ("warmup", "weight_decay", "epochs", "loss", "margin", "kind", "safety_weight", "mix_share", "clip", "truncate")

USE = {
    "pretrain": "Research on language models, and a start for fine-tuning. As it is, it is not meant to be put before "
    "people.",
    "rm-train": "Ranking answers of a language model in rejection sampling, PPO and evaluation, to prompts of the kind "
    "it was trained on. Its scores are no measure of truth, and none of how safe a text is to publish.",
}
CHAT = (
    "Dialogue with people who know that they speak to a program, in the languages of its data. It is not meant for "
    "advice in matters of health, law or money, nor for any use that breaks a law."
)
LIMITS = (
    "A language model repeats what its data holds, errors and prejudice included, and invents what it does not hold. "
    "What was measured is above; in other languages, on other subjects and in longer dialogues it may do worse. Before "
    "you rely on it, test it for your purpose, safety first: prompts that are meant to break it, questions that it "
    "should not refuse, and what it says of groups of people. The paper's section 5.3 and appendix A.7, and the "
    "Responsible Use Guide that Meta published with Llama 2 (at ai.meta.com/llama), say how."
)

_SEAL = re.compile(rb"<!-- llamactl card ([0-9a-f]{64}) -->\n$")


def of_run(run: Run) -> str:
    """The card of the model that a run is about to have made."""
    assert run.out is not None
    if not ui.first_rank():
        return ""
    return card(ancestry.of_run(run.out / manifest.FILE, run.manifest([])))


def card(tree: Lineage, scores: Sequence[Score] = (), licence: str = UNKNOWN) -> str:
    """The card of the newest artifact of a tree."""
    own = tree.found[-1]
    facts, name = own.facts, manifest.artifact(own.path).absolute().name
    counted, uncounted = _counted(tree)
    block = footprints.as_card(footprints.Report(counted)) if counted and not uncounted else ""
    parts = [
        _head(facts, licence, block),
        f"# {name}",
        f"This is {WHAT.get(facts['stage'], 'a model')}, made by `llamactl {facts['stage']}` {facts['version']} in "
        "Hugging Face Llama layout. It follows the recipe of Llama 2 (Touvron et al., 2023), and has none of Meta's "
        "weights unless a base below has. `run.json` beside has all of this by digest.",
        "## Base",
        _base(tree, own),
        "## Data",
        _data(tree, own),
        "## Recipe",
        _recipe(facts),
        "## Evaluation",
        _evaluation(facts, scores),
        "## Energy and carbon",
        _energy(counted, uncounted, tree),
        "## Licence",
        _licence(licence),
        "## Intended use and limits",
        f"{USE.get(facts['stage'], CHAT)}\n\n{LIMITS}",
    ]
    return sealed("\n\n".join(parts) + "\n")


def write(model: Path, tree: Lineage, paths: Sequence[str], licence: str, overwrite: bool) -> None:
    """Write a model's card anew, with the Scores of files that are its own; raises Fault where one was edited."""
    if not (model / checkpoint.CONFIG).exists():
        raise Fault(model, "is no model, and has no card", "name a model directory")
    if edited(model) and not overwrite:
        raise Fault(model / manifest.CARD, "was edited since it was written", "--overwrite to write it anew")
    found = list(_scores(model, paths))
    with files.whole_file(model / manifest.CARD) as stream:
        stream.write(card(tree, found, licence).encode())


def _scores(model: Path, paths: Sequence[str]) -> Iterator[Score]:
    """The Scores that bear the model's name; those of others are counted, and said."""
    others: Counter[str] = Counter()
    own, mine = model.absolute().name, 0
    for path in paths:
        for _, score in jsonl.scores([path]):
            if Path(score.model).name != own:
                others[score.model] += 1
                continue
            mine += 1
            yield score
    if others:
        ui.warn(f"{sum(others.values()):,} Scores are of {', '.join(sorted(others))}, and not in the card")
    if paths and not mine:
        raise Fault(", ".join(paths), f"holds no Score of a model called {own}", "llamactl eval ... measures it")


def sealed(text: str) -> str:
    """A card with a last line by which one tells whether it was edited."""
    return f"{text}\n<!-- llamactl card {sha256(text.encode()).hexdigest()} -->\n"


def edited(model: Path) -> bool:
    """Whether a model's card is not as a program of ours has written it: by its seal, else by the manifest."""
    path = model / manifest.CARD
    if not path.exists():
        return False
    data = path.read_bytes()
    if seal := _SEAL.search(data):
        return sha256(data[: seal.start() - 1]).hexdigest() != seal[1].decode()
    outputs = manifest.load(manifest.beside(model))["outputs"]
    return files.stamp(path).sha256 not in [one["sha256"] for one in outputs if one["path"] == manifest.CARD]


def _head(facts: Mapping[str, Any], licence: str, block: str) -> str:
    """The metadata that model hubs read."""
    lines = [
        "---", "library_name: transformers", f"pipeline_tag: {TASKS.get(facts['stage'], 'text-generation')}",
        f"license: {_text(licence)}", "tags: [llama, llamactl]", *filter(None, [block]), "---",
    ]  # fmt: skip
    return "\n".join(lines)


def _text(value: str) -> str:
    """A text as YAML has it: as it is, where it is a plain name."""
    return value if re.fullmatch(r"[A-Za-z][A-Za-z0-9._+-]*", value) else orjson.dumps(value).decode()


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(cells: Iterable[object]) -> str:
        told = (ui.harmless(str(cell)).replace("\n", " ").replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(told) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _base(tree: Lineage, own: Made) -> str:
    """The models it was made from or with, and those these were made from, by digest; the newest first."""
    makers = {one.facts["sha256"]: one for one in tree.found}
    roles: dict[str, list[str]] = {}  # by digest
    cells: dict[str, tuple[str, ...]] = {}
    for made in _models(tree, own):
        for entry in made.facts["inputs"]:
            if entry["as"] not in MODELS or entry["kind"] != "model":
                continue
            maker = makers.get(entry.get("manifest", ""))
            how = f"llamactl {maker.facts['stage']}" if maker else "from elsewhere"
            tokens = ui.count(maker.facts["done"].get("tokens", 0)) if maker else ""
            whose = manifest.artifact(made.path).absolute().name
            roles.setdefault(entry["sha256"], []).append(f"{entry['as']} of {whose}")
            cells[entry["sha256"]] = (how, tokens, f"`{entry['sha256'][:16]}`", Path(entry["path"]).name)
    if not cells:
        return "None: it was trained from random weights."
    rows = [(name, ", ".join(roles[digest]), *rest) for digest, (*rest, name) in cells.items()]
    return _table(("model", "as", "made by", "tokens", "sha256"), rows)


def _models(tree: Lineage, own: Made) -> list[Made]:
    """The artifact, and the models it was made from, the newest first."""
    return [own, *(one for one in reversed(tree.found) if one is not own and one.facts["stage"] in WHAT)]


def _data(tree: Lineage, own: Made) -> str:
    """What it learned from, and all that its bases did: names, sizes, documents and tokens as manifests have them."""
    makers = {one.facts["sha256"]: one.facts for one in tree.found}
    sections = []
    for made in _models(tree, own):
        facts = made.facts
        by_path = {one["path"]: one for one in facts.get("sources", [])}
        rows = []
        for entry in facts["inputs"]:
            if entry["as"] in MODELS:
                continue
            done = makers.get(entry.get("manifest", ""), {}).get("done", {})
            told = ", ".join(
                f"{ui.count(done[unit])} {unit}"
                for unit in ("documents", "records", "samples", "tokens")
                if done.get(unit)
            )
            source = by_path.get(entry["path"], {})
            share = f"{source['share']:.1%}, {source['epochs']:.2f} epochs" if source else ""
            size = "" if entry["size"] is None else ui.size(entry["size"])
            digest = f"`{entry['sha256'][:16]}`" if entry["sha256"] else "a pipe"
            rows.append((Path(entry["path"]).name, entry["as"], size, told, share, digest))
        if rows:
            table = _table(("name", "as", "size", "holds", "share", "sha256"), rows)
            counts = [f"{ui.count(n)} {what}" for what, n in facts["done"].items()]
            if "epochs" in facts:
                counts.append(f"{facts['epochs']:.2f} epochs")
            left = [f"{n:,} {what}" for part in ("skipped", "noted") for what, n in facts.get(part, {}).items()]
            said = f"Seen: {', '.join(counts)}." if counts else ""
            said += f" Left out, or not used as it was: {', '.join(left)}." if left else ""
            sections.append(f"Of {manifest.artifact(made.path).absolute().name}:\n\n{table}\n\n{said.strip()}")
    return "\n\n".join(sections) or "None is recorded."


def _recipe(facts: Mapping[str, Any]) -> str:
    settings = facts["settings"]
    names = [
        name
        for name in dict.fromkeys((*MATTERING, *OWN))
        if settings.get(name) not in (None, []) and settings[name] is not False
    ]
    rows = [(name.replace("_", " "), settings[name]) for name in names]
    return f"{_table(('setting', 'value'), rows)}\n\nAll settings are in `run.json`, with the command line."


def _evaluation(facts: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """What was held out as it was trained, and Scores that were measured since."""
    rows: list[tuple[object, ...]] = []
    for field in ("held_out", "held_out_loss"):
        points = facts.get(field) or []
        if points and all(isinstance(point, list) for point in points):
            step, loss = points[-1]
            value = "not finite" if loss is None else f"{loss:.4g}"  # null is how JSON has NaN
            rows.append(("held out in training", "loss", value, "", f"after step {step:,}"))
    if facts.get("held_out_reward") is not None:
        after = f"by the reward models it was trained with; after iteration {facts['kept']:,}, which was kept"
        after += f"; ended early: {facts['ended']}" if "ended" in facts else ""
        rows.append(("held out in training", "reward", f"{facts['held_out_reward']:.4g}", "", after))
    curves = 0
    for one in scores:
        if one.threshold not in (None, OPERATING):
            curves += 1
            continue
        part = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in (one.group or {}).items())
        at = f"below {one.threshold:g}" if one.threshold is not None else ""
        error = f" ± {one.stderr:.2g}" if one.stderr is not None else ""
        name = " ".join(filter(None, [one.metric.replace("_", " "), part and f"({part})", at]))
        rows.append((one.task, name, f"{one.value:.4g}{error}", f"{one.n:,}", f"{one.shots}-shot" if one.shots else ""))
    if not rows:
        return (
            "Nothing was measured when this was written. `llamactl eval` measures, and "
            "`llamactl lineage MODEL --card --scores FILE` writes it here."
        )
    table = _table(("task", "metric", "value ± standard error", "n", "how"), rows)
    how: dict[str, list[str]] = {}
    for one in scores:
        how.setdefault(f"{one.scoring}; prompts sha256 `{one.prompt_sha256[:16]}`", []).append(one.task)
    said = [f"{', '.join(dict.fromkeys(tasks))}: {scoring}." for scoring, tasks in how.items()]
    if curves:
        said.append(f"{curves:,} more Scores are at thresholds other than {OPERATING:g}, the paper's.")
    return "\n\n".join([table, *said])


def _counted(tree: Lineage) -> tuple[list[carbon.Footprint], dict[str, list[str]]]:
    """What the runs of a tree come to at the paper's carbon intensity; and by why, those of which it is not known."""
    counted: list[carbon.Footprint] = []
    uncounted: dict[str, list[str]] = {}
    for made in tree.found:
        try:
            work = accounts.made(made.path, made.facts)
            counted.append(carbon.footprint(work, {}, carbon.PUE, carbon.PAPERS_GRID))
        except Fault as fault:
            uncounted.setdefault(fault.problem, []).append(manifest.artifact(made.path).absolute().name)
    return counted, uncounted


def _energy(counted: Sequence[carbon.Footprint], uncounted: Mapping[str, Sequence[str]], tree: Lineage) -> str:
    """Of it and of all that it was made from."""
    lines = []
    if counted:
        whole = carbon.total(counted)
        runs = f"{whole.runs:,} run{'s' * (whole.runs != 1)}"
        lines.append(
            f"This model and all that it was made from, {runs}: {whole.device_hours:,.3f} device-hours, "
            f"{whole.energy_with_pue_kwh:,.4g} kWh with a PUE of {carbon.PUE:g}, {1e6 * whole.tco2eq:,.4g} g CO2eq at "
            f"{carbon.KG_PER_KWH:g} kg a kWh, as the paper counts (section 2.2.1, Table 2)."
        )
    lines += [f"Not counted, since {why}: {', '.join(names)}." for why, names in uncounted.items()]
    if tree.missing:
        lines.append(f"{len(tree.missing):,} inputs lead no further back: what made them is not counted.")
    lines.append("`llamactl carbon --lineage` counts with other powers and grids, and says what is left out.")
    return "\n".join(lines)


def _licence(licence: str) -> str:
    if licence != UNKNOWN:
        return f"{licence}, as whoever wrote this card has said. Licences of the data and of the base hold beside it."
    return (
        "Not stated. Whoever publishes the model has to choose one that the licences of its data and of its base allow "
        "(`llamactl lineage MODEL --card --license NAME`)."
    )
