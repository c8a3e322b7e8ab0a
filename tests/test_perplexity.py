"""Perplexity: every token once, from the stated context, whatever the batch."""

import json
import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llamactl.cli import app
from llamactl.evals import perplexity
from llamactl.evals.perplexity import Measured, Window, measure, score, windows
from llamactl.model.config import Config
from llamactl.model.llama import Llama
from llamactl.text.tokenizer import BOS, Tokenizer

torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

TEXTS = [
    "Return the number of items.",
    "x",
    "def f(a, b):\n    return a + b\n" * 9,
    "snow ☃ and 雪だるま",
    " a  b\n\n c " * 20,
]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    config = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=tokenizer.vocab, context=64)
    model = Llama.create(config, torch.float32, torch.device("cpu"), 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    return model.eval().requires_grad_(False)


def summed(parts: Any) -> Measured:
    total = Measured()
    for part in parts:
        total.add(part)
    return total


def naive(model: Llama, ids: list[int], window: int, stride: int) -> list[float]:
    """-log p of each id but the first, one forward pass a token; context by the definition of a sliding window."""
    nats = []
    for at in range(1, len(ids)):
        moves = math.ceil(max(0, at - window) / stride)  # of the window until it holds the id
        start = max(0, min(moves * stride, len(ids) - 1 - window))  # the last move stops at the end
        log_p = model.logits(model(torch.tensor([ids[start:at]])))[0, -1].double().log_softmax(-1)
        nats.append(-log_p[ids[at]].item())
    return nats


# -- windows


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 16])
def test_every_id_but_the_first_is_predicted_once_from_enough_context(window: int) -> None:
    for stride in range(1, window + 1):
        for length in range(1, 60):
            ids = list(range(length))
            predicted = []
            for one in windows(ids, window, stride):
                assert len(one.ids) <= window + 1
                assert one.ids == ids[one.ids[0] : one.ids[0] + len(one.ids)], "consecutive"
                for token in one.ids[len(one.ids) - one.scored :]:
                    predicted.append(token)
                    context = token - one.ids[0]
                    assert context >= min(token, window - stride + 1)
                    assert 1 <= context <= window
            assert predicted == ids[1:]


def test_windows_of_a_small_case() -> None:
    assert list(windows([0, 1, 2, 3, 4, 5, 6, 7], 4, 2)) == [
        Window([0, 1, 2, 3, 4], 4),
        Window([2, 3, 4, 5, 6], 2),
        Window([3, 4, 5, 6, 7], 1),
    ]


# -- the measure


@pytest.mark.parametrize("text", TEXTS)
@torch.inference_mode()
def test_a_text_that_fits_the_window_is_one_forward_pass(model: Llama, tokenizer: Tokenizer, text: str) -> None:
    ids = [BOS, *tokenizer.encode(text)]
    log_p = model.logits(model(torch.tensor([ids[:-1]])))[0].double().log_softmax(-1)
    nats = -log_p[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    for stride in (1, 100, len(ids)):
        found = summed(measure(model, tokenizer, [text], len(ids), min(stride, len(ids))))
        assert found.tokens == len(ids) - 1
        assert found.nats == pytest.approx(nats.sum().item(), rel=1e-6)
        assert found.squares == pytest.approx(nats.square().sum().item(), rel=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(5, 5), (8, 3), (16, 8), (64, 1), (7, 1), (1, 1)])
@torch.inference_mode()
def test_long_texts_are_what_token_by_token_gives(model: Llama, tokenizer: Tokenizer, window: int, stride: int) -> None:
    for text in TEXTS[2:]:
        ids = [BOS, *tokenizer.encode(text)][:90]
        found = sum(score(model, [one]).nats for one in windows(ids, window, stride))
        assert found == pytest.approx(sum(naive(model, ids, window, stride)), rel=1e-5)


@torch.inference_mode()
def test_the_batch_has_no_influence(model: Llama, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [one for text in TEXTS for one in windows([BOS, *tokenizer.encode(text)], 24, 7)]
    alone = [score(model, [one]) for one in every]
    together = score(model, every)
    assert together.nats == pytest.approx(sum(one.nats for one in alone), rel=1e-6)
    assert together.tokens == sum(one.tokens for one in alone) == sum(one.scored for one in every)
    long = max(every, key=lambda one: len(one.ids))
    for one, single in zip(every, alone, strict=True):
        pair = score(model, [one, long]).nats - score(model, [long]).nats
        assert pair == pytest.approx(single.nats, rel=1e-5, abs=1e-4)
    totals = []
    for size in (1, 24, 100, 10_000):
        monkeypatch.setattr(perplexity, "BATCH_TOKENS", size)
        totals.append(summed(measure(model, tokenizer, TEXTS, 24, 7)))
    for total in totals:
        assert (total.tokens, total.bytes, total.words) == (totals[0].tokens, totals[0].bytes, totals[0].words)
        assert total.nats == pytest.approx(totals[0].nats, rel=1e-6)


def test_units_are_those_of_the_texts(model: Llama, tokenizer: Tokenizer) -> None:
    total = summed(measure(model, tokenizer, iter(TEXTS), 64, 32))
    assert total.bytes == sum(len(text.encode()) for text in TEXTS)
    assert total.words == sum(len(text.split()) for text in TEXTS)
    assert total.tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)


