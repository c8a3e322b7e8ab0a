"""Which tokens a step trains on: every sample once an epoch, sources by their weights, at any index."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import NO_UTF8

from llamactl.artifacts import manifest
from llamactl.artifacts.records import Shard
from llamactl.artifacts.run import Run
from llamactl.artifacts.shards import Shards, Writer
from llamactl.errors import Fault
from llamactl.train.batches import Mix, Source, shares, shuffled, weighted

WEIGHTS = {
    "two": "7 3",
    "two alike": "1 1",
    "one small": "1/1000 999/1000",
    "two odd": "0.123 0.877",
    "three": "5 3 2",
    "three odd": "1/7 22/7 0.031",
    "four alike": "1 1 1 1",
    "five": "16 1 6 11 38",
    "eight": "1 2 3 4 5 6 7 8",
    "sixteen": "3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3",
}


def written(directory: Path, tokens: int, file: int, first: int = 0) -> Shards:
    """Shards of documents of 10 tokens that count up from ``first``, ``file`` tokens at most in one file."""
    directory.mkdir()
    writer = Writer(directory, np.dtype("<u2"), Shard(), file)
    ids = np.arange(first, first + tokens).astype("<u2")
    writer.add(ids, np.array([10] * (tokens // 10) + ([tokens % 10] if tokens % 10 else []), np.int64))
    run = Run("tokenize", {}, {}, directory)
    (directory / manifest.FILE).write_bytes(manifest.dumps(run.manifest(writer.close())))
    return Shards(directory)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Shards]:
    """Sixteen directories of different sizes; all their tokens are different."""
    root = tmp_path_factory.mktemp("sources")
    sizes = [203, 777, 90, 505, *range(111, 123)]
    firsts = np.cumsum([0, *sizes])
    return [written(root / f"s{n}", size, 70, int(firsts[n])) for n, size in enumerate(sizes)]


def mixed(sources: list[Shards], weights: str, context: int = 8, seed: int = 0) -> Mix:
    given = [Fraction(weight) for weight in weights.split()]
    return Mix(shares(given, sources[: len(given)]), context, 65_536, seed)


# -- the permutation


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 63, 64, 65, 100, 255, 256, 257, 1000, 4097])
def test_shuffled_is_a_permutation(count: int) -> None:
    for key in (0, 1, 2**64 - 1, 0x123456789ABCDEF0):
        assert sorted(shuffled(index, count, key) for index in range(count)) == list(range(count))


def test_shuffled_reaches_into_large_counts() -> None:
    count = 10**12 + 39
    places = [shuffled(index, count, 5) for index in range(2000)]
    assert len(set(places)) == 2000
    assert all(0 <= place < count for place in places)
    assert abs(np.mean(places) / count - 0.5) < 0.05
    assert np.histogram(places, bins=10, range=(0, count))[0].min() > 140


def test_shuffled_depends_on_the_key() -> None:
    orders = {tuple(shuffled(index, 100, key) for index in range(100)) for key in range(200)}
    assert len(orders) == 200


def test_shuffled_leaves_no_order() -> None:
    """Neighbours, and the same index under neighbouring keys, land far from each other."""
    count = 5000
    order = np.array([shuffled(index, count, 7) for index in range(count)])
    other = np.array([shuffled(index, count, 8) for index in range(count)])
    for one in (np.arange(count), np.roll(order, 1), other):
        assert abs(np.corrcoef(order, one)[0, 1]) < 0.05
    assert (order == np.arange(count)).sum() < 10
    assert (order == other).sum() < 10


def test_every_place_is_reached_by_an_index_about_equally_often() -> None:
    found = Counter(shuffled(3, 10, key * 0x9E3779B97F4A7C15 % 2**64) for key in range(5000))
    assert set(found) == set(range(10))
    assert max(abs(times / 500 - 1) for times in found.values()) < 0.25


# -- one source


@pytest.mark.parametrize("context", [1, 2, 8, 33, 69, 71, 300, 776])
def test_an_epoch_holds_every_sample_once(sources: list[Shards], context: int) -> None:
    """Also across the edges of shard files, and each sample with the token after it as its last target."""
    shards = sources[1]
    mix = mixed([shards], "1", context)
    count = (shards.tokens - 1) // context
    first = int(shards.read(0, 1)[0])
    for epoch in range(3):
        samples = [mix.sample(index) for index in range(epoch * count, (epoch + 1) * count)]
        assert all((np.diff(sample) == 1).all() and len(sample) == context + 1 for sample in samples)
        starts = [int(sample[0]) - first for sample in samples]
        assert sorted(starts) == [number * context for number in range(count)]


def test_each_epoch_has_another_order_and_so_does_each_seed(sources: list[Shards]) -> None:
    count = (777 - 1) // 8
    mix, other = mixed([sources[1]], "1"), mixed([sources[1]], "1", seed=1)
    orders = [[int(one.sample(epoch * count + n)[0]) for n in range(count)] for one in (mix, other) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert len({tuple(sorted(order)) for order in orders}) == 1


def test_a_read_across_shard_files_is_what_was_written(sources: list[Shards]) -> None:
    shards = sources[3]
    assert len(list(shards.path.glob("shard-*"))) > 5
    whole = shards.read(0, shards.tokens)
    assert (np.diff(whole.astype(int)) == 1).all()
    for start in range(0, 505, 7):
        for stop in (start + 1, start + 69, start + 141, 505):
            assert np.array_equal(shards.read(start, min(stop, 505)), whole[start : min(stop, 505)])


# -- the mixture


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_every_source_has_its_share_to_within_two(sources: list[Shards], weights: str) -> None:
    mix = mixed(sources, weights)
    had = [0] * len(mix.sources)
    worst = Fraction(0)
    for index in range(1500):
        number, before = mix.where(index)
        assert before == had[number], "samples of a source come in order, without gaps"
        had[number] += 1
        worst = max(worst, *(abs(n - (index + 1) * one.share) for n, one in zip(had, mix.sources, strict=True)))
    assert worst <= 2, f"{float(worst):.3f}"


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_epochs_are_what_counting_gives(sources: list[Shards], weights: str) -> None:
    mix = mixed(sources, weights)
    had = [0] * len(mix.sources)
    for index in range(400):
        seen = mix.epochs(index)
        assert [one.samples for one in seen] == had
        assert [one.epochs for one in seen] == [n / count for n, count in zip(had, mix.counts, strict=True)]
        had[mix.where(index)[0]] += 1
    assert [one.path for one in mix.epochs(1)] == [str(one.shards.path) for one in mix.sources]


def test_a_name_of_a_source_that_is_not_utf_8_can_be_told_to_a_manifest(tmp_path: Path) -> None:
    mix = Mix([Source(written(tmp_path / NO_UTF8, 50, 100), Fraction(1))], 10, 100, 0)
    assert b"caf\\\\xe9" in manifest.dumps({"sources": [one._asdict() for one in mix.epochs(1)]})


def test_every_sample_of_every_source_comes_once_an_epoch(sources: list[Shards]) -> None:
    mix = mixed(sources, "5 3 2")
    seen: list[list[int]] = [[], [], []]
    for index in range(1000):
        seen[mix.where(index)[0]].append(int(mix.sample(index)[0]))
    firsts = [0, 203, 980]
    for number, starts in enumerate(seen):
        count = mix.counts[number]
        assert len(starts) > 2 * count, "at least two epochs"
        for at in range(0, len(starts) - count, count):
            epoch = sorted(start - firsts[number] for start in starts[at : at + count])
            assert epoch == [n * 8 for n in range(count)]


def test_a_sample_depends_on_its_index_alone(sources: list[Shards]) -> None:
    mix = mixed(sources, "5 3 2")
    forward = [mix.sample(index).tolist() for index in range(300)]
    backward = [mixed(sources, "5 3 2").sample(index).tolist() for index in reversed(range(300))]
    assert forward == backward[::-1]
    assert mix.batch(100, 50).tolist() == forward[100:150]
    parts = [mix.batch(start, 10) for start in range(100, 150, 10)]
    assert [row for part in parts for row in part.tolist()] == forward[100:150]


def test_far_indices_are_as_exact(sources: list[Shards]) -> None:
    mix = mixed(sources, "1/3 2/3")
    far = 3 * 10**15
    assert [mix.where(far + n)[0] for n in range(6)] == [mix.where(n)[0] for n in range(6)]
    assert abs(mix.epochs(far)[0].samples - 10**15) <= 1
    assert len(mix.sample(far + 1)) == 9


def test_a_source_is_read_alike_whatever_the_other_weights(sources: list[Shards]) -> None:
    """The order within a source follows from the seed and the source's place."""
    a, b = mixed(sources, "1 1"), mixed(sources, "3 1")
    mine = [[one.sample(n).tolist() for n in range(80) if one.where(n)[0] == 0][:30] for one in (a, b)]
    assert mine[0] == mine[1]


