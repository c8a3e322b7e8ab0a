"""Carbon: the paper's table to the digit, runs reckoned by hand, every source of runs, and what is wrong with some."""

import csv
import io
import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import written

from llamactl import accounts, carbon, cli, footprints
from llamactl.artifacts import ancestry, manifest
from llamactl.artifacts.run import Run
from llamactl.carbon import Work
from llamactl.errors import Fault
from llamactl.grid import Grid

Carbon = Callable[..., str]
Refused = Callable[..., str]

EPYC = "AMD EPYC 7763 64-Core Processor, 2 threads"
FULL = Grid("", "a grid", 1000.0, "a test")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``llamactl carbon ...``: exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.app(["carbon", *map(str, arguments)])
        return int(end.value.code or 0), *capfd.readouterr()

    return run


@pytest.fixture
def said(command: Callable[..., tuple[int, str, str]]) -> Carbon:
    """What it prints."""

    def run(*arguments: object) -> str:
        status, stdout, stderr = command(*arguments)
        assert status == 0, stderr
        return stdout

    return run


@pytest.fixture
def counted(said: Carbon) -> Callable[..., dict[str, Any]]:
    """What it prints as JSON."""
    return lambda *arguments: json.loads(said(*arguments, "--format", "json"))


@pytest.fixture
def refused(command: Callable[..., tuple[int, str, str]]) -> Refused:
    """The one line that it ends with."""

    def run(*arguments: object) -> str:
        status, stdout, stderr = command(*arguments)
        assert (status, stdout) == (1, "")
        (line,) = stderr.splitlines()
        return line.removeprefix("llamactl: ")

    return run


def artifact(out: Path, **account: Any) -> Path:
    """A file with a manifest that says this of what it took: by default two hours of four A100s on TDP."""
    out.parent.mkdir(parents=True, exist_ok=True)
    run = Run("a test", {"out": str(out)}, {}, out)
    with run.file(announce=False) as file:
        file.write(out.name.encode())
    facts = manifest.load(manifest.beside(out))
    default = {
        "start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T02:00:00+00:00", "host": out.name,
        "device": "NVIDIA A100-SXM4-80GB", "devices": 4, "device_hours": 8.0, "energy_kwh": 3.2,
        "energy_method": "tdp: 400 W",
    }  # fmt: skip
    manifest.beside(out).write_bytes(manifest.dumps({**facts, **default, **account}))
    return out


# -- the paper


def test_table_2_to_the_digit(said: Carbon) -> None:
    rows = [line.split() for line in said("--paper").splitlines()]
    assert ["Llama", "2", "7B", "184,320", "400", "31.22"] in rows
    assert ["Llama", "2", "13B", "368,640", "400", "62.44"] in rows
    assert ["Llama", "2", "34B", "1,038,336", "350", "153.90"] in rows
    assert ["Llama", "2", "70B", "1,720,320", "400", "291.42"] in rows
    assert ["total", "3,311,616", "539.00"] in rows


def test_table_2_is_reckoned(counted: Callable[..., dict[str, Any]]) -> None:
    """Elsewhere the same work comes to something else; what is offset is told beside."""
    found = counted("--paper")
    assert [round(one["tco2eq"], 4) for one in found["runs"]] == [31.2238, 62.4476, 153.9074, 291.4222]
    assert found["total"]["energy_kwh"] == pytest.approx(184_320 * 0.4 + 368_640 * 0.4 + 1_038_336 * 0.35 + 688_128)
    france = counted("--paper", "--country", "FRA", "--pue", 1.2, "--offset", 1)
    assert france["total"]["tco2eq"] == pytest.approx(found["total"]["tco2eq"] * 56 / 385 * 1.2 / 1.1)
    assert france["offset"] == {"share": 1.0, "tco2eq": france["total"]["tco2eq"]}


def test_two_clusters(said: Carbon, counted: Callable[..., dict[str, Any]]) -> None:
    """At 350 W and 90 % of the speed: hours by 1 / 0.9, energy by 350 / 400 / 0.9."""
    fast, slow = counted("--paper")["elsewhere"]
    assert (fast["name"], fast["watts"], slow["name"], slow["watts"]) == ("InfiniBand", 400, "RoCE", 350)
    assert slow["device_hours"] == pytest.approx(3_311_616 / 0.9)
    assert fast["energy_kwh"] == pytest.approx(3_311_616 * 0.4)
    assert slow["energy_kwh"] == pytest.approx(3_311_616 / 0.9 * 0.35)
    rows = [line.split() for line in said("--paper").splitlines()]
    assert ["InfiniBand", "400", "100%", "3,311,616", "1,324,646", "560.99"] in rows
    assert ["RoCE", "350", "90%", "3,679,573", "1,287,851", "545.40", "+11.1%", "−2.8%"] in rows


