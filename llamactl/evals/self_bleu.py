"""Self-BLEU: how alike a model's answers to one prompt are (paper, appendix A.3 and Figure 21; Zhu et al., 2018).

In: texts. Out: a number from 0 (nothing in common) to 1 (all the same). Each answer is a hypothesis, whose references
are all the others; Self-BLEU is the mean of their BLEU-4. Pure functions.

The paper states neither words nor smoothing. Here words are runs of letters, digits and underscores, and every other
character that is no space is a word of its own; capitals count. An order of n-grams of which none matches counts as
``EPSILON`` matches (Chen and Cherry, 2014, method 1), as in the measure's first program. An answer of fewer than four
words is measured by the orders that it has, so that two answers that are equal are so to 1, however short.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain

ORDER = 4  # the longest n-grams
EPSILON = 0.1

_WORD = re.compile(r"\w+|[^\w\s]")

Grams = Counter[tuple[str, ...]]


def words(text: str) -> list[str]:
    """The words of a text, punctuation among them."""
    return _WORD.findall(text)


def grams(of: Sequence[str], order: int) -> Grams:
    """How often each run of ``order`` words is there."""
    return Counter(tuple(of[start : start + order]) for start in range(len(of) - order + 1))


def bleu(hypothesis: Sequence[str], lengths: Sequence[int], matching: Sequence[int]) -> float:
    """BLEU of some words, of which ``matching[n - 1]`` n-grams are in a reference, each as often as there at most.

    ``lengths`` are the references', in words: the closest counts for the brevity penalty, of two the shorter. Without a
    common word it is 0.
    """
    size = len(hypothesis)
    if not size or not matching[0]:
        return 0.0
    orders = min(size, ORDER)
    logs = [math.log((matching[order] or EPSILON) / (size - order)) for order in range(orders)]
    closest = min(lengths, key=lambda length: (abs(length - size), length))
    return math.exp(min(0.0, 1 - closest / size) + math.fsum(logs) / orders)


def self_bleu(texts: Sequence[str]) -> float:
    """The mean over ``texts``, at least two, of the BLEU of each against all the others."""
    said = [words(text) for text in texts]
    matching = [[0] * ORDER for _ in said]
    for order in range(1, ORDER + 1):
        counts = [grams(one, order) for one in said]
        most: dict[tuple[str, ...], tuple[int, int]] = {}  # in one text, and in another: the two largest counts
        for gram, times in chain.from_iterable(one.items() for one in counts):
            first, second = most.get(gram, (0, 0))
            most[gram] = (times, first) if times > first else (first, max(second, times))
        for number, own in enumerate(counts):
            # the largest count among the others: the largest of all, or, where that is its own, the second
            matching[number][order - 1] = sum(
                min(times, most[gram][1] if times == most[gram][0] else most[gram][0]) for gram, times in own.items()
            )
    lengths = [len(one) for one in said]
    each = [bleu(one, lengths[:number] + lengths[number + 1 :], matching[number]) for number, one in enumerate(said)]
    return math.fsum(each) / len(each)
