"""Comparisons as data: what is held out, by prompt; what is mixed in; margins, labels, and what is refused."""

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import NO_UTF8, turns, written

from llamactl.align import reward
from llamactl.artifacts.records import SAFE
from llamactl.artifacts.run import Run
from llamactl.errors import Fault
from llamactl.text.judging import Judging
from llamactl.text.tokenizer import Tokenizer
from llamactl.train.comparisons import UNRATED, Comparisons, Held, HoldOut, drawn

# -- what is held out


def offered(share: float, prompts: list[int], seed: int = 0, order: int | None = None) -> tuple[HoldOut, list[Held]]:
    """Comparison n has prompt ``prompts[n]``; they come in another order, if one is named."""
    aside, numbers = HoldOut(share, seed), list(range(len(prompts)))
    if order is not None:
        random.Random(order).shuffle(numbers)
    for number in numbers:
        aside.offer(b"%d" % prompts[number], Held(number, str(number), b"{}"))
    return aside, aside.held()


def many(count: int, seed: int = 0) -> list[int]:
    """Prompts of so many comparisons; most have one, some up to six."""
    draw, prompts = random.Random(seed), []
    while len(prompts) < count:
        prompts += [len(prompts)] * draw.choice([1, 1, 1, 2, 6])
    return prompts[:count]


