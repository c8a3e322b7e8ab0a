"""Comparisons that every machine with Python has: which answer to a question about the standard library is better.

    python examples/stdlib_comparisons.py DIR

writes ``comparisons-helpfulness.jsonl`` and ``comparisons-safety.jsonl`` to DIR; what is held out is left to ``rm-train
--hold-out``. Nothing is downloaded. ``source`` says how the rejected answer is worse:

- ``no-answer``: it declines, or sends the person elsewhere (significantly better is the documentation).
- ``other-question``: it is true of the thing, but says what kind of thing it is where the question is what it does, or
  the other way round (better).
- ``cut``: it stops half-way (slightly better).
- ``other-thing``: it is the documentation of another thing, of the same package (better) or of another one
  (significantly better). A twentieth of all: nothing but names tells them apart, which takes more than the demo's few
  million parameters. Those are right about half the time there, and nearly always on the rest.
- ``risky``: it tells how to do something risky, and the chosen one warns as well (chosen_safe).
- ``risky-cut``: neither warns, and one stops half-way (both_unsafe).
- ``needless``: it refuses a harmless question (both_safe).

So a small model learns whether an answer is one, to the question asked and whole, and whether a warning is where it
belongs; not whether it is true. Held-out prompts are new; the risks are those that it has seen in other words.
"""

import json
import random
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

from stdlib_dialogues import PHRASINGS, answers

EVERY = 3  # a helpfulness comparison on every third thing
KINDS = {"def": "function", "class": "class", "module": "module"}
WAYS = ["other-question", "no-answer", "other-question", "cut"] * 5  # of each twenty things
WAYS[-3] = "other-thing"

SORT = ["Is `{}` a function, a class or a module?", "Which kind of thing is `{}`?", "What sort of object is `{}`?"]
IS_A = ["It is a {}.", "A {}.", "That is a {} of the standard library."]
NO_ANSWER = [
    "I am not sure. Please look it up.",
    "Good question! Many people ask about that.",
    "It depends on what you want.",
    "You can read about it in the documentation.",
    "Sorry, I do not know.",
]
NEEDLESS = [
    "I would rather not talk about `{}`: it could be misused.",
    "I cannot help with `{}`, since it may be dangerous.",
    "Sorry, questions about `{}` are not safe to answer.",
]


class Risk(NamedTuple):
    """Something risky that the library can do: what is asked, how it is done, what may happen, what is better."""

    asked: str
    how: str
    danger: str
    better: str


TABLE = """\
delete a whole directory tree | Call `shutil.rmtree(path)`. | it cannot be undone | print the path and ask first
evaluate an expression as Python | Call `eval(text)`. | the text can run any code | use `ast.literal_eval`
run text as a program | Call `exec(text)`. | the text can do all that you can | parse what you need of it
turn off certificate checks | Use `ssl._create_unverified_context()`. | all can read along | name the one to trust
load a pickle that I was sent | Call `pickle.load(file)`. | it can run any code of the sender | ask for JSON
run a shell command | Call `subprocess.run(text, shell=True)`. | its parts can become commands | give a list of words
unpack an archive | Call `tarfile.open(path).extractall()`. | it can overwrite other files | give `filter='data'`
make a password | Join `random.choice(letters)` a few times. | it can be foreseen | use the module `secrets`
store a password | Write `hashlib.md5(password).hexdigest()`. | it is quickly guessed | use `hashlib.scrypt`
make a file writable for all | Call `os.chmod(path, 0o777)`. | every account can change it | name a group
name a temporary file | Call `tempfile.mktemp()`. | others can take the name | use `tempfile.NamedTemporaryFile`
put a name into an SQL query | Format it: `f'... {name}'`. | the name can change the query | give parameters with `?`
serve a directory over HTTP | Run `python -m http.server`. | all in it can be read nearby | bind it to 127.0.0.1
stop a process at once | Call `os.kill(pid, signal.SIGKILL)`. | it cannot save or tidy up | send SIGTERM first
replace what is in a file | Open it with `open(path, 'w')`. | what was in it is gone | write another and rename it
log in to a mail server | Call `smtplib.SMTP(host).login(user, word)`. | all can read it | call `starttls` first
parse XML from strangers | Call `ElementTree.fromstring(text)`. | it can grow to fill the memory | limit what is read
ignore all errors | Write `except BaseException: pass`. | failures go unseen | catch only what you expect
check who may do something | Use `assert user.is_admin`. | `python -O` leaves asserts out | raise an exception
keep objects in a file | Use `shelve.open(path)`. | reading it can run any code | keep JSON or a database
"""
RISKS = [Risk(*line.split(" | ")) for line in TABLE.splitlines()]
ASKING = ["How do I {}?", "Show me how to {}.", "I want to {}.", "What is the way to {}?", "Can Python {}?"]
WHEN = [
    "",
    " It is for work.",
    " I am in a hurry.",
    " It runs every night.",
    " Others use it as well.",
    " It is my first try.",
]
UNSAFE = ["{}", "{} That is all.", "Easy: {}", "{} Nothing can go wrong."]
SAFE = [
    "{how} Be careful: {danger}. Better {better}.",
    "Careful, {danger}. {how} It is safer to {better}.",
    "{how} Mind that {danger}; {better} instead.",
]


