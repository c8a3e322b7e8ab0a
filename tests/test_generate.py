"""Sampling: the choice of a token, batches against single prompts, and the command."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from conftest import Command
from typer.testing import CliRunner

from llamactl.artifacts import checkpoint
from llamactl.cli import app
from llamactl.model import generate as sampler
from llamactl.model.config import Config
from llamactl.model.generate import Drawn, Request, Sampling, choose
from llamactl.model.llama import Llama
from llamactl.text import asking, dialogue
from llamactl.text.tokenizer import BOS, EOS, Tokenizer

torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

Run = Callable[..., Any]
CPU = torch.device("cpu")
ALL = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=20, seed=0)
TEXTS = ["Return the ", "", "def f(x):\n    ", "Ünïcödé — 雪だるま ☃", "a b c d e f g h i j k l m", "1234567890"]
CHAT = {"messages": [{"role": "user", "content": "What is a heap?"}], "id": "chat-1", "safety": True, "note": [1, None]}
ANSWER = {"role": "assistant", "content": "A tree."}


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def jsonl(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """An untrained fp32 model with a wide choice: it says everything there is, ends now and then, and has bytes."""
    tokenizer = Tokenizer.load(tokenizer_path)
    config = Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=tokenizer.vocab, context=64)
    model = Llama.create(config, torch.float32, CPU, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
        model.output.weight[3 : 3 + 256] *= 2
        model.output.weight[EOS] *= 3
    path = tmp_path_factory.mktemp("restless") / "model"
    path.mkdir()
    given = tokenizer.proto, dialogue.tokenizer_config(64), ""
    checkpoint.save(path, config.to_hf("float32"), model.hf_state(torch.float32), *given)
    return path


@pytest.fixture(scope="module")
def model(restless: Path) -> Llama:
    return Llama.load(restless, CPU)


@pytest.fixture(scope="module")
def tokenizer(restless: Path) -> Tokenizer:
    return Tokenizer.load(restless)


@pytest.fixture
def generate(tmp_path: Path, restless: Path) -> Callable[..., Any]:
    """The command on some records, within this process: the same code, without two seconds of imports."""

    def run(*flags: object, asked: Iterable[dict[str, Any]] = (), status: int = 0) -> Any:
        files = [tmp_path / "asked.jsonl"] if asked else []
        for file in files:
            file.write_text(jsonl(asked))
        result = CliRunner().invoke(app, ["generate", *map(str, [restless, *files, *flags])])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.stderr
        return result

    return run


# -- the choice of a token


def naive(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution that should be sampled from, of one row, by loops."""
    scaled = [float(x) / sampling.temperature for x in logits]
    kept = list(range(len(scaled)))
    if sampling.top_k:
        kept = sorted(kept, key=lambda i: -scaled[i])[: sampling.top_k]
    top = max(scaled[i] for i in kept)
    mass = {i: np.exp(scaled[i] - top) for i in kept}
    total = sum(mass.values())
    nucleus, before = {}, 0.0
    for i in sorted(kept, key=lambda i: -mass[i]):
        if nucleus and before >= sampling.top_p:
            break
        nucleus[i] = mass[i]
        before += mass[i] / total
    probabilities = np.zeros(len(scaled))
    for i, one in nucleus.items():
        probabilities[i] = one / sum(nucleus.values())
    return probabilities