# -- by hand


def test_a_run_by_hand() -> None:
    """8 device-hours x 400 W = 3.2 kWh; x 1.5 = 4.8 kWh; at 1 kg/kWh 4.8 kg."""
    one = carbon.footprint(Work("a", "sft", "a100", 4, 8.0), {}, 1.5, FULL)
    assert (one.watts, one.energy_kwh, one.energy_with_pue_kwh, one.method) == (400, 3.2, pytest.approx(4.8), "tdp")
    assert one.tco2eq == pytest.approx(0.0048)


def test_what_a_meter_has_counted_goes_before_power() -> None:
    one = carbon.footprint(Work("a", "", "a100", 4, 8.0, energy_kwh=2.0, method="NVML"), {"a100": 999.0}, 1.0, FULL)
    assert (one.watts, one.energy_kwh, one.method, one.tco2eq) == (250, 2.0, "measured: NVML", 0.002)


def test_a_record_may_say_where_it_was() -> None:
    there = Grid("", "there", 100.0, "")
    one = carbon.footprint(Work("a", "", "a100", 1, 1.0, pue=2.0, grid=there), {}, 1.1, FULL)
    assert (one.pue, one.grid) == (2.0, there)


def test_the_whole_is_the_sum() -> None:
    works = [Work("a", "", "a100", 1, 1.0), Work("b", "", "h100", 1, 2.0)]
    every = [carbon.footprint(work, {}, 1.1, FULL) for work in works]
    whole = carbon.total(every)
    assert whole == (2, 3.0, pytest.approx(1.8), pytest.approx(1.98), pytest.approx(0.00198))
    assert carbon.total([]) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("device", "given", "watts"),
    [
        ("a100", [], 400),
        ("NVIDIA H100 80GB HBM3", [], 700),
        (EPYC, [], 280),
        ("2 x " + EPYC, [], 560),
        ("a100", ["350"], 400),  # is known
        ("a100", ["a100=350"], 350),
        ("AMD EPYC, 2 threads", ["25"], 25),
        ("AMD EPYC, 2 threads", ["300", "epyc=25"], 25),
        ("AMD EPYC, 2 threads", ["EPYC=25", "300"], 25),
    ],
)
def test_power(device: str, given: list[str], watts: float) -> None:
    assert carbon.power(Work("a", "", device, 1, 1.0), carbon.powers(given)) == watts


@pytest.mark.parametrize("text", ["", "0", "-5", "nan", "inf", "many", "=5", "cpu=", "cpu=x"])
def test_what_is_no_power(text: str) -> None:
    with pytest.raises(Fault, match="--watts"):
        carbon.powers([text])


@pytest.mark.parametrize("text", ["", "x", "350@", "350@0", "0@1", "350@x", "@0.9", "nan@1", "350@inf"])
def test_what_is_no_cluster(text: str) -> None:
    if text == "350@":
        assert carbon.cluster(text) == carbon.Cluster(350, 1.0)
    else:
        with pytest.raises(Fault, match="--compare"):
            carbon.cluster(text)


def test_cut_off() -> None:
    assert [carbon.cut_off(value) for value in (62.4476, 153.9074, 0.0, 7.0)] == [62.44, 153.90, 0.0, 7.0]


# -- runs of ours


def test_artifacts_manifests_and_folders(tmp_path: Path, counted: Callable[..., dict[str, Any]]) -> None:
    first, second = artifact(tmp_path / "in" / "a"), artifact(tmp_path / "in" / "deep" / "b", device_hours=1.0)
    for paths in (
        [tmp_path],
        [tmp_path / "in"],
        [first, second],
        [manifest.beside(first), manifest.beside(second)],
        [first, tmp_path / "in" / "deep"],
    ):
        found = counted(*paths)
        assert [one["name"] for one in found["runs"]] == [str(first), str(second)]
        assert found["total"]["device_hours"] == 9
        assert found["total"]["energy_kwh"] == pytest.approx(3.6)
        assert found["total"]["tco2eq"] == pytest.approx(3.6 * 1.1 * 0.385 / 1000)


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    first = artifact(tmp_path / "a")
    status, stdout, stderr = command(first, tmp_path, "--format", "json")
    assert (status, json.loads(stdout)["total"]["runs"]) == (0, 1)
    assert stderr == "carbon: skipped 1 runs that are named twice\n"


