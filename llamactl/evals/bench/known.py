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
    asked then.
    """

    group: str
    shots: int
    files: tuple[str, ...]
    read: Callable[[Path], Iterator[Question]]
    how: Likeliest | Written | Passed
    examples: Examples | None = None
    needs: Callable[[Path], Path] | None = None  # the file beside one of questions that is read with it
    parted: bool = False  # whether its parts are measured, too


_QUESTIONS = ("*test*.jsonl*", "*val*.jsonl*", "*dev*.jsonl*", "*.jsonl*")
_LOG_P, _PER_CHARACTER, _LESS_NOTHING = Likeliest("log_p"), Likeliest("per_character"), Likeliest("less_nothing")
_WORDS = {"exact_match": answers.exact}
_LINE = Written(answers.first_line, _WORDS, ("\n",), 32)
_SPAN = Written(answers.first_line, _WORDS | {"f1": answers.f1}, ("\n",), 32)
_NUMBER = Written(answers.number, {"exact_match": answers.equal}, ("Question:", "\n\n"), 256)
_FORMULA = Written(answers.boxed, {"exact_match": answers.same_formula}, ("Problem:",), 512)
_THOUGHT = Written(answers.concluded, {"exact_match": answers.same_text}, ("\n\n",), 512)
_FUNCTION = Passed(("\nclass", "\ndef", "\n#", "\nif", "\nprint"), 512)

CODE, COMMONSENSE, WORLD = "Code", "Commonsense Reasoning", "World Knowledge"  # as Table 3 names them
READING, MATH, ALONE = "Reading Comprehension", "Math", ""

BENCHMARKS: Mapping[str, Benchmark] = {
    "humaneval": Benchmark(CODE, 0, ("*.jsonl*",), writing.humaneval, _FUNCTION),
    "mbpp": Benchmark(CODE, 3, ("*.jsonl*",), writing.mbpp, Passed(("[DONE]",), 512), writing.mbpp_examples),
    "piqa": Benchmark(COMMONSENSE, 0, _QUESTIONS, choices.piqa, _PER_CHARACTER, needs=choices.piqa_labels),
    "siqa": Benchmark(COMMONSENSE, 0, _QUESTIONS, choices.siqa, _PER_CHARACTER),
    "hellaswag": Benchmark(COMMONSENSE, 0, _QUESTIONS, choices.hellaswag, _PER_CHARACTER),
    "winogrande": Benchmark(COMMONSENSE, 0, _QUESTIONS, choices.winogrande, _LOG_P),
    "arc-easy": Benchmark(COMMONSENSE, 0, ("*[Ee]asy*.jsonl*",), choices.arc, _PER_CHARACTER),
    "arc-challenge": Benchmark(COMMONSENSE, 0, ("*[Cc]hallenge*.jsonl*",), choices.arc, _PER_CHARACTER),
    "openbookqa": Benchmark(COMMONSENSE, 0, _QUESTIONS, choices.ai2, _LESS_NOTHING),
    "commonsenseqa": Benchmark(COMMONSENSE, 7, _QUESTIONS, choices.ai2, _PER_CHARACTER),
    "nq": Benchmark(WORLD, 5, _QUESTIONS, writing.natural_questions, _LINE),
    "triviaqa": Benchmark(WORLD, 5, _QUESTIONS, writing.triviaqa, _LINE),
    "squad": Benchmark(READING, 0, ("*dev*.json*", "*.en.json*", "*.json*"), writing.squad, _SPAN),
    "boolq": Benchmark(READING, 0, _QUESTIONS, choices.boolq, _LESS_NOTHING),
    "gsm8k": Benchmark(MATH, 8, _QUESTIONS, writing.gsm8k, _NUMBER),
    "math": Benchmark(MATH, 4, _QUESTIONS, writing.math, _FORMULA, parted=True),
    "mmlu": Benchmark(
        ALONE, 5, ("data/test/*.csv", "test/*.csv", "*_test.csv"), examinations.mmlu, _LOG_P,
        examinations.mmlu_examples, examinations.mmlu_dev, parted=True,
    ),
    "bbh": Benchmark(
        ALONE, 3, ("bbh/*.json", "*.json"), examinations.bbh, _THOUGHT,
        examinations.bbh_examples, examinations.bbh_prompt, parted=True,
    ),
    "agieval": Benchmark(
        ALONE, 5, ("data/v1/*.jsonl", "v1/*.jsonl"), examinations.agieval, _LOG_P,
        examinations.agieval_examples, examinations.agieval_table, parted=True,
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
        if path.is_file():
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
                problem = (
                    f"has {len(questions):,} questions to ask, and {len(examples)} examples where {number} are due"
                )
                raise Fault(file, problem, "fewer --shots, or name a file that has more")
            found += [Item(question, [one.solved for one in examples]) for question in questions]
        count = len(found) if limit is None else min(limit, len(found))
        return [found[place * len(found) // count] for place in range(count)]

    def _examples(self, file: Path, number: int, questions: list[Question]) -> Sequence[Question]:
        """So many, if there are; where they are the first questions they are taken out of these."""
        if not number:
            return []
        if self.benchmark.examples:
            return self.benchmark.examples(file)[:number]
        if beside := self._beside(file):
            return list(islice(self.benchmark.read(beside), number))
        some = questions[:number]
        del questions[:number]
        return some

    @property
    def read(self) -> list[Path]:
        """All files that are read."""
        needs = self.benchmark.needs or self._beside
        beside = (one for one in map(needs, self.files) if one and one.exists())
        return list(dict.fromkeys([*self.files, *beside]))

    def _beside(self, file: Path) -> Path | None:
        """The file that examples are read from, where it is one beside."""
        found = sorted(one for one in file.parent.glob("*train*") if one.suffix == file.suffix and one != file)
        return found[0] if found and not self.benchmark.examples else None