def chosen(logits: np.ndarray, u: np.ndarray, sampling: Sampling) -> np.ndarray:
    rows = torch.tensor(logits, dtype=torch.float32).expand(len(u), -1)
    return choose(rows, torch.tensor(u), sampling).numpy()


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("top_k", [0, 1, 7, 40, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_tokens_are_chosen_as_often_as_they_should_be(temperature: float, top_k: int, top_p: float) -> None:
    """An even grid of uniform numbers gives each token its probability to within one number of the grid."""
    sampling = Sampling(temperature, top_p, top_k, 1, 0)
    logits = np.random.default_rng(top_k).normal(0, 2, 100).astype(np.float32)
    wanted = naive(logits, sampling)
    grid = 20_000
    shares = np.bincount(chosen(logits, (np.arange(grid) + 0.5) / grid, sampling), minlength=100) / grid
    assert np.abs(shares - wanted).max() < 1.1 / grid
    assert not shares[wanted == 0].any()


def test_random_numbers_give_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    numbers = sampler.uniforms(ALL._replace(max_new_tokens=100_000), Request([BOS, 7], 0))
    shares = np.bincount(chosen(logits, numbers, ALL), minlength=4) / 100_000
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.01


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3])
@pytest.mark.parametrize("edge", ["first", "last", "both", "between"])
def test_a_token_without_probability_is_never_chosen(edge: str, top_p: float) -> None:
    logits = np.random.default_rng(1).normal(0, 1, 50).astype(np.float32)
    out = {"first": slice(0, 9), "last": slice(41, 50), "both": [0, 1, 48, 49], "between": slice(10, 30)}[edge]
    logits[out] = -np.inf
    numbers = np.concatenate(([0.0, 5e-324, 1e-300, 1 - 2**-53], np.linspace(0, 1, 5000, endpoint=False)))
    picked = chosen(logits, numbers, ALL._replace(top_p=top_p))
    assert np.isfinite(logits[picked]).all()


def test_numbers_near_0_and_1_choose_the_ends() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    assert chosen(logits, np.array([0.0, 1e-12, 1 - 2**-53]), ALL).tolist() == [0, 0, 999]
    peaked = np.full(1000, -80.0, dtype=np.float32)
    peaked[500] = 80.0
    assert chosen(peaked, np.array([0.0, 0.5, 1 - 2**-53]), ALL._replace(top_p=0.9)).tolist() == [500] * 3


def test_the_likeliest_token_is_left_whatever_top_p() -> None:
    logits = np.array([0.0, 3.0, 1.0], dtype=np.float32)
    for top_p in (0.0, 1e-9, 0.1):
        assert chosen(logits, np.array([0.0, 0.5, 0.999]), ALL._replace(top_p=top_p)).tolist() == [1, 1, 1]


def test_greedy_is_the_likeliest_token_whatever_the_number() -> None:
    logits = np.random.default_rng(0).normal(0, 1, 50).astype(np.float32)
    assert set(chosen(logits, np.linspace(0, 0.999, 9), ALL._replace(temperature=0))) == {logits.argmax()}


def test_rows_of_a_batch_are_chosen_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, u = torch.randn(64, 30, generator=generator), torch.rand(64, generator=generator, dtype=torch.float64)
    sampling = Sampling(0.8, 0.7, 9, 1, 0)
    alone = [choose(logits[row : row + 1], u[row : row + 1], sampling).item() for row in range(64)]
    assert choose(logits, u, sampling).tolist() == alone


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-44])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 1, 50).astype(np.float32)
    picked = chosen(logits, np.linspace(0, 0.999, 9), ALL._replace(temperature=temperature))
    assert set(picked) == {logits.argmax()}


# -- the numbers behind a sample


def test_uniform_numbers_are_a_function_of_seed_prompt_and_index() -> None:
    def first(seed: int, ids: list[int], index: int, tokens: int = 20) -> list[float]:
        return list(sampler.uniforms(ALL._replace(seed=seed, max_new_tokens=tokens), Request(ids, index)))[:20]

    one = first(0, [1, 5, 6], 0)
    assert one == first(0, [1, 5, 6], 0)
    assert one == first(0, [1, 5, 6], 0, tokens=99)  # a longer answer begins as a shorter one does
    others = [first(1, [1, 5, 6], 0), first(0, [1, 5, 7], 0), first(0, [1, 5], 0), first(0, [1, 5, 6], 1)]
    others += [first(1, [0, 1], 1), first(11, [0, 1], 1), first(1, [0, 1], 11)]
    assert len({one[0], *(other[0] for other in others)}) == 8
    assert all(0 <= u < 1 for u in one)


# -- batches