def test_what_has_no_manifest_counts_once_too(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    """A training under way by its folder, its metrics, a folder above; a file of lines, also through a link."""
    run, lines = tmp_path / "uw" / "run", written(tmp_path / "rr.jsonl", [{"device": "h100", "hours": 1}] * 2)
    run.mkdir(parents=True)
    written(run / "metrics.jsonl", [{"tokens": 360, "tokens_per_second": 0.1}])
    (tmp_path / "link.jsonl").symlink_to(lines)
    again = f"{tmp_path}/uw/../rr.jsonl"
    for paths, runs, skipped in (
        ([run, run / "metrics.jsonl", run.parent], 1, 2),
        ([lines, again, tmp_path / "link.jsonl"], 2, 2),
        ([lines, written(tmp_path / "other.jsonl", [{"device": "h100", "hours": 1}])], 3, 0),
    ):
        status, stdout, stderr = command(*paths, "--watts", 9, "--format", "json")
        assert (status, json.loads(stdout)["total"]["runs"]) == (0, runs)
        assert stderr == f"carbon: skipped {skipped} runs that are named twice\n" * bool(skipped)


def test_versions_of_a_run_are_counted_with_it(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    """What they had taken so far is part of what it took; one that is alone, or named, counts."""
    facts = manifest.load(manifest.beside(artifact(tmp_path / "aside" / "a")))
    run = tmp_path / "runs" / "ppo"
    version = run / "iteration-00010"
    version.mkdir(parents=True)
    (run / manifest.FILE).write_bytes(manifest.dumps(facts))
    (version / manifest.FILE).write_bytes(manifest.dumps(facts | {"device_hours": 3.0, "iteration": 10}))
    for path, hours, skipped in ((run.parent, 8, 1), (run, 8, 1), (version, 3, 0)):
        status, stdout, stderr = command(path, "--format", "json")
        assert (status, json.loads(stdout)["total"]["device_hours"]) == (0, hours)
        assert stderr == "carbon: skipped 1 versions of a run, which are counted with it\n" * skipped
    (run / manifest.FILE).unlink()
    assert json.loads(command(run.parent, "--format", "json")[1])["total"]["device_hours"] == 3
    (run / "metrics.jsonl").write_text('{"step": 1, "tokens": 360, "tokens_per_second": 0.1}\n')
    assert json.loads(command(run.parent, "--watts", 9, "--format", "json")[1])["total"]["device_hours"] == 1


def test_a_version_among_the_ancestors_of_what_its_run_has_made(tmp_path: Path) -> None:
    facts = manifest.load(manifest.beside(artifact(tmp_path / "a")))
    every = [
        ancestry.Made(tmp_path / "ppo" / "iteration-00010" / manifest.FILE, facts | {"iteration": 10}),
        ancestry.Made(tmp_path / "other" / "iteration-00010" / manifest.FILE, facts | {"iteration": 10}),
        ancestry.Made(tmp_path / "ppo" / manifest.FILE, facts),
    ]
    run = Run("carbon", {}, {})
    found = [one.name for one in accounts.of_lineage(iter(every), run)]
    assert found == [str(tmp_path / "other" / "iteration-00010"), str(tmp_path / "ppo")]
    assert run.skipped == {"versions of a run, which are counted with it": 1}


def test_method_and_meter_are_as_in_the_manifest(tmp_path: Path, counted: Callable[..., dict[str, Any]]) -> None:
    artifact(tmp_path / "a", energy_kwh=2.5, energy_method="measured: NVML")
    artifact(tmp_path / "b", energy_method="tdp: 390 W (NVML: Insufficient Permissions)")
    artifact(tmp_path / "c", device="a card", energy_kwh=None, energy_method="unknown: no power figure for this device")
    runs = counted(tmp_path, "--watts", 100)["runs"]
    assert [(one["method"], one["watts"], one["energy_kwh"]) for one in runs] == [
        ("measured: NVML", 312.5, 2.5),
        ("tdp (NVML: Insufficient Permissions)", 390, pytest.approx(3.12)),
        ("tdp", 100, pytest.approx(0.8)),
    ]


def test_the_ancestry_of_a_model(
    base_model: Path, said: Carbon, counted: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = counted("--lineage", base_model, "--watts", 50)
    assert [one["stage"] for one in found["runs"]] == ["train-tokenizer", "tokenize", "pretrain"]
    assert found["missing"] == []
    assert len(found["sources"]) == 18  # the corpus, for the tokenizer and for the shards
    assert found["total"]["energy_kwh"] == pytest.approx(found["total"]["device_hours"] * 0.05, rel=1e-6) or any(
        one["method"].startswith("measured") for one in found["runs"]
    )
    own = json.loads((base_model / "run.json").read_bytes())
    alone = tmp_path / "base"
    alone.mkdir()
    own["inputs"][0]["path"] = "nowhere/shards"
    (alone / "run.json").write_bytes(manifest.dumps(own))
    orphan = counted("--lineage", alone, "--watts", 50)
    assert [one["stage"] for one in orphan["runs"]] == ["pretrain"]
    assert [(gap["role"], gap["name"], gap["of"]) for gap in orphan["missing"]] == [
        ("data", "nowhere/shards", str(alone))
    ]
    assert "nowhere/shards is not where it was" in said("--lineage", alone, "--watts", 50)
    shards = json.loads((base_model / "run.json").read_bytes())["inputs"][0]["path"]
    again = counted("--lineage", alone, Path(shards).parent, "--watts", 50)
    assert [one["stage"] for one in again["runs"]] == ["train-tokenizer", "tokenize", "pretrain"]


def test_a_training_that_is_under_way(base_model: Path, tmp_path: Path, counted: Callable[..., dict[str, Any]]) -> None:
    """By what its newest state says; without one by the steps in its metrics, whose devices are not told."""
    for name, more in (("with", ["state/step-00000008/manifest.json"]), ("without", [])):
        for file in ["metrics.jsonl", *more]:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes((base_model / file).read_bytes())
    (one,) = counted(tmp_path / "with", "--watts", 50)["runs"]
    facts = json.loads((base_model / "state/step-00000008/manifest.json").read_bytes())
    assert (one["stage"], one["device_hours"]) == ("pretrain", facts["account"]["device_hours"])
    (two,) = counted(tmp_path / "without", "--watts", 50)["runs"]
    assert two["device"] == "all devices of a metrics.jsonl"
    assert 0 < two["device_hours"] <= 1.1 * one["device_hours"]
    (three,) = counted(base_model / "metrics.jsonl", "--watts", 50)["runs"]
    assert three["name"] == str(base_model)  # that has ended, so its manifest counts


def test_metrics_that_were_torn_and_what_are_none(
    tmp_path: Path, counted: Callable[..., dict[str, Any]], refused: Refused
) -> None:
    """Two steps of 100 tokens at 10 a second, of which the second has waited for 4 s; a third was being written."""
    steps = [{"tokens": 100, "tokens_per_second": 10}, {"tokens": 200, "tokens_per_second": 10, "save_seconds": 4}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"tokens": 3')
    assert counted(path, "--watts", 100)["total"]["device_hours"] == pytest.approx(24 / 3600)
    for text in ("{}\n", "[]\n", "x\n", '{"tokens": 5, "tokens_per_second": 0}\n'):
        path.write_text(text)
        assert refused(path).startswith(f"{path}: is no metrics.jsonl of llamactl")


def test_metrics_of_trainings_that_measure_before_they_begin_and_of_ppo(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    """Where no state is saved yet: none of them keeps what else lies in their folder from being counted."""
    before = {"step": 0, "eval_loss": 6.4}
    iteration = {"tokens": 9, "sample_seconds": 5.0, "score_seconds": 3.0, "update_seconds": 2.0}
    for name, steps in {
        "sft": [before, {"step": 1, "tokens": 100, "tokens_per_second": 10}],
        "ppo": [{"step": 0, "eval_reward": 0.1}, {"step": 1, **iteration}, {"step": 2, **iteration}],
        "measured": [before],
        "begun": [],
    }.items():
        (tmp_path / name).mkdir()
        written(tmp_path / name / "metrics.jsonl", steps)
    status, stdout, stderr = command(tmp_path, "--watts", 9, "--format", "json")
    assert (status, stderr) == (0, "carbon: skipped 2 trainings that have not made a step\n")
    took = {Path(one["name"]).parent.name: one["device_hours"] for one in json.loads(stdout)["runs"]}
    assert took == {"ppo": pytest.approx(20 / 3600), "sft": pytest.approx(10 / 3600)}


# -- runs of others


def test_lines_of_json(tmp_path: Path, counted: Callable[..., dict[str, Any]]) -> None:
    runs = [
        {"name": "a", "device": "h100", "hours": 10, "devices": 8, "country": "SWE"},
        {"name": "b", "device": "NVIDIA A100-SXM4-80GB", "device_hours": 96.5, "energy_kwh": 30.2, "pue": 1.3},
        {"device_hours": 12, "watts": 300, "kg_per_kwh": 0.5, "other": "fields pass"},
    ]
    found = counted(written(tmp_path / "runs.jsonl", runs))["runs"]
    assert [one["energy_kwh"] for one in found] == [56, 30.2, pytest.approx(3.6)]
    assert [one["tco2eq"] * 1000 for one in found] == [
        pytest.approx(56 * 1.1 * 0.0407),
        pytest.approx(30.2 * 1.3 * 0.385),
        pytest.approx(3.6 * 1.1 * 0.5),
    ]
    assert [one["method"] for one in found] == ["tdp", "measured: as recorded", "tdp"]
    assert found[2]["name"] == f"{tmp_path / 'runs.jsonl'}:3"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no object"),
        ('{"device":"h100"}', "device_hours: missing (or hours, of so many devices)"),
        ('{"device":"h100","hours":1,"device_hours":1}', "device_hours: is given, and hours as well"),
        ('{"device":"h100","hours":"ten"}', "hours: expected `float | null`, got `str`"),
        ('{"device":"h100","hours":-1}', "hours: expected `float` >= 0.0"),
        ('{"device":"h100","hours":1,"devices":0}', "devices: expected `int` >= 1"),
        ('{"device":"h100","hours":1,"pue":0.5}', "pue: expected `float` >= 1.0"),
        ('{"device":"h100","hours":1,"kg_per_kwh":385}', "kg_per_kwh: expected `float` <= 3.0"),
        ('{"device":"h100","hours":1,"country":"GER"}', "country: no grid is known as 'GER'; the nearest are DEU (Ger"),
        ('{"device":"h100","hours":1,"start":"yesterday"}', "start: "),
    ],
)
def test_a_bad_line_is_named(
    tmp_path: Path, refused: Refused, counted: Callable[..., dict[str, Any]], line: str, problem: str
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"device":"h100","hours":1}}\n{line}\n')
    assert refused(path).lower().startswith(f"{path}:2: {problem}".lower())
    assert counted(path, "--skip-bad")["total"]["runs"] == 1


SACCT = """\
JobID|JobName|State|Elapsed|ElapsedRaw|AllocTRES|NNodes|NodeList|Start|End|ConsumedEnergyRaw
38113|pretrain|COMPLETED|1-12:30:00|131400|billing=1152,cpu=512,gres/gpu:a100=32,gres/gpu=32,node=4|4|n[1-4]|2026-03-15T20:24:16|2026-03-17T08:54:16|0
38113.batch|batch|COMPLETED|1-12:30:00|131400|cpu=128,gres/gpu:a100=8,node=1|1|n1|2026-03-15T20:24:16|2026-03-17T08:54:16|0
38113.0|torchrun|COMPLETED|1-12:30:00|131400|cpu=512,gres/gpu:a100=32,node=4|4|n[1-4]|2026-03-15T20:24:17|2026-03-17T08:54:16|0
38120_4|tokenize|COMPLETED|00:30:00|1800|cpu=1152,energy=7200000,node=4|4|n[5-8]|2026-03-15T20:24:16|2026-03-15T20:54:16|7200000
38121|waits|PENDING|00:00:00|0||4|None assigned|Unknown|Unknown|
38122|two kinds|RUNNING|01:00:00|3600|cpu=8,gres/gpu:a100=1,gres/gpu:h100=2,gres/gpu=3,node=1|1|n9|2026-03-15T20:24:16|Unknown|
"""  # noqa: E501


@pytest.mark.parametrize("raw", [True, False])
def test_slurms_accounting(tmp_path: Path, command: Callable[..., tuple[int, str, str]], raw: bool) -> None:
    """Jobs once, not once more with each step; GPUs by kind, machines where there are none."""
    rows = [line.split("|") for line in SACCT.splitlines()]
    kept = [row[:4] + row[4 if raw else 5 :] for row in rows]
    (tmp_path / "sacct").write_text("".join("|".join(row) + "\n" for row in kept))
    status, stdout, stderr = command(tmp_path / "sacct", "--format", "json")
    assert status == 0, stderr
    runs = [
        (r["name"], r["device"], r["devices"], r["device_hours"], r["energy_kwh"]) for r in json.loads(stdout)["runs"]
    ]
    assert runs == [
        ("pretrain 38113", "a100", 32, 32 * 36.5, pytest.approx(32 * 36.5 * 0.4)),
        ("tokenize 38120_4", "machine", 4, 2.0, 2.0),
        ("two kinds 38122", "a100", 1, 1.0, 0.4),
        ("two kinds 38122", "h100", 2, 2.0, 1.4),
    ]
    assert "2 steps of Slurm jobs, which are counted with their jobs, 1 Slurm jobs that have not run" in stderr


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("JobID|Elapsed\n1|00:10:00\n", ":1: AllocTRES: missing in the header"),
        ("1|00:10:00|gres/gpu=1\n", ":1: JobID: missing in the header"),
        ("JobIDRaw|Elapsed|AllocTRES\n1|00:10:00|node=1\n", ":1: JobID: missing in the header"),
        ("JobID|Elapsed|AllocTRES\n1|ten|node=1\n", ":2: is no line of sacct's output"),
        ("JobID|Elapsed|AllocTRES\n1\n", ":2: is no line of sacct's output"),
        ("JobID|Elapsed|AllocTRES\n1|00:10:00|gres/gpu=x\n", ":2: is no line of sacct's output"),
        ("JobID|Elapsed|AllocTRES\n1|00:10:00|node=1\n", "job 1: the power of its device is not known (machine)"),
        ("JobID|Elapsed|AllocTRES\n1|00:10:00|gres/gpu=1\n", "job 1: the power of its device is not known (gpu)"),
    ],
)
def test_slurms_accounting_that_cannot_be_used(tmp_path: Path, refused: Refused, text: str, problem: str) -> None:
    path = tmp_path / "sacct"
    path.write_text(text)
    line = refused(path)
    assert problem in line
    assert "--watts" in line or "give sacct --parsable2" in line


