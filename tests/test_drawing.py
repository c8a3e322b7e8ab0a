"""The choice of tokens: how often each is drawn, the numbers behind it, log-probabilities, and what is in doubt."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from llamactl.model import drawing
from llamactl.model.drawing import CHOICES, Drawing, Drawn, Sampling, draw, key, numbers

torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

CPU = torch.device("cpu")
ALL = Sampling(top_p=1.0, top_k=0, max_new_tokens=1, seed=0)
LAST = 1 - 2**-53  # the largest number there is
VOCABULARY = 100  # no cube: some of the 125 places of three choices among five belong to no token


def samples(count: int, temperature: float = 1.0, first: int = 0) -> Drawing:
    """Those of so many prompts, at their first token."""
    return Drawing.of([(temperature, key(0, [number], 0), 0) for number in range(first, first + count)], CPU)


def drawn(logits: np.ndarray, temperature: float = 1.0, sampling: Sampling = ALL, count: int = 20_000) -> Drawn:
    """So many draws by the same scores."""
    rows = torch.tensor(logits, dtype=torch.float32).expand(count, -1).clone()
    return draw(rows, samples(count, temperature), sampling)


def scores(seed: int, spread: float = 2.0, vocabulary: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, vocabulary).astype(np.float32)


def naive(logits: np.ndarray, temperature: float, sampling: Sampling) -> np.ndarray:
    """The distribution that should be drawn from, of one row, by loops; what ties with the last one let in is, too."""
    scaled = [float(x) / temperature for x in logits]
    kept = set(range(len(scaled)))
    if 0 < sampling.top_k < len(scaled):
        last = sorted(scaled, reverse=True)[sampling.top_k - 1]
        kept = {i for i in kept if scaled[i] >= last}
    top = max(scaled)
    mass = {i: np.exp(scaled[i] - top) for i in kept}
    total = sum(mass.values())
    nucleus = {}
    for i in kept:
        likelier = sum(mass[j] for j in kept if mass[j] > mass[i]) / total
        if likelier == 0 or likelier < sampling.top_p:
            nucleus[i] = mass[i]
    probabilities = np.zeros(len(scaled))
    for i, one in nucleus.items():
        probabilities[i] = one / sum(nucleus.values())
    return probabilities


def surprise(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Chi-square, in standard deviations from its mean; what is expected fewer than 8 times is taken together."""
    wanted = probabilities * counts.sum()
    rare = wanted < 8
    parts = [(counts[rare].sum(), wanted[rare].sum()), *zip(counts[~rare], wanted[~rare], strict=True)]
    parts = [(count, want) for count, want in parts if want > 0]
    freedom = len(parts) - 1
    if not freedom:
        return 0.0
    return float((sum((count - want) ** 2 / want for count, want in parts) - freedom) / (2 * freedom) ** 0.5)


def with_numbers(monkeypatch: pytest.MonkeyPatch, choose: Callable[[int], Sequence[float]]) -> None:
    """Have all draw by these numbers, of each attempt."""
    monkeypatch.setattr(
        drawing, "numbers", lambda rows, attempt: torch.tensor([choose(attempt)] * len(rows.keys), dtype=torch.float64)
    )


