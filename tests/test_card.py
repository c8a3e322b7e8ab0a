"""The model card: what the lineage says of a model, written anew with Scores, and no part of what is verified."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, turns, written
from test_cli import Run, command, one_line

from llamactl import cards
from llamactl.artifacts import ancestry, files, manifest
from llamactl.artifacts.records import Score

assert command  # a fixture

H100 = {"host": "h", "device": "NVIDIA H100 80GB HBM3", "devices": 1, "energy_kwh": None, "energy_method": "tdp: 700 W"}


def made(path: Path, stage: str, inputs: list[tuple[str, Path]], settings: dict[str, Any], **facts: Any) -> Path:
    """A directory that a run has made on a GPU in an hour: a model, but for shards."""
    path.mkdir()
    (path / ("shard-00000.safetensors" if stage == "tokenize" else "config.json")).write_text("{}")
    (path / "README.md").write_text("a card")
    entries = [manifest.described(name, str(place)) for name, place in inputs]
    outputs = [files.entry(file, "file") for file in sorted(path.iterdir())]
    body = {"stage": stage, "settings": settings, "version": "0.1.0", "inputs": entries, "outputs": outputs, **H100}
    body |= {"start": "2023-07-18T10:00:00+00:00", "end": "2023-07-18T11:00:00+00:00", "device_hours": 1.0, **facts}
    (path / "run.json").write_bytes(manifest.dumps({"done": {}, "skipped": {}, "noted": {}} | body))
    return path


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chat model of a base model of shards of a text."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("a text")
    shards = made(Path("shards"), "tokenize", [("corpus", Path("text.txt"))], {}, done={"documents": 3, "tokens": 1234})
    sources = [{"path": "shards", "share": 1.0, "samples": 8, "epochs": 0.5}]
    base = made(
        Path("base"), "pretrain", [("data", shards)], {"size": "tiny", "peak": 0.002, "seed": 0, "steps": 7},
        done={"tokens": 600}, sources=sources,
    )  # fmt: skip
    talks = written(Path("talks|1.jsonl"), [{"messages": turns("a", "b")}])
    return made(
        Path("chat"), "sft", [("model", base), ("dialogues", talks)], {"seed": 0, "peak": 2e-5, "truncate": False},
        done={"samples": 1, "tokens": 40}, epochs=2.0, skipped={"bad records": 2}, held_out=[[0, 9.0], [5, 2.5]],
    )  # fmt: skip


def part(card: str, title: str) -> str:
    return card.partition(f"## {title}\n")[2].partition("\n## ")[0]


def score(**more: Any) -> dict[str, Any]:
    return {
        "task": "mmlu", "metric": "accuracy", "value": 0.453, "n": 14042, "stderr": 0.004, "model": "runs/chat",
        "shots": 5, "prompt_sha256": "ab" * 32, "scoring": "log p of A to D", **more,
    }  # fmt: skip


def test_a_held_out_loss_that_was_not_finite_is_said(chat: Path) -> None:
    """As runs of earlier versions have it, that ended so."""
    tree = ancestry.lineage(chat)
    tree.found[-1][1]["held_out"][-1][1] = None
    assert "| held out in training | loss | not finite |  | after step 5 |" in part(cards.card(tree), "Evaluation")


def test_what_it_was_made_from_and_how(chat: Path) -> None:
    card = cards.card(ancestry.lineage(chat))
    digest = manifest.described("x", "base")["sha256"][:16]
    assert f"| base | model of chat | llamactl pretrain | 600 | `{digest}` |" in part(card, "Base")
    data = part(card, "Data")
    assert data.index("Of chat:") < data.index("Of base:")
    assert "| talks\\|1.jsonl | dialogues |" in data  # a bar in a name breaks no table
    assert "| shards | data | 8 B | 3 documents, 1,234 tokens | 100.0%, 0.50 epochs |" in data
    assert "Seen: 1 samples, 40 tokens, 2.00 epochs. Left out, or not used as it was: 2 bad records." in data
    recipe = part(card, "Recipe")
    assert "| seed | 0 |" in recipe and "| peak | 2e-05 |" in recipe and "truncate" not in recipe
    assert "| held out in training | loss | 2.5 |  | after step 5 |" in part(card, "Evaluation")
    assert "Not stated." in part(card, "Licence") and "\nlicense: unknown\n" in card
    assert "Responsible Use Guide" in part(card, "Intended use and limits")
    assert len(set(re.findall(r"^## .*", card, re.MULTILINE))) == 7


def test_carbon_of_all_it_was_made_from(chat: Path) -> None:
    """3 hours x 700 W x 1.1 = 2.31 kWh; at 0.385 kg, 889.35 g."""
    card = cards.card(ancestry.lineage(chat))
    assert "3 runs: 3.000 device-hours, 2.31 kWh with a PUE of 1.1, 889.3 g CO2eq" in part(card, "Energy and carbon")
    head = card.split("---\n")[1]
    assert "co2_eq_emissions:\n  emissions: 889.35\n" in head
    assert '  training_type: "pre-training and fine-tuning"\n' in head


def test_carbon_that_is_not_known_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    unknown = {"device": "an abacus", "energy_method": "unknown: no power figure for this device"}
    base = made(Path("base"), "pretrain", [], {}, **unknown)
    chat = made(Path("chat"), "sft", [("model", base)], {})
    card = cards.card(ancestry.lineage(chat))
    assert "co2_eq_emissions" not in card
    told = part(card, "Energy and carbon")
    assert "Not counted, since the power of its device is not known (an abacus): base." in told
    assert "1 run: 1.000 device-hours" in told


def test_a_model_from_elsewhere_is_told_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llama").mkdir()
    Path("llama", "config.json").write_text("{}")
    reward = made(Path("rm"), "rm-train", [("model", Path("llama"))], {"kind": "safety"})
    card = cards.card(ancestry.lineage(reward))
    assert f"| llama | model of rm | from elsewhere |  | `{manifest.described('x', 'llama')['sha256'][:16]}` |" in card
    assert "pipeline_tag: text-classification" in card and "a reward model" in card


def test_scores_are_its_evaluation(chat: Path) -> None:
    found = [
        Score(**score()),
        Score(**score(metric="recall", threshold=0.15, stderr=None, value=0.5, n=8, shots=0)),
        Score(**score(metric="recall", threshold=0.5)),
        Score(**score(group={"source": "hh"}, n=7)),
    ]
    told = part(cards.card(ancestry.lineage(chat), found), "Evaluation")
    assert "| mmlu | accuracy | 0.453 ± 0.004 | 14,042 | 5-shot |" in told
    assert "| mmlu | accuracy (source hh) | 0.453 ± 0.004 | 7 | 5-shot |" in told
    assert "| mmlu | recall below 0.15 | 0.5 | 8 |  |" in told and "below 0.5 " not in told
    assert "1 more Scores are at thresholds other than 0.15" in told
    assert told.count("log p of A to D; prompts sha256 `abababababababab`") == 1


def test_written_anew_it_changes_nothing_that_is_verified(chat: Path, tmp_path: Path, command: Run) -> None:
    before, run = manifest.described("x", "chat"), Path("chat/run.json").read_bytes()
    later = made(Path("later"), "sft", [("model", chat)], {})
    scores = written(tmp_path / "scores.jsonl", [score(), score(model="runs/base")])
    done = command("lineage", chat, "--card", "--scores", scores, "--license", "apache-2.0")
    assert (done.status, done.stdout) == (0, "chat\n")
    assert done.stderr == "1 Scores are of runs/base, and not in the card\n"
    card = Path("chat/README.md").read_text()
    assert "| mmlu | accuracy | 0.453 ± 0.004 |" in card and "\nlicense: apache-2.0\n" in card
    assert manifest.described("x", "chat") == before and Path("chat/run.json").read_bytes() == run
    assert "all files of 4 artifacts are as they were" in command("lineage", later, "--verify").stderr
    Path("chat/README.md").unlink()
    assert manifest.described("x", "chat") == before
    assert command("lineage", chat, "--card").status == 0  # without Scores that it once had: it shows what is given
    assert "mmlu" not in Path("chat/README.md").read_text()


def test_what_a_person_has_written_stays(chat: Path, command: Run) -> None:
    card = Path("chat/README.md")
    card.write_text("my own words")
    assert one_line(command("lineage", chat, "--card")) == (
        "chat/README.md: was edited since it was written; --overwrite to write it anew"
    )
    assert card.read_text() == "my own words"
    assert command("lineage", chat, "--card", "--overwrite").status == 0
    card.write_text(card.read_text().replace("Not stated.", "Mine."))
    assert "was edited since" in one_line(command("lineage", chat, "--card"))


def test_the_same_card_is_the_same_bytes(chat: Path, command: Run) -> None:
    assert command("lineage", chat, "--card").status == 0
    first = Path("chat/README.md").read_bytes()
    assert command("lineage", chat, "--card").status == 0
    assert Path("chat/README.md").read_bytes() == first


def test_what_cannot_be_a_card(chat: Path, tmp_path: Path, command: Run) -> None:
    others = written(tmp_path / "scores.jsonl", [score(model="else")])
    bad = written(tmp_path / "bad.jsonl", [score(), {"task": "mmlu"}])
    for arguments, said in (
        (("shards", "--card"), "shards: is no model, and has no card; name a model directory"),
        ((chat, "--scores", others), "--card: is not given, and --scores, --license and --overwrite are of a card"),
        ((chat, "--card", "--json"), "--card: is given together with --json or --dot"),
        ((chat, "--card", "--scores", bad), "bad.jsonl:2: metric: missing; llamactl eval writes Scores"),
    ):
        assert said in one_line(command("lineage", *arguments))
    done = command("lineage", chat, "--card", "--scores", others)
    assert done.status == 1 and "holds no Score of a model called chat" in done.stderr
    assert Path("chat/README.md").read_text() == "a card"


def test_a_training_leaves_its_card(base_model: Path, shards_dir: Path, tmp_path: Path, llamactl: Command) -> None:
    card = (base_model / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: unknown\n")
    assert "None: it was trained from random weights." in part(card, "Base")
    tokens = json.loads((shards_dir / "run.json").read_text())["done"]["tokens"]
    assert f"| {shards_dir.name} | data |" in card and f"{tokens:,} tokens" in card
    assert "| size | tiny |" in part(card, "Recipe") and "| seed | 0 |" in part(card, "Recipe")
    assert not cards.edited(base_model)
    again = Path(shutil.copytree(base_model, tmp_path / "base"))
    llamactl("lineage", again, shards_dir.parent, "--card", status=0)
    llamactl(
        "generate", again, "--text", "def", "--max-new-tokens", 2, status=0
    )  # its bytes are still held as they were
