"""What a dialogue attends to: against attention written out in full, all of it in memory at once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from llamactl.artifacts.records import Message
from llamactl.evals import attention as attending
from llamactl.evals.attention import Curve, Instructed, Map, Watching, instructed, watched
from llamactl.model.attention import weights
from llamactl.model.config import Config
from llamactl.model.functions import rotate
from llamactl.model.llama import Llama, rotary
from llamactl.text import dialogue
from llamactl.text.tokenizer import BOS, Tokenizer

torch.set_num_threads(1)

CPU = torch.device("cpu")
TEXT = "Always act as Napoleon from now."


def tiny(kv_heads: int, layers: int = 3) -> Llama:
    config = Config(dim=64, layers=layers, heads=4, kv_heads=kv_heads, ffn=96, vocab=97, context=160)
    return Llama.create(config, torch.float32, CPU, 5).eval().requires_grad_(False)


def in_full(model: Llama, ids: Sequence[int]) -> Tensor:
    """All weights of all layers ``[L, H, T, T]``, by keys repeated for each query head and one softmax."""
    heard: dict[str, list[Tensor]] = {"wq": [], "wk": []}
    hooks = [
        getattr(block.attention, name).register_forward_hook(lambda _, __, y, kept=kept: kept.append(y))
        for block in model.layers
        for name, kept in heard.items()
    ]
    model(torch.tensor([list(ids)]))
    for hook in hooks:
        hook.remove()
    config, time = model.config, len(ids)
    cos, sin = rotary(torch.arange(time), config.head_dim, config.rope_theta)
    found = []
    for q, k in zip(*heard.values(), strict=True):
        q, k = (rotate(x.view(1, time, -1, config.head_dim), cos, sin)[0].transpose(0, 1) for x in (q, k))
        k = k.repeat_interleave(config.heads // config.kv_heads, 0)
        scores = q @ k.mT / config.head_dim**0.5
        found.append(scores.masked_fill(torch.ones(time, time).triu(1).bool(), -torch.inf).softmax(-1))
    return torch.stack(found)


def sharpened(model: Llama) -> Llama:
    """As fresh weights attend to all alike, with larger ones."""
    for block in model.layers:
        block.attention.wq.weight.data *= 12  # type: ignore[union-attr,operator]
        block.attention.wk.weight.data *= 12  # type: ignore[union-attr,operator]
    return model


def conversation(length: int, span: range) -> Instructed:
    ids = torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for start in (0, span.stop + 9, span.stop + 30):
        ids[start] = BOS
    return Instructed(ids, span)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("at_once", [1, 3000, 1 << 24])
def test_it_is_the_maximum_of_attention_in_full(kv_heads: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is computed at once: a row, some, all; and heads that share their keys."""
    monkeypatch.setattr(attending, "AT_ONCE", at_once)
    model, one = sharpened(tiny(kv_heads)), conversation(101, range(3, 17))
    seen = watched(model, one, 8)
    every = in_full(model, one.ids).amax((0, 1))  # of layers and heads, [T, T]
    assert seen.most.tolist() == pytest.approx(every[17:, 3:17].amax(-1).tolist(), abs=1e-6)
    assert seen.most.max() > 2 * seen.most.min()  # else a mistake would not show
    edges = [(3, 11), (11, 17), *((start, min(start + 8, 101)) for start in range(17, 101, 8))]
    by_hand = torch.stack([every[17:, low:high].amax(-1) for low, high in edges], -1)
    assert seen.own == 2
    assert seen.map.shape == by_hand.shape
    assert torch.allclose(seen.map, by_hand, atol=1e-6)
    rows = Map.of(one, seen, 8).rows
    assert torch.allclose(torch.tensor(rows), torch.stack([part.mean(0) for part in by_hand.split(8)]), atol=1e-5)


def test_weights_of_a_batch_add_up_to_1_and_see_no_future() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 10, 6, 8), torch.randn(2, 10, 3, 8)
    parts = list(weights(q, k, 4))
    assert [(start, tuple(p.shape)) for start, p in parts] == [
        (0, (2, 6, 4, 4)), (4, (2, 6, 4, 8)), (8, (2, 6, 2, 10)),
    ]  # fmt: skip
    for start, p in parts:
        assert torch.allclose(p.sum(-1), torch.ones(()))
        for row in range(p.shape[2]):
            assert not p[:, :, row, start + row + 1 :].any()
    scores = (q[1, 5, 4] @ k[1, :6, 2].T) / 8**0.5  # head 4 of 6 has key head 2 of 3
    assert torch.allclose(parts[1][1][1, 4, 1, :6], scores.softmax(-1), atol=1e-6)


