"""Pairs of answers as a step sees them: each once, how they are cut changes nothing, in an order of its own."""

import math
import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_heads import reward_model
from test_model import CPU, ODD

from llamactl.align import reward
from llamactl.train.pairs import UNKNOWN, Compared, Pairs, compared

OBJECTIVE = partial(reward.loss, safety_weight=0.5)
CONFIG = replace(ODD, layers=2)


def sequence(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, ODD.vocab) for _ in range(length)]


def made(count: int, seed: int = 0) -> Pairs:
    """Pairs of any length, some with a margin, some with labels."""
    draw, pairs = random.Random(count), Pairs(seed)
    for number in range(count):
        prompt = sequence(draw.randint(0, 20), number)
        sides = ([*prompt, first, *sequence(draw.randint(1, 20), number + 99), 2] for first in (3, 4))
        pairs.add(*sides, draw.choice([0, 1 / 3, 1]), draw.choice([None, (1.0, 0.0), (0.0, 0.0)]))
    return pairs


def written_out(pairs: Pairs, number: int) -> list[list[int]]:
    tree = pairs[number].tree
    return [[*tree.stem, *branch] for branch in tree.branches]


def test_a_pair_is_kept_as_it_was_given() -> None:
    pairs = Pairs(0)
    pairs.add([1, 5, 6, 2], [1, 5, 7, 8, 2], 1 / 3, (1.0, 0.0))
    pairs.add([9, 2], [1, 5, 2], 0, None)
    assert len(pairs) == 2
    assert written_out(pairs, 0) == [[1, 5, 6, 2], [1, 5, 7, 8, 2]]
    assert [*pairs[0].tree.stem] == [1, 5]
    assert (pairs[0].margin, pairs[0].safe) == (pytest.approx(1 / 3), (1.0, 0.0))
    assert written_out(pairs, 1) == [[9, 2], [1, 5, 2]]
    assert pairs[1].margin == 0
    assert all(map(math.isnan, pairs[1].safe)) and math.isnan(UNKNOWN)


def test_tokens_are_those_written_out_and_places_those_computed() -> None:
    pairs = Pairs(0)
    pairs.add([1, 5, 6, 2], [1, 5, 7, 8, 2], 0, (1.0, 0.0))
    pairs.add([9, 2], [1, 5, 2], 0, None)
    assert (pairs.tokens, pairs.places, pairs.labelled) == (9 + 5, 7 + 5, 1)
    many = made(50)
    assert many.tokens == sum(len(side) for n in range(50) for side in written_out(many, n))
    assert many.places == sum(many[n].tree.places for n in range(50)) < many.tokens
    assert many.labelled == sum(not math.isnan(many[n].safe[0]) for n in range(50))


def test_some_of_them_are_the_same_pairs() -> None:
    pairs = made(20)
    some = pairs.only([7, 3, 11])
    assert len(some) == 3
    assert [written_out(some, n) for n in range(3)] == [written_out(pairs, n) for n in (7, 3, 11)]
    assert some.tokens == sum(len(side) for n in (7, 3, 11) for side in written_out(pairs, n))
    assert some.places == sum(pairs[n].tree.places for n in (7, 3, 11))
    assert some.labelled == sum(not math.isnan(pairs[n].safe[0]) for n in (7, 3, 11))
    seen = [[*pair.tree.stem, *pair.tree.branches[0]] for pair in some.batch(0, 3).pairs]
    assert sorted(seen) == sorted(written_out(pairs, n)[0] for n in (7, 3, 11))
    assert len(pairs) == 20
    assert len(pairs.only([])) == 0
    pairs.add([1, 2], [3, 2], 0, None)  # they may grow meanwhile
    assert len(some) == 3 and some.tokens


def test_tokens_seen_are_the_places_of_the_pairs_of_a_batch() -> None:
    pairs = made(20).only([7, 3, 11, 0, 19])
    for start, size in ((0, 1), (0, 2), (3, 4), (2, 11)):
        assert pairs.seen(start, size) == sum(pair.tree.places for pair in pairs.batch(start, size).pairs)
    assert pairs.seen(5, 15) == 3 * pairs.places
    assert pairs.seen(4, 0) == 0


