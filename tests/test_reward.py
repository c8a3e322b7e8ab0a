"""What a reward model learns: the formulas of the paper in float64, their limits, and what is counted beside."""

import math

import pytest
import torch
from torch import Tensor

from llamactl.align import reward
from llamactl.artifacts.records import SAFE
from llamactl.train.pairs import UNKNOWN

NAN = UNKNOWN


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_ranking_loss_is_equation_2() -> None:
    chosen, rejected, margin = 3 * randn(50), 3 * randn(50, seed=1), randn(50, seed=2).abs()
    found = reward.ranking_loss(chosen, rejected, margin)
    wanted = [
        -math.log(sigmoid(c - r - m)) for c, r, m in zip(*map(Tensor.tolist, (chosen, rejected, margin)), strict=True)
    ]
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)


def test_a_margin_asks_for_more() -> None:
    apart, none = torch.tensor([1.0]), torch.zeros(1)
    plain, wide = (reward.ranking_loss(apart, none, torch.tensor([m])).item() for m in (0.0, 1.0))
    assert (plain, wide) == pytest.approx((math.log(1 + math.exp(-1)), math.log(2)))


def test_margins_are_those_of_table_27() -> None:
    ratings = ("significantly_better", "better", "slightly_better", "negligibly_better")
    assert [reward.MARGINS["small"][rating] for rating in ratings] == [1, 2 / 3, 1 / 3, 0]
    assert [reward.MARGINS["large"][rating] for rating in ratings] == [3, 2, 1, 0]
    assert reward.MARGINS["none"] == {}


@pytest.mark.parametrize(
    "shapes", [((3,), (3,), (1,)), ((3,), (1,), (3,)), ((3, 1), (3,), (3,)), ((3,), (3,), (3, 1)), ((3,), (3,), ())]
)
def test_shapes_that_would_broadcast_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        reward.ranking_loss(*(torch.zeros(shape) for shape in shapes))


def test_a_margin_for_each_side_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        reward.loss(torch.zeros(3, 2), torch.zeros(3, 2), torch.full((3, 2), NAN), 1.0)


@pytest.mark.parametrize("apart", [-1e4, -100.0, 100.0, 1e4])
def test_extreme_differences_are_finite(apart: float) -> None:
    scores = torch.tensor([[apart, 0.0]], requires_grad=True)
    sums = reward.loss(scores, torch.zeros(1), torch.tensor([[1.0, 0.0]]), 1.0)
    sums[0].backward()
    assert bool(sums.isfinite().all()) and bool(scores.grad.isfinite().all())
    assert sums[0].item() == pytest.approx(1.5 * max(0.0, -apart) + 0.5 * math.log(2), rel=1e-6)


# -- safety


def test_labels_say_which_side_is_safe() -> None:
    assert SAFE == {"chosen_safe": (1, 0), "both_safe": (1, 1), "both_unsafe": (0, 0)}


def test_the_safety_loss_is_cross_entropy_where_there_is_a_label() -> None:
    safe = torch.tensor([[1, 0], [NAN, NAN], [1, 1], [0, 0]], dtype=torch.float64)
    scores = 2 * randn(4, 2)
    found = reward.safety_loss(scores, safe)
    for row, (label, losses) in enumerate(zip(safe.tolist(), found.tolist(), strict=True)):
        for side, (is_safe, loss) in enumerate(zip(label, losses, strict=True)):
            p = sigmoid(scores[row, side].item())
            wanted = 0.0 if math.isnan(is_safe) else -math.log(p if is_safe else 1 - p)
            assert loss == pytest.approx(wanted, rel=1e-12)


def test_what_has_no_label_has_no_gradient_of_safety() -> None:
    scores = randn(3, 2).requires_grad_()
    safe = torch.tensor([[NAN, NAN], [1.0, 0.0], [NAN, NAN]])
    reward.safety_loss(scores, safe).sum().backward()
    assert (scores.grad != 0).tolist() == [[False, False], [True, True], [False, False]]


# -- all of it


def test_the_loss_is_the_sum_of_both_and_says_what_is_in_it() -> None:
    scores, margin = 2 * randn(5, 2), randn(5, seed=1).abs()
    safe = torch.tensor([[1.0, 0.0], [NAN, NAN], [1.0, 1.0], [0.0, 0.0], [NAN, NAN]])
    total, right, apart, safety = reward.loss(scores, margin, safe, 0.3).tolist()
    ranking = reward.ranking_loss(scores[:, 0], scores[:, 1], margin).sum().item()
    of_safety = reward.safety_loss(scores, safe).sum().item() / 2
    assert reward.MEASURED == ("accuracy", "margin", "safety_loss")
    assert total == pytest.approx(ranking + 0.3 * of_safety)
    assert right == sum(chosen > rejected for chosen, rejected in scores.tolist())
    assert apart == pytest.approx((scores[:, 0] - scores[:, 1]).sum().item())
    assert safety == pytest.approx(of_safety)


def test_without_weight_the_safety_loss_is_measured_and_teaches_nothing() -> None:
    scores, safe = randn(2, 2).requires_grad_(), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    sums = reward.loss(scores, torch.zeros(2), safe, 0.0)
    assert sums[3] > 0
    found, wanted = (
        torch.autograd.grad(loss, scores)[0]
        for loss in (sums[0], reward.ranking_loss(scores[:, 0], scores[:, 1], torch.zeros(2)).sum())
    )
    assert torch.equal(found, wanted)


def test_a_tie_is_half_right() -> None:
    scores = torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    assert reward.loss(scores, torch.zeros(4), torch.full((4, 2), NAN), 1.0)[1] == 2.0
