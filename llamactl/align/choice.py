"""Which answers to a prompt are kept: the best of K new ones and of what earlier rounds have left (section 3.2.3).

From its fourth version on the paper took the best samples of all earlier rounds into the choice: a model that had been
trained on the last round's alone had forgotten how to rhyme.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import torch

from llamactl.align import reward
from llamactl.align.judges import Case, Judges
from llamactl.align.rejection import Draw
from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Prompt, Sample, unanswered
from llamactl.errors import Fault
from llamactl.text.judging import prompt_key
from llamactl.text.refusals import refuses

HELPFULNESS, SAFETY = "helpfulness", "safety"


class Candidate(NamedTuple):
    """An answer that may be kept, as a Sample; ``scores`` are what the same models have given it before."""

    raw: Mapping[str, Any]
    case: Case
    where: str
    scores: dict[str, float] | None = None


class Rewarded(NamedTuple):
    """A candidate with its scores, and what is made of them; ``by_safety`` where that is the safety model's."""

    candidate: Candidate
    scores: dict[str, float]
    reward: float
    by_safety: bool


class Choice:
    """The reward models, their digests and precision, the samples of earlier rounds, and how many answers are kept.

    ``most`` is of a prompt, None keeps them all. An answer without a text is never kept: there is nothing to be learned
    from it.
    """

    def __init__(self, judges: Judges, digests: Mapping[str, str], precision: str, most: int | None) -> None:
        self.judges, self.digests, self.precision, self.most = judges, dict(digests), precision, most
        self._pool: dict[bytes, list[Candidate]] = defaultdict(list)

    def pool(self, found: Found[Sample]) -> bool:
        """Take a Sample of an earlier round into the choice for its prompt; whether it is to be scored anew.

        It is not where models of the same digests have scored it in the same precision. Raises Fault, with its place,
        where it cannot be judged.
        """
        case, known = self.judges.case(found), found.raw.get("reward_sha256")
        scores: dict[str, Any] = {name: case.earlier.get(name) for name in self.digests}
        same = isinstance(known, dict) and all(known.get(name) == digest for name, digest in self.digests.items())
        same = same and found.raw.get("reward_precision") == self.precision
        as_scored = same and all(isinstance(value, float) and isfinite(value) for value in scores.values())
        raw = {"pool": found.where.rpartition(":")[0], **found.raw}
        raw.pop("safety", None)  # the asked prompt's tag decides, which may be none
        key = prompt_key(found.record.messages)
        self._pool[key].append(Candidate(raw, case, found.where, scores if as_scored else None))
        return not as_scored

    def best(
        self, prompt: Found[Prompt], drawn: Sequence[tuple[Mapping[str, Any], int]], pooled: bool = True
    ) -> tuple[list[dict[str, Any]], Draw]:
        """The answers to a prompt that are kept, the best first, and what is to be said of the new ones.

        ``drawn`` are the new ones, as Samples, with their lengths in tokens. One that cannot be judged, or cannot be
        learned from for the chat format's tags in it, is not kept. Of equal ones the new one is first, then the lower
        index. Samples of earlier rounds are in the choice where ``pooled``, which is to be so once a prompt, as answers
        to this record: with its fields.
        """
        key, tagged = prompt_key(prompt.record.messages), prompt.record.safety
        candidates: dict[int, Candidate] = {}  # new ones, by index; then those of earlier rounds
        refused: list[tuple[str, str]] = []
        for index, (raw, _) in enumerate(drawn):
            sample = Sample(messages=prompt.record.messages, response=raw["response"])
            where = f"{prompt.where}, answer {index}"
            try:
                candidates[index] = Candidate(raw, self.judges.case(Found(sample, dict(raw), where)), where)
            except Fault as fault:
                refused.append((fault.subject, fault.problem))
        new, asked = len(drawn), unanswered(prompt.raw)
        earlier = [one._replace(raw={**one.raw, **asked}) for one in self._pool.get(key, ()) if pooled]
        candidates |= dict(enumerate(earlier, start=new))
        rewarded = dict(zip(candidates, self._rewarded(list(candidates.values()), tagged), strict=True))
        texts = [raw["response"].strip() for raw, _ in drawn]
        said = [index for index, one in candidates.items() if one.raw["response"].strip()]
        kept = sorted(said, key=lambda index: -rewarded[index].reward)[: self.most]
        records = [self._record(rewarded[index], rank) for rank, index in enumerate(kept, start=1)]
        return records, Draw(
            prompt=key.hex(),
            tagged=tagged,
            refused=refused,
            rewards=[rewarded[index].reward if index in rewarded else None for index in range(new)],
            by_safety=[index in rewarded and rewarded[index].by_safety for index in range(new)],
            tokens=[tokens for _, tokens in drawn],
            truncated=[raw["finish"] == "length" for raw, _ in drawn],
            cut=[candidates[index].case.cut if index in candidates else 0 for index in range(new)],
            refusals=[refuses(text) for text in texts],
            empty=[not text for text in texts],
            same=[texts.index(text) for text in texts],
            kept=[index for index in kept if index < new],
            earlier=[rewarded[index].reward for index in kept if index >= new],
        )

    def _rewarded(self, candidates: Sequence[Candidate], tagged: bool) -> list[Rewarded]:
        unscored = [one for one in candidates if one.scores is None]
        found = iter(self.judges.scores([one.case for one in unscored]))
        scores = [one.scores or next(found)["response"] for one in candidates]
        columns = {name: torch.tensor([by[name] for by in scores], dtype=torch.float64) for name in self.digests}
        safety, tags = columns.get(SAFETY), torch.full((len(candidates),), tagged)
        rewards = reward.combined(columns[HELPFULNESS], safety, tags).tolist()
        safe = [False] * len(candidates) if safety is None else reward.by_safety(safety, tags).tolist()
        return [Rewarded(*of) for of in zip(candidates, scores, rewards, safe, strict=True)]

    def _record(self, one: Rewarded, rank: int) -> dict[str, Any]:
        scores = {**one.candidate.raw.get("scores", {}), **one.scores}
        return {
            **one.candidate.raw, "scores": scores, "reward": one.reward, "rank": rank,
            "reward_sha256": self.digests, "reward_precision": self.precision,
        }  # fmt: skip