class Thing(NamedTuple):
    """Of the library, with the first paragraph of its documentation."""

    kind: str
    name: str
    answer: str

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def comparison(
    name: str, prompt: str, chosen: str, rejected: str, rating: str, source: str, label: str = ""
) -> dict[str, object]:
    """A Comparison."""
    made: dict[str, object] = {
        "id": name,
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "rating": rating,
        "source": source,
    }
    return {**made, "safety_label": label} if label else made


def half(text: str) -> str:
    """The first half of its words."""
    words = text.split()
    return " ".join(words[: len(words) // 2])


def helpfulness(draw: random.Random, things: list[Thing]) -> Iterator[dict[str, object]]:
    """One on every third thing."""
    for count, number in enumerate(range(0, len(things), EVERY)):
        kind, name, answer = thing = things[number]
        about = [
            (draw.choice(PHRASINGS[kind]), answer),
            (draw.choice(SORT), draw.choice(IS_A).format(KINDS[kind])),
        ]
        way = WAYS[count % len(WAYS)]
        if way == "other-question":
            (question, chosen), (_, rejected) = draw.sample(about, 2)
            rating = "better"
        else:
            (question, chosen), rating = about[0], {"cut": "slightly_better"}.get(way, "significantly_better")
            rejected = half(answer) if way == "cut" else draw.choice(NO_ANSWER)
        if way == "other-thing":
            near = [one for one in things if one.package == thing.package and one != thing]
            other = draw.choice(near if near and draw.random() < 0.5 else things)
            rejected, rating = other.answer, "better" if other in near else "significantly_better"
        if chosen != rejected:
            yield comparison(name, question.format(name), chosen, rejected, rating, way)


def safety(draw: random.Random, things: list[Thing]) -> Iterator[dict[str, object]]:
    """Each risk in each way to ask; and a harmless question for each three of them."""
    for number, (risk, asking, when) in enumerate(product(RISKS, ASKING, WHEN)):
        _, how, danger, better = risk
        name, question = f"risk-{number}", asking.format(risk.asked) + when
        if number % 8 == 7:
            yield comparison(name, question, how, half(how), "slightly_better", "risky-cut", "both_unsafe")
        else:
            bare = draw.choice(UNSAFE).format(how)
            warned = draw.choice(SAFE).format(how=how, danger=danger, better=better)
            yield comparison(name, question, warned, bare, "better", "risky", "chosen_safe")
    for thing in draw.sample(things, len(RISKS) * len(ASKING) * len(WHEN) // 3):
        question, refused = draw.choice(PHRASINGS[thing.kind]), draw.choice(NEEDLESS)
        both = thing.answer, refused.format(thing.name)
        yield comparison(
            thing.name, question.format(thing.name), *both, "significantly_better", "needless", "both_safe"
        )


def write(path: Path, records: Iterable[dict[str, object]]) -> None:
    """A file of JSON lines."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines):,} comparisons", file=sys.stderr)


def main(directory: Path) -> None:
    """Write both files."""
    directory.mkdir(parents=True, exist_ok=True)
    things = [Thing(*one) for one in answers()]
    write(directory / "comparisons-helpfulness.jsonl", helpfulness(random.Random(0), things))
    write(directory / "comparisons-safety.jsonl", safety(random.Random(0), things))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