# -- how often


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("top_k", [0, 1, 7, 40, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_tokens_are_drawn_as_often_as_they_should_be(temperature: float, top_k: int, top_p: float) -> None:
    sampling = ALL._replace(top_p=top_p, top_k=top_k)
    logits = scores(top_k)
    wanted = naive(logits, temperature, sampling)
    counts = np.bincount(drawn(logits, temperature, sampling).tokens.numpy(), minlength=VOCABULARY)
    assert len(counts) == VOCABULARY
    assert not counts[wanted == 0].any()
    assert surprise(counts, wanted) < 5


@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("top_k", [0, 5, 30])
def test_what_is_as_likely_as_the_last_one_let_in_is_let_in_too(top_k: int, top_p: float) -> None:
    sampling = ALL._replace(top_p=top_p, top_k=top_k)
    logits = scores(2, 1).round()
    wanted = naive(logits, 1.0, sampling)
    assert len(set(wanted)) < 9  # many are as likely as each other, also the last ones
    counts = np.bincount(drawn(logits, 1.0, sampling).tokens.numpy(), minlength=VOCABULARY)
    assert (counts > 0).tolist() == (wanted > 0).tolist()
    assert surprise(counts, wanted) < 5


@pytest.mark.parametrize("vocabulary", [2, 7, 8, 9, 27, 28, 343, 512, 1001])
def test_tokens_of_any_vocabulary_are_drawn_as_often_as_they_should_be(vocabulary: int) -> None:
    """Also of one that is a cube, or one more or less."""
    logits = scores(vocabulary, 1, vocabulary)
    counts = np.bincount(drawn(logits).tokens.numpy(), minlength=vocabulary)
    assert len(counts) == vocabulary
    assert surprise(counts, naive(logits, 1.0, ALL)) < 5


def test_tokens_that_follow_each_other_are_drawn_apart() -> None:
    """By the numbers of one sample, token after token."""
    count, half = 20_000, torch.tensor([0.0, 0.0]).expand(20_000, 2)
    one = Drawing(torch.ones(count), torch.full((count,), key(0, [1], 0)), torch.arange(count))
    tokens = draw(half.clone(), one, ALL).tokens.numpy()
    pairs = np.bincount(2 * tokens[:-1] + tokens[1:], minlength=4)
    assert surprise(pairs, np.full(4, 0.25)) < 5


# -- the ends


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3])
@pytest.mark.parametrize("edge", ["first", "last", "both", "between"])
def test_a_token_without_probability_is_never_drawn(edge: str, top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = scores(1, 1)
    places = np.arange(VOCABULARY)
    near, far = places < 30, places >= 70
    out = {"first": near, "last": far, "both": near | far, "between": ~(near | far)}[edge]
    logits[out] = -np.inf
    sampling = ALL._replace(top_p=top_p)
    assert np.isfinite(logits[drawn(logits, 1.0, sampling).tokens]).all()
    for u in (0.0, 5e-324, 1e-300, 0.2, 0.4, 0.6, 0.8, LAST):
        for v in (0.0, 0.5, LAST):
            with_numbers(monkeypatch, lambda attempt, u=u, v=v: (u, v, u))  # type: ignore[misc]
            assert np.isfinite(logits[drawn(logits, 1.0, sampling, 1).tokens]).all()


def test_numbers_near_0_and_1_draw_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    even, peaked = np.zeros(1000, dtype=np.float32), np.full(1000, -80.0, dtype=np.float32)
    peaked[500] = 80.0
    for u, end in ((0.0, 0), (1e-12, 0), (LAST, 999)):
        with_numbers(monkeypatch, lambda attempt, u=u: (u, u, u))  # type: ignore[misc]
        assert drawn(even, count=1).tokens.tolist() == [end]
        assert drawn(peaked, 1.0, ALL._replace(top_p=0.9), 1).tokens.tolist() == [500]


@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.01])
def test_the_likeliest_token_is_left_whatever_top_p(top_p: float) -> None:
    logits = scores(3)
    found = drawn(logits, 1.0, ALL._replace(top_p=top_p), 1000)
    assert set(found.tokens.tolist()) == {logits.argmax()}


