"""The whole chain by the command line, as a user would type it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    done = subprocess.run(["bash", "-c", SCRIPT], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
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
