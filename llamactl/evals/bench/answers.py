"""What of a model's continuation is its answer, and whether that is right: by words, by numbers, by LaTeX.

The paper does not say how it compares; these are the ways of the benchmarks' own scripts: SQuAD's for words (Rajpurkar
et al., 2016), the last number for GSM8K (Cobbe et al., 2021), the boxed expression for MATH (Hendrycks et al., 2021).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

Measure = Callable[[str, Sequence[str]], float]  # of an answer and those that are right: 0 to 1

# a minus behind a digit or a letter is none of the number's: 10-20
_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d{1,3}(?!\w))?", re.I)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation + "‘’´“”")
_THEREFORE = re.compile(r"answer is:?\s*(.*?)\.?\s*(?:\n|$)", re.IGNORECASE)
_WORDED = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}")
_SPACES = re.compile(r"(?<!\\)\\[!,;:\s]|\\q?quad\b|~|\s+")
_SIZES = re.compile(r"\\(?:left|right|displaystyle|limits)\b")
_BARE = re.compile(r"(\\(?:frac|sqrt)|\\frac\{[^{}]*\})(\w)")
_RATIO = re.compile(r"(-?)\\frac\{(\d+)\}\{(\d+)\}")
_NAMED = re.compile(r"^[A-Za-z]\w?=(?!.*=)")


def cut(text: str, stops: Sequence[str]) -> str:
    """A continuation up to where the first of ``stops`` stands."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def first_line(text: str) -> str:
    """The answer of a question that asks for a few words."""
    return text.strip().partition("\n")[0].strip()


def words(text: str) -> str:
    """Lower case, without punctuation and articles, one space between words; an accent is one however it is coded."""
    return " ".join(_ARTICLE.sub(" ", unicodedata.normalize("NFD", text).lower().translate(_SIGNS)).split())


def exact(answer: str, right: Sequence[str]) -> float:
    """Whether it is one of ``right``, word by word."""
    return float(any(words(answer) == words(one) for one in right))


def f1(answer: str, right: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of its words, against the one of ``right`` that is nearest."""
    return max(_f1(words(answer).split(), words(one).split()) for one in right)


def _f1(answer: Sequence[str], right: Sequence[str]) -> float:
    common = (Counter(answer) & Counter(right)).total()
    return 2 * common / (len(answer) + len(right)) if common else float(not answer and not right)


def number(text: str) -> str:
    """The number behind ``####``, or the last one there is."""
    text = text.replace("$", "").replace("\N{MINUS SIGN}", "-")
    _, mark, marked = text.rpartition("####")
    found = _NUMBER.findall(marked if mark else text)
    return str(found[0 if mark else -1]) if found else ""


def equal(answer: str, right: Sequence[str]) -> float:
    """Whether it is the same number as one of ``right``: 72, 72.0 and 1,000 as 1000."""
    return float(any(_value(answer) is not None and _value(answer) == _value(one) for one in right))


def _value(text: str) -> Fraction | None:
    above, mark, below = text.partition("/")
    if not _NUMBER.fullmatch(above) or (mark and not (below.isdecimal() and int(below))):
        return None
    return Fraction(above.replace(",", "")) / int(below or 1)


def boxed(text: str) -> str:
    r"""What the last ``\boxed`` holds; else what the answer is said to be; else nothing."""
    for mark in (r"\boxed", r"\fbox"):
        _, found, rest = text.rpartition(mark)
        if found:
            return _braced(rest.lstrip())
    return concluded(text).strip("$ ")


def _braced(text: str) -> str:
    r"""The group that a text begins with; ``\boxed 5`` has one without braces."""
    if not text.startswith("{"):
        return re.split(r"[\s$]", text, maxsplit=1)[0]
    depth = 0
    for place, sign in enumerate(text):
        depth += (sign == "{") - (sign == "}")
        if not depth:
            return text[1:place]
    return ""


def same_formula(answer: str, right: Sequence[str]) -> float:
    """Whether it is one of ``right``, whatever LaTeX makes of it on paper: as text, or as the same number."""
    formulas = [_formula(one) for one in right]
    return float(_formula(answer) in formulas or equal(_formula(answer), formulas))


def _formula(text: str) -> str:
    r"""Without spaces, sizes, units in words, signs of money, per cent and degree; ``\frac12`` as ``1/2``."""
    text = _SIZES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    text = text.replace("\\$", "").replace("$", "").replace("\\%", "").replace("%", "").replace("{,}", ",")
    worded = _WORDED.sub(lambda found: found[1], text)
    unworded = _WORDED.sub("", text) if _NUMBER.search(_WORDED.sub("", text)) else worded
    text = _SPACES.sub("", unworded).replace("^{\\circ}", "").replace("^\\circ", "").rstrip(".")
    # first what is above the line, then what is below
    text = _BARE.sub(r"\1{\2}", _BARE.sub(r"\1{\2}", _NAMED.sub("", text)))
    whole = _RATIO.fullmatch(text)
    return "{}{}/{}".format(*whole.groups()) if whole else text


def concluded(text: str) -> str:
    """What follows the first "answer is", up to the end of its line, without a full stop."""
    found = _THEREFORE.search(text)
    return found[1].strip() if found else ""


def same_text(answer: str, right: Sequence[str]) -> float:
    """Whether it is one of ``right``, sign by sign."""
    return float(answer in right)
