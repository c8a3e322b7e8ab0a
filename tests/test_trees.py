"""Trees of tokens: what is shared is computed once, and each sequence is as if it were written out."""

import random
from dataclasses import replace

import pytest
import torch
from test_model import CPU, ODD, fresh

from llamactl.model import trees
from llamactl.model.config import PAD
from llamactl.model.trees import Forest, Tree

CONFIG = replace(ODD, layers=2)


def ids(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, CONFIG.vocab) for _ in range(length)]


def some_trees() -> list[Tree]:
    """A pair, a sequence alone, three branches, and a pair that has nothing in common."""
    return [
        Tree(ids(11), [ids(3, 1), ids(20, 2)]),
        Tree.of([ids(9, 3)]),
        Tree(ids(1, 4), [ids(2, 5), ids(1, 6), ids(5, 7)]),
        Tree([], [[5, *ids(4, 8)], [6, *ids(2, 9)]]),
    ]


# -- a tree


@pytest.mark.parametrize(
    ("sequences", "stem", "branches"),
    [
        ([[1, 2, 3, 4], [1, 2, 5]], [1, 2], [[3, 4], [5]]),
        ([[1, 2], [3]], [], [[1, 2], [3]]),
        ([[1, 2, 3]], [], [[1, 2, 3]]),
        ([[1, 2, 3], [1, 2, 4], [1, 5]], [1], [[2, 3], [2, 4], [5]]),
        ([[1, 2, 9, 3], [1, 2, 9, 4, 3]], [1, 2, 9], [[3], [4, 3]]),
        ([[1, 2], [1, 2, 3]], [], [[1, 2], [1, 2, 3]]),  # a branch of nothing would have no last token
    ],
)
def test_the_stem_is_the_longest_common_beginning(
    sequences: list[list[int]], stem: list[int], branches: list[list[int]]
) -> None:
    tree = Tree.of(sequences)
    assert ([*tree.stem], [[*branch] for branch in tree.branches]) == (stem, branches)
    assert tree.places == len(stem) + sum(map(len, branches))


# -- a row of trees


def test_a_row_holds_all_of_them_in_order() -> None:
    forest = Forest.of(some_trees(), CPU)
    row = [i for tree in some_trees() for part in (tree.stem, *tree.branches) for i in part]
    assert len(row) == 34 + 9 + 9 + 8
    assert forest.tokens.tolist() == [[*row, *[PAD] * 4]]
    last = [branch[-1] for tree in some_trees() for branch in tree.branches]
    assert forest.tokens[0, forest.ends].tolist() == last
    lengths = [len(tree.stem) + len(branch) for tree in some_trees() for branch in tree.branches]
    assert (forest.documents.positions[0, forest.ends] + 1).tolist() == lengths


@pytest.mark.parametrize("length", [7, 8, 9, 16])
def test_a_row_is_filled_up_to_a_multiple_of_8_and_no_further(length: int) -> None:
    assert Forest.of([Tree.of([ids(length)])], CPU).tokens.shape == (1, -(-length // 8) * 8)


@torch.no_grad()
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 1)])
def test_hidden_states_are_those_of_each_sequence_written_out(heads: int, kv_heads: int) -> None:
    model = fresh(replace(CONFIG, heads=heads, kv_heads=kv_heads))
    forest = Forest.of(some_trees(), CPU)
    found = model(forest.tokens, documents=forest.documents)[0, forest.ends]
    sequences = [[*tree.stem, *branch] for tree in some_trees() for branch in tree.branches]
    for state, sequence in zip(found, sequences, strict=True):
        torch.testing.assert_close(state, model(torch.tensor([sequence]))[0, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_fills_a_row_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = fresh(CONFIG), []
    for multiple in (1, 8, 64):
        monkeypatch.setattr(trees, "MULTIPLE", multiple)
        forest = Forest.of(some_trees(), CPU)
        assert forest.tokens.shape[1] == -(-60 // multiple) * multiple
        found.append(model(forest.tokens, documents=forest.documents)[0, :60])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_branch_changes_by_no_bit_with_its_sibling(dtype: torch.dtype) -> None:
    """Nor does anything else in the row."""
    model, states = fresh(CONFIG, dtype), []
    for seed in (2, 77):
        row = some_trees()
        row[0] = Tree(row[0].stem, [row[0].branches[0], ids(20, seed)])
        forest = Forest.of(row, CPU)
        states.append(model(forest.tokens, documents=forest.documents)[0])
    before, after = states
    assert torch.equal(before[:14], after[:14])
    assert torch.equal(before[34:], after[34:])
    assert not torch.equal(before[14:34], after[14:34])