# -- what is wrong


@pytest.mark.parametrize("field", ["device", "devices", "device_hours", "energy_kwh", "energy_method", "host", "end"])
def test_a_manifest_without_a_field(tmp_path: Path, refused: Refused, field: str) -> None:
    own = manifest.beside(artifact(tmp_path / "a"))
    facts = manifest.load(own)
    del facts[field]
    own.write_bytes(manifest.dumps(facts))
    assert refused(tmp_path).startswith(f"{own}: {field}: missing")
    assert refused("--lineage", tmp_path / "a").startswith(f"{own}: {field}: missing")


def test_a_manifest_of_a_newer_version(tmp_path: Path, refused: Refused) -> None:
    own = manifest.beside(artifact(tmp_path / "a"))
    own.write_bytes(manifest.dumps(manifest.load(own) | {"format": 99, "version": "9.0"}))
    assert refused(tmp_path).startswith(f"{own}: was written by a newer llamactl (9.0), in format 99; this is ")


def test_a_manifest_that_was_edited(
    tmp_path: Path, refused: Refused, command: Callable[..., tuple[int, str, str]]
) -> None:
    artifact(tmp_path / "b")
    own = manifest.beside(artifact(tmp_path / "a"))
    own.write_text(own.read_text().replace('"device_hours": 8.0', '"device_hours": 1.0'))
    assert refused(tmp_path).startswith(f"{own}: was changed after it was written (its digest differs)")
    status, stdout, stderr = command(tmp_path, "--skip-bad", "--format", "json")
    assert (status, json.loads(stdout)["total"]["runs"]) == (0, 1)
    assert f"skipped {own}: was changed" in stderr
    assert "carbon: skipped 1 bad records" in stderr


