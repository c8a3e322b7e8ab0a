"""Reward models: their scores are transformers', an answer's does not depend on others, and how they begin."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model import CPU, ODD, change_config, fresh, same, written
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from llamactl.artifacts import checkpoint
from llamactl.errors import Fault
from llamactl.model import trees
from llamactl.model.config import PAD
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama
from llamactl.model.trees import Forest, Tree

SCORED = replace(ODD, scored=True)


def reward_model(dtype: torch.dtype = torch.float32, seed: int = 1, **changed: Any) -> RewardModel:
    model = fresh(replace(SCORED, **changed), dtype, seed, RewardModel)
    assert isinstance(model, RewardModel)
    return model


def ids(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, ODD.vocab) for _ in range(length)]


def padded(sequences: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, sequences))
    return torch.tensor([[*one, *[PAD] * (longest - len(one))] for one in sequences])


@torch.no_grad()
def scores(model: RewardModel, sequences: list[list[int]]) -> torch.Tensor:
    return model.scores(Forest.of([Tree.of([one]) for one in sequences], CPU))


SEQUENCES = [ids(length, length) for length in (30, 1, 17, 30, 44)]


# -- transformers


@pytest.mark.parametrize(("n_heads", "kv_heads"), [(6, 3), (6, 6), (6, 1)])
@torch.no_grad()
def test_transformers_gives_the_scores_of_a_model_that_we_wrote(tmp_path: Path, n_heads: int, kv_heads: int) -> None:
    """In a batch padded on the right by the id that the config names."""
    model = reward_model(heads=n_heads, kv_heads=kv_heads)
    written(model, tmp_path)
    other, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert (type(other), other.config.num_labels, other.config.pad_token_id) == (LlamaForSequenceClassification, 1, PAD)
    theirs = other(padded(SEQUENCES)).logits[:, 0]
    ours = scores(model, SEQUENCES)
    assert ours.std() > 0.3  # or the comparison would say little
    assert (ours - theirs).abs().max() < 1e-4
    assert (scores(RewardModel.load(tmp_path, CPU), SEQUENCES) - theirs).abs().max() < 1e-4


@torch.no_grad()
def test_transformers_gives_the_scores_of_a_pair_that_shares_its_prompt(tmp_path: Path) -> None:
    model = reward_model()
    other = AutoModelForSequenceClassification.from_pretrained(written(model, tmp_path))
    prompt = ids(20, 1)
    pair = [[*prompt, 3, *ids(10, 2)], [*prompt, 4, *ids(25, 3)]]
    theirs = other(padded(pair)).logits[:, 0]
    assert (model.scores(Forest.of([Tree.of(pair)], CPU)) - theirs).abs().max() < 1e-4


def their_config(**changed: Any) -> LlamaConfig:
    shape = {name: value for name, value in ODD.to_hf("float32").items() if name != "architectures"}
    return LlamaConfig.from_dict({**shape, "pad_token_id": PAD, **changed})


@torch.no_grad()
def test_a_model_that_transformers_wrote_gives_its_scores(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = LlamaForSequenceClassification(their_config(num_labels=1)).eval()
    for parameter in other.parameters():
        parameter.mul_(6 if parameter.dim() > 1 else 1)
    other.save_pretrained(tmp_path)
    loaded = RewardModel.load(tmp_path, CPU)
    assert loaded.config == SCORED
    theirs = other(padded(SEQUENCES)).logits[:, 0]
    assert theirs.std() > 0.3
    assert (scores(loaded, SEQUENCES) - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_of_several_labels_is_refused(tmp_path: Path, labels: int) -> None:
    LlamaForSequenceClassification(their_config(num_labels=labels)).save_pretrained(tmp_path)
    with pytest.raises(Fault) as fault:
        RewardModel.load(tmp_path, CPU)
    assert f"{labels} labels, where a reward model has one score" in str(fault.value)
    assert "\n" not in str(fault.value)


def test_the_two_kinds_are_not_taken_for_each_other(tmp_path: Path) -> None:
    language, reward = written(fresh(ODD), tmp_path / "a"), written(reward_model(), tmp_path / "b")
    with pytest.raises(Fault, match="is a language model, where a reward model is wanted"):
        RewardModel.load(language, CPU)
    with pytest.raises(Fault, match="is a reward model, where a language model is wanted"):
        Llama.load(reward, CPU)
    with pytest.raises(Fault, match="is a reward model, where a language model is wanted"):
        RewardModel.begun(reward, torch.float32, CPU)
    change_config(language, architectures=["LlamaForSequenceClassification"], num_labels=1)
    with pytest.raises(Fault, match=r"has not: lm_head\.weight"):
        RewardModel.load(language, CPU)


# -- a score is the answer's own


def groups() -> list[list[list[int]]]:
    """Answers to prompts: one to four of them, of any length, one of them twice."""
    made = []
    for number in range(40):
        draw = random.Random(number)
        prompt = ids(draw.randint(1, 30), 1000 + number)
        answers = [[*prompt, *ids(draw.randint(1, 20), 50 * number + n), 2] for n in range(draw.randint(1, 4))]
        made.append([*answers, answers[0]] if number % 7 == 0 else answers)
    return made


@pytest.mark.parametrize("at_once", [1, 100, 8192])
def test_a_score_does_not_depend_on_what_else_is_scored(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reward_model()
    alone = [[scores(model, [one]).item() for one in group] for group in groups()]
    monkeypatch.setattr(trees, "BATCH_TOKENS", at_once)
    found = model.judge(groups())
    assert [len(group) for group in found] == [len(group) for group in groups()]
    for ours, wanted in zip(found, alone, strict=True):
        assert ours == pytest.approx(wanted, abs=1e-5)
    backwards = model.judge([group[::-1] for group in groups()[::-1]])
    for ours, wanted in zip(backwards[::-1], alone, strict=True):
        assert ours[::-1] == pytest.approx(wanted, abs=1e-5)


def test_no_more_is_judged_at_once_than_memory_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers there are to one prompt."""
    monkeypatch.setattr(trees, "BATCH_TOKENS", 48)
    model, places = reward_model(), []

    def seen(forest: Forest) -> torch.Tensor:
        places.append(forest.tokens.numel())
        return RewardModel.scores(model, forest)

    monkeypatch.setattr(model, "scores", seen)
    answers = [[1, 5, 6, number, 2] for number in range(7, 40)]
    found = model.judge([answers])[0]
    assert len(places) > 1
    assert max(places) <= 48
    assert found == pytest.approx(scores(reward_model(), answers).tolist(), abs=1e-5)


