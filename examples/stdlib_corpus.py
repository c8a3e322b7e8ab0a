"""A corpus that every machine with Python has: the standard library's documentation topics, docstrings and sources.

    python examples/stdlib_corpus.py DIR

writes ``docs.jsonl`` (English: the language reference's topics, and each module's, class's and function's docstring
under its name), ``code.jsonl`` (Python: the sources themselves) and ``valid.jsonl`` (every 25th document of docs, held
out) to DIR, as Documents. Nothing is downloaded.
"""

import ast
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "pydoc_data", "encodings", "turtledemo"}
HELD_OUT = 25  # every 25th document of docs goes to valid.jsonl

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[tuple[str, str]]:
    """Name and text of every module of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not LEFT_OUT & set(parts):
            name = ".".join(parts).removesuffix(".__init__")
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                print(f"left out {path}: not UTF-8", file=sys.stderr)


def docstrings(node: Definition, name: str) -> Iterator[tuple[str, str]]:
    """Signature and docstring of a module, and of all that is defined in it."""
    if text := ast.get_docstring(node):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            heading = f"{name}({ast.unparse(node.args)})"
        else:
            heading = f"{'class' if isinstance(node, ast.ClassDef) else 'module'} {name}"
        yield name, f"{heading}\n\n{inspect.cleandoc(text)}\n"
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from docstrings(child, f"{name}.{child.name}")


def main(directory: Path) -> None:
    """Write the three files."""
    directory.mkdir(parents=True, exist_ok=True)
    code = [{"id": name, "text": text, "source": "stdlib"} for name, text in sources() if text.strip()]
    docs = [{"id": f"topic:{name}", "text": text, "source": "topics"} for name, text in sorted(topics.items())]
    seen: set[str] = set()
    for module in code:
        for name, text in docstrings(ast.parse(module["text"]), module["id"]):
            if text not in seen:
                seen.add(text)
                docs.append({"id": name, "text": text, "source": "docstrings"})
    files = {
        "docs.jsonl": [doc for number, doc in enumerate(docs) if number % HELD_OUT],
        "valid.jsonl": docs[::HELD_OUT],
        "code.jsonl": code,
    }
    for file, documents in files.items():
        with (directory / file).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
        size = (directory / file).stat().st_size
        print(f"{directory / file}: {len(documents):,} documents, {size / 1e6:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