def test_a_device_of_unknown_power(tmp_path: Path, refused: Refused) -> None:
    artifact(tmp_path / "a", device="AMD EPYC, 2 threads", energy_kwh=None, energy_method="unknown: no power figure")
    line = refused(tmp_path)
    assert line.startswith(f"{tmp_path / 'a'}: the power of its device is not known (AMD EPYC, 2 threads)")
    assert line.endswith("give it with --watts, for one device: --watts 250")


def test_flags_that_do_not_go_together(refused: Refused, tmp_path: Path) -> None:
    assert refused("--paper", tmp_path).startswith("--paper: counts the paper's runs")
    assert refused("--paper", "--country", "FRA", "--intensity", 0.1).startswith("--intensity: is given together")
    assert refused("--paper", "--country", "FRAA").startswith(
        "--country: no grid is known as 'FRAA'; the nearest are FRA"
    )
    assert refused(tmp_path).startswith(f"{tmp_path}: holds no run.json and no metrics.jsonl")
    assert refused(tmp_path / "nothing").startswith(f"{tmp_path / 'nothing'}: no such file")


# -- at once on one machine


def at(start: float, end: float, name: str, host: str = "n1", device: str = "NVIDIA H200") -> Work:
    noon = datetime.fromisoformat("2026-01-01T12:00:00+00:00")
    return Work(
        name,
        "",
        device,
        1,
        end - start,
        host=host,
        start=noon + timedelta(hours=start),
        end=noon + timedelta(hours=end),
    )


