"""Self-BLEU on numbers worked by hand, and against the definition written out."""

import math
import random
from collections import Counter

import pytest

from llamactl.evals.self_bleu import bleu, self_bleu, words


def test_words() -> None:
    assert words("It's 3.5, isn't_it?  Çà — 你好") == [
        "It", "'", "s", "3", ".", "5", ",", "isn", "'", "t_it", "?", "Çà", "—", "你好",
    ]  # fmt: skip


def test_two_answers_of_which_a_word_differs() -> None:
    """5 of 6 words, 4 of 5 pairs, 3 of 4, 2 of 3: their product is 1/3, for either side."""
    assert self_bleu(["the cat sat on the mat", "the cat sat on the rug"]) == pytest.approx((1 / 3) ** 0.25)


def test_counts_are_clipped_and_missing_orders_smoothed() -> None:
    """``a a a`` by ``a b``: 1 of 3, 0.1 of 2, 0.1 of 1. The other way: 1 of 2, 0.1 of 1, and the answer is short."""
    long, short = (1 / 3 * 0.05 * 0.1) ** (1 / 3), math.sqrt(0.5 * 0.1) * math.exp(1 - 3 / 2)
    assert self_bleu(["a a a", "a b"]) == pytest.approx((long + short) / 2)


def test_equal_answers_are_alike_to_1_however_short() -> None:
    for text in ("Yes", "Yes.", "Yes, it is.", "a b c d e f g"):
        assert self_bleu([text] * 3) == pytest.approx(1)


def test_nothing_in_common_is_0() -> None:
    assert self_bleu(["a b c", "d e f", "g"]) == 0


def test_of_two_lengths_that_are_as_close_the_shorter_counts() -> None:
    four = ["a", "b", "c", "d"]
    assert bleu(four, [3, 5], [4, 3, 2, 1]) == 1
    assert bleu(four, [5], [4, 3, 2, 1]) == pytest.approx(math.exp(1 - 5 / 4))


def written_out(texts: list[str]) -> float:
    """The definition, one hypothesis after the other: counts are clipped by the largest of all other texts."""
    found = []
    for number, text in enumerate(texts):
        others = [one.split() for one in texts[:number] + texts[number + 1 :]]
        own = text.split()
        product, orders = 1.0, min(4, len(own))
        for n in range(1, orders + 1):

            def counted(of: list[str], n: int = n) -> Counter[tuple[str, ...]]:
                return Counter(tuple(of[at : at + n]) for at in range(len(of) - n + 1))

            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= counted(other)
            match = (counted(own) & most).total()
            if n == 1 and not match:
                product = 0.0
            product *= (match or 0.1) / (len(own) - n + 1)
        closest = min((abs(len(one) - len(own)), len(one)) for one in others)[1]
        found.append(product ** (1 / orders) * min(1.0, math.exp(1 - closest / len(own))))
    return sum(found) / len(found)


def test_it_is_the_definition() -> None:
    dice = random.Random(1)
    for _ in range(50):
        texts = [" ".join(dice.choices("abcde", k=dice.randint(1, 12))) for _ in range(dice.randint(2, 8))]
        assert self_bleu(texts) == pytest.approx(written_out(texts))
        assert self_bleu(texts[::-1]) == pytest.approx(self_bleu(texts))