def test_a_model_that_is_watched_says_what_it_says_unwatched() -> None:
    model, one = tiny(2), conversation(80, range(1, 9))
    ids = torch.tensor([list(one.ids)])
    assert torch.equal(model(ids, Watching(one, 4, CPU)), model(ids))


def test_a_model_in_bf16_is_watched_in_fp32() -> None:
    model, one = tiny(2), conversation(60, range(1, 9))
    rounded = Llama(model.config, torch.bfloat16)
    rounded.load_state_dict({name: p.bfloat16() for name, p in model.state_dict().items()}, assign=True)
    exact, coarse = (watched(some, one, 4).most for some in (model, rounded.eval().requires_grad_(False)))
    assert coarse.dtype == torch.float32
    assert coarse.tolist() == pytest.approx(exact.tolist(), rel=0.05)


# -- where the instruction stands


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


@pytest.mark.parametrize(
    "first",
    [
        [("user", f"{TEXT}\n\nWho are you?")],
        [("system", TEXT), ("user", "Who are you?")],
        [("system", f"Be brief.\n\n{TEXT}"), ("user", f"{TEXT} Who are you?")],
        [("system", f"Say: {TEXT}."), ("user", f"{TEXT}\n\nWho are you?")],
    ],
)
def test_the_instructions_tokens_are_found(tokenizer: Tokenizer, first: list[tuple[str, str]]) -> None:
    """At the end of the system message or the beginning of the first one, also where its words come again."""
    said = [*first, ("assistant", "Napoleon."), ("user", TEXT), ("assistant", "Yes.")]
    messages = [Message(role=role, content=content) for role, content in said]  # type: ignore[arg-type]
    ids = dialogue.encode(messages, tokenizer).ids
    one = instructed(messages, ids, TEXT, tokenizer)
    span = one.instruction
    assert tokenizer.decode(ids[span.start : span.stop]).strip() == TEXT
    place = tokenizer.decode(ids[1 : span.start])
    expected = {1: "[INST]", 2: "[INST] <<SYS>>\n"}
    if len(first) == 1:
        assert place.strip() == expected[1]
    elif first[0][1] == TEXT:
        assert place == expected[2]
    elif first[0][1].startswith("Be"):
        assert place == "[INST] <<SYS>>\nBe brief.\n\n"
    else:
        assert place == f"[INST] <<SYS>>\nSay: {TEXT}.\n<</SYS>>\n\n"
    turns = one.turns()
    assert (len(turns), turns[0], turns[-1]) == (len(ids) - span.stop, 1, 2)
    assert turns.count(2) == len(ids) - max(n for n, token in enumerate(ids) if token == BOS)


# -- means


def test_means_by_distance_and_turn_by_hand() -> None:
    """Two conversations of two dialogues: of 5 and of 3 tokens after the instruction."""
    curve = Curve(2)
    for key, ids, most in (
        (b"a", [1, 9, 9, 9, 1, 9, 9], [0.1, 0.3, 0.5, 0.7, 0.9]),
        (b"b", [1, 9, 9, 1, 9], [1, 0, 0]),
    ):
        one = Instructed(ids, range(1, 2))
        seen = Watching(one, 2, CPU)
        seen.most = torch.tensor(most, dtype=torch.float64)
        curve.add(key, one, seen)
    by_distance = [(place, n, mean.value) for place, n, mean in curve.by_distance(0)]
    assert by_distance == [
        (0, 4, pytest.approx(1.4 / 4)), (1, 3, pytest.approx(1.2 / 3)), (2, 1, pytest.approx(0.9)),
    ]  # fmt: skip
    # turns: of the first 1 1 2 2 2, of the second 1 2 2
    assert [(turn, n, mean.value) for turn, n, mean in curve.by_turn(0)] == [
        (1, 3, pytest.approx(1.4 / 3)), (2, 5, pytest.approx(2.1 / 5)),
    ]  # fmt: skip
    overall, *by_turn = attending.measured(curve, 0)
    assert (overall.value, overall.n) == (pytest.approx(3.5 / 8), 8)
    assert [(one["low"], one["high"], one["n"]) for one in overall.bins or []] == [(0, 2, 4), (2, 4, 3), (4, 6, 1)]
    assert [one.group for one in by_turn] == [{"turn": "1"}, {"turn": "2"}]
    low, high = overall.interval or (0, 0)
    assert low == pytest.approx(1 / 3) and high == pytest.approx(2.5 / 5)
    assert np.isfinite(overall.stderr or np.nan)