@pytest.mark.parametrize("share", [1, 2, 5, 50, 199, 0.01, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_prompt_is_held_out_whole_or_not_at_all(share: float, seed: int) -> None:
    prompts = many(200, seed)
    chosen = {held.number for held in offered(share, prompts, seed)[1]}
    groups = [{n for n, prompt in enumerate(prompts) if prompt == one} for one in set(prompts)]
    assert all(group <= chosen or not group & chosen for group in groups)
    wanted = share if share >= 1 else share * len(prompts)
    left = [len(group) for group in groups if not group & chosen]
    assert wanted - 6 < len(chosen) <= wanted
    assert all(len(chosen) + count > wanted for count in left)


@pytest.mark.parametrize("share", [1, 7, 60, 0.2])
def test_what_is_held_out_does_not_depend_on_the_order_of_records(share: float) -> None:
    prompts = many(150)
    wanted = sorted(offered(share, prompts)[1])
    for order in range(8):
        assert sorted(offered(share, prompts, order=order)[1]) == wanted


def test_where_prompts_have_one_each_as_many_are_held_out_as_are_wanted() -> None:
    for count in (1, 10, 99):
        assert len(offered(count, list(range(100)))[1]) == count
    assert len(offered(100, list(range(100)))[1]) == len(offered(10**6, list(range(100)))[1]) == 100


def test_a_prompt_that_is_too_large_makes_room_for_later_ones() -> None:
    prompts = [*range(10), *(prompt for prompt in range(10, 28) for _ in range(5))]  # ten have one, the others five
    for count in (1, 2, 4, 10, 20, 80):
        for seed in range(8):
            assert len(offered(count, prompts, seed)[1]) == count
    assert len(offered(7, [0] * 5 + [1] * 5)[1]) == 5
    assert offered(4, [0] * 5 + [1] * 5)[1] == []


def test_a_share_comes_to_what_the_count_would() -> None:
    prompts = many(100)
    assert offered(0.2, prompts)[1] == offered(20, prompts)[1]
    assert len(offered(0.29, list(range(100)))[1]) == 29


def test_a_share_is_of_the_comparisons() -> None:
    found = offered(0.1, list(range(5000)))[1]
    assert 400 < len(found) < 600
    more = offered(0.2, list(range(5000)))[1]
    assert set(found) < set(more)


def test_the_seed_decides_which() -> None:
    sets = {tuple(held.number for held in offered(10, list(range(300)), seed)[1]) for seed in range(5)}
    assert len(sets) == 5


def test_memory_is_that_of_what_is_held_out() -> None:
    """Not that of all that was offered, but for two numbers of each."""
    aside, line = HoldOut(10, 0), b"x" * 10_000
    tracemalloc.start()
    for number in range(2000):
        aside.offer(b"%d" % number, Held(number, str(number), bytes(line)))
    held, (_, most) = aside.held(), tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [one.line for one in held] == [line] * 10
    assert most < 1 << 20


def test_they_come_in_the_order_in_which_they_were_read() -> None:
    numbers = [held.number for held in offered(40, many(200))[1]]
    assert numbers == sorted(numbers)


# -- what is drawn


def test_each_is_drawn_at_most_once() -> None:
    rest = list(range(1000, 1100))
    for count in (0, 1, 30, 100):
        found = drawn(rest, count, 0)
        assert len(found) == len(set(found)) == count
        assert set(found) <= set(rest)
    assert sorted(drawn(rest, 500, 0)) == rest
    assert drawn([], 5, 0) == []
    assert drawn(rest, 30, 0) == drawn(rest, 100, 0)[:30] != drawn(rest, 30, 1)


def test_they_are_drawn_uniformly() -> None:
    seen = Counter(n for seed in range(400) for n in drawn(list(range(20)), 5, seed))
    assert all(60 < seen[n] < 140 for n in range(20))  # 100 are expected


# -- what is read


class Reading:
    """Comparisons in files, read as the stage does."""

    def __init__(self, tokenizer: Path, margin: str = "small", how: Judging = Judging(100), **settings: Any) -> None:
        self.run = Run("rm-train", {"seed": 0, **settings}, {})
        self.all = Comparisons(Tokenizer.load(tokenizer), how, reward.MARGINS[margin], SAFE, self.run, max_line=1 << 20)


def record(prompt: str, chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    sides = {"chosen": turns("", chosen)[1:], "rejected": turns("", rejected)[1:]}
    return {"prompt": turns(prompt), **sides, **more}


def test_ratings_and_labels_become_margins_and_targets(tokenizer_path: Path, tmp_path: Path) -> None:
    records = [
        record("a", rating="significantly_better", safety_label="chosen_safe"),
        record("b", rating="better", safety_label="both_unsafe"),
        record("c", rating="slightly_better", safety_label="both_safe"),
        record("d", rating="negligibly_better"),
        record("e"),
    ]
    path = written(tmp_path / "c.jsonl", records)
    for margin, wanted in {"small": [1, 2 / 3, 1 / 3, 0, 0], "large": [3, 2, 1, 0, 0], "none": [0] * 5}.items():
        reading = Reading(tokenizer_path, margin)
        assert reading.all.read([str(path)]) == [0, 1, 2, 3, 4]
        pairs = reading.all.pairs
        assert [pairs[n].margin for n in range(5)] == pytest.approx(wanted)
        assert [pairs[n].safe for n in range(3)] == [(1, 0), (0, 0), (1, 1)]
        assert pairs.labelled == 3
        reading.all.note(range(5))
        assert reading.run.noted[UNRATED] == (margin != "none")  # a margin of 0 that was not asked for is counted


def test_files_are_read_one_after_the_other(tokenizer_path: Path, tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", [record("a"), record("b")])
    b = written(tmp_path / "b.jsonl", [record("c")])
    reading = Reading(tokenizer_path)
    assert reading.all.read([str(a)]) == [0, 1]
    assert reading.all.read([str(b), str(a)]) == [2, 3, 4]
    assert len(reading.all.prompts) == len(reading.all.pairs) == 5
    assert reading.all._without([0, 1, 2], [4]) == [0, 2]  # 1 has the prompt of 4
    assert reading.all.pairs.labelled == 0
    assert reading.all.pairs.places < reading.all.pairs.tokens


@pytest.mark.parametrize("share", [5, 0.3])
def test_no_prompt_of_what_is_held_out_is_left(tokenizer_path: Path, tmp_path: Path, share: float) -> None:
    records = [record(f"question {n % 20}", f"yes {n}") | {"id": f"no {n}", "more": n} for n in range(40)]
    path = str(written(tmp_path / "c.jsonl", records))
    reading, aside = Reading(tokenizer_path), HoldOut(share, 0)
    numbers = reading.all.read([path], aside)
    held = aside.held()
    left = reading.all._without(numbers, [one.number for one in held])
    asked = {n: records[n]["prompt"][0]["content"] for n in numbers}
    assert held and left
    assert len(left) + len(held) == 40
    assert not {asked[n] for n in left} & {asked[one.number] for one in held}
    assert [one.name for one in held] == [f"no {one.number}" for one in held]
    assert [json.loads(one.line) for one in held] == [records[one.number] for one in held]


def test_what_is_held_out_of_a_file_whose_name_is_not_utf_8(tokenizer_path: Path, tmp_path: Path) -> None:
    path, aside = written(tmp_path / NO_UTF8, [record("a"), record("b")]), HoldOut(1, 0)
    Reading(tokenizer_path).all.read([str(path)], aside)
    assert [one.name[:-1] for one in aside.held()] == [f"{tmp_path}/caf\\xe9:"]


def test_what_is_held_out_is_the_same_however_files_are_given(tokenizer_path: Path, tmp_path: Path) -> None:
    records = [record(f"question {n % 15}", f"yes {n}") for n in range(30)]
    a, b = written(tmp_path / "a.jsonl", records[:11]), written(tmp_path / "b.jsonl", records[11:])
    lines = []
    for names in ([a, b], [b, a]):
        aside = HoldOut(8, 0)
        Reading(tokenizer_path).all.read(list(map(str, names)), aside)
        lines.append(sorted(one.line for one in aside.held()))
    assert lines[0] == lines[1]
    assert len(lines[0]) == 8


@pytest.mark.parametrize(("wanted", "said"), [(7, "5 of 7 (each other prompt has too many), no"), (10, "10, no")])
def test_where_fewer_are_held_out_it_is_said(tokenizer_path: Path, tmp_path: Path, wanted: int, said: str) -> None:
    path = written(tmp_path / "c.jsonl", [record(f"question {n // 5}", f"yes {n}") for n in range(20)])
    mixture = Reading(tokenizer_path).all.mixture([str(path)], [], 0.0, wanted, [])
    assert dict(mixture.rows())["held out"].startswith(said)


def test_without_an_id_a_comparison_is_called_by_its_place(tokenizer_path: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", [record("a")])
    aside = HoldOut(1, 0)
    Reading(tokenizer_path).all.read([str(path)], aside)
    assert [one.name for one in aside.held()] == [f"{path}:1"]


def test_a_prompt_that_is_tested_on_elsewhere_is_refused(tokenizer_path: Path, tmp_path: Path) -> None:
    test = written(tmp_path / "test.jsonl", [record("a"), record("b")])
    data = written(tmp_path / "c.jsonl", [record("c"), record(" b ", "other", "answers")])
    reading = Reading(tokenizer_path)
    tested = reading.all.read([str(test)])
    with pytest.raises(Fault, match=f"^{data}:2: prompt: is also held out"):
        reading.all.read([str(data)], apart=tested)
    reading = Reading(tokenizer_path, skip_bad=True)
    tested = reading.all.read([str(test)])
    assert len(reading.all.read([str(data)], apart=tested)) == 1
    assert reading.run.skipped["bad records"] == 1


def test_what_is_cut_is_counted(tokenizer_path: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", [record("a"), record("b", "long " * 30), record("c", "x", "long " * 30)])
    with pytest.raises(Fault, match=f"^{path}:2: chosen: is .* tokens long with its prompt, the context 40"):
        Reading(tokenizer_path, how=Judging(40)).all.read([str(path)])
    reading = Reading(tokenizer_path, how=Judging(40, truncate=True))
    assert reading.all.read([str(path)]) == [0, 1, 2]
    reading.all.note([0, 1, 2])
    assert reading.run.noted["comparisons cut"] == 2
    assert reading.run.noted["tokens cut off"] > 20


def test_what_is_counted_is_trained_on_and_what_is_held_out_is_named_apart(
    tokenizer_path: Path, tmp_path: Path
) -> None:
    """What is never drawn from other comparisons is not counted."""
    long = "long " * 30
    a = written(tmp_path / "a.jsonl", [record(f"a{n}", long if n % 2 else "x", rating="better") for n in range(12)])
    b = written(tmp_path / "b.jsonl", [record(f"b{n}", long) for n in range(40)])
    reading = Reading(tokenizer_path, how=Judging(40, truncate=True))
    mixture = reading.all.mixture([str(a)], [str(b)], 0.2, 4, [])
    assert (mixture.first, mixture.drawn) == (8, 2)
    held, noted = sum(one.number % 2 for one in mixture.held), reading.run.noted
    assert 0 < held < 4
    assert noted[UNRATED] == 2
    assert noted["held-out " + UNRATED] == 0
    assert (noted["comparisons cut"], noted["held-out comparisons cut"]) == (8 - held, held)
    each = noted["held-out tokens cut off"] // held
    assert noted["tokens cut off"] == pytest.approx((8 - held) * each, abs=8)


def test_files_that_hold_nothing_are_refused(tokenizer_path: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", [record("a", "same", "same")])
    reading = Reading(tokenizer_path, skip_bad=True)
    with pytest.raises(Fault, match="holds no comparison to learn from"):
        reading.all.read([str(path)])