def test_two_sources_of_the_same_directory_are_two(sources: list[Shards]) -> None:
    mix = Mix(shares([Fraction(1), Fraction(1)], [sources[0], sources[0]]), 8, 65_536, 0)
    assert [one.samples for one in mix.epochs(100)] == [50, 50]


# -- what is asked for


def test_weights_are_read(tmp_path: Path) -> None:
    assert weighted("books=0.3") == (Path("books"), Fraction(3, 10))
    assert weighted("a/b=2") == (Path("a/b"), Fraction(2))
    assert weighted("a=1/3") == (Path("a"), Fraction(1, 3))
    assert weighted("a=b=5e-2") == (Path("a=b"), Fraction(1, 20))
    assert weighted("books") == (Path("books"), None)
    named = tmp_path / "lr=0.1"
    named.mkdir()
    assert weighted(str(named)) == (named, None)
    assert weighted(f"{named}=7") == (named, Fraction(7))


@pytest.mark.parametrize("weight", ["x", "", "nan", "inf", "1/0", "0,3"])
def test_what_is_no_weight_is_refused(weight: str) -> None:
    with pytest.raises(Fault, match="is no weight") as refused:
        weighted(f"books={weight}")
    assert refused.value.subject == "--data"


def test_shares_are_the_weights_or_the_tokens(sources: list[Shards]) -> None:
    assert [one.share for one in shares([Fraction(2), Fraction(6)], sources[:2])] == [Fraction(1, 4), Fraction(3, 4)]
    by_size = shares([None, None], sources[:2])
    assert [one.share for one in by_size] == [Fraction(203, 980), Fraction(777, 980)]
    assert sum(one.share for one in shares([None] * 16, sources)) == 1


