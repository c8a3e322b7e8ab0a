"""The formats that ``llamactl convert`` knows, which of them a file is in, and the file's way to our records."""

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from llamactl.artifacts.jsonl import Refuse
from llamactl.artifacts.manifest import plain
from llamactl.errors import Fault
from llamactl.formats import chats, instructions, oasst, ours, preferences, safety
from llamactl.formats.items import File, Item
from llamactl.formats.rules import Format, Tally, Target, fitting, made

FORMATS: dict[str, type[Format]] = {
    kind.name: kind
    for kind in (
        ours.Messages, ours.Samples, ours.Comparisons, ours.Texts,
        instructions.Alpaca, instructions.Dolly, instructions.DollyWrapped, instructions.SelfInstruct,
        instructions.DomainSpecific,
        chats.ShareGPT, chats.SchemaGuided, chats.TopicalChat, chats.MTBench, oasst.OpenAssistant,
        preferences.HH, preferences.PlainPreference, preferences.WebGPT, preferences.WebGPTTexts,
        preferences.AlpacaEval,
        safety.DoNotAnswer, safety.AdvBench, safety.XSTest, safety.XSTestAnswers, safety.TruthfulQA, safety.ToxiGen,
        safety.Bold,
    )
}  # fmt: skip


def named(name: str) -> type[Format]:
    """The format of this name; raises Fault."""
    if name not in FORMATS:
        raise Fault("--from", f"{name} is no format that is known", f"choose of {', '.join(FORMATS)}")
    return FORMATS[name]


def recognised(item: Item) -> type[Format]:
    """The one format that an item has; raises Fault where there is none, or more than one."""
    found = [kind.name for kind in fitting(item, list(FORMATS.values()))]
    if len(found) > 1:
        raise Fault(item.where, f"fits {' and '.join(found)}", f"say which: --from {found[0]}, or --from {found[1]}")
    if not found:
        problem = f"is in no format that is known: {_described(item.value)}"
        raise Fault(item.where, problem, "llamactl convert --formats lists them; --from NAME says what it lacks")
    return FORMATS[found[0]]


def described() -> str:
    """All formats with their targets and rules, for people."""
    return "\n\n".join(
        f"{name}: {', '.join(kind.targets())}\n{inspect.cleandoc(kind.__doc__ or '')}" for name, kind in FORMATS.items()
    )


def _described(value: object) -> str:
    if isinstance(value, dict):
        return f"an object of {', '.join(map(str, list(value)[:12])) or 'nothing'}"
    return f"{type(value).__name__} {str(value)[:60]!r}"


class Made(NamedTuple):
    """A record of ours, and the place of the item it was made of."""

    record: dict[str, Any]
    where: str


class Conversion:
    """One file on its way to records of ours; ``items`` of it were read, and ``tally`` says what was odd in them."""

    def __init__(self, file: File, target: Target, kind: type[Format] | None) -> None:
        self.file, self.target, self.kind = file, target, kind
        self.tally = Tally(Counter(), Counter())
        self.items = 0
        self._insist_on_target()

    def run(self, refuse: Refuse) -> Iterator[Made]:
        """The records, in order; a bad item is handed to ``refuse``. Raises Fault for a file that cannot make any."""
        for item in self.file:
            self.items += 1
            if isinstance(item, Fault):
                refuse(item)
                continue
            if self.kind is None:
                self.kind = recognised(item)
                self._insist_on_target()
            try:
                records = list(made(self.kind, self.target, item, self.tally))
            except Fault as fault:
                refuse(fault)
                continue
            for record in records:
                yield Made(record, item.where)

    def facts(self) -> dict[str, Any]:
        """For the manifest: the file, its format, and what was odd in it."""
        return {
            "path": plain(self.file.path), "format": self.kind.name if self.kind else None, "items": self.items,
            "skipped": dict(+self.tally.skipped), "noted": dict(+self.tally.noted),
        }  # fmt: skip

    def _insist_on_target(self) -> None:
        if self.kind and self.target not in (possible := self.kind.targets()):
            problem = f"is in the format {self.kind.name}, which makes no {self.target}"
            raise Fault(self.file.path, problem, f"--to {' or '.join(possible)}")
