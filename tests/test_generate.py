"""Sampling: samples drawn together against a plain loop, what is computed and kept for them, and the command."""

import json
import os
import pty
import re
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import zstandard
from conftest import Command
from typer.testing import CliRunner

from llamactl.artifacts import checkpoint
from llamactl.cli import app
from llamactl.errors import Fault
from llamactl.model import cache, decoding, drawing
from llamactl.model import generate as sampler
from llamactl.model.config import Config
from llamactl.model.drawing import Drawing, Sampling, draw, key
from llamactl.model.functions import weight_dtype
from llamactl.model.generate import Answer, Request, Token
from llamactl.model.llama import Llama
from llamactl.text import asking, dialogue
from llamactl.text.tokenizer import BOS, EOS, Tokenizer

torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

Run = Callable[..., Any]
CPU = torch.device("cpu")
ALL = Sampling(top_p=1.0, top_k=0, max_new_tokens=20, seed=0)
ENDLESS = 1 << 20  # more tokens than any context has
TEXTS = ["Return the ", "", "def f(x):\n    ", "Ünïcödé — 雪だるま ☃", "a b c d e f g h i j k l m", "1234567890"]
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is a heap?"}],
    "id": "chat-1",
    "safety": True,
    "note": [1, None],
}
ANSWER = {"role": "assistant", "content": "A tree."}


@pytest.fixture(autouse=True)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether steps are computed by compiled kernels, where there are any, or as without numba."""
    wanted = bool(getattr(request, "param", True))
    if not wanted:
        monkeypatch.setattr(decoding, "installed", lambda: False)
    elif not decoding.kernels(600) and hasattr(request, "param"):
        pytest.skip("no numba, or no folder for what it compiles")
    return wanted


both_ways = pytest.mark.parametrize("compiled", [True, False], indirect=True, ids=["kernels", "plain"])
plainly = pytest.mark.parametrize("compiled", [False], indirect=True, ids=["plain"])  # calls of the model are watched


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


# -- models whose answers are known, or end when they are told to


def attentive(kv_heads: int = 2, ending: float = 0.0, seed: int = 0) -> Llama:
    """A model whose tokens depend on all before them; the larger ``ending``, the likelier is EOS, whatever was said.

    One column of the hidden states is the same for all tokens, and EOS's score is that column's.
    """
    config = Config(dim=32, layers=2, heads=4, kv_heads=kv_heads, ffn=48, vocab=61, context=40)
    model = Llama.create(config, torch.float32, CPU, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
            if name.endswith(("wo.weight", "w2.weight")):
                parameter[0] = 0
        model.tok_embeddings.weight[:, 0] = 1
        model.output.weight[:, 0] = 0
        model.output.weight[EOS] = 0
        model.output.weight[EOS, 0] = ending
    return model.eval().requires_grad_(False)


def chain(following: dict[int, int], context: int = 64) -> Llama:
    """A model that says what follows the last token, whatever came before it."""
    size = 12
    config = Config(dim=size, layers=1, heads=2, kv_heads=1, ffn=8, vocab=size, context=context)
    model = Llama.create(config, torch.float32, CPU, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("wo.weight", "w2.weight")):
                parameter.zero_()
        model.tok_embeddings.weight.copy_(torch.eye(size))
        model.output.weight.zero_()
        for token, after in following.items():
            model.output.weight[after, token] = 100
    return model.eval().requires_grad_(False)


def prompts(model: Llama, lengths: Sequence[int]) -> list[list[int]]:
    """Some of these lengths, each another."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, model.config.vocab, (length,), generator=generator).tolist() for length in lengths]


def plain(model: Llama, request: Request, sampling: Sampling) -> list[Answer]:
    """Samples of one prompt, one after the other, without a cache."""
    answers = []
    for index, temperature in enumerate(request.temperatures):
        ids, said, log_probs = list(request.ids), 0, []
        while said < sampling.max_new_tokens and len(ids) < model.config.context and ids[-1] != EOS:
            rows = Drawing.of([(temperature, key(sampling.seed, request.ids, index), said)], CPU)
            found = draw(model.logits(model(torch.tensor([ids]))[:, -1]), rows, sampling)
            ids.append(int(found.tokens))
            log_probs.append(float(found.log_probs))
            said += 1
        stopped = ids[-1] == EOS
        answers.append(Answer(ids[len(request.ids) : len(ids) - stopped], stopped, log_probs))
    return answers


