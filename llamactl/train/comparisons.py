"""Comparisons as a reward model's data (paper, sections 3.2.1 and 3.2.2): read, held out by prompt, mixed."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import orjson

from llamactl import ui
from llamactl.artifacts import files, jsonl
from llamactl.artifacts.manifest import plain
from llamactl.artifacts.records import Comparison, Rating, SafetyLabel
from llamactl.artifacts.run import Run
from llamactl.errors import Fault
from llamactl.text import judging
from llamactl.text.judging import Judging
from llamactl.text.tokenizer import Tokenizer
from llamactl.train.batches import shuffled
from llamactl.train.pairs import Pairs

HELD_OUT = "held-out.jsonl"
UNRATED = "comparisons without a rating: margin 0"


class Held(NamedTuple):
    """A comparison that is set aside: which one, what it is called, its line."""

    number: int
    name: str
    line: bytes


class HoldOut:
    """Comparisons set aside for testing, all of a prompt or none: so many, or below 1 a share of all.

    Prompts are taken in the order of their digests, but for those that have more comparisons than are still wanted.
    Which these are is known at the end alone: until then the comparisons lie in a file.
    """

    def __init__(self, share: float, seed: int) -> None:
        self.share, self._seed = share, seed
        self._prompts: Counter[int] = Counter()  # how many comparisons each has, by digest
        self._offered = array("Q")  # the digest of each one's prompt
        self._file = TemporaryFile()  # noqa: SIM115

    @property
    def wanted(self) -> int:
        """How many are to be set aside."""
        return int(self.share) if self.share >= 1 else round(self.share * len(self._offered))

    def offer(self, prompt: bytes, held: Held) -> None:
        """One more comparison that may be set aside."""
        digest = int.from_bytes(sha256(b"%d held out " % self._seed + prompt).digest()[:8], "big")
        self._prompts[digest] += 1
        self._offered.append(digest)
        self._file.write(b"%b\n%b\n" % (orjson.dumps([held.number, held.name]), held.line))

    def held(self) -> list[Held]:
        """Those that are set aside, in the order in which they were read."""
        chosen, room = set(), self.wanted
        for digest, count in sorted(self._prompts.items()):
            if count <= room:
                chosen.add(digest)
                room -= count
        with self._file as file:
            file.seek(0)
            entries = zip(self._offered, file, file, strict=True)
            return sorted(
                Held._make([*orjson.loads(of), line[:-1]]) for digest, of, line in entries if digest in chosen
            )


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
        self._unrated, self._cut = bytearray(), array("Q")  # of each: whether it has no rating, tokens cut off
        self._tokenizer, self._how, self._margins, self._safe = tokenizer, how, margins, safe
        self._run, self._max_line = run, max_line

    def read(self, names: Sequence[str], hold_out: HoldOut | None = None, apart: Iterable[int] = ()) -> list[int]:
        """The numbers of the pairs in some files; none may have a prompt of those ``apart``."""
        run, first, length = self._run, len(self.pairs), 0
        never = {self.prompts[number] for number in apart}
        with ui.Working(f"read {', '.join(names)}", None, "comparisons") as bar:
            for found in jsonl.read(names, Comparison, refuse=run.refuse, max_line=self._max_line):
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
                record = found.record
                margin = self._margins.get(record.rating, 0.0) if record.rating else 0.0
                safe = self._safe[record.safety_label] if record.safety_label else None
                if hold_out:
                    name = plain(found.where if record.id is None else str(record.id))
                    line = orjson.dumps(found.raw) if ui.first_rank() else b""  # which alone writes it
                    hold_out.offer(key, Held(len(self.pairs), name, line))
                self.prompts.append(short)
                self._unrated.append(bool(self._margins) and not record.rating)
                self._cut.append(chosen.cut + rejected.cut)
                self.pairs.add(chosen.ids, rejected.ids, margin, safe)
                length += len(chosen.ids) + len(rejected.ids)
                bar.advance(tokens=length)
        if len(self.pairs) == first:
            raise Fault(", ".join(names), "holds no comparison to learn from", "look at what was skipped")
        return list(range(first, len(self.pairs)))

    def mixture(
        self, names: Sequence[str], others: Sequence[str], share: float, hold_out: float, evaluation: Sequence[str]
    ) -> "Mixture":
        """All comparisons of ``names``, and so many drawn from ``others`` that they are this ``share`` of all.

        ``hold_out`` of the former are set aside, or those of ``evaluation`` are; no prompt of them is trained on.
        """
        aside = HoldOut(hold_out, self.pairs.seed)
        tested = self.read(evaluation) if evaluation else []
        first = self.read(names, aside if hold_out else None, apart=tested)
        held = aside.held()
        if hold_out and not held:
            raise Fault("--hold-out", f"{hold_out:g} sets no prompt aside with all of its comparisons", "hold out more")
        tested = tested or [one.number for one in held]
        first = self._without(first, tested)
        if not first:
            raise Fault("--hold-out", f"{hold_out:g} leaves nothing to train on", "hold out less")
        mixed = self.read(others) if others else []
        rest = self._without(mixed, tested)
        if left_out := len(mixed) - len(rest):
            self._run.noted["comparisons of --mix left out: their prompt is held out"] += left_out
        wanted = round(len(first) * share / (1 - share)) if others else 0
        some = drawn(rest, wanted, self.pairs.seed)
        self.note([*first, *some])
        self.note(tested, "held-out ")
        return Mixture(
            self.pairs.only([*first, *some]), self.pairs.only(tested), held, len(first), len(some), len(rest), wanted,
            aside.wanted,
        )  # fmt: skip

    def note(self, numbers: Sequence[int], whose: str = "") -> None:
        """Count what of these is used, but not as it was."""
        cut = [self._cut[number] for number in numbers if self._cut[number]]
        unrated = sum(self._unrated[number] for number in numbers)
        counts = {UNRATED: unrated, "comparisons cut": len(cut), "tokens cut off": sum(cut)}
        self._run.noted.update({whose + what: count for what, count in counts.items() if count})

    def _without(self, numbers: Iterable[int], held: Iterable[int]) -> list[int]:
        """Those of ``numbers`` whose prompt is none of the held ones'."""
        prompts = {self.prompts[number] for number in held}
        return [number for number in numbers if self.prompts[number] not in prompts]


