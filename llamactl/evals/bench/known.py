"""The benchmarks of the paper (section 2.3, Table 3): their groups, how many examples, what is right and by which rule.

Where the paper leaves it open, Llama 1's says which option is chosen: the likeliest by character, but of OpenBookQA and
BoolQ by how much likelier it is than after ``Answer:`` alone (Touvron et al., 2023a, section 3). Letters stand alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from llamactl.errors import Fault
from llamactl.evals.bench import answers, choices, examinations, writing
from llamactl.evals.bench.questions import Item, Question

Rule = Literal["log_p", "per_character", "less_nothing"]
RULES: Mapping[Rule, str] = {
    "log_p": "log p",
    "per_character": "log p per character",
    "less_nothing": "log p less that after Answer: alone",
}


class Likeliest(NamedTuple):
    """The option is chosen that is likeliest by a rule."""

    by: Rule


class Written(NamedTuple):
    """The model writes on, greedily, until one of ``stops`` or for ``room`` tokens; ``read`` is its answer of that."""

    read: Callable[[str], str]
    measures: Mapping[str, answers.Measure]  # the first is the benchmark's own
    stops: tuple[str, ...]
    room: int


class Passed(NamedTuple):
    """The model writes a program, until one of ``stops`` or for ``room`` tokens, that is run."""

    stops: tuple[str, ...]
    room: int


Examples = Callable[[Path], list[Question]]


class Benchmark(NamedTuple):
    """A row of the table; ``files`` are patterns of its files in its folder, of which the first that is there counts.

    Without ``examples`` they are of a file with ``train`` in its name beside, else the first questions, which are not
    asked then. ``beside`` is what is read with a file, such as its labels.
    """

    group: str
    shots: int
    files: tuple[str, ...]
    read: Callable[[Path], Iterator[Question]]
    how: Likeliest | Written | Passed
    examples: Examples | None = None
    parted: bool = False  # whether its parts are measured, too
    beside: Callable[[Path], Path] | None = None


_HELD_OUT = ("*val*.jsonl*", "*dev*.jsonl*", "*.jsonl*")  # whose tests are published without answers
_TEST = ("test.jsonl*", "*test*.jsonl*", *_HELD_OUT)
_EASY, _CHALLENGE = ((f"*{of}*[Tt]est*.jsonl*", f"*{of}*.jsonl*") for of in ("[Ee]asy", "[Cc]hallenge"))
_ENGLISH = "[als]*[!z]?.jsonl"  # those with options: not gaokao-, jec-qa-, -zh and math
_LOG_P, _PER_CHARACTER, _LESS_NOTHING = Likeliest("log_p"), Likeliest("per_character"), Likeliest("less_nothing")
_WORDS = {"exact_match": answers.exact}
_LINE = Written(answers.first_line, _WORDS, ("\n",), 32)
_SPAN = Written(answers.first_line, _WORDS | {"f1": answers.f1}, ("\n",), 32)
_NUMBER = Written(answers.number, {"exact_match": answers.equal}, ("Question:",), 256)
_FORMULA = Written(answers.boxed, {"exact_match": answers.same_formula}, ("Problem:",), 512)
_THOUGHT = Written(answers.concluded, {"exact_match": answers.same_text}, ("\n\n",), 512)
_FUNCTION = Passed(("\nclass", "\ndef", "\n#", "\nif", "\nprint"), 512)

CODE, COMMONSENSE, WORLD = "Code", "Commonsense Reasoning", "World Knowledge"  # as Table 3 names them
READING, MATH, ALONE = "Reading Comprehension", "Math", ""

BENCHMARKS: Mapping[str, Benchmark] = {
    "humaneval": Benchmark(CODE, 0, ("HumanEval*.jsonl*", "*.jsonl*"), writing.humaneval, _FUNCTION),
    "mbpp": Benchmark(CODE, 3, ("*.jsonl*",), writing.mbpp, Passed(("[DONE]",), 512), writing.mbpp_examples),
    "piqa": Benchmark(COMMONSENSE, 0, _HELD_OUT, choices.piqa, _PER_CHARACTER, beside=choices.labels),
    "siqa": Benchmark(COMMONSENSE, 0, _HELD_OUT, choices.siqa, _PER_CHARACTER, beside=choices.labels),
    "hellaswag": Benchmark(COMMONSENSE, 0, _HELD_OUT, choices.hellaswag, _PER_CHARACTER),
    "winogrande": Benchmark(COMMONSENSE, 0, _HELD_OUT, choices.winogrande, _LOG_P),
    "arc-easy": Benchmark(COMMONSENSE, 0, _EASY, choices.ai2, _PER_CHARACTER),
    "arc-challenge": Benchmark(COMMONSENSE, 0, _CHALLENGE, choices.ai2, _PER_CHARACTER),
    "openbookqa": Benchmark(COMMONSENSE, 0, _TEST, choices.ai2, _LESS_NOTHING),
    "commonsenseqa": Benchmark(COMMONSENSE, 7, _HELD_OUT, choices.ai2, _PER_CHARACTER),
    "nq": Benchmark(WORLD, 5, ("NQ-open.dev.jsonl*", *_HELD_OUT), writing.natural_questions, _LINE),
    "triviaqa": Benchmark(WORLD, 5, ("unfiltered-web-dev.json*", *_HELD_OUT), writing.triviaqa, _LINE),
    "squad": Benchmark(READING, 0, ("*dev*.json*", "*.en.json*", "*.json*"), writing.squad, _SPAN),
    "boolq": Benchmark(READING, 0, _HELD_OUT, choices.boolq, _LESS_NOTHING),
    "gsm8k": Benchmark(MATH, 8, _TEST, writing.gsm8k, _NUMBER),
    "math": Benchmark(MATH, 4, _TEST, writing.math, _FORMULA, parted=True),
    "mmlu": Benchmark(
        ALONE, 5, ("data/test/*.csv", "test/*.csv", "*_test.csv"), examinations.mmlu, _LOG_P,
        examinations.mmlu_examples, True, examinations.dev,
    ),
    "bbh": Benchmark(
        ALONE, 3, ("bbh/*.json", "*.json"), examinations.bbh, _THOUGHT,
        examinations.bbh_examples, True, examinations.thoughts,
    ),
    "agieval": Benchmark(
        ALONE, 5, (f"data/v1/{_ENGLISH}", f"v1/{_ENGLISH}", _ENGLISH), examinations.agieval, _LOG_P,
        examinations.agieval_examples, True, examinations.demonstrations,
    ),
    "winograd": Benchmark(ALONE, 0, ("*.jsonl*",), choices.winograd, _LOG_P),
    "svamp": Benchmark(ALONE, 8, ("*.json",), writing.svamp, _NUMBER),
}  # fmt: skip


class Given(NamedTuple):
    """A benchmark as it is given on the command line."""

    name: str
    files: list[Path]

    @classmethod
    def of(cls, given: str) -> "Given":
        """From ``NAME=PATH``, or a PATH that ends on a NAME; raises Fault where that is none, or not there."""
        name, mark, place = given.partition("=")
        path = Path(place if mark else given)
        name = name if mark else path.name.partition(".")[0].lower()
        if name not in BENCHMARKS:
            raise Fault(given, f"{name} is no benchmark", f"NAME=PATH, with a NAME of {', '.join(BENCHMARKS)}")
        if not path.exists():
            raise Fault(path, "no such file or directory", "name where it lies; nothing is downloaded")
        if not path.is_dir():
            return cls(name, [path])
        patterns = BENCHMARKS[name].files
        found = next((some for pattern in patterns if (some := sorted(path.glob(pattern)))), [])
        if not found:
            raise Fault(path, f"holds no {' or '.join(patterns)}", f"name the file: {name}=FILE")
        if len(found) > 1 and not BENCHMARKS[name].parted:
            problem = f"holds {', '.join(one.name for one in found)}"
            raise Fault(path, problem, f"name the one to ask from: {name}={found[0]}")
        return cls(name, found)

    @property
    def benchmark(self) -> Benchmark:
        """Its row of the table."""
        return BENCHMARKS[self.name]

    def items(self, shots: int | None, limit: int | None) -> list[Item]:
        """Questions, and ``shots`` examples before each; raises Fault where there are fewer.

        Of these ``limit`` are taken, spread evenly over all. Of the table's own number of examples there may be fewer,
        as of some examinations of AGIEval.
        """
        number = self.benchmark.shots if shots is None else shots
        found: list[Item] = []
        for file in self.files:
            questions = list(self.benchmark.read(file))
            examples = self._examples(file, number, questions)
            if len(examples) < (number if shots else min(number, 1)) or not questions:
                problem = f"has {len(questions):,} questions to ask, and {len(examples)} of {number} examples"
                raise Fault(file, problem, "fewer --shots, or name a file that has more")
            found += [Item(question, [one.solved for one in examples]) for question in questions]
        taken = len(found) if limit is None else min(limit, len(found))
        return [found[place * len(found) // taken] for place in range(taken)]

    def _examples(self, file: Path, number: int, questions: list[Question]) -> Sequence[Question]:
        """So many, if there are; where they are the first questions they are taken out of these."""
        if not number:
            return []
        if self.benchmark.examples:
            return self.benchmark.examples(file)[:number]
        if train := self._train(file):
            return list(islice(self.benchmark.read(train), number))
        some = questions[:number]
        del questions[:number]
        return some

    def _train(self, file: Path) -> Path | None:
        """The file that examples are read from, where it is one beside: named as this one up to ``train``."""
        if self.benchmark.examples or "train" in file.name.lower():
            return None
        for one in sorted(file.parent.iterdir()):
            before, train, _ = one.name.lower().partition("train")
            if train and file.name.lower().startswith(before) and one.suffix == file.suffix:
                return one
        return None

    @property
    def read(self) -> list[Path]:
        """All files that its questions and examples are made of."""
        files = [*self.files, *filter(None, map(self._train, self.files))]
        beside = map(self.benchmark.beside, files) if self.benchmark.beside else ()
        return list(dict.fromkeys([*files, *filter(Path.exists, beside)]))