def test_runs_that_overlap_on_one_machine() -> None:
    works = [at(0, 2, "a"), at(1, 4, "b"), at(3.5, 5, "c"), at(1, 2, "elsewhere", "n2"), at(4, 4.25, "d", device=EPYC)]
    found = [(one.host, one.first, one.second, one.hours) for one in carbon.overlaps(works)]
    assert found == [("n1", "a", "b", 1.0), ("n1", "b", "c", 0.5)]


def test_runs_one_after_the_other_do_not_overlap() -> None:
    assert not list(carbon.overlaps([at(0, 1, "a"), at(1, 2, "b"), at(2, 2, "c")]))


def test_one_within_the_other_and_threads_that_differ() -> None:
    found = list(carbon.overlaps([at(0, 9, "a", device=EPYC), at(3, 4, "b", device=EPYC.replace(", 2", ", 8"))]))
    assert [(one.first, one.second, one.hours) for one in found] == [("a", "b", 1.0)]


def test_an_overlap_is_said(tmp_path: Path, said: Carbon, counted: Callable[..., dict[str, Any]]) -> None:
    artifact(tmp_path / "a", host="n1")
    artifact(tmp_path / "b", host="n1", start="2026-01-01T01:30:00+00:00", end="2026-01-01T04:00:00+00:00")
    assert "were on n1 at once for 0:30:00: what both used counts twice" in " ".join(said(tmp_path).split())
    assert [(one["host"], one["hours"]) for one in counted(tmp_path)["overlaps"]] == [("n1", 0.5)]