@pytest.mark.parametrize("weights", [[None, Fraction(1)], [Fraction(1), Fraction(0)], [Fraction(1), Fraction(-1)]])
def test_weights_for_some_or_not_above_zero_are_refused(sources: list[Shards], weights: list[Fraction | None]) -> None:
    with pytest.raises(Fault, match="--data"):
        shares(weights, sources[:2])


def test_too_little_text_is_refused_by_name(sources: list[Shards]) -> None:
    assert mixed(sources, "1", 202).counts == [1]
    with pytest.raises(Fault, match="203 tokens, fewer than one sample of 203") as refused:
        mixed(sources, "1", 203)
    assert refused.value.subject == str(sources[0].path)


def test_ids_beyond_the_vocabulary_are_refused(sources: list[Shards]) -> None:
    mix = Mix([Source(sources[1], Fraction(1))], 8, 500, 0)
    with pytest.raises(Fault, match="the model has 500"):
        for index in range(97):
            mix.sample(index)


def test_rows_for_a_person_name_shares_epochs_and_the_rest(sources: list[Shards]) -> None:
    rows = mixed(sources, "3 1").rows(1000)
    assert rows[0] == (
        str(sources[0].path),
        "75.0% of the samples: 30.00 epochs of 203 tokens (the last 3 fill no sample)",
    )
    assert len(rows) == 2


def test_tokens_of_the_command_are_mixed_as_here(shards_dir: Path) -> None:
    """Real shards: the samples of an epoch, put in order, are the tokens of the files."""
    shards = Shards(shards_dir)
    mix = Mix([Source(shards, Fraction(1))], 64, 512, 9)
    count = mix.counts[0]
    found = sorted((mix.sample(index).tolist() for index in range(count)), key=str)
    whole = shards.read(0, shards.tokens).tolist()
    wanted = sorted((whole[n * 64 : n * 64 + 65] for n in range(count)), key=str)
    assert found == wanted
    assert all(a[:64] != b[:64] for a, b in pairwise(found))
