"""PPO's arithmetic on numbers worked out by hand: rewards, advantages, both losses in each of their branches."""

import math

import pytest
import torch
from torch import Tensor

from llamactl.align import ppo

YES, NO = True, False


def numbers(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# -- rewards of answers


def test_whitening_divides_by_the_deviation_of_n_minus_1() -> None:
    """1, 3 and 5 have the mean 3 and the squares 4, 0, 4: over 2 that is 4, whose root is 2 (over 3 it were 1.63)."""
    close(ppo.whitened(numbers(1, 3, 5)), numbers(-1, 0, 1))
    close(ppo.whitened(numbers(5, 1, 3)), numbers(1, -1, 0))
    close(ppo.whitened(numbers(-2, -6)), numbers(2**-0.5, -(2**-0.5)))


def test_whitening_sees_small_differences_of_large_numbers() -> None:
    """Whole numbers up to 2^24 are exact in fp32; their squares are not."""
    close(ppo.whitened(numbers(1e7 + 1, 1e7 + 3, 1e7 + 5)), numbers(-1, 0, 1))


@pytest.mark.parametrize("values", [[], [7.0], [0.1] * 5, [-3.0, -3.0]])
def test_what_does_not_vary_is_whitened_to_zeros(values: list[float]) -> None:
    found = ppo.whitened(torch.tensor(values))
    assert (found.dtype, found.tolist()) == (torch.float32, [0.0] * len(values))


def test_whitening_keeps_the_dtype_it_is_given() -> None:
    assert ppo.whitened(torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)).dtype == torch.float64


def test_an_answer_that_does_not_count_gets_the_penalty_and_moves_no_other() -> None:
    """99 would be the largest by far; nan is the score of one that could not be judged."""
    scores = numbers(1, 99, 3, math.nan, 5)
    found = ppo.rewards(scores, torch.tensor([YES, NO, YES, NO, YES]), -2.5)
    close(found, numbers(-1, -2.5, 0, -2.5, 1))
    close(scores[:3], numbers(1, 99, 3))  # they are left as they were


def test_where_none_counts_all_get_the_penalty() -> None:
    close(ppo.rewards(numbers(1, 2, math.nan), torch.tensor([NO, NO, NO]), -1), numbers(-1, -1, -1))


def test_where_one_counts_it_gets_the_mean() -> None:
    close(ppo.rewards(numbers(1, 2, 3), torch.tensor([NO, YES, NO]), -1), numbers(-1, 0, -1))


# -- rewards of tokens

MASK = torch.tensor([[YES, YES, NO], [YES, YES, YES], [YES, NO, NO]])


def test_the_reward_is_the_last_tokens_and_each_pays_for_its_own_kl() -> None:
    """What stands behind an answer's end does not count."""
    log_ratios = numbers([0.5, -0.25, 9], [1, 2, 3], [-4, 9, 9])
    found = ppo.shaped(numbers(2, -1, 0.5), log_ratios, MASK, 0.1)
    close(found, numbers([-0.05, 0.025 + 2, 0], [-0.1, -0.2, -0.3 - 1], [0.4 + 0.5, 0, 0]))


def test_kl_is_taken_off_after_whitening() -> None:
    """Scores 1, 3, 5 whiten to -1, 0, 1; KL of 10 nats at 0.1 takes 1 from the first answer alone.

    Taken off before it would turn the scores into 0, 3, 5, and those into -1.06, 0.13, 0.93.
    """
    of_answers = ppo.rewards(numbers(1, 3, 5), torch.tensor([YES, YES, YES]), -1)
    of_tokens = ppo.shaped(of_answers, numbers([4, 6], [0, 0], [1, -1]), torch.ones(3, 2, dtype=torch.bool), 0.1)
    close(of_tokens.sum(1), numbers(-2, 0, 1))


def test_without_kl_there_is_nothing_before_the_last_token() -> None:
    found = ppo.shaped(numbers(2, -1, 0.5), torch.full((3, 3), 7.0), MASK, 0.0)
    close(found, numbers([0, 2, 0], [0, 0, -1], [0.5, 0, 0]))


# -- advantages

REWARDS = numbers([0, 0, 1], [0, 2, 0])
VALUES = numbers([0.5, 0.4, 0.2], [1, -1, 7])  # the last stands behind the end of the second answer
ENDS = torch.tensor([[YES, YES, YES], [YES, YES, NO]])