def test_top_p_ends_though_each_number_draws_the_least_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sorted vocabulary, and numbers that each draw the last of those that are left: one is struck off at a time."""
    logits = np.linspace(5, 0, VOCABULARY, dtype=np.float32)
    wanted = naive(logits, 1.0, ALL._replace(top_p=0.3))
    with_numbers(monkeypatch, lambda attempt: (LAST, LAST, LAST))
    assert drawn(logits, 1.0, ALL._replace(top_p=0.3), 1).tokens.tolist() == [np.flatnonzero(wanted)[-1]]


def test_greedy_is_the_likeliest_token_whatever_the_rest() -> None:
    logits = scores(0)
    for sampling in (ALL, ALL._replace(top_p=0.5, top_k=7)):
        assert set(drawn(logits, 0.0, sampling, 100).tokens.tolist()) == {logits.argmax()}


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-44])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    logits = scores(0)
    for sampling in (ALL, ALL._replace(top_p=0.5), ALL._replace(top_k=7)):
        found = drawn(logits, temperature, sampling, 100)
        assert set(found.tokens.tolist()) == {logits.argmax()}
        assert set(found.log_probs.tolist()) == {0.0}
        assert not found.doubtful.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_have_no_probability(bad: float, temperature: float) -> None:
    """And the token that stands there is one of the vocabulary all the same."""
    logits = np.full(VOCABULARY, bad) if bad < 0 else scores(0)
    logits[7] = bad
    for sampling in (ALL, ALL._replace(top_p=0.5, top_k=9)):
        found = drawn(logits, temperature, sampling, 4)
        assert found.log_probs.isnan().all()
        assert ((found.tokens >= 0) & (found.tokens < VOCABULARY)).all()


# -- batches


def mixed(count: int) -> Drawing:
    """Samples of several temperatures, greedy ones among them, at several tokens."""
    facts = [((0.0, 0.5, 1.0, 1.5)[n % 4], key(0, [n], n % 3), n % 7) for n in range(count)]
    return Drawing.of(facts, CPU)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (9, 1.0), (0, 0.7), (9, 0.7)])
def test_rows_drawn_apart_are_those_drawn_together(top_k: int, top_p: float) -> None:
    logits = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
    sampling, rows = ALL._replace(top_p=top_p, top_k=top_k), mixed(64)
    together = draw(logits.clone(), rows, sampling)
    for row in range(64):
        alone = draw(logits[row : row + 1].clone(), rows.among(torch.tensor([row])), sampling)
        assert alone.tokens[0] == together.tokens[row]
        assert abs(alone.log_probs[0] - together.log_probs[row]) < 1e-6
    assert torch.equal(together.tokens[::4], logits[::4].argmax(-1))  # the greedy ones
    assert (together.tokens != logits.argmax(-1)).sum() > 5


def test_a_sample_of_a_prompt_is_another_than_the_next() -> None:
    rows = Drawing.of([(1.0, key(0, [5, 6], index), 0) for index in range(5000)], CPU)
    logits = torch.tensor(scores(4)).expand(5000, -1).clone()
    counts = np.bincount(draw(logits, rows, ALL).tokens.numpy(), minlength=VOCABULARY)
    assert surprise(counts, naive(scores(4), 1.0, ALL)) < 5


# -- log-probabilities


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.5), (5, 0.5)])
def test_log_probabilities_are_those_at_the_temperature(top_k: int, top_p: float) -> None:
    """Of the whole distribution, without top-k and top-p; of greedy tokens at temperature 1."""
    logits = 2 * torch.randn(2000, VOCABULARY, generator=torch.Generator().manual_seed(1))
    rows = mixed(2000)
    found = draw(logits.clone(), rows, ALL._replace(top_p=top_p, top_k=top_k))
    temperatures = torch.tensor([(1.0, 0.5, 1.0, 1.5)[n % 4] for n in range(2000)], dtype=torch.float64)
    exact = (logits.double() / temperatures[:, None]).log_softmax(-1).gather(1, found.tokens[:, None])[:, 0]
    assert ((found.log_probs.double() - exact).abs() / exact.abs().clamp_min(1)).max() < 1e-6
    assert found.log_probs.dtype == torch.float32
    assert exact.min() < -2


# -- numbers


def test_numbers_are_those_of_splitmix64() -> None:
    """The first five of the generator that is seeded with 1234567, as published with it."""
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821
    ]  # fmt: skip
    rows = Drawing.of([(1.0, 1234567, 0)], CPU)
    found = [number for attempt in range(2) for number in numbers(rows, attempt)[0].tolist()]
    assert CHOICES == 3
    assert found[:5] == [(one >> 11) / 2**53 for one in published]


def splitmix(state: int) -> int:
    """Its output function, in integers without end."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_numbers_of_any_key_token_and_attempt_are_those_of_splitmix64() -> None:
    """Each of a place of its own in the sequence."""
    keys = [-(2**63), -1, 0, 1, 2**63 - 1, key(3, [1, 2], 4)]
    for said in (0, 1, 4095, 2**31):
        rows = Drawing.of([(1.0, one, said) for one in keys], CPU)
        for attempt in (0, 1, 17):
            places = [said * 2**20 + attempt * CHOICES + choice for choice in range(1, CHOICES + 1)]
            wanted = [[(splitmix(one + at * 0x9E3779B97F4A7C15) >> 11) / 2**53 for at in places] for one in keys]
            assert numbers(rows, attempt).tolist() == wanted


def many(count: int) -> Tensor:
    """Numbers of a sample, one token after the other, and of as many samples."""
    facts = [(1.0, key(0, [5], 0), said) for said in range(count)]
    facts += [(1.0, key(0, [5], index), 0) for index in range(count)]
    return numbers(Drawing.of(facts, CPU), 0)


