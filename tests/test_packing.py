"""Packing of dialogues: nothing lost, little wasted, and no example sees another."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from llamactl.model.attention import Documents
from llamactl.model.config import size
from llamactl.model.llama import Llama
from llamactl.train.packing import Examples, Packed, Packs, answer_loss, best_fit

CPU = torch.device("cpu")
CONFIG = replace(size("tiny").config, vocab=97, layers=2, dim=32, heads=4, kv_heads=2, ffn=48, context=64)


def made(lengths: list[int], seed: int = 0) -> Examples:
    """Examples of so many ids; the last third of each carries loss."""
    draw, examples = random.Random(seed), Examples()
    for length in lengths:
        ids = [draw.randrange(3, CONFIG.vocab) for _ in range(length)]
        examples.add(ids, [n >= length - max(1, length // 3) for n in range(length)])
    return examples


def model(dtype: torch.dtype = torch.float32) -> Llama:
    return Llama.create(CONFIG, dtype, CPU, seed=1)


def mixed(count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [min(CONFIG.context + 1, 2 + int(draw.expovariate(1 / 15))) for _ in range(count)]


# -- bins


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_loses_nothing_and_overfills_nothing(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 100) for _ in range(500)]
    bins = best_fit(lengths, 100)
    assert sorted(n for one in bins for n in one) == list(range(500))
    assert max(sum(lengths[n] for n in one) for one in bins) <= 100
    assert (
        len(bins) <= 11 / 9 * sum(lengths) / 100 + 1
    )  # what best fit decreasing guarantees, over the least there can be


def test_best_fit_is_best_fit() -> None:
    """Into the fullest bin that has room: 3 goes to 7, not to 6."""
    assert best_fit([6, 7, 3, 4], 10) == [[1, 2], [0, 3]]
    assert best_fit([], 10) == []
    assert best_fit([10, 10], 10) == [[0], [1]]


def test_padding_is_not_counted_as_tokens() -> None:
    lengths = mixed(40)
    packs = Packs(made(lengths), CONFIG.context, 0, True)
    assert packs.seen(0, 2 * len(packs)) == 2 * sum(lengths)


# -- sequences


def test_each_example_is_in_an_epoch_once_with_its_targets() -> None:
    examples = made(mixed(60))
    packs = Packs(examples, CONFIG.context, 0, True)
    seen, learned = [], 0
    for row in packs.batch(0, len(packs.packs)).rows:
        assert sum(row.lengths) == CONFIG.context
        start = 0
        for length in row.lengths:
            seen.append(tuple(row.tokens[start : start + length]))
            start += length
        learned += len(row.targets)
    wanted = [tuple(examples[n][0][:-1]) for n in range(len(examples))]
    assert sorted(one for one in seen if any(one)) == sorted(wanted)  # the rest is padding, all 0
    assert learned == packs.learned == sum(sum(examples[n][1][1:]) for n in range(len(examples)))
    assert packs.targets(0, len(packs.packs)) == learned


def test_targets_stand_where_they_follow() -> None:
    examples = Examples()
    examples.add([5, 6, 7, 8, 2], [False, False, True, True, True])
    examples.add([9, 10, 2], [False, True, False])
    row = Packs(examples, 8, 0, True).row(0)
    assert row.tokens.tolist() == [5, 6, 7, 8, 9, 10, 0, 0]
    assert (row.learned.tolist(), row.targets.tolist()) == ([1, 2, 3, 4], [7, 8, 2, 10])
    assert row.lengths == [4, 2, 2]


def test_the_order_is_another_in_each_epoch_and_depends_on_the_seed_alone() -> None:
    packs, again = (Packs(made(mixed(200)), 64, 7, True) for _ in range(2))
    count = len(packs.packs)
    first, second = ([packs.pack(n) for n in range(epoch * count, (epoch + 1) * count)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(count))
    assert first != second
    assert first == [again.pack(n) for n in range(count)]
    assert first != [Packs(made(mixed(200)), 64, 8, True).pack(n) for n in range(count)]


# -- what a model sees


def hidden(network: Llama, packed: Packed) -> torch.Tensor:
    tokens = torch.from_numpy(np.stack([row.tokens for row in packed.rows]))
    documents = Documents.of([row.lengths for row in packed.rows], CPU) if packed.apart else None
    return network(tokens, documents=documents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changing_an_example_changes_no_other_by_a_bit(dtype: torch.dtype) -> None:
    lengths = [30, 20, 10, 4]
    one, other = made(lengths), Examples()
    for number in range(len(lengths)):
        ids, loss = one[number]
        other.add([3 + (i - 2) % 90 for i in ids] if number == 1 else ids, [bool(x) for x in loss])
    network = model(dtype).eval()
    packs = [Packs(examples, CONFIG.context, 0, True) for examples in (one, other)]
    assert packs[0].packs == [[0, 1, 2, 3]]
    before, after = (hidden(network, each.batch(0, 1))[0] for each in packs)
    assert torch.equal(before[:29], after[:29])
    assert not torch.equal(before[29:48], after[29:48])
    assert torch.equal(before[48:], after[48:])


def test_packed_is_each_example_by_itself() -> None:
    """Loss and gradients are those of the examples one after the other, without packing."""
    examples, network = made(mixed(25)), model()
    packs = Packs(examples, CONFIG.context, 0, True)
    loss = answer_loss(network, packs.batch(0, len(packs.packs)))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    alone = torch.zeros(())
    for number in range(len(examples)):
        ids, carries = examples[number]
        tokens = torch.tensor(list(ids))[None]
        losses = network.nll(tokens[:, :-1], tokens[:, 1:])[0]
        alone = alone + losses[torch.tensor(list(carries))[1:] > 0].sum()
    alone.backward()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_without_the_mask_examples_see_those_before() -> None:
    network = model().eval()
    apart, together = (Packs(made([30, 20]), CONFIG.context, 0, mask).batch(0, 1) for mask in (True, False))
    with_mask, without = hidden(network, apart)[0], hidden(network, together)[0]
    torch.testing.assert_close(with_mask[:29], without[:29])
    assert not torch.allclose(with_mask[29:48], without[29:48], atol=1e-3)


def test_only_what_carries_loss_is_learned() -> None:
    """The loss does not change with a target that carries none."""
    examples, changed = Examples(), Examples()
    examples.add([5, 6, 7, 2], [False, False, True, True])
    changed.add([5, 6, 7, 2], [False, False, False, True])
    network = model()
    take = partial(Packs, context=16, seed=0, apart=True)
    both, last = (answer_loss(network, take(one).batch(0, 1)).item() for one in (examples, changed))
    nll = network.nll(torch.tensor([[5, 6, 7]]), torch.tensor([[6, 7, 2]]))[0]
    assert both == pytest.approx((nll[1] + nll[2]).item(), rel=1e-5)
    assert last == pytest.approx(nll[2].item(), rel=1e-5)
