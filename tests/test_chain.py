"""The whole chain by the command line, as a user would type it."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, Command, turns, written

SCRIPT = """
set -euo pipefail
llamactl() { "$PYTHON" -m llamactl "$@"; }

cat "$CORPUS"/docstrings.jsonl | llamactl train-tokenizer - "$CORPUS"/*.txt -o tokenizer.model --vocab-size 600
docs=$(cat "$CORPUS"/docstrings.jsonl | llamactl tokenize - --tokenizer tokenizer.model -o shards/docs)
code=$(llamactl tokenize "$CORPUS"/*.txt --tokenizer tokenizer.model -o shards/code)

train() { llamactl pretrain --size tiny --data "$docs=1" --data "$code=3" --context 64 --batch-size 8 "$@"; }
untrained=$(train --steps 1 --lr 1e-12 -o untrained)
base=$(train --steps 40 -o base)

printf '%s\\n' '{"text": "    def ", "id": "a", "kept": true}' '{"text": "Return the", "id": "b"}' |
    llamactl generate "$base" -k 2 --max-new-tokens 20 | tee samples.jsonl |
    llamactl eval perplexity "$base" - -q > of-samples.jsonl
for model in "$untrained" "$base"; do
    llamactl eval perplexity "$model" "$CORPUS"/queue.py.txt --stride 64 > "$model.scores.jsonl"
done
echo "$base"
"""


@pytest.mark.slow
def test_the_chain_from_text_to_scores(tmp_path: Path, corpus_dir: Path) -> None:
    env = {**os.environ, "PYTHON": sys.executable, "CORPUS": str(corpus_dir), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", SCRIPT], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines() == ["tokenizer.model", "base"]

    def lines(name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    losses = [float(str(line["loss"])) for line in lines("base/metrics.jsonl")]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1
    run = json.loads((tmp_path / "base" / "run.json").read_text())
    assert [(source["path"], source["share"]) for source in run["sources"]] == [
        ("shards/docs", 0.25),
        ("shards/code", 0.75),
    ]
    assert [entry["as"] for entry in run["inputs"]] == ["data", "data"]

    before, after = (
        {line["metric"]: line["value"] for line in lines(f"{m}.scores.jsonl")} for m in ("untrained", "base")
    )
    assert before.keys() == after.keys() == {"nats_per_token", "bits_per_byte", "word_perplexity"}
    for metric in before:
        assert float(str(after[metric])) < 0.85 * float(str(before[metric])), metric

    samples = lines("samples.jsonl")
    assert [(sample["id"], sample["sampling"]["index"]) for sample in samples] == [  # type: ignore[index]
        ("a", 0), ("a", 1), ("b", 0), ("b", 1),
    ]  # fmt: skip
    assert samples[0]["kept"] is True
    assert all(isinstance(sample["response"], str) for sample in samples)
    assert len(lines("of-samples.jsonl")) == 3


EXAMPLES = ROOT / "examples"


def pretending(script: str, tmp_path: Path) -> dict[str, str]:
    """An environment in which ``llamactl`` is this script, which writes down how it is called."""
    pretended = tmp_path / "bin" / "llamactl"
    pretended.parent.mkdir()
    pretended.write_text(script)
    pretended.chmod(0o755)
    return {**os.environ, "PATH": f"{pretended.parent}:{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}


# A llamactl that trains nothing: a head of three numbers, and a score that says which data there were.
PRETENDED = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >>"$CALLS"
out=${*: -1}
if [ "$1" = rm-train ]; then
    mkdir -p "$out"
    printf '\\x28\\0\\0\\0\\0\\0\\0\\0{"score.weight":{"shape":[1,3000000]}}   ' >"$out/model.safetensors"
else
    echo '{"task": "reward", "metric": "accuracy", "value": 0.75, "n": 4, "interval": [0.5, 1.0]}' >"$out"
    echo '{"task": "reward", "metric": "accuracy", "value": 1.0, "n": 2, "group": {"source": "a"}}' >>"$out"
fi
"""


def test_comparisons_that_every_python_has(tmp_path: Path, llamactl: Command) -> None:
    subprocess.run([sys.executable, EXAMPLES / "stdlib_comparisons.py", tmp_path], check=True, capture_output=True)
    ways = {
        "helpfulness": {"no-answer", "other-question", "cut", "other-thing"},
        "safety": {"risky", "risky-cut", "needless"},
    }
    files = [tmp_path / f"comparisons-{kind}.jsonl" for kind in ways]
    said = llamactl("validate", *files, status=0).stderr
    assert len(re.findall("^would be refused +0 *$", said, re.MULTILINE)) == 2
    for (kind, sources), file in zip(ways.items(), files, strict=True):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert f"{len(lines):,} comparisons" in said
        assert len(lines) >= 500
        assert {line["source"] for line in lines} == sources
        labels = {line.get("safety_label") for line in lines}
        assert labels == ({"chosen_safe", "both_safe", "both_unsafe"} if kind == "safety" else {None})
        assert {line["rating"] for line in lines} == {"significantly_better", "better", "slightly_better"}
        prompts = Counter(json.dumps(line["prompt"]) for line in lines)
        assert max(prompts.values()) == 1
        assert all(len(line["prompt"]) == 1 and line["id"] for line in lines)
    # a kind of answer is no worse as such: the same is chosen for one question and rejected for another
    sort = [
        line for line in (tmp_path / "comparisons-helpfulness.jsonl").read_text().splitlines() if '"A class."' in line
    ]
    assert {line.index('"A class."') > line.index('"rejected"') for line in sort} == {True, False}


def test_the_demo_counts_its_steps() -> None:
    steps = re.findall(r'^say "(\d+)/(\d+) ', (EXAMPLES / "demo.sh").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert {int(of) for _, of in steps} == {len(steps)}


def test_reward_models_of_figure_6(tmp_path: Path) -> None:
    env = pretending(PRETENDED, tmp_path)

    def scaling(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [str(EXAMPLES / "reward_scaling.sh"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    assert scaling("-d", "data.jsonl", "model").stderr == "data.jsonl: no such file\n"
    for arguments in ((), ("-h",), ("small", "large"), ("-d", "data.jsonl")):
        usage = scaling(*arguments)
        assert usage.returncode == 2
        assert "examples/reward_scaling.sh -d COMPARISONS" in usage.stderr
        assert "Figure 6" in usage.stderr

    questions = [f"What is {number}?" for number in range(40) for _ in range(2)]  # each prompt twice
    written(
        tmp_path / "data.jsonl",
        [{"prompt": [{"role": "user", "content": text}], "id": number} for number, text in enumerate(questions)],
    )
    done = scaling("-d", "data.jsonl", "-m", "other.jsonl", "-o", "out", "small", "in/large/", "--", "--lr", "1e-3")
    assert done.returncode == 0, done.stderr
    assert [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()] == [
        ["accuracy on 4 held-out comparisons, by the number trained on"],
        ["model, parameters", "9", "18", "36", "72"],
        ["small, 3.0 M", *["75.0% (50.0% to 100.0%)"] * 4],
        ["in/large, 3.0 M", *["75.0% (50.0% to 100.0%)"] * 4],
    ]
    read = {path.stem: path.read_text().splitlines() for path in (tmp_path / "out").glob("*.jsonl")}
    assert len(read["held-out"]) == 8
    assert sorted([*read["held-out"], *read["part-1"]]) == sorted((tmp_path / "data.jsonl").read_text().splitlines())
    asked = [{json.loads(line)["prompt"][0]["content"] for line in read[name]} for name in ("held-out", "part-1")]
    assert not asked[0] & asked[1]
    for part in (8, 4, 2):
        assert read[f"part-{part}"] == read["part-1"][: 72 // part]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 16
    assert calls[8] == (
        "rm-train in/large out/part-8.jsonl --kind helpfulness --mix other.jsonl --eval out/held-out.jsonl "
        "--lr 1e-3 -o out/in_large-8"
    )
    assert calls[9] == "eval reward out/in_large-8 --data out/held-out.jsonl -o out/in_large-8.scores.jsonl"

    kept = (tmp_path / "data.jsonl").read_text().splitlines()[:40]
    (tmp_path / "data.jsonl").write_text("\n".join(kept) + "\n")
    assert scaling("-d", "data.jsonl", "-o", "out", "small").returncode == 0
    held_out, rest = ((tmp_path / "out" / f"{name}.jsonl").read_text().splitlines() for name in ("held-out", "part-1"))
    assert sorted([*held_out, *rest]) == sorted(kept)  # of other data: no parts of earlier ones are trained on


# A llamactl whose scores say of which model the answers are.
JUDGING = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >>"$CALLS"
out=${*: -1}
case $1 in
    generate) echo "$2" >"$out" ;;
    score) printf '{"messages": [], "scores": {"helpfulness": %d}}\\n' "$(wc -c <"$2")" >"$out" ;;
esac
"""


def test_a_chat_model_that_is_named_as_a_version_is_not_taken_for_it(tmp_path: Path) -> None:
    """Rounds that go on from the last version of earlier ones; what was made before is the stages' to tell."""
    env = pretending(JUDGING, tmp_path)
    arguments = ["-m", "earlier-rounds/v5", "-p", "p.jsonl", "-e", "e.jsonl", "-r", "rm", "-o", "new"]
    command = [str(EXAMPLES / "rlhf-rounds.sh"), *arguments]
    for times in (1, 2):
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[2:]}
        assert (rows["earlier-rounds/v5"], rows["new/v5"]) == ("+18.000", "+7.000")
        calls = (tmp_path / "calls").read_text().splitlines()
        assert [call.split()[0] for call in calls].count("generate") == 7 * times


# A llamactl that answers by what it is asked, and scores and counts by the number of its records.
ANSWERING = """#!/usr/bin/env bash
set -euo pipefail
echo "$*" >>"$CALLS"
out=${*: -1}
[ ! -e "$out" ] || exit 0
count() { python3 -c 'import sys; print(len(open(sys.argv[1]).readlines()))' "$1"; }
case $1 in
    sft) mkdir -p "$out" ;;
    generate) cp "$3" "$out" ;;
    score) sed "s/}$/, \\"scores\\": {\\"safety\\": $(count "$2"), \\"helpfulness\\": -0.5}}/" "$2" >"$out" ;;
    eval)
        echo '{"metric": "refusals", "value": 0.75, "interval": [0.5, 1.0]}' >"$out"
        [[ $out != *borderline* ]] || echo '{"metric": "refusals", "value": 0.25, "group": {"label": "safe"}}' >>"$out"
        ;;
esac
"""


def test_safety_against_its_share_of_the_data(tmp_path: Path) -> None:
    """Figures 15 and 33."""
    env = pretending(ANSWERING, tmp_path)
    env |= {"SAMPLING": "--top-p 0.5", "SCORING": "--truncate"}

    def scaling(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        command = [str(EXAMPLES / "safety-scaling.sh"), *arguments]
        return subprocess.run(command, cwd=tmp_path, env={**env, **more}, capture_output=True, text=True)

    for name, size in (("helpful", 9), ("safety", 40), ("asked", 3), ("risky", 4), ("xstest", 5)):
        written(tmp_path / f"{name}.jsonl", [{"messages": turns(f"{name} {n}?", "a"), "id": n} for n in range(size)])
    words = "-m base -d helpful.jsonl -s safety.jsonl -r h-rm -R s-rm -p asked.jsonl -q risky.jsonl"
    needed = words.split()
    for arguments in ((), ("-h",), needed[2:]):
        usage = scaling(*arguments)
        assert usage.returncode == 2
        assert "examples/safety-scaling.sh -m BASE -d HELPFUL" in usage.stderr
        assert "Figures 15 and 33" in usage.stderr
    assert scaling(*needed, "-x", "none.jsonl").stderr == "none.jsonl: no such file\n"

    given = [*needed, "-x", "xstest.jsonl", "-n", "2", "-o", "out", "--", "--lr", "1e-3"]
    task = scaling(*given, SLURM_ARRAY_TASK_ID="3")
    assert (task.returncode, task.stdout) == (0, ""), task.stderr
    assert "there is so far: 25; all make the table" in task.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "sft base helpful.jsonl out/safety-25.jsonl --lr 1e-3 -o out/chat-25"
    assert calls[1] == "generate out/chat-25 asked.jsonl -k 2 --top-p 0.5 -o out/chat-25.helpful.jsonl"
    assert len(calls) == 8
    done = scaling(*given)
    assert done.returncode == 0, done.stderr
    means = "+4.000 [+4.000, +4.000]", "-0.500 [-0.500, -0.500]"
    assert [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()[:-1]] == [
        ["safety data", "dialogues", "safety score", "helpfulness score", "refused: helpful", "refused: borderline"],
        *(
            [f"{share} %", str(count), *means, "75.0% [50.0%, 100.0%]", "25.0%"]
            for share, count in ((0, 0), (1, 1), (10, 4), (25, 10), (50, 20), (100, 40))
        ),
    ]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "sft base helpful.jsonl --lr 1e-3 -o out/chat-0" in calls  # no safety data, and no file of none
    assert (
        "score out/chat-1.helpful.jsonl --reward helpfulness=h-rm --truncate -o out/chat-1.helpful.scored.jsonl"
        in calls
    )
    parts = [(tmp_path / "out" / f"safety-{share}.jsonl").read_text().splitlines() for share in (1, 10, 25, 50, 100)]
    assert all(less == more[: len(less)] for less, more in pairwise(parts))
    assert sorted(parts[-1]) == sorted((tmp_path / "safety.jsonl").read_text().splitlines())
    assert scaling(*given).stdout == done.stdout
    without = [*needed, "-o", "other"]
    assert [line.split()[-1] for line in scaling(*without).stdout.splitlines()[1:-1]] == ["-"] * 6
