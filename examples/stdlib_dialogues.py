"""Dialogues that every machine with Python has: questions about the standard library, answered from its docstrings.

    python examples/stdlib_dialogues.py DIR

writes ``dialogues.jsonl`` and ``dialogues-valid.jsonl`` (every 25th function, class and module, held out) to DIR. A
question names something ("What does `os.path.join` do?", in several phrasings), the answer is the first paragraph of
its docstring; a third of the dialogues go on with another question. Nothing is downloaded.
"""

import ast
import json
import random
import sys
from pathlib import Path

from stdlib_corpus import HELD_OUT, Definition, docstrings, sources

LONGEST = 300  # characters of an answer
PHRASINGS = {
    "def": ["What does `{}` do?", "Explain `{}`.", "What is `{}` for?", "What happens when I call `{}`?", "`{}`?"],
    "class": ["What is `{}`?", "What is the class `{}` for?", "Explain `{}`.", "What does `{}` stand for?"],
    "module": ["What is the module `{}` for?", "What is in `{}`?", "Explain the module `{}`.", "What is `{}`?"],
}
THEN = ["And `{}`?", "What about `{}`?", "Thank you. And what is `{}`?"]


def answers() -> list[tuple[str, str, str]]:
    """Kind, name and answer of all that has a docstring with a first paragraph of a good length."""
    found, seen = [], set()
    for module, text in sources():
        tree: Definition = ast.parse(text)
        for name, doc in docstrings(tree, module):
            heading, _, rest = doc.partition("\n\n")
            answer = " ".join(rest.strip().partition("\n\n")[0].split())
            kind = heading.partition(" ")[0] if heading.startswith(("class ", "module ")) else "def"
            private = any(part.startswith("_") for part in name.split("."))
            if not private and 20 <= len(answer) <= LONGEST and answer[-1] in ".:)" and answer not in seen:
                seen.add(answer)
                found.append((kind, name, answer.rstrip(":")))
    return found


def dialogue(draw: random.Random, number: int, about: list[tuple[str, str, str]]) -> dict[str, object]:
    """On the ``number``-th thing; a third of the time, then on another one of the same module."""
    kind, name, answer = about[number]
    messages = [
        {"role": "user", "content": draw.choice(PHRASINGS[kind]).format(name)},
        {"role": "assistant", "content": answer},
    ]
    near = about[max(0, number - 5) : number] + about[number + 1 : number + 6]
    if near and draw.random() < 1 / 3:
        _, other, another = draw.choice(near)
        messages.append({"role": "user", "content": draw.choice(THEN).format(other)})
        messages.append({"role": "assistant", "content": another})
    return {"id": name, "messages": messages}


def main(directory: Path) -> None:
    """Write both files."""
    directory.mkdir(parents=True, exist_ok=True)
    draw, every = random.Random(0), answers()
    parts = {
        "dialogues.jsonl": [one for number, one in enumerate(every) if number % HELD_OUT],
        "dialogues-valid.jsonl": every[::HELD_OUT],
    }
    for file, about in parts.items():
        with (directory / file).open("w", encoding="utf-8") as out:
            for number in range(len(about)):
                out.write(json.dumps(dialogue(draw, number, about), ensure_ascii=False) + "\n")
        print(f"{directory / file}: {len(about):,} dialogues", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