@torch.inference_mode()
def test_a_model_that_knows_nothing_has_the_perplexity_of_guessing(model: Llama, tokenizer: Tokenizer) -> None:
    ignorant = Llama.create(model.config, torch.float32, torch.device("cpu"), 0)
    ignorant.output.weight.zero_()
    total = summed(measure(ignorant, tokenizer, TEXTS, 64, 32))
    assert total.nats / total.tokens == pytest.approx(math.log(tokenizer.vocab), rel=1e-6)


def test_metrics_by_hand() -> None:
    """Three tokens of 1, 2 and 6 nats, in 10 bytes and 2 words."""
    found = {name: (value, n, error) for name, value, n, error in Measured(9.0, 41.0, 3, 10, 2).metrics()}
    spread = math.sqrt((41 / 3 - 9) / 3)
    assert found["nats_per_token"] == (3.0, 3, pytest.approx(spread))
    assert found["bits_per_byte"] == (
        pytest.approx(9 / math.log(2) / 10),
        10,
        pytest.approx(3 * spread / math.log(2) / 10),
    )
    assert found["word_perplexity"] == (pytest.approx(math.exp(4.5)), 2, None)


def test_a_text_without_words_has_no_word_perplexity() -> None:
    assert [name for name, *_ in Measured(9.0, 41.0, 3, 10, 0).metrics()] == ["nats_per_token", "bits_per_byte"]


# -- the command


def evaluate(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(app, ["eval", "perplexity", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.stderr
    return result


def scores(text: str) -> dict[str, dict[str, Any]]:
    return {score["metric"]: score for score in map(json.loads, text.splitlines())}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def test_scores_have_the_fields_of_the_contract(base_model: Path, corpus: Path) -> None:
    result = evaluate(base_model, corpus)
    found = scores(result.stdout)
    assert found.keys() == {"nats_per_token", "bits_per_byte", "word_perplexity"}
    model, tokenizer = Llama.load(base_model, torch.device("cpu")), Tokenizer.load(base_model)
    total = summed(measure(model, tokenizer, TEXTS, 128, 64))
    for name, value, n, error in total.metrics():
        one = found[name]
        assert one == {
            "task": "perplexity", "metric": name, "value": pytest.approx(value, rel=1e-6), "n": n,
            "stderr": error if error is None else pytest.approx(error, rel=1e-5), "model": str(base_model), "shots": 0,
            "prompt_sha256": sha256("".join(text + "\0" for text in TEXTS).encode()).hexdigest(),
            "scoring": "sliding window 128, stride 64, BOS before each document, words by white space",
        }  # fmt: skip
    assert "nats_per_token" in result.stderr


def test_window_and_stride_are_those_asked_for(base_model: Path, corpus: Path) -> None:
    model, tokenizer = Llama.load(base_model, torch.device("cpu")), Tokenizer.load(base_model)
    values = []
    for flags, numbers in ((("--window", 20, "--stride", 3), (20, 3)), (("--window", 5), (5, 2))):
        found = scores(evaluate(base_model, corpus, *flags).stdout)["nats_per_token"]
        total = summed(measure(model, tokenizer, TEXTS, *numbers))
        assert found["value"] == pytest.approx(total.nats / total.tokens, rel=1e-6)
        assert f"sliding window {numbers[0]}, stride {numbers[1]}" in found["scoring"]
        values.append(found["value"])
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--window", 129), "--window: 129 is longer than the model's context 128"),
        (("--window", 8, "--stride", 9), "--stride: 9 is longer than the window 8"),
    ],
)
def test_windows_that_cannot_be_are_refused(
    base_model: Path, corpus: Path, flags: tuple[object, ...], said: str
) -> None:
    assert said in evaluate(base_model, corpus, *flags, status=1).stderr


def test_a_file_of_scores_is_made_once(base_model: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    evaluate(base_model, corpus, "-o", out)
    assert scores(out.read_text()).keys() == scores(evaluate(base_model, corpus).stdout).keys()
    assert "already made" in evaluate(base_model, corpus, "-o", out).stderr
    assert "made otherwise" in evaluate(base_model, corpus, "-o", out, "--window", 9, status=1).stderr


def test_bad_records_are_refused_or_skipped_with_a_count(base_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "good enough"}\n{"txt": "bad"}\n')
    refused = evaluate(base_model, path, status=1)
    assert "texts.jsonl:2: text: missing" in refused.stderr
    assert refused.stdout == ""
    skipped = evaluate(base_model, path, "--skip-bad")
    assert "skipped 1 bad records" in skipped.stderr
    assert scores(skipped.stdout)["word_perplexity"]["n"] == 2


def test_a_corpus_of_which_nothing_is_left_is_refused(base_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"txt": "bad"}\n')
    assert evaluate(base_model, path, "--skip-bad", status=1).stdout == ""