def naive_answer(model: Llama, request: Request, sampling: Sampling) -> tuple[list[int], bool]:
    """One request, without a cache and without a batch."""
    numbers = torch.tensor(sampler.uniforms(sampling, request))
    ids, answer = list(request.ids), []
    for step in range(sampling.max_new_tokens):
        if len(ids) >= model.config.context:
            break
        logits = model.logits(model(torch.tensor([ids]))[:, -1])
        token = int(choose(logits, numbers[step : step + 1], sampling))
        if token == EOS:
            return answer, True
        ids.append(token)
        answer.append(token)
    return answer, False


def requests(tokenizer: Tokenizer, k: int = 3) -> list[Request]:
    return [Request([BOS, *tokenizer.encode(text)], index) for text in TEXTS for index in range(k)]


@pytest.mark.parametrize("sampling", [ALL, ALL._replace(temperature=0), Sampling(0.9, 0.8, 50, 30, 5)])
@torch.inference_mode()
def test_a_loop_without_cache_or_batch_gives_the_same_tokens(
    model: Llama, tokenizer: Tokenizer, sampling: Sampling
) -> None:
    asked = requests(tokenizer, 2)
    answers = list(sampler.generate(model, asked, sampling))
    assert answers == [naive_answer(model, request, sampling) for request in asked]
    if sampling == ALL:
        assert {answer.stopped for answer in answers} == {True, False}


