"""What a person sees of models that were asked to keep an instruction: the paper's Table 30, its own numbers beside."""

from collections.abc import Iterator, Mapping, Sequence

from llamactl.evals.gatt import LATER, SEEN, UNSEEN
from llamactl.evals.reward import Measurement
from llamactl.evals.reward_tables import NONE, Found, Table

PAPER = {"2": ("100", "100"), "4": ("10", "100"), "6": ("0", "100"), "20": ("0", "100")}  # without GAtt, with it
BESIDE = ("paper: without GAtt", "paper: with GAtt")
TITLE = "answers that keep the instruction of turn 1, %, 95 % interval, of how many (Table 30)"
WHAT = {
    SEEN: "constraints seen in training; the paper's are hobbies and public figures, judged by people",
    UNSEEN: "constraints not seen in training; the paper names haiku, and gives no number",
}


def tables(found: Found) -> Iterator[Table]:
    """By turn, of seen and of unseen constraints, then by constraint."""
    for part in (SEEN, UNSEEN):
        turns = {model: _by(some, "turn", part) for model, some in found.items()}
        every = list(dict.fromkeys(turn for by in turns.values() for turn in by))
        if every:
            shown = [turn for turn in every if _shown(turn)]
            beside = part == SEEN
            rows = [
                (turn, *(_cell(by.get(turn)) for by in turns.values()), *(_paper(turn) if beside else ()))
                for turn in sorted(shown, key=_number)
            ]
            yield Table(f"{TITLE}\n{WHAT[part]}", rows, ("turn", *found, *(BESIDE if beside else ())))
    names = {model: _by(some, "constraint", "") for model, some in found.items()}
    if every := list(dict.fromkeys(name for by in names.values() for name in by)):
        rows = [(name, *(_cell(by.get(name)) for by in names.values())) for name in every]
        yield Table("the same by constraint, of all turns after the first", rows, ("constraint", *found))


def _by(some: Sequence[Measurement], field: str, part: str) -> Mapping[str, Measurement]:
    """The shares of a model: by turn of all constraints of a part, or by constraint."""
    fields = {"constraints", "turn"} | {field}
    kept = [one for one in some if one.metric == "kept" and one.group and one.group.keys() == fields]
    if field == "turn":
        return {one.group["turn"]: one for one in kept if one.group and one.group["constraints"] == part}
    unseen = {one.group["constraints"] for one in kept if one.group} == {SEEN, UNSEEN}
    said = {SEEN: "", UNSEEN: " (unseen)" if unseen else ""}
    return {one.group[field] + said[one.group["constraints"]]: one for one in kept if one.group}


def _shown(turn: str) -> bool:
    """The first turn, even ones as the paper's, from 20 on each tenth; and all later ones together."""
    number = _number(turn)
    return turn == LATER or number == 1 or (number % 2 == 0 and number <= 20) or number % 10 == 0


def _number(turn: str) -> float:
    return float("inf") if turn == LATER else int(turn)


def _paper(turn: str) -> tuple[str, str]:
    return PAPER.get(turn, (NONE, NONE))


def _cell(one: Measurement | None) -> str:
    if one is None:
        return NONE
    within = f" ({100 * one.interval[0]:.0f} to {100 * one.interval[1]:.0f})" if one.interval else ""
    return f"{100 * one.value:.1f}{within} of {one.n:,}"
