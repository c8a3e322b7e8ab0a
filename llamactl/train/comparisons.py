"""Comparisons as a reward model's data (paper, sections 3.2.1 and 3.2.2): read, held out by prompt, mixed."""

import heapq
from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from llamactl import ui
from llamactl.artifacts import jsonl
from llamactl.artifacts.manifest import Run
from llamactl.artifacts.records import Comparison, Rating, SafetyLabel
from llamactl.errors import Fault
from llamactl.text import judging
from llamactl.text.judging import Judging
from llamactl.text.tokenizer import Tokenizer
from llamactl.train.batches import shuffled
from llamactl.train.pairs import Pairs

UNRATED = "comparisons without a rating: margin 0"


class Held(NamedTuple):
    """A comparison that is set aside: which one, what it is called, its line."""

    number: int
    name: str
    line: bytes


class HoldOut:
    """Comparisons set aside for testing, all of a prompt or none: those of the prompts whose digests come first.

    A ``share`` below 1 is that part of the prompts, one above it the most comparisons that are set aside.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self._seed = share, seed
        self._limit = int(min(share, 1.0) * 2**64)  # a digest from here on is not held out
        self._groups: dict[int, list[Held]] = {}
        self._largest: list[int] = []  # a heap of -digest
        self._count = 0

    def offer(self, prompt: bytes, held: Held) -> None:
        """One more comparison that may be set aside."""
        digest = int.from_bytes(sha256(b"%d held out " % self._seed + prompt).digest()[:8], "big")
        if digest >= self._limit:
            return
        if digest not in self._groups:
            self._groups[digest] = []
            heapq.heappush(self._largest, -digest)
        self._groups[digest].append(held)
        self._count += 1
        while self.share >= 1 and self._count - len(self._groups[-self._largest[0]]) >= self.share:
            self._limit = -heapq.heappop(self._largest)
            self._count -= len(self._groups.pop(self._limit))

    def held(self) -> list[Held]:
        """Those that are set aside, in the order in which they were read."""
        chosen: list[Held] = []
        for _, group in sorted(self._groups.items()):
            if self.share < 1 or len(chosen) + len(group) <= self.share:
                chosen += group
        return sorted(chosen)


class Comparisons:
    """Comparisons from files, as pairs; ``prompts`` are the digests of their prompts."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        how: Judging,
        margins: Mapping[Rating, float],
        safe: Mapping[SafetyLabel, tuple[bool, bool]],
        run: Run,
        max_line: int,
    ) -> None:
        self.pairs, self.prompts = Pairs(run.settings["seed"]), array("Q")
        self.sources: dict[str, int] = {}
        self._tokenizer, self._how, self._margins, self._safe = tokenizer, how, margins, safe
        self._run, self._max_line = run, max_line

    def read(self, files: Sequence[str], hold_out: HoldOut | None = None, apart: Iterable[int] = ()) -> list[int]:
        """The numbers of the pairs in some files; none may have a prompt of those ``apart``."""
        run, first, length = self._run, len(self.pairs), 0
        never = {self.prompts[number] for number in apart}
        with ui.Working(f"read {', '.join(files)}", None, "comparisons") as bar:
            for found in jsonl.read(files, Comparison, refuse=run.refuse, max_line=self._max_line):
                key = judging.prompt_key(found.record.prompt)
                short = int.from_bytes(key[:8], "big")
                try:
                    if short in never:
                        what = "is also held out: a test with it would tell nothing"
                        raise Fault(f"{found.where}: prompt", what, "leave it out of one of them, or --skip-bad")
                    chosen, rejected = judging.sides(found, self._tokenizer, self._how).values()
                except Fault as fault:
                    run.refuse(fault)
                    continue
                record, cut = found.record, chosen.cut + rejected.cut
                margin = self._margins.get(record.rating, 0.0) if record.rating else 0.0
                safe = self._safe[record.safety_label] if record.safety_label else None
                run.noted.update({UNRATED: 1} if self._margins and not record.rating else {})
                run.noted.update({"comparisons cut": 1, "tokens cut off": cut} if cut else {})
                if hold_out:
                    name = found.where if record.id is None else str(record.id)
                    hold_out.offer(key, Held(len(self.pairs), name, orjson.dumps(found.raw)))
                self.prompts.append(short)
                self.pairs.add(chosen.ids, rejected.ids, margin, safe)
                length += len(chosen.ids) + len(rejected.ids)
                bar.advance(tokens=length)
        if len(self.pairs) == first:
            raise Fault(", ".join(files), "holds no comparison to learn from", "look at what was skipped")
        return list(range(first, len(self.pairs)))

    def without(self, numbers: Iterable[int], held: Iterable[int]) -> list[int]:
        """Those of ``numbers`` whose prompt is none of the held ones'."""
        prompts = {self.prompts[number] for number in held}
        return [number for number in numbers if self.prompts[number] not in prompts]


def drawn(rest: Sequence[int], count: int, seed: int) -> list[int]:
    """So many of ``rest``, uniformly, each at most once."""
    key = int.from_bytes(sha256(b"%d mix" % seed).digest()[:8], "little")
    return [rest[shuffled(number, len(rest), key)] for number in range(min(count, len(rest)))]


def facts(pairs: Pairs) -> dict[str, Any]:
    """What a manifest says of them."""
    return {"comparisons": len(pairs), "tokens": pairs.tokens, "places": pairs.places, "labelled": pairs.labelled}
