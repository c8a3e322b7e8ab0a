"""A model cut over processes for inference: what each has of it, and that the parts come to the whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import turns, written
from test_cli import Run, command, one_line
from test_journal import together
from test_model import fresh
from test_model import written as model_written
from torch import Tensor

from llamactl.artifacts import checkpoint
from llamactl.model import generate, slices
from llamactl.model.cache import Cache, Size
from llamactl.model.config import Config
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama, rotary
from llamactl.model.slices import Slice
from llamactl.train import planning

assert command  # a fixture

CPU = torch.device("cpu")
SHAPE = Config(dim=32, layers=2, heads=8, kv_heads=4, ffn=24, vocab=50, context=16)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model directory."""
    model = Llama.create(SHAPE, torch.float32, CPU, 1)
    checkpoint.save(tmp_path, SHAPE.to_hf("float32"), model.hf_state(torch.float32), b"", {}, "")
    return tmp_path


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_layer_add_up_to_the_whole(saved: Path, parts: int) -> None:
    """Attention by the heads that each has, and the feed-forward by its share of the width."""
    whole = Llama.load(saved, CPU)
    some = [Llama.load(saved, CPU, part=Slice(rank, parts)) for rank in range(parts)]
    x = torch.randn(1, 9, SHAPE.dim, generator=torch.Generator().manual_seed(0))

    def fed(model: Llama) -> Tensor:
        return model.layers[1].feed_forward(x)

    torch.testing.assert_close(sum(fed(model) for model in some), fed(whole), rtol=1e-5, atol=1e-6)
    cos, sin = rotary(torch.arange(9), SHAPE.head_dim, SHAPE.rope_theta)

    def attended(model: Llama) -> Tensor:
        return model.layers[0].attention(x, cos, sin, None, None)

    torch.testing.assert_close(sum(attended(model) for model in some), attended(whole), rtol=1e-5, atol=1e-6)


def test_each_has_its_part_of_the_layers_and_no_more(saved: Path) -> None:
    whole = Llama.load(saved, CPU)
    for rank in range(4):
        model = Llama.load(saved, CPU, part=Slice(rank, 4))
        for (name, own), all_of_it in zip(model.named_parameters(), whole.parameters(), strict=True):
            cut = slices.is_cut(name)
            assert own.numel() * (4 if cut else 1) == all_of_it.numel(), name
            assert cut == (name.startswith("layers.") and "norm" not in name), name
            assert own.is_contiguous()
            assert own.untyped_storage().nbytes() == own.nbytes, name
        assert sum(own.numel() for own in model.parameters()) == planning.part(SHAPE, 4)
    assert planning.part(SHAPE, 1) == SHAPE.parameters


def test_keys_and_values_are_shared_out_as_well() -> None:
    size = Size(lanes=3, prompt=10, places=5, room=7)
    cache = Cache(SHAPE, size, torch.float32, CPU, 4)
    assert sum(kept.nbytes for layer in cache.by_layer() for kept in layer) == size.bytes(SHAPE, torch.float32, 4)
    assert 4 * size.bytes(SHAPE, torch.float32, 4) == size.bytes(SHAPE, torch.float32)


def test_the_whole_is_loaded_and_drawn_from_as_ever(saved: Path) -> None:
    model = generate.load(saved, CPU, torch.float32)
    assert model.part == slices.WHOLE
    assert not any(module._forward_hooks for module in model.modules())
    assert slices.WHOLE.least(7, CPU) == 7


def test_the_score_of_a_reward_model_is_whole() -> None:
    with torch.device("meta"):
        names = [name for name, _ in RewardModel(SHAPE).named_parameters()]
    assert [name for name in names if not slices.is_cut(name) and "norm" not in name] == [
        "tok_embeddings.weight",
        "score.weight",
    ]


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [(3, "3 does not divide the 8 processes"), (8, "8 does not divide the 4 key/value heads")],
)
def test_parts_have_to_be_equal(tensor: int, problem: str) -> None:
    assert str(planning.undivided([SHAPE], 8, tensor)) == f"--tensor-parallel: {problem}; choose a divisor"
    assert planning.undivided([SHAPE], 8, 4) is None


# -- by two processes


@pytest.fixture
def asked(tmp_path: Path, tokenizer_path: Path) -> dict[str, list[Any]]:
    """Commands that measure by a model."""
    shape, proto = replace(SHAPE, vocab=512, context=64), tokenizer_path.read_bytes()
    language = model_written(fresh(shape), tmp_path / "language", tokenizer=proto)
    scored = model_written(fresh(replace(shape, scored=True), kind=RewardModel), tmp_path / "rm", tokenizer=proto)
    samples = [{"messages": turns(f"What is {n}?"), "response": "a word " * (n % 5 + 1)} for n in range(9)]
    comparisons = [
        {"prompt": turns(f"Is it {n}?"), "chosen": turns("", f"{n} it is")[1:], "rejected": turns("", "No.")[1:]}
        for n in range(9)
    ]
    text = tmp_path / "text.txt"
    text.write_text("Return the number of bytes that were written.\n" * 9)
    data = written(tmp_path / "comparisons.jsonl", comparisons)
    return {
        "score": ["score", written(tmp_path / "samples.jsonl", samples), "--reward", f"helpful={scored}"],
        "eval reward": ["eval", "reward", scored, "--data", data],
        "eval perplexity": ["eval", "perplexity", language, text],
    }


@pytest.mark.parametrize("name", ["score", "eval reward", "eval perplexity"])
def test_neighbours_measure_what_one_process_does(
    asked: dict[str, list[Any]], name: str, tmp_path: Path, command: Run
) -> None:
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    assert command(*asked[name], "-o", alone, "--device", "cpu").status == 0
    assert together([*asked[name], "-o", shared, "--device", "cpu", "--tensor-parallel", 2]) == [0, 0]
    close(*(list(map(json.loads, path.read_text().splitlines())) for path in (alone, shared)))
    facts = [json.loads(path.with_name(f"{path.name}.run.json").read_text()) for path in (alone, shared)]
    assert facts[0]["done"] == facts[1]["done"]


def close(one: Any, other: Any) -> None:
    """Equal, numbers to rounding."""
    if isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    elif isinstance(one, dict | list):
        assert len(one) == len(other)
        for key in one if isinstance(one, dict) else range(len(one)):
            close(one[key], other[key])
    else:
        assert one == other


def test_processes_that_are_no_neighbours_would_all_do_the_same(
    asked: dict[str, list[Any]], command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for arguments in asked.values():
        line = one_line(command(*arguments, "--tensor-parallel", 2))
        assert "--tensor-parallel: 2, of 4 processes: the others would do the same again; --tensor-parallel 4" in line
    assert "stdin: cannot be read by every process" in one_line(command("eval", "reward", asked["eval reward"][2]))