@pytest.mark.parametrize(
    ("gamma", "lam", "gains", "returns"),
    [
        # errors r + V' - V are -0.1, -0.2, 0.8 and -2, 3; from the end, each adds 0.95 of the next advantage
        (1.0, 0.95, ([0.432, 0.56, 0.8], [0.85, 3, 0]), ([0.932, 0.96, 1.0], [1.85, 2, 0])),
        # errors alone
        (1.0, 0.0, ([-0.1, -0.2, 0.8], [-2, 3, 0]), ([0.4, 0.2, 1.0], [-1, 2, 0])),
        # all that comes, less what was expected
        (1.0, 1.0, ([0.5, 0.6, 0.8], [1, 3, 0]), ([1, 1, 1], [2, 2, 0])),
        # errors r + V'/2 - V are -0.3, -0.3, 0.8 and -1.5, 3; each adds a quarter of the next
        (0.5, 0.5, ([-0.325, -0.1, 0.8], [-0.75, 3, 0]), ([0.175, 0.3, 1.0], [0.25, 2, 0])),
        (0.0, 0.95, ([-0.5, -0.4, 0.8], [-1, 3, 0]), ([0, 0, 1], [0, 2, 0])),
    ],
)
def test_advantages_end_with_the_answer(gamma: float, lam: float, gains: object, returns: object) -> None:
    """Nothing is expected behind the last token, whatever the critic says of that place."""
    found = ppo.advantages(REWARDS, VALUES, ENDS, gamma, lam)
    close(found[0], torch.tensor(gains, dtype=torch.float32))
    close(found[1], torch.tensor(returns, dtype=torch.float32))


def test_an_answer_of_one_token_gains_its_reward_less_its_value() -> None:
    gains, returns = ppo.advantages(numbers([3]), numbers([1]), torch.tensor([[YES]]), 0.9, 0.8)
    assert (gains.item(), returns.item()) == (2, 3)


def test_lessons_are_advantages_whitened_over_tokens() -> None:
    """With lambda 0 the gains are errors: 1 of the one answer, 0 - 1 + 4 = 3 and 6 - 1 = 5 of the other.

    KL of 0.5 and 1 nats at 2 has been taken off: 2 - 1 = 1 is the first answer's, 8 - 2 = 6 the other's last token's.
    """
    known = {
        "log_probs": numbers([-1, 5], [-2, -1]),
        "reference": numbers([-1.5, 0], [-2, -2]),
        "values": numbers([0, 5], [-2, 1]),
    }
    found = ppo.lessons(numbers(2, 8), known, torch.tensor([[YES, NO], [YES, YES]]), 2.0, 1.0, 0.0)
    assert found.keys() == {"advantages", "returns"}
    close(found["advantages"], numbers([-1, 0], [0, 1]))
    close(found["returns"], numbers([1, 0], [1, 6]))


# -- the policy's loss

THIRD = math.log(1.5) - 0.5  # what k3 is not at a ratio of 1.5, with its sign changed


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "clipped", "k3"),
    [
        (1.0, 3.0, -3.0, -3.0, 0, 0.0),
        (1.0, -3.0, 3.0, 3.0, 0, 0.0),
        (1.1, 2.0, -2.2, -2.2, 0, 0.1 - math.log(1.1)),  # within the clip, either way
        (0.9, -2.0, 1.8, 1.8, 0, math.log(10 / 9) - 0.1),
        (1.5, 2.0, -2.4, 0.0, 1, -THIRD),  # a better one is not pushed further than 1.2
        (1.5, -2.0, 3.0, 3.0, 1, -THIRD),  # one that got too likely is pushed back
        (0.5, -2.0, 1.6, 0.0, 1, math.log(2) - 0.5),  # a worse one not further than 0.8
        (0.5, 2.0, -1.0, -1.0, 1, math.log(2) - 0.5),
    ],
)
def test_the_policys_loss_in_each_of_its_branches(
    ratio: float, advantage: float, loss: float, slope: float, clipped: int, k3: float
) -> None:
    """And its slope by log p: none where it is clipped, minus the advantage where the ratio is 1."""
    before = numbers(-2.0)
    now = (before + math.log(ratio)).requires_grad_(True)
    sums = ppo.policy_loss(now, before, numbers(advantage), 0.2)
    sums[0].backward()
    assert now.grad is not None
    assert sums.tolist() == pytest.approx([loss, clipped, k3, float(ratio != 1)], abs=1e-6)
    assert now.grad.item() == pytest.approx(slope, abs=1e-6)