def drawn(rest: Sequence[int], count: int, seed: int) -> list[int]:
    """So many of ``rest``, uniformly, each at most once."""
    key = int.from_bytes(sha256(b"%d mix" % seed).digest()[:8], "little")
    return [rest[shuffled(number, len(rest), key)] for number in range(min(count, len(rest)))]


class Mixture(NamedTuple):
    """What a reward model is trained and tested on."""

    pairs: Pairs
    tested: Pairs
    held: list[Held]  # those set aside by us
    first: int  # pairs of the kind that is learned
    drawn: int  # of the rest, uniformly, each at most once
    rest: int
    wanted: int
    asked: int  # to be set aside

    def rows(self) -> list[tuple[str, str]]:
        """It in words, for a person."""
        mixed = f"{self.drawn:,} drawn from {self.rest:,}"
        if self.drawn < self.wanted:
            mixed += f", where {self.wanted:,} were wanted: {self.drawn / len(self.pairs):.1%} of all"
        of = f" of {self.asked:,} (each other prompt has too many)" if len(self.held) < self.asked else ""
        return [
            ("comparisons", f"{self.first:,}"),
            ("mixed in", mixed if self.wanted else "none"),
            ("held out", f"{len(self.tested):,}{of}, no prompt of which is trained on"),
        ]

    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        pairs = self.pairs
        return {
            "comparisons": self.first, "mixed_in": self.drawn, "held_out": [one.name for one in self.held],
            "tokens_written_out": pairs.tokens, "tokens_computed": pairs.places, "labelled": pairs.labelled,
        }  # fmt: skip

    def save_held_out(self, directory: Path) -> list[dict[str, Any]]:
        """Write those set aside, as they were read; their entry for the manifest."""
        if not self.held or not ui.first_rank():
            return []
        with files.whole_file(directory / HELD_OUT) as file:
            file.writelines(one.line + b"\n" for one in self.held)
        return [files.entry(directory / HELD_OUT, "jsonl")]
