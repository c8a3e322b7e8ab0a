"""A survey of a record file: what is in it, and what of it a stage would refuse.

Lengths are those that a stage will see: Dialogues and Comparisons in the chat format, Documents with BOS and EOS.
Memory is some hundred bytes a record: its length, and digests by which duplicates are found.
"""

import random
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.manifest import plain
from llamactl.artifacts.records import (
    Comparison,
    Dialogue,
    Document,
    Message,
    Prompt,
    Record,
    Sample,
    checked,
    to_last_question,
)
from llamactl.errors import Fault
from llamactl.text import dialogue, languages
from llamactl.text.tokenizer import Tokenizer

KINDS: tuple[type[Record], ...] = (Comparison, Sample, Dialogue, Document)  # by key, in the order they are told apart
QUANTILES = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
SPECIALS = ("<s>", "</s>", "<unk>")
SAMPLED = 1000  # texts of each role whose language is looked at, drawn evenly
BEGINNING = 400  # characters of a text by which its language is told


@dataclass
class Preference:
    """Sums over the comparisons of one source, of lengths but for the first two (paper, Table 6)."""

    comparisons: int = 0
    turns: int = 0  # of the user
    example: float = 0.0  # of the dialogue with one of its answers
    prompt: float = 0.0  # of a turn of the user
    response: float = 0.0  # of an answer compared

    def add(self, users: Sequence[int], others: int, responses: Sequence[int]) -> None:
        """One comparison: the lengths of its user turns, the sum of the other turns, the two answers."""
        response = sum(responses) / len(responses)
        self.comparisons += 1
        self.turns += len(users)
        self.example += sum(users) + others + response
        self.prompt += sum(users) / len(users)
        self.response += response

    def means(self) -> dict[str, float]:
        """The columns of Table 6."""
        each = {name: getattr(self, name) / self.comparisons for name in ("turns", "example", "prompt", "response")}
        return {"comparisons": self.comparisons, **{name: round(mean, 1) for name, mean in each.items()}}


class Survey:
    """What ``add`` has seen. Lengths are in tokens, or without a tokenizer in bytes of UTF-8."""

    def __init__(self, tokenizer: Tokenizer | None, context: int | None, allow_tags: bool) -> None:
        self._tokenizer, self._context, self._allow_tags = tokenizer, context, allow_tags
        self.unit = "tokens" if tokenizer else "bytes"
        self.records = 0
        self.kinds: Counter[str] = Counter()
        self.refused: dict[str, tuple[int, str]] = {}  # by reason: how many, and the first place
        self.seen: Counter[str] = Counter()  # what is worth knowing, and refused by nobody
        self.ratings: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.preference: defaultdict[str, Preference] = defaultdict(Preference)
        self.lengths, self.turns = array("Q"), array("L")
        self.prompts: set[bytes] = set()
        self._contents: set[bytes] = set()
        self._ids: set[bytes] = set()
        self._texts: dict[str, list[str]] = defaultdict(list)
        self._spoken: Counter[str] = Counter()
        self._draw = random.Random(0)

    # -- one record

    def add(self, found: Found[Any]) -> None:
        """Count a record, also one that a stage would refuse."""
        record, where = found.record, found.where
        messages = _messages(record)
        self.records += 1
        self.kinds[_kind(record)] += 1
        self._known(self._ids, "ids used before", record.id)
        self._known(self._contents, "duplicates", _content(record))
        for message in messages:
            self._hear(message.role, message.content)
        if isinstance(record, Document):
            self._hear("text", record.text)
        else:
            self.turns.append(sum(message.role == "user" for message in messages))
            self.prompts.add(_digest([message.content.strip() for message in to_last_question(messages)]))
            self.seen["empty turns"] += sum(not message.content.strip() for message in messages)
            without = sum(message.role == "assistant" and not message.weight for message in messages)
            self.seen["answers without loss (weight 0)"] += without
        try:
            self._check(found, messages)
            self.lengths.append(length := self._length(record, messages))
            if self._context and length > self._context:
                raise Fault(where, f"is longer than the context, {self._context:,} {self.unit}")
            if length == self._context and _kind(record) == "prompts":
                raise Fault(where, f"fills the context, {length:,} {self.unit}: no room for an answer")
        except Fault as fault:
            self._refuse(fault, where)
        if isinstance(record, Comparison):
            self._compare(record)

    def refuse(self, fault: Fault) -> None:
        """Count a line that is no record at all."""
        self.records += 1
        self._refuse(fault, fault.subject)

    def _refuse(self, fault: Fault, where: str) -> None:
        field = fault.subject.removeprefix(where).lstrip(": ")
        reason = re.sub(r"\[\d+\]", "", f"{field}: {fault.problem}" if field else fault.problem)
        reason = re.sub(r"\b(byte|character) \d+", r"a \1", reason)
        count, first = self.refused.get(reason, (0, where))
        self.refused[reason] = count + 1, plain(first)

    def _check(self, found: Found[Any], messages: Sequence[Message]) -> None:
        record, where = found.record, found.where
        if isinstance(record, Comparison):
            chosen, rejected = record.chosen[0], record.rejected[0]
            dialogue.check_comparison(record.prompt, chosen, rejected, where, self._allow_tags)
        elif isinstance(record, Document):
            if not record.text:
                raise Fault(f"{where}: text", "is empty")
        elif _kind(record) == "prompts":
            checked(found.raw, (Prompt,), where)  # a Dialogue may have anything as ``safety``
            dialogue.check_prompt(messages, where, self._allow_tags)
        else:
            dialogue.check_answers(messages, where, self._allow_tags)

    def _hear(self, role: str, text: str) -> None:
        self.seen["specials in a text (<s>, </s>, <unk>), which stay text"] += any(s in text for s in SPECIALS)
        if len(text) >= languages.SHORTEST:
            self._spoken[role] += 1
            kept = self._texts[role]
            if len(kept) < SAMPLED:
                kept.append(text[:BEGINNING])
            elif (place := self._draw.randrange(self._spoken[role])) < SAMPLED:
                kept[place] = text[:BEGINNING]

    def _known(self, before: set[bytes], what: str, value: object) -> None:
        if value is not None:
            digest = _digest(value)
            self.seen[what] += digest in before
            before.add(digest)

    def _measure(self, text: str) -> int:
        return len(self._tokenizer.encode(text)) if self._tokenizer else len(text.encode())

    def _length(self, record: Any, messages: Sequence[Message]) -> int:
        if isinstance(record, Document):
            return self._measure(record.text) + (2 if self._tokenizer else 0)  # BOS and EOS
        if isinstance(record, Comparison):
            sides = (record.chosen, record.rejected)
            return max(self._of_dialogue([*record.prompt, *side]) for side in sides)
        return self._of_dialogue(messages)

    def _of_dialogue(self, messages: Sequence[Message]) -> int:
        if self._tokenizer:
            return len(dialogue.encode(messages, self._tokenizer).ids)
        return sum(len(message.content.encode()) for message in messages)

    def _compare(self, record: Comparison) -> None:
        self.ratings[record.rating or "none"] += 1
        self.labels[record.safety_label or "none"] += 1
        users = [self._measure(message.content) for message in record.prompt if message.role == "user"]
        others = sum(self._measure(message.content) for message in record.prompt if message.role != "user")
        if users:
            responses = [self._measure(side[0].content) for side in (record.chosen, record.rejected)]
            self.preference[record.source or "no source"].add(users, others, responses)

    # -- all of them

    def languages(self) -> dict[str, dict[str, float]]:
        """By role, the share of each language among the texts that are long enough, the most frequent first."""
        shares = {}
        for role, texts in self._texts.items():
            found = Counter(languages.told(text) for text in texts)
            shares[role] = {name: round(n / len(texts), 4) for name, n in found.most_common()}
        return shares

    def report(self, held_out: Mapping[str, set[bytes]]) -> dict[str, Any]:
        """All of it, for ``--json``; ``held_out`` are the prompts of other files, by name."""
        lengths, turns = sorted(self.lengths), self.turns
        return {
            "records": self.records,
            "kinds": dict(self.kinds),
            "refused": {reason: {"records": n, "first": place} for reason, (n, place) in self.refused.items()},
            "unit": self.unit,
            "lengths": {name: lengths[round(q * (len(lengths) - 1))] for name, q in QUANTILES.items() if lengths},
            "total": sum(lengths),
            "turns": {"mean": round(sum(turns) / len(turns), 2), "max": max(turns)} if turns else {},
            "languages": self.languages(),
            "seen": dict(+self.seen),
            "ratings": dict(self.ratings),
            "safety_labels": dict(self.labels),
            "preference": {source: row.means() for source, row in self.preference.items() if row.comparisons},
            "shared_prompts": {name: len(self.prompts & prompts) for name, prompts in held_out.items()},
        }


def rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A report in words, but for its table of preferences."""
    refused = sum(found["records"] for found in report["refused"].values())
    said = [
        ("records", f"{report['records']:,}: " + _listed(report["kinds"])),
        ("would be refused", f"{refused:,}"),
        *((f"  {reason}", f"{f['records']:,}, first {f['first']}") for reason, f in report["refused"].items()),
        (f"{report['unit']} a record", ", ".join(f"{name} {n:,}" for name, n in report["lengths"].items())),
        (f"{report['unit']} in all", f"{report['total']:,}"),
    ]
    if report["turns"]:
        said.append(("turns of the user", f"{report['turns']['mean']} a dialogue, at most {report['turns']['max']}"))
    for role, shares in report["languages"].items():
        shown = ", ".join(f"{name} {share:.1%}" for name, share in list(shares.items())[:5])
        said.append((f"language of {role}", shown))
    said += [(what, f"{n:,}") for what, n in report["seen"].items()]
    said += [(what, _listed(report[what])) for what in ("ratings", "safety_labels") if report[what]]
    return [*said, *((f"prompts that {name} has too", f"{n:,}") for name, n in report["shared_prompts"].items())]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in counts.items()) or "none"


def _messages(record: Any) -> list[Message]:
    """What is said in a record."""
    if isinstance(record, Comparison):
        return [*record.prompt, *record.chosen, *record.rejected]
    return record.turns if isinstance(record, Dialogue) else []


def _kind(record: Any) -> str:
    if isinstance(record, Comparison):
        return "comparisons"
    if isinstance(record, Sample):
        return "samples"
    if isinstance(record, Document):
        return "documents"
    return "prompts" if record.messages and record.messages[-1].role == "user" else "dialogues"


def _content(record: Any) -> list[object]:
    if isinstance(record, Document):
        return [record.text]
    return [(message.role, message.content.strip()) for message in _messages(record)]


def _digest(value: object) -> bytes:
    return blake2b(orjson.dumps(value), digest_size=8).digest()