# -- micro-batches


@pytest.mark.parametrize("size", [1, 2, 3, 7, 24, 25, 26, 100])
def test_a_batch_is_split_into_all_its_pairs_evenly(size: int) -> None:
    batch = made(25).batch(0, 25)
    parts = batch.split(size)
    assert len(parts) == math.ceil(25 / size)  # whatever they hold: all processes have to take as many
    assert max(len(part.pairs) for part in parts) <= size
    key = lambda pair: ([*pair.tree.stem], [[*branch] for branch in pair.tree.branches])  # noqa: E731
    assert sorted(key(pair) for part in parts for pair in part.pairs) == sorted(map(key, batch.pairs))
    lengths = [sum(pair.tree.places for pair in part.pairs) for part in parts]
    longest = max(pair.tree.places for pair in batch.pairs)
    if 25 % size == 0:
        assert max(lengths) - min(lengths) <= longest


def test_a_long_pair_is_not_joined_by_another() -> None:
    pairs = Pairs(0)
    for length in (10, 10, 10, 100):
        pairs.add(sequence(length, 1), [*sequence(length - 1, 1), 2], 0, None)
    first, second = pairs.some(range(4), CPU).split(3)
    assert sorted(len(part.pairs) for part in (first, second)) == [1, 3]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_how_a_batch_is_cut_changes_nothing_but_rounding(size: int) -> None:
    """Sums and gradients are those of all at once."""
    model = reward_model(layers=2).requires_grad_(True)
    batch, found = made(7).batch(0, 7), []
    for parts in ([batch], batch.split(size)):
        model.zero_grad()
        sums = torch.stack([compared(model, part, OBJECTIVE) for part in parts]).sum(0)
        sums[0].backward()
        found.append([sums.detach(), *(p.grad.clone() for p in model.parameters())])
    for whole, cut in zip(*found, strict=True):
        assert (whole - cut).norm() < 1e-4 * whole.norm() + 1e-5


def test_the_loss_is_that_of_answers_written_out() -> None:
    model, pairs = reward_model(layers=2), made(6)
    with torch.no_grad():
        sums = compared(model, pairs.some(range(6), CPU), OBJECTIVE)
        scores = torch.tensor([model.judge([[side] for side in written_out(pairs, n)]) for n in range(6)])[..., 0]
    margin = torch.tensor([pairs[n].margin for n in range(6)])
    safe = torch.tensor([pairs[n].safe for n in range(6)])
    torch.testing.assert_close(sums, OBJECTIVE(scores, margin, safe), rtol=1e-4, atol=1e-5)


def test_a_batch_goes_where_it_is_trained_on() -> None:
    batch = made(3).batch(0, 3).to(torch.device("meta"), non_blocking=True)
    assert isinstance(batch, Compared)
    assert {part.device for part in (batch, *batch.split(1))} == {torch.device("meta")}


# -- the order


def order(pairs: Pairs, start: int, size: int) -> list[tuple[int, ...]]:
    return [(*pair.tree.stem, *pair.tree.branches[0]) for pair in pairs.batch(start, size).pairs]


def test_an_epoch_has_each_pair_once_in_an_order_of_its_own() -> None:
    pairs, again, other = made(40), made(40), made(40, seed=1)
    epochs = [order(pairs, 40 * n, 40) for n in range(3)]
    assert all(Counter(epoch) == Counter(order(again, 0, 40)) for epoch in epochs)
    assert max(Counter(epochs[0]).values()) == 1
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order(again, 0, 40) == epochs[0] != order(other, 0, 40)


def test_a_batch_depends_on_seed_and_index_alone() -> None:
    """So any process can make its part of it, from any step on."""
    pairs = made(10)
    whole = order(pairs, 0, 25)
    assert [order(pairs, n, 1)[0] for n in range(25)] == whole
    assert order(pairs, 8, 5) == whole[8:13]


def test_the_loss_is_divided_by_pairs() -> None:
    assert made(5).weight([0, 3, 4]) == 3
