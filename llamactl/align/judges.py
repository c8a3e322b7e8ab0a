"""Reward models at work: the scores of records' answers, by one model or several that share a tokenizer."""

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llamactl.artifacts.jsonl import Found, Refuse
from llamactl.artifacts.records import Comparison, Prompt, Sample, to_last_question
from llamactl.errors import Fault
from llamactl.model.device import lent
from llamactl.model.heads import RewardModel
from llamactl.model.slices import WHOLE, Slice
from llamactl.text import judging
from llamactl.text.judging import Judged, Judging
from llamactl.text.tokenizer import Tokenizer

WINDOW = 256  # records judged together, those of one prompt at once

Scores = dict[str, dict[str, float]]  # of one record: by the field an answer stands in, by the name of a model


class Case(NamedTuple):
    """A record ready to be judged: a digest of its prompt, its answers by the context they are cut to, its scores."""

    where: str
    prompt: bytes
    sides: dict[int, dict[str, Judged]]
    earlier: dict[str, Any]  # what it has been given already

    @property
    def cut(self) -> int:
        """Ids that the model of the shortest context does not see."""
        return max(sum(one.cut for one in sides.values()) for sides in self.sides.values())

    def scored(self, found: Scores) -> dict[str, Any]:
        """All its scores, those ``found`` in place of earlier ones of their names: one answer's, or each side's."""
        if len(found) == 1:
            return {**self.earlier, **next(iter(found.values()))}
        return {**self.earlier, **{field: {**self.earlier.get(field, {}), **new} for field, new in found.items()}}


class Verdict(NamedTuple):
    """A record, and what the models think of its answers."""

    found: Found[Any]
    case: Case
    scores: Scores

    @property
    def record(self) -> dict[str, Any]:
        """The record with its scores, and without the digests of models whose scores these take the place of."""
        raw = {**self.found.raw, "scores": self.case.scored(self.scores)}
        if isinstance(known := raw.get("reward_sha256"), dict):
            new = next(iter(self.scores.values()))
            raw["reward_sha256"] = {name: digest for name, digest in known.items() if name not in new}
        return raw


class Judges:
    """Reward models by name; raises Fault where one is none, or reads other tokens than the rest."""

    def __init__(self, places: dict[str, Path], truncate: bool = False, allow_tags: bool = False) -> None:
        self.places, self.allow_tags = places, allow_tags
        described = {name: RewardModel.described(place) for name, place in places.items()}
        self.shapes = [config for config, _ in described.values()]
        self.stored = "fp32" if any(stored == "fp32" for _, stored in described.values()) else "bf16"
        self._how = {name: Judging(config.context, truncate, allow_tags) for name, (config, _) in described.items()}
        (first, place), *others = places.items()
        self._tokenizer = Tokenizer.load(place)
        for name, other in others:
            if Tokenizer.load(other).proto != self._tokenizer.proto:
                problem = f"has another tokenizer than {first}'s {place}"
                raise Fault(other, problem, f"score by {name} in a run of its own")
        for name, (config, _) in described.items():
            self._tokenizer.fitting(config.vocab, places[name])
        self._models: dict[str, RewardModel] = {}

    @classmethod
    def named(cls, given: Sequence[str], truncate: bool = False, allow_tags: bool = False) -> "Judges":
        """From ``NAME=DIR`` of the command line."""
        places: dict[str, Path] = {}
        for one in given:
            name, _, place = one.partition("=")
            if not name.isidentifier() or not place:
                raise Fault("--reward", f"{one} is no NAME=DIR", "give for example helpfulness=helpful-rm")
            if name in places:
                raise Fault("--reward", f"{name} is given twice", "give each a name of its own")
            places[name] = Path(place)
        return cls(places, truncate, allow_tags)

    def load(self, device: torch.device, dtype: torch.dtype, away: bool = False, part: Slice = WHOLE) -> None:
        """Take the models, or this process's part of each, into memory: the device's, or the host's meanwhile."""
        self._device, self._away, here = device, away, torch.device("cpu") if away else device
        self._models = {name: RewardModel.load(place, here, dtype, part=part) for name, place in self.places.items()}

    def case(self, found: Found[Any]) -> Case:
        """A record to be judged; raises Fault, with its place, where it cannot be."""
        record = found.record
        prompt = record.prompt if hasattr(record, "prompt") else to_last_question(record.turns)
        contexts = {how.context: how for how in self._how.values()}
        sides = {context: judging.sides(found, self._tokenizer, how) for context, how in contexts.items()}
        earlier = found.raw.get("scores", {})
        places = {"scores": earlier}
        if isinstance(record, Comparison) and isinstance(earlier, dict):
            places |= {f"scores.{field}": earlier.get(field, {}) for field in next(iter(sides.values()))}
        for place, value in places.items():
            if not isinstance(value, dict):
                raise Fault(f"{found.where}: {place}", "is no object of scores by name")
        return Case(found.where, judging.prompt_key(prompt), sides, earlier)

    def check(self, prompt: Found[Prompt]) -> None:
        """Raise Fault, with its place, for a prompt to which no answer can be judged, as it fills a context alone."""
        nothing = Sample(messages=prompt.record.messages, response="")
        try:
            self.case(Found(nothing, {}, prompt.where))
        except Fault as fault:
            problem = f"no answer to it can be judged: the shortest {fault.problem}"
            raise Fault(prompt.where, problem, fault.remedy) from None

    def verdicts(self, records: Iterable[Found[Any]], refuse: Refuse) -> Iterator[list[Verdict]]:
        """Records with their scores, in order, ``WINDOW`` at a time; one that cannot be judged is refused."""
        window: list[tuple[Found[Any], Case]] = []
        for found in records:
            try:
                window.append((found, self.case(found)))
            except Fault as fault:
                refuse(fault)
            if len(window) == WINDOW:
                yield self._judged(window)
                window = []
        if window:
            yield self._judged(window)

    def _judged(self, window: Sequence[tuple[Found[Any], Case]]) -> list[Verdict]:
        scores = self.scores([case for _, case in window])
        return [Verdict(*record, sides) for record, sides in zip(window, scores, strict=True)]

    def scores(self, cases: Sequence[Case]) -> list[Scores]:
        """What each model thinks of each answer; those to one prompt are computed together.

        Raises Fault, naming the model and the record, for a score that is not finite.
        """
        together: dict[bytes, list[int]] = {}
        for number, case in enumerate(cases):
            together.setdefault(case.prompt, []).append(number)
        found: list[Scores] = [{field: {} for field in next(iter(case.sides.values()))} for case in cases]
        for name, model in self._models.items():
            context = self._how[name].context
            groups = [
                [(number, field, one.ids) for number in numbers for field, one in cases[number].sides[context].items()]
                for numbers in together.values()
            ]
            with lent(model, self._device, self._away):
                judged = model.judge([[ids for *_, ids in group] for group in groups])
            for group, scores in zip(groups, judged, strict=True):
                for (number, field, _), value in zip(group, scores, strict=True):
                    if not isfinite(value):
                        problem = f"{self.places[name]} gives it a score that is not finite"
                        raise Fault(cases[number].where, problem, "try --precision fp32, or another reward model")
                    found[number][field][name] = value
        return found