# -- what it looks like


def test_the_table(tmp_path: Path, said: Carbon) -> None:
    artifact(tmp_path / "in" / "a")
    artifact(tmp_path / "in" / "b", device=EPYC, devices=1, device_hours=0.5, energy_method="tdp: 280 W")
    artifact(tmp_path / "c", energy_kwh=2.5, energy_method="measured: NVML")
    shown = said(tmp_path, "--country", "FRA", "--offset", 0.5, "-q")
    lines = shown.splitlines()
    assert lines[0] == f"3 runs in {tmp_path}"
    assert " ".join(lines[1].split()) == "run stage device device-hours W kWh PUE g/kWh g CO2eq method"
    rows = {line.split()[0]: line.split() for line in lines[3:7]}
    assert rows["in/a"][-7:] == ["8.000", "400", "3.2000", "1.1", "56", "197.12", "tdp"]
    assert rows["in/b"][-7:] == ["0.500", "280", "0.1400", "1.1", "56", "8.62", "tdp"]
    assert rows["c"][-8:] == ["8.000", "312", "2.5000", "1.1", "56", "154.00", "measured:", "NVML"]
    assert rows["in"] == ["in", "all", "16.500", "5.8400", "359.74"]
    below = " ".join(shown.split())
    for words in (
        "tdp device-hours x power (a device's TDP, or as given): 3.34 kWh, 2 runs",
        "measured: NVML as a meter counted: 2.50 kWh, 1 run",
        "processors count whole, also where a run had some of their cores",
        "energy of the devices x PUE 1.1 x g/kWh",
        "56 g/kWh: France, 2023 (Our World in Data",
        "interconnect and network",
        "the making of the hardware",
        "offset 50% of it, 179.87 g CO2eq; not taken off above",
    ):
        assert words in below, words
    assert all(line == line.rstrip() for line in lines)


def test_names_are_shown_as_they_are(tmp_path: Path, said: Carbon) -> None:
    """Neither obeyed by the terminal nor taken for markup."""
    runs = [{"name": name, "device": "h100", "hours": 1} for name in ("job[red]", "a:smile:", "b\x1b[31m", "n[1-4]")]
    shown = said(written(tmp_path / "runs.jsonl", runs))
    for name in ("job[red]", "a:smile:", "b␛[31m", "n[1-4]"):
        assert name in shown, name


