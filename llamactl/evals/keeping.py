"""Whether an answer keeps an instruction, as far as a program can tell (paper, section 3.3 and appendix A.3.5).

The paper had people look, and limited itself to hobbies and public figures; the judges here are ours, one for each kind
of ``text.constraints``. They look at the answer alone. An answer without a text keeps nothing; one whose language
cannot be told, because it is too short or the identifier is not sure, is neither kept nor broken: ``None``.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import partial

import orjson

from llamactl.text import constraints, languages
from llamactl.text.constraints import Constraint

Judge = Callable[[str], bool | None]

_WORD = re.compile(r"\w+(?:['\N{RIGHT SINGLE QUOTATION MARK}-]\w+)*")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)
# What may end a sentence: its signs, closing quotes and brackets, white space, and what begins the next one.
_ENDS = re.compile(r"([.!?…؟।]+)[\"')\]}”’»]*\s+(\S)")
_ENDS_WIDE = re.compile(r"[。！？].*\w", re.DOTALL)  # in scripts without spaces: whatever has a word after it
_SHORT = re.compile(
    r"(?:^|[\s(])(?:(?i:mr|mrs|ms|dr|prof|st|jr|vs|e\.g|i\.e)|(?:[A-Z]\.)*[A-HJ-Z])$"
)  # and a full stop


def judge(constraint: Constraint) -> Judge | None:
    """What tells whether an answer keeps a constraint; None where no program here can."""
    if constraint.kind == "language":
        code = languages.code(constraint.name)
        return partial(speaks, code) if code else None
    if constraint.kind in ("hobby", "figure"):
        return partial(names, constraint.name)
    if constraint.name.startswith(constraints.LAST_WORD):
        return partial(ends_with, constraint.name[len(constraints.LAST_WORD) :])
    return FORMATS.get(constraint.name)


def kept(judges: Iterable[Judge], answer: str) -> bool | None:
    """Whether an answer keeps all that is asked: not where it breaks one, nor known where one cannot be judged."""
    if not answer.strip():
        return False
    verdicts = [one(answer) for one in judges]
    return False if False in verdicts else None if None in verdicts else True


def speaks(code: str, answer: str) -> bool | None:
    """Whether it is in the language of a code; None where that cannot be told."""
    told = languages.told(answer) if len(answer.strip()) >= languages.SHORTEST else languages.UNKNOWN
    return None if told == languages.UNKNOWN else told == code


def names(name: str, answer: str) -> bool:
    """Whether it has a name, in capitals or not, as whole words: Napoleon and Napoleon's, not Napoleonic."""
    words = r"\s+".join(map(re.escape, _folded(name).split()))
    return re.search(rf"(?<!\w){words}(?!\w)", _folded(answer)) is not None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def capitals(answer: str) -> bool:
    """Whether it has letters, and all that could be capitals are."""
    letters = [letter for letter in answer if letter.upper() != letter.lower()]
    return bool(letters) and not any(letter.islower() for letter in letters)


def lower_case(answer: str) -> bool:
    """Whether it has letters, and none of them is a capital."""
    letters = [letter for letter in answer if letter.upper() != letter.lower()]
    return bool(letters) and not any(letter.isupper() or letter.istitle() for letter in letters)


def one_sentence(answer: str) -> bool:
    """Whether it is one sentence: on one line, and nothing after the sign that ends it.

    A full stop does not end it before a small letter, within a number, or after a title or an initial.
    """
    text = answer.strip()
    if not text or "\n" in text or _ENDS_WIDE.search(text):
        return False
    return not any(_ends(text, found) for found in _ENDS.finditer(text))


def _ends(text: str, found: re.Match[str]) -> bool:
    abbreviated = found[1] == "." and _SHORT.search(text[: found.start()]) is not None
    return not found[2].islower() and not abbreviated


def json(answer: str) -> bool:
    """Whether it is an object or an array of JSON, in a code fence or not (as Zhou et al., 2023, take it).

    A number or a word alone would be JSON as well, and is what an answer may come to by chance.
    """
    text = answer.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        return isinstance(orjson.loads(fenced[1] if fenced else text), dict | list)
    except orjson.JSONDecodeError:
        return False


def ends_with(word: str, answer: str) -> bool:
    """Whether a word, or several, in capitals or not, are its last, whatever signs come after."""
    wanted, said = (_WORD.findall(_folded(text)) for text in (word, answer))
    return bool(wanted) and said[-len(wanted) :] == wanted


FORMATS: dict[str, Judge] = {
    "capitals": capitals,
    "lower case": lower_case,
    "one sentence": one_sentence,
    "json": json,
}