Texts = list[list[tuple[list[int], bool]]]


def said(answers: Iterable[list[Answer]]) -> Texts:
    """What was sampled, which is the same to the token; log-probabilities are to rounding."""
    return [[(answer.ids, answer.stopped) for answer in some] for some in answers]


def sampled(model: Llama, asked: Iterable[Request], sampling: Sampling = ALL, memory: int | None = None) -> Texts:
    return said(sampler.generate(model, asked, sampling, memory))


def requests(model: Llama) -> list[Request]:
    """Prompts of 1 token, of one less than the context, and others between; 1 to 5 samples of each, some greedy."""
    lengths = [5, 1, model.config.context - 1, 12, 1, 30, 3, 20, model.config.context - 1, 38]
    temperatures = [(1.0,), (1.0, 0.0), (0.7, 1.3, 1.0), (0.0, 1.0, 1.0, 0.5), (1.0,) * 5]
    return [
        Request(ids, temperatures[number % len(temperatures)]) for number, ids in enumerate(prompts(model, lengths))
    ]


def watched(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[Any, ...]]:
    """What a method of the cache is called with from now on."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(cache.Cache, method)

    def call(self: cache.Cache, *given: Any) -> None:
        calls.append(given)
        real(self, *given)

    monkeypatch.setattr(cache.Cache, method, call)
    return calls


class Given:
    """How many tokens a model is given in each call: prompts and newest tokens with a cache, draws in doubt without."""

    def __init__(self, model: Llama) -> None:
        self.cached: list[int] = []
        self.doubted: list[int] = []
        self._hook = model.register_forward_pre_hook(self._see)

    def _see(self, model: torch.nn.Module, given: tuple[Any, ...]) -> None:
        tokens, *more = given
        (self.cached if more else self.doubted).append(tokens.numel())

    def __enter__(self) -> "Given":
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


# -- tokens


@both_ways
@pytest.mark.parametrize("sampling", [ALL, Sampling(0.8, 20, ENDLESS, 5)])
@pytest.mark.parametrize("ending", [-50.0, 0.6, 50.0])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@torch.inference_mode()
def test_a_plain_loop_without_a_cache_gives_the_same_tokens(kv_heads: int, ending: float, sampling: Sampling) -> None:
    """Of models that never end, that end sometimes, and that end at once."""
    model = attentive(kv_heads, ending)
    asked = requests(model)
    answers = list(sampler.generate(model, asked, sampling))
    wanted = [plain(model, request, sampling) for request in asked]
    assert said(answers) == said(wanted)
    every = [answer for some in answers for answer in some]
    assert {answer.stopped for answer in every} == {-50.0: {False}, 0.6: {True, False}, 50.0: {True}}[ending]
    if ending == 50:
        assert not any(answer.ids for answer in every)
    else:
        assert len({token for answer in every for token in answer.ids}) > 20
    for some, theirs in zip(answers, wanted, strict=True):
        for answer, other in zip(some, theirs, strict=True):
            assert answer.log_probs == pytest.approx(other.log_probs, abs=1e-5)


@both_ways
@pytest.mark.parametrize("sampling", [ALL, Sampling(0.5, 9, 20, 0)])
@torch.inference_mode()
def test_log_probabilities_are_those_of_a_full_forward(sampling: Sampling) -> None:
    """At the temperature, of the whole distribution; of greedy tokens at temperature 1."""
    model = attentive(ending=0.6)
    asked, seen = requests(model), 0
    for request, answers in zip(asked, sampler.generate(model, asked, sampling), strict=True):
        for temperature, answer in zip(request.temperatures, answers, strict=True):
            tokens = answer.ids + [EOS] * answer.stopped
            assert len(answer.log_probs) == len(tokens)
            logits = model.logits(model(torch.tensor([[*request.ids, *tokens]])))[0, len(request.ids) - 1 : -1]
            exact = (logits.double() / (temperature or 1)).log_softmax(-1)[range(len(tokens)), tokens]
            assert answer.log_probs == pytest.approx(exact.tolist(), abs=1e-5)
            seen += len(tokens)
    assert seen > 100


@both_ways
def test_samples_do_not_depend_on_what_is_sampled_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the order, the shard, or how much is computed and kept at once."""
    model = attentive(ending=0.6)
    asked = requests(model)
    together = sampled(model, asked)
    assert together == [texts for request in asked for texts in sampled(model, [request])]
    assert together == sampled(model, asked[::-1])[::-1]
    parts = [sampled(model, asked[shard::3]) for shard in range(3)]
    assert together == [parts[number % 3][number // 3] for number in range(len(asked))]
    for name, values in (("AHEAD", (1, 2, 5)), ("READ", (1, 30))):
        for value in values:
            with monkeypatch.context() as patch:
                patch.setattr(sampler, name, value)
                assert together == sampled(model, asked)
    for places in (1, 3):
        for ahead in (2, 256):
            with monkeypatch.context() as patch:
                patch.setattr(sampler, "PLACES", {"cpu": (places, places)})
                patch.setattr(sampler, "AHEAD", ahead)
                assert together == sampled(model, asked)
    one = cache.Size(1, 40, 1, 20).bytes(model.config, torch.float32)
    for memory in (one, 2 * one, 5 * one + 1):
        assert together == sampled(model, asked, memory=memory)


@both_ways
def test_the_first_of_many_samples_are_those_of_few() -> None:
    model = attentive(ending=0.6)
    many = sampled(model, [Request(ids, (1.0,) * 9) for ids in prompts(model, [1, 5, 30])])
    for count in (1, 2, 5):
        few = sampled(model, [Request(ids, (1.0,) * count) for ids in prompts(model, [1, 5, 30])])
        assert few == [texts[:count] for texts in many]


@both_ways
def test_samples_may_begin_at_any_index() -> None:
    """They are those that a request for all of them has there."""
    model = attentive(ending=0.6)
    asked = prompts(model, [1, 5, 30])
    many = sampled(model, [Request(ids, (1.0,) * 9) for ids in asked])
    for first in (0, 1, 7):
        for count in (1, 2):
            some = sampled(model, [Request(ids, (1.0,) * count, first) for ids in asked])
            assert some == [texts[first : first + count] for texts in many]
    mixed = sampled(model, [Request(asked[0], (1.0,), index) for index in (8, 0, 3)])
    assert mixed == [[many[0][index]] for index in (8, 0, 3)]


@both_ways
@torch.inference_mode()
def test_lanes_and_places_can_be_used_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept in them before is not seen, and what moves to another takes all that it needs along."""
    monkeypatch.setattr(sampler, "PLACES", {"cpu": (5, 5)})
    model = attentive(ending=1.5)
    lengths = torch.randint(1, 40, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    asked = [Request(ids, (1.0,) * (1 + number % 4)) for number, ids in enumerate(prompts(model, lengths))]
    moves = [watched(monkeypatch, name) for name in ("move_lane", "move_place")]
    assert sampled(model, asked) == said(plain(model, request, ALL) for request in asked)
    assert min(map(len, moves)) > 15


@both_ways
@torch.inference_mode()
def test_later_prompts_may_be_longer_or_leave_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Than the cache that was made for the first ones has."""
    monkeypatch.setattr(sampler, "AHEAD", 2)
    monkeypatch.setattr(sampler, "ROUND", 1)
    model, sampling = attentive(ending=-1.0), ALL._replace(max_new_tokens=ENDLESS)
    for lengths in ((20, 20, 20, 30, 10, 20, 5, 35), (38, 37, 3, 2), (30, 38)):
        asked = [Request(ids, (1.0,)) for ids in prompts(model, lengths)]
        assert sampled(model, asked, sampling) == said(plain(model, request, sampling) for request in asked)


def test_samples_of_a_prompt_differ_and_so_do_seeds(model: Llama) -> None:
    (answers,) = sampled(model, [Request([BOS, 40, 50], (1.0,) * 8)])
    assert len({tuple(ids) for ids, _ in answers}) > 5
    (other,) = sampled(model, [Request([BOS, 40, 50], (1.0,) * 8)], ALL._replace(seed=1))
    assert sum(a == b for a, b in zip(answers, other, strict=True)) < 3


@both_ways
def test_an_answer_ends_at_eos_and_at_the_end_of_the_context(model: Llama) -> None:
    asked = [Request([BOS] + [30] * length, (1.0,) * 10) for length in (1, 40, 60, 62)]
    found = set()
    for request, answers in zip(asked, sampled(model, asked, ALL._replace(max_new_tokens=100)), strict=True):
        room = 64 - len(request.ids)
        for ids, stopped in answers:
            assert EOS not in ids
            assert len(ids) < room if stopped else len(ids) == room
            found.add(stopped)
    assert found == {True, False}


def test_a_longer_answer_begins_as_a_shorter_one_does(model: Llama) -> None:
    asked = [Request([BOS, 30], (1.0,) * 10)]
    (short,), (long,) = (sampled(model, asked, ALL._replace(max_new_tokens=count)) for count in (5, 50))
    assert [ids for ids, _ in short] == [ids[:5] for ids, _ in long]


@both_ways
def test_an_answer_ends_where_its_request_has_enough(model: Llama) -> None:
    """And those of others beside it do not: each begins as it does without."""
    asked = [Request(ids, (1.0, 0.0, 1.0)) for ids in prompts(model, [3, 5])]
    plainly = sampled(model, asked)
    first, second = sampled(model, [asked[0]._replace(until=lambda ids: len(ids) == 2 or ids[-1] == 40), asked[1]])
    assert second == plainly[1]
    for (ids, stopped), (whole, _) in zip(first, plainly[0], strict=True):
        end = next((n for n, token in enumerate(whole, 1) if n == 2 or token == 40), len(whole))
        assert ids == whole[:end]
        assert stopped == (len(whole) < 2 and whole != [40])
    assert any(len(ids) < len(whole) for (ids, _), (whole, _) in zip(first, plainly[0], strict=True))


def test_decode_draws_each_sample_to_its_end() -> None:
    model = attentive(ending=0.6)
    asked = requests(model)
    answers = list(sampler.generate(model, asked, ALL))
    drawn: dict[tuple[int, int], list[Token]] = {}
    for token in sampler.decode(model, asked, ALL):
        drawn.setdefault((token.request, token.sample), []).append(token)
    assert len(drawn) == sum(map(len, answers))
    for (number, index), mine in drawn.items():
        answer = answers[number][index]
        assert [one.done for one in mine] == [False] * (len(mine) - 1) + [True]
        assert [one.token for one in mine] == answer.ids + [EOS] * answer.stopped
        assert [one.log_prob for one in mine] == answer.log_probs


def test_no_requests_have_no_answers(model: Llama) -> None:
    assert list(sampler.generate(model, [], ALL)) == []


@both_ways
def test_a_model_whose_scores_are_no_numbers_is_refused() -> None:
    for bad in (torch.nan, torch.inf):
        for temperature in (0.0, 1.0):
            broken = attentive()
            broken.output.weight[17] = bad
            with pytest.raises(Fault, match=r"the model: .*no numbers"):
                sampled(broken, [Request([BOS, 5], (temperature,))])


@both_ways
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_samples_of_a_bf16_model(kv_heads: int) -> None:
    """Their log-probabilities are those of a full forward to the precision of bf16; there are no draws in doubt."""
    model = attentive(kv_heads, 0.6)
    model.to(torch.bfloat16).dtype = torch.bfloat16
    asked = requests(model)
    with Given(model) as given:
        found = list(sampler.generate(model, asked, ALL))
    assert not given.doubted
    assert said(found) == sampled(model, asked)
    with torch.inference_mode():
        for request, answers in zip(asked, found, strict=True):
            for temperature, answer in zip(request.temperatures, answers, strict=True):
                tokens = answer.ids + [EOS] * answer.stopped
                logits = model.logits(model(torch.tensor([[*request.ids, *tokens]])))[0, len(request.ids) - 1 : -1]
                exact = (logits / (temperature or 1)).log_softmax(-1)[range(len(tokens)), tokens]
                assert answer.log_probs == pytest.approx(exact.tolist(), abs=0.2)


# -- doubt


@both_ways
def test_a_draw_in_doubt_is_decided_by_a_full_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were all of them, the tokens would be the same."""
    model = attentive(ending=0.6)
    asked = requests(model)
    wanted = sampled(model, asked)
    tokens = sum(len(ids) + stopped for texts in wanted for ids, stopped in texts)
    with Given(model) as given:
        assert sampled(model, asked) == wanted
    assert len(given.doubted) < tokens / 50
    monkeypatch.setattr(drawing, "NOISE", 1e3)
    with Given(model) as given:
        assert sampled(model, asked) == wanted
    assert len(given.doubted) == tokens


@both_ways
def test_rounding_changes_no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that are off by what rounding might do, a thousand times over, where that is what is reckoned with."""
    model = attentive(ending=0.6)
    asked = requests(model)
    wanted, noise = sampled(model, asked), 1e-2
    monkeypatch.setattr(drawing, "NOISE", noise)
    generator, real, real_compiled = torch.Generator().manual_seed(0), drawing.draw, decoding.Decoder.draw

    def off(logits: torch.Tensor) -> torch.Tensor:
        return logits + noise * (torch.rand(logits.shape, generator=generator) - 0.5)

    def rounded(logits: torch.Tensor, rows: Drawing, sampling: Sampling) -> drawing.Drawn:
        again = len(given.doubted) > before[0]  # the full forward is not rounded otherwise
        before[0] = len(given.doubted)
        return real(logits if again else off(logits), rows, sampling)

    monkeypatch.setattr(drawing, "draw", rounded)
    monkeypatch.setattr(decoding.Decoder, "draw", lambda one, logits, *rest: real_compiled(one, off(logits), *rest))
    for _ in range(3):
        before = [0]
        with Given(model) as given:
            assert sampled(model, asked) == wanted
        assert given.doubted


# -- what is computed


@plainly
def test_a_prompt_is_computed_once_for_all_of_its_samples() -> None:
    model = attentive(ending=0.6)
    asked = [Request(ids, (1.0,) * 7) for ids in prompts(model, [1, 20, 39, 8, 8])]
    with Given(model) as given:
        answers = [answer for some in sampler.generate(model, asked, ALL) for answer in some]
    drawn = sum(len(answer.log_probs) for answer in answers)
    assert sum(given.cached) == sum(len(request.ids) for request in asked) + drawn - len(answers)


@plainly
@pytest.mark.parametrize("ahead", [8, 256])
def test_a_long_answer_holds_nobody_up(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of those that have ended are taken at once: there are as many steps as the longest has tokens."""
    monkeypatch.setattr(sampler, "PLACES", {"cpu": (4, 4)})
    monkeypatch.setattr(sampler, "AHEAD", ahead)
    calls = watched(monkeypatch, "go_on")
    model = chain({5: 5, 6: 7, 7: 8, 8: EOS, 9: EOS})
    asked = [Request([5], (1.0,)), *[Request([6], (1.0,))] * 20, *[Request([9], (1.0,))] * 20, Request([6], (0.0,) * 9)]
    answers = sampled(model, asked, ALL._replace(max_new_tokens=ENDLESS))
    assert answers[0] == [([5] * 63, False)]
    assert answers[1:] == [[([7, 8], True)]] * 20 + [[([], True)]] * 20 + [[([7, 8], True)] * 9]
    steps = [len(layout.said) for (layout,) in calls]
    assert len(steps) == 62  # its first token is the prompt's
    assert sum(steps) == 62 + 29 * 2


def test_prompts_are_computed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "READ", 30)
    model = chain({5: EOS})
    calls = watched(monkeypatch, "read")
    lengths = [40, 3, 9, 50, 30, 1, 10, 10, 10, 29, 2]
    assert sampled(model, [Request([5] * length, (1.0,)) for length in lengths]) == [[([], True)]] * len(lengths)
    assert [list(lengths) for lengths, _ in calls] == [[50], [40], [30], [29], [10, 10, 10], [9, 3, 2, 1]]


def test_no_more_prompts_are_computed_than_there_are_places_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two whose samples fill all places, and then the next one."""
    monkeypatch.setattr(sampler, "PLACES", {"cpu": (4, 4)})
    calls = watched(monkeypatch, "read")
    asked = [Request([6] * length, (1.0,) * 2) for length in (9, 8, 7, 6, 5)]
    assert sampled(chain({6: 7, 7: EOS}), asked) == [[([7], True)] * 2] * 5
    assert [list(lengths) for lengths, _ in calls] == [[9, 8], [7, 6], [5]]


# -- when


def test_answers_come_in_order_and_as_soon_as_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "AHEAD", 2)
    model, read = attentive(ending=0.6), 0

    def asked() -> Iterator[Request]:
        nonlocal read
        for request in requests(model):
            read += 1
            yield request

    wanted, before = sampled(model, requests(model)), []
    for number, answers in enumerate(sampler.generate(model, asked(), ALL)):
        assert said([answers]) == [wanted[number]]
        before.append(read)
    assert len(before) == 10
    assert before[0] < 10
    assert sorted(set(before))[1] > before[0]


def test_no_more_is_read_than_there_are_places_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many requests there are: they may be lines of a pipe that does not end."""
    monkeypatch.setattr(sampler, "PLACES", {"cpu": (4, 4)})
    monkeypatch.setattr(sampler, "AHEAD", 3)
    numbers = iter(range(1 << 30))
    answers = sampler.generate(chain({6: 7, 7: 8, 8: EOS}), (Request([6], (1.0,)) for _ in numbers), ALL)
    for number in range(50):
        assert said([next(answers)]) == [[([7, 8], True)]]
        assert next(numbers) < 2 * number + 20


@plainly
def test_tokens_are_told_of_as_they_are_drawn() -> None:
    model = chain({5: 5})
    with Given(model) as given:
        drawn = sampler.decode(model, [Request([5], (1.0,))], ALL)
        for number in range(20):
            assert next(drawn) == Token(0, 0, 5, 0.0, number == 19)
            assert len(given.cached) == number + 1


# -- memory


class Made(NamedTuple):
    """A cache: its size, the bytes that it takes, and those of it and all others that are still there."""

    size: cache.Size
    own: int
    all: int


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[Made]:
    """Each cache that is made from now on."""
    made: list[Made] = []
    there: weakref.WeakKeyDictionary[cache.Cache, int] = weakref.WeakKeyDictionary()
    real = cache.Cache.__init__

    def measured(self: cache.Cache, config: Config, size: cache.Size, *more: Any) -> None:
        real(self, config, size, *more)
        there[self] = sum(x.nbytes for kept in (*self._prompts, *self._said) for x in kept)
        made.append(Made(size, there[self], sum(there.values())))

    monkeypatch.setattr(cache.Cache, "__init__", measured)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_keeps_to_its_memory(dtype: torch.dtype, caches: list[Made]) -> None:
    model = attentive(ending=0.6)
    model.to(dtype).dtype = dtype
    kept = weight_dtype(dtype, CPU)
    one = cache.Size(1, 40, 1, 20).bytes(model.config, kept)
    for places in (1, 2, 3, 10):
        for memory in (places * one, (places + 1) * one - 1):
            caches.clear()
            sampled(model, requests(model), memory=memory)
            (made,) = caches
            assert made.own == made.size.bytes(model.config, kept) <= memory
            assert made.size.places >= places
            assert (made.size.places == 1) == (places == 1)


def test_a_cache_is_as_large_as_what_is_asked_needs(caches: list[Made]) -> None:
    model = attentive(ending=0.6)
    sampled(model, [Request([5] * 3, (1.0,) * 4), Request([5] * 9, (1.0,) * 4)], ALL._replace(max_new_tokens=7))
    sampled(model, [Request([5] * 30, (1.0,))], ALL._replace(max_new_tokens=ENDLESS))
    first, second = (made.size for made in caches)
    assert (first.places, first.room) == (8, 7)
    assert second == cache.Size(1, 40, 1, 10)


def test_a_cache_is_freed_with_the_last_sample(caches: list[Made]) -> None:
    for _ in range(3):
        sampled(chain({5: EOS}), [Request([5], (1.0,))])
    assert [made.all for made in caches] == [caches[0].own] * 3


def test_all_caches_together_keep_to_the_memory(caches: list[Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where later prompts are longer, and need another."""
    monkeypatch.setattr(sampler, "AHEAD", 2)
    monkeypatch.setattr(sampler, "ROUND", 1)
    model = attentive(ending=5)
    memory = cache.Size(1, 39, 1, 39).bytes(model.config, torch.float32)
    sampled(model, [Request(ids, (1.0,)) for ids in prompts(model, range(1, 40))], ALL, memory)
    assert len(caches) > 3
    assert max(made.all for made in caches) <= memory


@plainly
def test_a_long_answer_holds_nobody_up_where_memory_is_short(
    caches: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "AHEAD", 8)
    model = chain({5: 5, 6: 7, 7: EOS})
    memory = 4 * cache.Size(1, 64, 1, 63).bytes(model.config, torch.float32)
    asked = [Request([5], (1.0,)), *[Request([6], (1.0,))] * 7] * 3
    calls = watched(monkeypatch, "go_on")
    sampled(model, asked, ALL._replace(max_new_tokens=63), memory)
    assert len(caches) == 1
    assert len(calls) < 2 * 62


def test_a_memory_that_holds_no_sample_is_refused(caches: list[Made]) -> None:
    model = attentive()
    one = cache.Size(1, 40, 1, 20).bytes(model.config, torch.float32)
    for memory in (0, 1, one - 1):
        with pytest.raises(Fault, match=r"--cache-memory: .* cannot hold one sample"):
            sampled(model, requests(model), memory=memory)
    assert not caches
    sampled(model, requests(model), memory=one)
    assert [made.size for made in caches] == [cache.Size(1, 40, 1, 20)]


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
    drawn = [Token(0, 0, token, 0.0, False) for token in ids] + [Token(0, 0, EOS, 0.0, True)]
    pieces = list(asking.streamed(one, drawn, tokenizer))
    assert "".join(pieces) == one.response(ids, tokenizer) == (text.strip() if chat else text)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > (1 if len(text) > 1 else 0)


def test_streaming_a_broken_character_shows_what_the_response_has(tokenizer: Tokenizer) -> None:
    one = asking.asked(asking.document("So:"), tokenizer, 100, False)
    for ids in ([3 + 0xE2], [3 + 0xE2, 3 + 0x98], [3 + 0xE2, 40, 50], [3 + 0xFF, 3 + 0xFF, 41]):
        for stops in (True, False):
            drawn = [Token(0, 0, token, 0.0, not stops and at == len(ids) - 1) for at, token in enumerate(ids)]
            drawn += [Token(0, 0, EOS, 0.0, True)] * stops
            assert "".join(asking.streamed(one, drawn, tokenizer)) == one.response(ids, tokenizer)


def test_streamed_samples_are_the_batch_ones(model: Llama, tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        one = asking.asked(asking.document(text), tokenizer, 64, False)
        ((answer,),) = sampler.generate(model, [Request(one.ids, (1.0,))], ALL)
        pieces = asking.streamed(one, sampler.decode(model, [Request(one.ids, (1.0,))], ALL), tokenizer)
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


def test_of_an_earlier_answer_nothing_is_left(generate: Run) -> None:
    """A new one is described by nothing that was said of it; what no stage has written stays."""
    said = {
        "response": "B.", "scores": {"helpfulness": 9.0}, "reward": 9.0, "rank": 1, "k": 4, "model_sha256": "0",
        "reward_sha256": {"helpfulness": "0"}, "reward_precision": "fp32", "pool": "p", "log_probs": [-1.0],
        "likert": 7, "pre_prompt": "Be kind.", "before": {"response": "A."},
    }  # fmt: skip
    (fresh,) = lines(generate("--max-new-tokens", 5, asked=[CHAT | {"label": "x", "safety": True}]).stdout)
    (again,) = lines(generate("--max-new-tokens", 5, asked=[CHAT | said | {"label": "x", "safety": True}]).stdout)
    assert again == fresh


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
    assert "asked.jsonl:2: text: is 64 tokens long" in refused.stderr
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


def test_log_probs_come_along_where_they_are_asked_for(generate: Run, model: Llama, tokenizer: Tokenizer) -> None:
    """Those of a full forward pass at the temperature, the end's included, whatever top-p."""
    asked = {"asked": [{"text": text} for text in TEXTS]}
    how = ("-k", 3, "--temperature", 1.5, "--top-p", 0.9, "--max-new-tokens", 40)
    assert all("log_probs" not in sample for sample in lines(generate(*how, **asked).stdout))
    found = lines(generate(*how, "--log-probs", **asked).stdout)
    prompts = [[BOS, *tokenizer.encode(text)] for text in TEXTS]
    drawn = sampler.generate(model, [Request(ids, (1.5,) * 3) for ids in prompts], Sampling(0.9, 0, 40, 0))
    answers = [(ids, answer) for ids, answers in zip(prompts, drawn, strict=True) for answer in answers]
    for sample, (ids, answer) in zip(found, answers, strict=True):
        said = [*answer.ids, *[EOS] * answer.stopped]
        scores = model.logits(model(torch.tensor([[*ids, *said]]))[0, len(ids) - 1 : -1]).double() / 1.5
        wanted = scores.log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(sample["log_probs"], dtype=torch.float64), wanted, atol=1e-5)
    assert {answer.stopped for _, answer in answers} == {True, False}