def test_a_long_prompt_is_computed_once_for_many_short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each few, as if they were written out; and yet no more keys are there than memory is planned for."""
    monkeypatch.setattr(trees, "BATCH_TOKENS", 96)
    model, forests = reward_model(), []

    def seen(forest: Forest) -> torch.Tensor:
        forests.append(forest)
        return RewardModel.scores(model, forest)

    monkeypatch.setattr(model, "scores", seen)
    prompt = [1, *ids(39, 5)]
    answers = [[*prompt, number, 2] for number in range(7, 40)]  # of 42 tokens: 18 of them have 8 * 96 keys
    found = model.judge([answers])[0]
    assert [len(forest.ends) for forest in forests] == [18, 15]
    assert sum(forest.tokens.numel() for forest in forests) <= 2 * (40 + 8) + 33 * 2
    assert found == pytest.approx(scores(reward_model(), answers).tolist(), abs=1e-5)


def test_equal_answers_have_equal_scores() -> None:
    one, other = [1, 5, 6, 2], [1, 5, 7, 2]
    first, second, third, fourth = reward_model().judge([[one, other, one, other]])[0]
    assert (first, second) == (third, fourth)
    assert first != second


def test_there_may_be_nothing_to_judge() -> None:
    assert reward_model().judge([]) == []


def test_a_score_is_in_fp32_and_so_is_its_head_whatever_the_rest_computes_in() -> None:
    model = reward_model(torch.bfloat16)
    found = scores(model, SEQUENCES)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    assert (found - scores(reward_model(), SEQUENCES)).norm() < 0.1 * found.norm()


# -- how it begins, and is kept


def test_it_begins_as_the_language_model_with_a_score_of_nothing(tmp_path: Path) -> None:
    """Its head is passed over, and what it scores is 0 for whatever it sees."""
    language = fresh(ODD)
    written(language, tmp_path)
    model = RewardModel.begun(tmp_path, torch.float32, CPU)
    theirs = dict(language.named_parameters())
    ours = dict(model.named_parameters())
    assert ours.keys() == theirs.keys() - {"output.weight"} | {"score.weight"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())
    assert ours["score.weight"].shape == (1, ODD.dim)
    assert not ours["score.weight"].any()
    assert all(parameter.requires_grad for parameter in ours.values())
    assert model.config == SCORED
    assert scores(model, SEQUENCES).tolist() == [0.0] * 5


def test_it_begins_from_tied_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = LlamaForCausalLM(their_config(tie_word_embeddings=True, pad_token_id=None))
    other.save_pretrained(tmp_path)
    capsys.readouterr()
    model = RewardModel.begun(tmp_path, torch.float32, CPU)
    assert torch.equal(model.tok_embeddings.weight, other.model.embed_tokens.weight)
    assert capsys.readouterr().err == ""
    assert model.config.to_hf("float32")["tie_word_embeddings"] is False


def test_what_is_missing_or_too_much_is_refused_at_the_beginning(tmp_path: Path) -> None:
    written(fresh(ODD), tmp_path)
    tensors = load_file(tmp_path / checkpoint.WEIGHTS)
    save_file({**tensors, "value_head.weight": torch.ones(1)}, tmp_path / checkpoint.WEIGHTS)
    with pytest.raises(Fault, match=r"has not: value_head\.weight"):
        RewardModel.begun(tmp_path, torch.float32, CPU)
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, tmp_path / checkpoint.WEIGHTS)
    with pytest.raises(Fault, match=r"missing \(first: model.norm.weight\)"):
        RewardModel.begun(tmp_path, torch.float32, CPU)


def test_stored_in_bf16_the_score_stays_in_fp32(tmp_path: Path) -> None:
    model = reward_model()
    config = model.config.to_hf("bfloat16")
    checkpoint.save(tmp_path, config, model.hf_state(torch.bfloat16), b"", {}, "")
    stored = load_file(tmp_path / checkpoint.WEIGHTS)
    assert {name for name, tensor in stored.items() if tensor.dtype == torch.float32} == {"score.weight"}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32, torch.bfloat16}
    assert torch.equal(stored["score.weight"], model.score.weight)
    loaded = RewardModel.load(tmp_path, CPU)
    assert (loaded.dtype, loaded.norm.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(loaded.score.weight, model.score.weight)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        found = scores(RewardModel.load(tmp_path, CPU, torch.float32), SEQUENCES)
        assert (found - theirs(padded(SEQUENCES)).logits[:, 0]).abs().max() < 1e-4


def test_it_is_saved_and_loaded_to_the_bit(tmp_path: Path) -> None:
    model = reward_model()
    written(model, tmp_path, 60_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    assert same(RewardModel.load(tmp_path, CPU), model)
    config = json.loads((tmp_path / checkpoint.CONFIG).read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["num_labels"], config["pad_token_id"]) == (1, PAD)