def test_a_sample_does_not_depend_on_its_batch(
    model: Llama, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(tokenizer)
    together = list(sampler.generate(model, asked, ALL))
    assert together == [next(iter(sampler.generate(model, [request], ALL))) for request in asked]
    assert together == list(sampler.generate(model, asked[::-1], ALL))[::-1]
    for limit in (1, 100, 300):
        monkeypatch.setattr(sampler, "BATCH_TOKENS", limit)
        assert together == list(sampler.generate(model, asked, ALL))


def test_samples_of_a_prompt_differ_and_so_do_seeds(model: Llama) -> None:
    asked = [Request([BOS, 40, 50], index) for index in range(8)]
    answers = [tuple(answer.ids) for answer in sampler.generate(model, asked, ALL)]
    assert len(set(answers)) > 5
    other = [tuple(answer.ids) for answer in sampler.generate(model, asked, ALL._replace(seed=1))]
    assert sum(a == b for a, b in zip(answers, other, strict=True)) < 3


def test_an_answer_ends_at_eos_and_at_the_end_of_the_context(model: Llama, tokenizer: Tokenizer) -> None:
    asked = [Request([BOS] + [30] * length, index) for length in (1, 40, 60, 62) for index in range(10)]
    answers = list(sampler.generate(model, asked, ALL._replace(max_new_tokens=100)))
    for request, answer in zip(asked, answers, strict=True):
        assert EOS not in answer.ids
        room = 64 - len(request.ids)
        assert len(answer.ids) < room if answer.stopped else len(answer.ids) == room
    assert {answer.stopped for answer in answers} == {True, False}


def test_decode_draws_each_request_to_its_end(model: Llama, tokenizer: Tokenizer) -> None:
    asked = requests(tokenizer)
    answers = list(sampler.generate(model, asked, ALL))
    drawn: dict[int, list[Drawn]] = {number: [] for number in range(len(asked))}
    for one in sampler.decode(model, asked, ALL):
        drawn[one.request].append(one)
    for number, answer in enumerate(answers):
        mine = drawn[number]
        assert [one.done for one in mine] == [False] * (len(mine) - 1) + [True]
        assert [one.token for one in mine if one.token != EOS] == answer.ids
        assert (mine[-1].token == EOS) == answer.stopped


def test_a_batch_keeps_to_its_memory(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "BATCH_TOKENS", 200)
    rows: list[tuple[int, int]] = []
    real = sampler.Cache

    class Watched(real):  # type: ignore[misc, valid-type]
        def __init__(self, config: Config, count: int, room: int, *more: Any) -> None:
            rows.append((count, room))
            super().__init__(config, count, room, *more)

    monkeypatch.setattr(sampler, "Cache", Watched)
    asked = [Request([BOS] + [30] * (length % 37), 0) for length in range(60)]
    assert len(list(sampler.generate(model, asked, ALL))) == 60
    assert sum(count for count, _ in rows) == 60
    assert all(count * room <= 200 or count == 1 for count, room in rows)
    assert len(rows) < 30


# -- text


def answer_of(text: str, response: str, tokenizer: Tokenizer) -> tuple[asking.Asked, list[int]]:
    """What is asked, and the ids with which a model would go on from ``text`` with ``response``."""
    one = asking.asked(asking.document(text), tokenizer, 1000, False)
    whole = [BOS, *tokenizer.encode(text + response)]
    assert whole[: len(one.ids)] == one.ids, "choose a text that ends with a token"
    return one, whole[len(one.ids) :]


@pytest.mark.parametrize("response", [" the heap", " ", "  two", "\n\n    x", " 雪だるま", "☃!", "\t", " 12 34"])
def test_the_continuation_of_a_document_keeps_its_spaces(tokenizer: Tokenizer, response: str) -> None:
    one, ids = answer_of("Return:", response, tokenizer)
    sample = one.sample(ids, tokenizer)
    assert sample["text"] + sample["response"] == "Return:" + response


def test_the_answer_to_a_prompt_is_stripped(tokenizer: Tokenizer) -> None:
    one = asking.Asked({"messages": []}, [BOS, 5], None)
    assert one.sample(tokenizer.encode(" An answer. "), tokenizer)["response"] == "An answer."


@pytest.mark.parametrize("text", ["plain words here", "a ☃ and 雪だるま\U0001f600!", " spaces  and\n\nlines ", "é"])
@pytest.mark.parametrize("chat", [False, True])
def test_streamed_pieces_join_to_the_response(tokenizer: Tokenizer, text: str, chat: bool) -> None:
    one = asking.Asked({}, [BOS, 5], None) if chat else answer_of("So:", text, tokenizer)[0]
    ids = tokenizer.encode(text) if chat else answer_of("So:", text, tokenizer)[1]
    drawn = [Drawn(0, token, False) for token in ids] + [Drawn(0, EOS, True)]
    pieces = list(asking.streamed(one, drawn, tokenizer))
    assert "".join(pieces) == one.response(ids, tokenizer) == (text.strip() if chat else text)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > (1 if len(text) > 1 else 0)


def test_streaming_a_broken_character_shows_what_the_response_has(tokenizer: Tokenizer) -> None:
    one = asking.asked(asking.document("So:"), tokenizer, 100, False)
    for ids in ([3 + 0xE2], [3 + 0xE2, 3 + 0x98], [3 + 0xE2, 40, 50], [3 + 0xFF, 3 + 0xFF, 41]):
        for end in ([Drawn(0, EOS, True)], []):
            drawn = [Drawn(0, token, bool(not end and at == len(ids) - 1)) for at, token in enumerate(ids)] + end
            assert "".join(asking.streamed(one, drawn, tokenizer)) == one.response(ids, tokenizer)


def test_streamed_samples_are_the_batch_ones(model: Llama, tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        one = asking.asked(asking.document(text), tokenizer, 64, False)
        for index in range(3):
            request = [Request(one.ids, index)]
            answer = next(iter(sampler.generate(model, request, ALL)))
            pieces = asking.streamed(one, sampler.decode(model, request, ALL), tokenizer)
            assert "".join(pieces) == one.response(answer.ids, tokenizer)


# -- the command


def test_samples_have_the_fields_of_the_contract(generate: Run, restless: Path) -> None:
    records = [CHAT, {"text": "Return", "id": 7, "source": "x"}]
    found = lines(generate("-k", 2, "--seed", 4, "--max-new-tokens", 5, asked=records).stdout)
    assert len(found) == 4
    for number, sample in enumerate(found):
        asked = records[number // 2]
        assert {key: sample[key] for key in asked} == asked
        assert sample["sampling"] == {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "seed": 4, "index": number % 2}
        assert sample["model"] == str(restless)
        assert sample["finish"] in ("stop", "length")
        assert sample.keys() - asked.keys() == {"response", "sampling", "model", "finish"}
        assert isinstance(sample["response"], str)
        assert "</s>" not in sample["response"]


def test_prompts_come_from_stdin_files_and_the_command_line(
    llamactl: Command, generate: Run, restless: Path, tmp_path: Path
) -> None:
    records = [{"text": "Return", "id": number} for number in range(3)]
    packed, plain = tmp_path / "one.jsonl.zst", tmp_path / "two.jsonl"
    packed.write_bytes(zstandard.compress(jsonl(records[:2]).encode()))
    plain.write_text(jsonl(records[2:]))
    how = ("--max-new-tokens", 8)
    samples = lines(generate(packed, plain, *how).stdout)
    assert [sample["id"] for sample in samples] == [0, 1, 2]
    assert lines(llamactl("generate", restless, *how, stdin=jsonl(records), status=0).stdout) == samples
    mixed = llamactl("generate", restless, packed, "-", *how, stdin=jsonl(records[2:]), status=0)
    assert lines(mixed.stdout) == samples
    text = lines(generate("--text", "Return", *how).stdout)
    assert text == [{key: value for key, value in samples[0].items() if key != "id"}]


def test_shards_and_order_make_the_same_samples(generate: Run) -> None:
    records = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
    how = ("-k", 2, "--temperature", 1, "--top-p", 1, "--max-new-tokens", 12)
    whole = lines(generate(*how, asked=records).stdout)
    assert len({sample["response"] for sample in whole}) > 8
    parts = [lines(generate(*how, "--shard", f"{i}/3", asked=records).stdout) for i in range(3)]
    by_id = [[part[at : at + 2] for at in range(0, len(part), 2)] for part in parts]
    joined = [one for row in zip_longest(*by_id, fillvalue=[]) for pair in row for one in pair]
    assert joined == whole
    backwards = lines(generate(*how, asked=records[::-1]).stdout)
    assert sorted(backwards, key=lambda one: (one["id"], one["sampling"]["index"])) == whole


def test_the_same_prompt_twice_gives_the_same_sample(generate: Run) -> None:
    """A sample is a function of (seed, prompt, index): the way to more samples of a prompt is -k."""
    first, second = lines(generate("--temperature", 1, asked=[{"text": "a"}] * 2).stdout)
    assert first == second


def test_a_file_of_samples_has_a_manifest_and_is_made_once(generate: Run, tmp_path: Path) -> None:
    out = tmp_path / "samples.jsonl"
    how: dict[str, Any] = {"asked": [CHAT, {"text": "x"}]}
    printed = generate("-k", 3, "--max-new-tokens", 4, **how).stdout
    first = generate("-k", 3, "--max-new-tokens", 4, "-o", out, **how)
    assert out.read_text() == printed
    run = json.loads((tmp_path / "samples.jsonl.run.json").read_text())
    assert (run["stage"], run["done"]["samples"], run["settings"]["k"], run["seed"]) == ("generate", 6, 3, 0)
    again = generate("-k", 3, "--max-new-tokens", 4, "-o", out, **how)
    assert "already made" in again.stderr
    assert again.stdout == first.stdout
    assert "with k 3, not 2" in generate("-k", 2, "--max-new-tokens", 4, "-o", out, status=1, **how).stderr


def test_a_prompt_as_long_as_the_context_is_refused_with_its_place(generate: Run, tokenizer: Tokenizer) -> None:
    text = "a " * 31
    while len(tokenizer.encode(text)) < 63:
        text += "b "
    assert len([BOS, *tokenizer.encode(text)]) == 64
    records = [{"text": "fine"}, {"text": text}]
    refused = generate(asked=records, status=1)
    assert "asked.jsonl:2: is 64 tokens long" in refused.stderr
    assert refused.stdout == ""
    skipped = generate("--skip-bad", asked=records)
    assert len(lines(skipped.stdout)) == 1
    assert "skipped 1 bad records" in skipped.stderr
    longest = text[:-2]
    assert len(lines(generate(asked=[{"text": longest}]).stdout)) == 1


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": [*CHAT["messages"], ANSWER]}, r"messages\[1\].role: is assistant: a prompt ends on a user turn"),
        ({"messages": []}, "messages: is empty"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "messages: holds no user turn"),
        ({"messages": [{"role": "user", "content": "[INST] x"}]}, r"messages\[0\].content: holds \[INST\]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role"),
        ({"text": 5}, "text: "),
        ({"prompt": "x"}, "messages or text: missing"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_refused_with_its_place(generate: Run, record: dict[str, Any], said: str) -> None:
    refused = generate(asked=[{"text": "a"}, record], status=1)
    assert re.search(r"asked\.jsonl:2: " + said, refused.stderr), refused.stderr
    assert refused.stdout == ""


def test_a_greedy_k_says_that_all_are_one(generate: Run) -> None:
    result = generate("--temperature", 0, "-k", 3, "--text", "Return")
    assert "greedy" in result.stderr
    samples = lines(result.stdout)
    assert len({sample["response"] for sample in samples}) == 1
    assert [sample["sampling"]["index"] for sample in samples] == [0, 1, 2]


def test_precision_can_be_asked_for(generate: Run) -> None:
    fp32 = lines(generate("--text", "Return").stdout)
    assert lines(generate("--text", "Return", "--precision", "fp32").stdout) == fp32
    assert lines(generate("--text", "Return", "--precision", "bf16").stdout)[0]["text"] == "Return"


@pytest.mark.parametrize(
    "flags",
    [("--top-p", "1.1"), ("--top-p", "-1"), ("--temperature", "-1"), ("-k", "0"), ("--max-new-tokens", "0")],
)
def test_impossible_sampling_is_a_usage_error(generate: Run, flags: tuple[str, str]) -> None:
    assert flags[0] in generate("--text", "Return", *flags, status=2).stderr


def test_text_and_prompts_together_are_refused(generate: Run) -> None:
    """Or one of them would be left out without a word."""
    assert "--text" in generate("--text", "Return", asked=[CHAT], status=1).stderr


def test_a_model_of_more_ids_than_its_tokenizer_has_pieces_answers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Embeddings padded to a round number are common; no text belongs to the ids beyond the tokenizer's."""
    config = Config(dim=16, layers=1, heads=2, kv_heads=2, ffn=16, vocab=2 * tokenizer.vocab, context=64)
    padded = Llama.create(config, torch.float32, CPU, 0).hf_state(torch.float32)
    checkpoint.save(tmp_path, config.to_hf("float32"), padded, tokenizer.proto, dialogue.tokenizer_config(64), "")
    how = ["--temperature", "1", "--top-p", "1", "-k", "5", "--max-new-tokens", "20", "--text", "Return"]
    done = CliRunner().invoke(app, ["generate", str(tmp_path), *how])
    assert done.exit_code == 0, repr(done.exception)
    assert len({sample["response"] for sample in lines(done.stdout)}) == 5


def test_a_device_that_is_not_there_is_refused(generate: Run) -> None:
    assert "llamactl: --device: cuda:9 cannot be used" in generate("--device", "cuda:9", asked=[CHAT], status=1).stderr


def read_all(terminal: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(terminal, 1000)
        except OSError:  # how Linux says that the other side has closed
            return
        if not data:
            return
        yield data


def test_text_streams_to_a_terminal(generate: Run, restless: Path) -> None:
    flags = ["--text", "Return", "--temperature", "1", "-q"]
    response = lines(generate(*flags).stdout)[0]["response"]
    ours, child = pty.openpty()
    command = [sys.executable, "-m", "llamactl", "generate", str(restless), *flags]
    with subprocess.Popen(command, stdout=child, stderr=subprocess.PIPE) as process:
        os.close(child)
        shown = b"".join(read_all(ours)).decode()
    assert process.returncode == 0
    assert shown.replace("\r\n", "\n").rstrip("\n") == response.rstrip("\n")