def test_numbers_are_uniform() -> None:
    u = many(30_000).flatten().numpy()
    assert ((u >= 0) & (u < 1)).all()
    assert len(np.unique(u)) > len(u) - 10  # the first of both is the same one
    assert surprise(np.bincount((u * 256).astype(int), minlength=256), np.full(256, 1 / 256)) < 5
    wholes = (u * 2**53).astype(np.uint64)
    shares = np.array([((wholes >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(53)])
    assert np.abs(shares - 0.5).max() < 5 * 0.5 / len(u) ** 0.5


def test_numbers_do_not_follow_from_each_other() -> None:
    u = many(30_000).numpy() - 0.5
    streams = [*u.T, u.flatten(), u[:30_000].flatten()]
    bound = 5 / 12 / 30_000**0.5
    for stream in streams:
        for lag in (1, 2, 3, 7):
            assert abs((stream[lag:] * stream[:-lag]).mean()) < bound
    for one in range(CHOICES):
        for other in range(one):
            assert abs((u[:, one] * u[:, other]).mean()) < bound


def test_numbers_are_a_function_of_seed_prompt_index_token_and_attempt() -> None:
    def first(seed: int, ids: Sequence[int], index: int, said: int = 0, attempt: int = 0) -> list[float]:
        rows = Drawing.of([(1.0, key(seed, ids, index), said)], CPU)
        return [float(u) for u in numbers(rows, attempt)[0]]

    assert first(0, [1, 5, 6], 0) == first(0, (1, 5, 6), 0)
    cases = [
        first(0, [1, 5, 6], 0), first(1, [1, 5, 6], 0), first(0, [1, 5, 7], 0), first(0, [1, 5], 0),
        first(0, [1, 5, 6], 1), first(0, [1, 5, 6], 0, said=1), first(0, [1, 5, 6], 0, attempt=1),
        first(1, [0, 1], 1), first(11, [0, 1], 1), first(1, [0, 1], 11), first(-1, [0, 1], 1), first(0, [6, 5, 1], 0),
    ]  # fmt: skip
    assert len({u for case in cases for u in case}) == CHOICES * len(cases)


# -- doubt


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [
        (0, 1.0),
        (10, 1.0),
        (0, 0.5),
        (10, 0.8),
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_token_that_rounding_decides_is_in_doubt(
    temperature: float, top_k: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding that is a thousand times as large as it is, so that it decides often."""
    noise, count = 1e-2, 5000
    monkeypatch.setattr(drawing, "NOISE", noise)
    generator = torch.Generator().manual_seed(0)
    rows, sampling = samples(count, temperature), ALL._replace(top_p=top_p, top_k=top_k)
    for spread in (0.3, 2.0, 6.0):
        logits = spread * torch.randn(count, VOCABULARY, generator=generator)
        found = draw(logits.clone(), rows, sampling)
        changed = 0
        for attempt in range(6):
            error = torch.rand(logits.shape, generator=generator) - 0.5
            error = error if attempt % 2 else error.sign() / 2
            other = draw(logits + noise * error, rows, sampling)
            decided = other.tokens != found.tokens
            changed += int(decided.sum())
            assert found.doubtful[decided].all()
        assert changed > 20
        assert not found.doubtful.all()


def test_a_greedy_token_that_rounding_decides_is_in_doubt() -> None:
    logits = torch.zeros(3, VOCABULARY)
    logits[:, 40], logits[:, 60] = 8.0, torch.tensor([8.0, 8.0 - drawing.NOISE / 2, 7.9])
    found = draw(logits, samples(3, 0.0), ALL)
    assert found.tokens[1:].tolist() == [40, 40]
    assert found.doubtful.tolist() == [True, True, False]


def test_one_of_two_that_share_all_is_in_doubt() -> None:
    """Each is just about top-p by itself: rounding decides which is the likelier, and if both are let in."""
    logits = torch.full((200, VOCABULARY), -30.0)
    logits[:, [30, 70]] = torch.tensor([drawing.NOISE / 4, 0.0])
    found = [
        draw(rows, samples(200), ALL._replace(top_p=0.5)) for rows in (logits.clone(), logits.flip(-1).roll(1, -1))
    ]
    assert [set(one.tokens.tolist()) for one in found] == [{30}, {70}]
    assert all(one.doubtful.all() for one in found)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (40, 1.0), (0, 0.9), (40, 0.9)])
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_few_tokens_are_in_doubt(temperature: float, top_k: int, top_p: float) -> None:
    logits = 3 * torch.randn(2000, 1000, generator=torch.Generator().manual_seed(2))
    found = draw(logits, samples(2000, temperature), ALL._replace(top_p=top_p, top_k=top_k))
    assert found.doubtful.float().mean() < 0.005
