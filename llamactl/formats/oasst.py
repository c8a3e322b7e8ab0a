"""Open-Assistant: trees of messages, in which several people answer each message."""

from collections.abc import Iterator
from itertools import combinations
from typing import Literal

import msgspec

from llamactl.artifacts.records import Message, Rating
from llamactl.formats.rules import TIE, Format, Pair, Talk, Tally, assistant, user

BY_RANKS: tuple[Rating, ...] = ("slightly_better", "better", "significantly_better")  # ranks apart: 1, 2, more


class Reply(msgspec.Struct):
    """A message of a tree, with the replies to it; ``rank`` 0 is the best of its siblings."""

    message_id: str
    text: str
    role: Literal["prompter", "assistant"]
    replies: list["Reply"] = msgspec.field(default_factory=list)
    rank: int | None = None
    deleted: bool = False
    review_result: bool | None = None

    def turn(self, weight: Literal[0, 1] = 1) -> Message:
        """As a turn of ours."""
        return assistant(self.text, weight) if self.role == "assistant" else user(self.text)

    def leads_to_an_answer(self) -> bool:
        """Whether it is an answer, or one is below it."""
        return self.role == "assistant" or any(reply.leads_to_an_answer() for reply in self.replies)


class OpenAssistant(Format):
    """Open-Assistant trees: threads as dialogues, ranked replies as comparisons.

    A message that was deleted or failed its review is left out with all below it. A dialogue is a path from the root to
    an answer that no other answer follows; an answer that an earlier dialogue of the tree has had carries no loss
    again. A prompt is a path to a prompter's message. Of ranked replies to one message each pair is a comparison:
    ``slightly_better`` where they are neighbours in rank, ``better`` where one is between, else
    ``significantly_better``.
    """

    name = "oasst"
    message_tree_id: str
    prompt: Reply

    def talks(self, tally: Tally) -> Iterator[Talk]:
        seen: set[str] = set()
        for path in self._paths(tally):
            if path[-1].role == "assistant" and not any(reply.leads_to_an_answer() for reply in path[-1].replies):
                turns = [one.turn(0 if one.role == "assistant" and one.message_id in seen else 1) for one in path]
                tally.noted["answers of an earlier thread, without loss"] += sum(not turn.weight for turn in turns)
                seen.update(one.message_id for one in path)
                yield Talk(turns, path[-1].message_id)

    def prompts(self, tally: Tally) -> Iterator[Talk]:
        for path in self._paths(tally):
            if path[-1].role == "prompter":
                yield Talk([one.turn() for one in path], path[-1].message_id)

    def pairs(self, tally: Tally) -> Iterator[Pair]:
        for path in self._paths(tally):
            answers = [reply for reply in path[-1].replies if reply.role == "assistant"]
            ranked = sorted((reply.rank, n) for n, reply in enumerate(answers) if reply.rank is not None)
            if len(answers) > 1:
                tally.skipped["answers without a rank, beside others"] += len(answers) - len(ranked)
            for (rank, n), (lower, m) in combinations(ranked, 2):
                if rank == lower:
                    tally.skipped[TIE] += 1
                    continue
                prompt, rating = [one.turn() for one in path], BY_RANKS[min(lower - rank, len(BY_RANKS)) - 1]
                own = f"{answers[n].message_id}-{answers[m].message_id}"
                yield Pair(prompt, answers[n].text, answers[m].text, own, rating=rating)

    def _paths(self, tally: Tally) -> Iterator[list[Reply]]:
        """From the root to each message, depth first."""
        paths = [[root] for root in _pruned([self.prompt], tally)]
        while paths:
            path = paths.pop()
            yield path
            paths += [[*path, reply] for reply in reversed(path[-1].replies)]


def _pruned(replies: list[Reply], tally: Tally) -> list[Reply]:
    kept = [reply for reply in replies if not reply.deleted and reply.review_result is not False]
    tally.skipped["deleted or rejected messages, with all below"] += len(replies) - len(kept)
    for reply in kept:
        reply.replies = _pruned(reply.replies, tally)
    return kept
