"""The sizes of the recipe (its section 1), and config.json in and out."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from llamactl.errors import Fault
from llamactl.model.config import SIZES, Config, size
from llamactl.model.llama import Llama
from llamactl.train.schedule import planned

PAPER = {  # parameters, context, tokens, peak learning rate
    "llama1-7b": (6_738_415_616, 2048, 1.0e12, 3.0e-4),
    "llama1-13b": (13_015_864_320, 2048, 1.0e12, 3.0e-4),
    "llama1-33b": (32_528_943_616, 2048, 1.4e12, 1.5e-4),
    "llama1-65b": (65_285_660_672, 2048, 1.4e12, 1.5e-4),
    "7b": (6_738_415_616, 4096, 2.0e12, 3.0e-4),
    "13b": (13_015_864_320, 4096, 2.0e12, 3.0e-4),
    "34b": (33_743_970_304, 4096, 2.0e12, 1.5e-4),
    "70b": (68_976_648_192, 4096, 2.0e12, 1.5e-4),
}
SMALL = Config(dim=48, layers=2, heads=6, kv_heads=3, ffn=80, vocab=99, context=64, rope_theta=5e5, norm_eps=1e-6)
NOTHING_ASKED: dict[str, Any] = dict.fromkeys(
    ("lr", "warmup", "steps", "tokens", "epochs", "batch_size", "micro_batch", "save_every")
)


def built(config: Config) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Llama(config).parameters())


@pytest.mark.parametrize("name", PAPER)
def test_paper_sizes_have_the_papers_numbers(name: str) -> None:
    row = size(name)
    assert (row.config.parameters, row.config.context, row.tokens, row.lr) == PAPER[name]
    assert row.batch * row.config.context == 4 * 2**20
    assert row.config.vocab == 32_000
    assert (row.config.rope_theta, row.config.norm_eps) == (10_000.0, 1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_a_built_model_has_the_parameters_that_its_config_counts(name: str) -> None:
    assert built(SIZES[name].config) == SIZES[name].config.parameters


def test_only_the_two_large_llama2_models_group_their_queries() -> None:
    grouped = {name for name in PAPER if SIZES[name].config.kv_heads != SIZES[name].config.heads}
    assert grouped == {"34b", "70b"}
    assert {SIZES[name].config.kv_heads for name in grouped} == {8}


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", (0.9, 1.3)), ("15m", (14, 26)), ("42m", (40, 60)), ("110m", (105, 140))]
)
def test_small_sizes_are_about_what_they_are_called(name: str, millions: tuple[float, float]) -> None:
    # llama2.c's names count tied embeddings once; ours are untied, so there is a second matrix of vocab x dim
    assert millions[0] < SIZES[name].config.parameters / 1e6 < millions[1]


def test_1b_is_tinyllama() -> None:
    assert SIZES["1b"].config.parameters == 1_100_048_384


def test_the_paper_trains_for_476838_steps() -> None:
    for name in ("7b", "13b", "34b", "70b"):
        plan = planned(4096, size(name), **NOTHING_ASKED, epoch=1000, keep=2)
        assert plan.schedule.steps == 476_838
        assert (plan.schedule.warmup, plan.schedule.peak, plan.targets) == (2000, PAPER[name][3], 4_194_304)


@pytest.mark.parametrize(
    ("asked", "flag"),
    [({"steps": 1 << 25}, "--steps"), ({"tokens": 1e15}, "--tokens"), ({"batch_size": 1}, "--batch-size")],
)
def test_more_steps_than_an_optimizer_counts_are_refused(asked: dict[str, float], flag: str) -> None:
    """Two million million tokens of 4,096 are 488 million steps of one sequence; of their rates 16 GiB were made."""
    with pytest.raises(Fault, match="where 16,777,216 can be counted; make fewer, of larger batches") as refused:
        planned(4096, size("7b"), **{**NOTHING_ASKED, **asked}, epoch=1000, keep=2)
    assert refused.value.subject == flag


def test_what_is_asked_for_goes_before_the_row() -> None:
    asked = {**NOTHING_ASKED, "lr": 1e-3, "tokens": 1e6, "batch_size": 8, "warmup": 7, "micro_batch": 99}
    plan = planned(100, size("7b"), **asked, epoch=1000, keep=2)
    assert plan.schedule == (1e-3, 7, 1250, 0.1)
    assert (plan.batch_size, plan.targets, plan.micro_batch) == (8, 800, 8)


def test_epochs_are_passes_over_all_samples() -> None:
    asked = {**NOTHING_ASKED, "epochs": 1.5, "batch_size": 8}
    assert planned(100, size("7b"), **asked, epoch=1001, keep=2).schedule.steps == 188  # 1501.5 / 8, rounded up


@pytest.mark.parametrize(
    ("epochs", "epoch", "batch_size", "said"),
    [
        (2, 7, 64, "--epochs 2: whole steps of 64 sequences make 9.14; a smaller --batch-size, as 14, comes nearer"),
        (
            1,
            187,
            512,
            "--epochs 1: whole steps of 512 sequences make 2.74; a smaller --batch-size, as 187, comes nearer",
        ),
        (0.5, 1, 1, "--epochs 0.5: whole steps of 1 sequences make 1.00"),
        (1, 1000, 110, ""),  # 1.1 of 1
        (2, 640, 64, ""),
    ],
)
def test_more_epochs_than_were_asked_for_are_said(
    epochs: float, epoch: int, batch_size: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {**NOTHING_ASKED, "epochs": epochs, "batch_size": batch_size}
    planned(100, size("7b"), **asked, epoch=epoch, keep=2)
    assert capsys.readouterr().err == said + "\n" * bool(said)


def test_a_smaller_batch_is_named_that_all_processes_can_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    asked = {**NOTHING_ASKED, "epochs": 1, "batch_size": 512}
    planned(100, size("7b"), **asked, epoch=187, keep=2)
    assert "--batch-size, as 96, comes nearer" in capsys.readouterr().err
    planned(100, size("7b"), **asked, epoch=187, keep=2, devices=64)  # of a plan, which is not for this job
    assert "--batch-size, as 64, comes nearer" in capsys.readouterr().err


def test_a_short_run_warms_up_over_a_tenth() -> None:
    assert planned(64, size("tiny"), **{**NOTHING_ASKED, "steps": 50}, epoch=1000, keep=2).schedule.warmup == 5


def test_multi_head_stays_multi_head_when_heads_change() -> None:
    assert size("15m").changed(heads=12).kv_heads == 12
    assert size("15m").changed(heads=12, kv_heads=3).kv_heads == 3
    assert size("70b").changed(heads=32).kv_heads == 8
    assert size("15m").changed(dim=None, context=None) == SIZES["15m"].config


def test_sizes_are_found_in_any_case_and_others_are_refused_by_name() -> None:
    assert size("7B") == SIZES["7b"]
    with pytest.raises(Fault, match=r"--size: there is no size '8b'; choose one of .*llama1-7b.*70b"):
        size("8b")


@pytest.mark.parametrize(
    ("numbers", "flag"),
    [
        ({"heads": 5}, "--heads"),
        ({"heads": 16, "kv_heads": 16}, "--heads"),  # a head of 3 has no pairs
        ({"kv_heads": 4}, "--kv-heads"),
        ({"kv_heads": 12}, "--kv-heads"),
        ({"layers": 0}, "--layers"),
        ({"context": -1}, "--context"),
    ],
)
def test_impossible_shapes_are_refused_by_flag(numbers: dict[str, int], flag: str) -> None:
    with pytest.raises(Fault) as refused:
        replace(SMALL, **numbers)
    assert refused.value.subject == flag


@pytest.mark.parametrize("config", [SMALL, *(row.config for row in SIZES.values())])
def test_config_json_round_trip(config: Config) -> None:
    assert Config.from_hf(config.to_hf("bfloat16"), "config.json") == config


def test_transformers_reads_our_config() -> None:
    theirs = LlamaConfig.from_dict(SMALL.to_hf("bfloat16"))
    assert theirs.num_key_value_heads == 3
    assert theirs.rope_parameters["rope_theta"] == 5e5
    assert theirs.dtype == torch.bfloat16
    assert theirs.tie_word_embeddings is False


def test_the_config_of_new_transformers_is_read() -> None:
    """Version 5 writes rope_parameters and dtype where version 4 wrote rope_theta and torch_dtype."""
    raw = LlamaConfig.from_dict(SMALL.to_hf("bfloat16")).to_dict()
    assert "rope_parameters" in raw
    assert "rope_theta" not in raw
    assert Config.from_hf(raw, "config.json") == SMALL


def test_the_config_of_llama1_is_read() -> None:
    """It is from before grouped queries: no num_key_value_heads, no rope_theta."""
    raw = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 100, "rms_norm_eps": 1e-6, "max_sequence_length": 2048,
    }  # fmt: skip
    config = Config.from_hf(raw, "config.json")
    assert (config.kv_heads, config.rope_theta, config.context, config.norm_eps) == (4, 10_000.0, 2048, 1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mistral"}, "mistral"),
        ({"model_type": None}, "only Llama"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"num_attention_heads": 7}, "7 heads do not divide"),
        ({"num_key_value_heads": 4}, "4 key/value heads"),
    ],
)
def test_what_is_no_llama_1_or_2_is_refused(change: dict[str, Any], said: str) -> None:
    raw = {**SMALL.to_hf("float32"), **change}
    with pytest.raises(Fault, match=said) as refused:
        Config.from_hf(raw, "elsewhere/config.json")
    assert refused.value.subject == "elsewhere/config.json"


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"])
def test_a_config_that_lacks_a_number_is_refused(key: str) -> None:
    raw = SMALL.to_hf("float32")
    del raw[key]
    with pytest.raises(Fault, match=f"{key}: missing"):
        Config.from_hf(raw, "config.json")


@pytest.mark.parametrize(("key", "value"), [("hidden_size", "48"), ("vocab_size", None), ("rms_norm_eps", "small")])
def test_a_config_with_a_number_that_is_none_is_refused(key: str, value: Any) -> None:
    with pytest.raises(Fault):
        Config.from_hf({**SMALL.to_hf("float32"), key: value}, "config.json")


def test_default_rope_scaling_is_none() -> None:
    raw = {**SMALL.to_hf("float32"), "rope_scaling": {"rope_type": "default"}}
    assert Config.from_hf(raw, "config.json") == SMALL