def test_the_policys_loss_is_a_sum_over_tokens() -> None:
    ratios, gains = numbers(1.5, 1, 0.5, 1.5), numbers(2, 3, 2, -2)
    sums = ppo.policy_loss(ratios.log(), torch.zeros(4), gains, 0.2)
    assert sums.tolist() == pytest.approx([-2.4 - 3 - 1 + 3, 3, 2 * -THIRD + math.log(2) - 0.5, 3], abs=1e-6)
    assert len(sums) == 1 + len(ppo.OF_POLICY)


def test_at_a_ratio_of_1_the_gradient_is_minus_the_advantage_of_each_token() -> None:
    gains = numbers(0.3, -2, 0, 5)
    now = numbers(-1, -2, -3, -0.5).requires_grad_(True)
    ppo.policy_loss(now, now.detach().clone(), gains, 0.2)[0].backward()
    assert now.grad is not None
    assert now.grad.tolist() == (-gains).tolist()


def test_what_is_told_beside_the_loss_has_no_gradient() -> None:
    now = numbers(0.3, -0.4).requires_grad_(True)
    (slope,) = torch.autograd.grad(ppo.policy_loss(now, torch.zeros(2), torch.zeros(2), 0.2).sum(), now)
    assert slope.tolist() == [0, 0]


@pytest.mark.parametrize(("ratio", "off"), [(1.0, 0), (1 + 5e-5, 0), (1 - 5e-5, 0), (1 + 2e-4, 1), (1 - 2e-4, 1)])
def test_a_ratio_is_off_beyond_a_ten_thousandth(ratio: float, off: int) -> None:
    assert ppo.policy_loss(numbers(ratio).log(), torch.zeros(1), torch.ones(1), 0.2)[3].item() == off


def test_a_clip_of_its_own() -> None:
    """Clipped at 1.05, not at 1.2."""
    loss, clipped, *_ = ppo.policy_loss(numbers(1.1).log(), torch.zeros(1), torch.ones(1), 0.05)
    assert (loss.item(), clipped.item()) == (pytest.approx(-1.05), 1)


# -- the critic's


@pytest.mark.parametrize(
    ("value", "returned", "loss", "slope"),
    [
        (0.1, 1.0, 0.405, -0.9),  # near what it was: 0.9 squared, halved
        (-0.1, 1.0, 0.605, -1.1),
        (0.5, 1.0, 0.32, 0.0),  # it has come nearer than it may: as far off as 0.2 is, and no reason to go on
        (0.5, 0.0, 0.125, 0.5),  # it has gone too far, and is farther off than 0.2 is
        (-0.5, 1.0, 1.125, -1.5),
        (-0.5, -1.0, 0.32, 0.0),
        (0.2, 0.2, 0.0, 0.0),
    ],
)
def test_the_critics_loss_in_each_of_its_branches(value: float, returned: float, loss: float, slope: float) -> None:
    """It was 0 before, and may move by 0.2."""
    now = numbers(value).requires_grad_(True)
    found = ppo.value_loss(now, numbers(0), numbers(returned), 0.2)
    found.backward()  # type: ignore[no-untyped-call]
    assert now.grad is not None
    assert (found.item(), now.grad.item()) == (pytest.approx(loss, abs=1e-6), pytest.approx(slope, abs=1e-6))


def test_the_critics_loss_is_a_sum_over_tokens_each_kept_near_what_it_was() -> None:
    """Both values are 1: from 0.9 that is near, from 0 it is not, and 0.2 is 2.8 off."""
    assert ppo.value_loss(numbers(1, 1), numbers(0.9, 0), numbers(3, 3), 0.2).item() == pytest.approx(2 + 3.92)


# -- how much a critic explains


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([1, 2, 3, 4], 1.0),
        ([11, 12, 13, 14], 1.0),  # of the variance: an offset is none
        ([2, 2, 2, 2], 0.0),
        ([0.5, 1, 1.5, 2], 0.75),
        ([4, 3, 2, 1], -3.0),  # what is left is twice as far apart: four times the variance
    ],
)
def test_explained_variance(values: list[float], share: float) -> None:
    assert ppo.explained(torch.tensor(values, dtype=torch.float32), numbers(1, 2, 3, 4)) == pytest.approx(share)


def test_of_returns_that_are_all_alike_nothing_is_explained() -> None:
    assert ppo.explained(numbers(1, 2, 3), numbers(5, 5, 5)) == 0.0