def test_names_are_told_without_the_folder_they_share() -> None:
    assert footprints._shortened(["/x/a/b", "/x/a/c/d"]) == ("/x/a", ["b", "c/d"])
    assert footprints._shortened(["/x/a", "/y/a"]) == ("", ["/x/a", "/y/a"])
    assert footprints._shortened(["a"]) == ("", ["a"])
    assert footprints._shortened(["in/a"]) == ("in", ["a"])


def test_columns_of_codecarbon(tmp_path: Path, said: Carbon) -> None:
    """As its own files: kg, seconds, kWh with the PUE; what is not known stays empty."""
    artifact(tmp_path / "a")
    artifact(tmp_path / "b", device=EPYC, devices=1, device_hours=0.5, energy_method="tdp: 280 W")
    text = said(tmp_path, "--format", "csv", "--country", "us-east-1")
    assert text.splitlines()[0] == (
        "timestamp,project_name,run_id,experiment_id,duration,emissions,emissions_rate,cpu_power,gpu_power,ram_power,"
        "cpu_energy,gpu_energy,ram_energy,energy_consumed,water_consumed,country_name,country_iso_code,region,"
        "cloud_provider,cloud_region,os,python_version,codecarbon_version,cpu_count,cpu_model,gpu_count,gpu_model,"
        "longitude,latitude,ram_total_size,tracking_mode,cpu_utilization_percent,gpu_utilization_percent,"
        "ram_utilization_percent,ram_used_gb,on_cloud,pue,wue"
    )
    gpu, cpu = csv.DictReader(io.StringIO(text))
    assert float(gpu["duration"]) == 7200
    assert float(gpu["energy_consumed"]) == float(gpu["gpu_energy"]) == pytest.approx(3.52)
    assert float(gpu["gpu_power"]) == pytest.approx(1760)
    assert float(gpu["emissions"]) == pytest.approx(3.52 * 0.2448)
    assert float(gpu["emissions_rate"]) == pytest.approx(3.52 * 0.2448 / 7200)
    assert (gpu["gpu_count"], gpu["gpu_model"], gpu["cpu_energy"]) == ("4", "NVIDIA A100-SXM4-80GB", "")
    assert (cpu["cpu_model"], cpu["gpu_model"], cpu["gpu_count"]) == (EPYC, "", "")
    assert float(cpu["cpu_energy"]) == pytest.approx(0.154)
    for row in (gpu, cpu):
        assert (row["country_iso_code"], row["country_name"]) == ("USA", "United States")
        assert (row["on_cloud"], row["cloud_provider"], row["cloud_region"]) == ("Y", "aws", "us-east-1")
        assert (row["pue"], row["timestamp"]) == ("1.1", "2026-01-01T02:00:00+00:00")
        assert row["project_name"] == "a test"


def test_the_block_of_a_model_card(tmp_path: Path, said: Carbon) -> None:
    yaml = pytest.importorskip("yaml")
    runs = [
        {"name": "a", "stage": "pretrain", "device": "a100", "hours": 2, "devices": 8},
        {"name": "b", "stage": "sft", "device": "a100", "hours": 1, "devices": 8},
        {"name": "c", "stage": "eval perplexity", "device": "h100", "device_hours": 1},
    ]
    text = said(written(tmp_path / "runs.jsonl", runs), "--format", "card", "--country", "FRA")
    block = yaml.safe_load(text)["co2_eq_emissions"]
    assert block["emissions"] == pytest.approx((24 * 0.4 + 0.7) * 1.1 * 56, abs=0.001)
    assert block["training_type"] == "pre-training and fine-tuning"
    assert block["geographical_location"] == "France"
    assert block["hardware_used"] == "8 x a100, h100"
    assert "tdp; PUE 1.1; 56 g/kWh: France, 2023" in block["source"]


def test_the_tables_behind_it(said: Carbon) -> None:
    shown = said("--tables")
    for words in ("a100-80gb-350w    350 W", "EPYC 7763", "Our World in Data", "FRA", "us-east-1", "Virginia (aws)"):
        assert words in shown, words


def test_a_great_many_runs(tmp_path: Path, counted: Callable[..., dict[str, Any]]) -> None:
    """Sums are exact, whatever the order."""
    runs = [{"device": "h100", "device_hours": 0.1 * (n % 7), "host": f"n{n % 50}"} for n in range(5000)]
    found = counted(written(tmp_path / "runs.jsonl", runs))["total"]
    assert found["device_hours"] == math.fsum(0.1 * (n % 7) for n in range(5000))
