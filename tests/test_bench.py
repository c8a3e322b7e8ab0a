"""Benchmarks: files as they are published, prompts, likelihoods, verdicts, programs; and the command, by hand."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DATA, PATIENCE, written
from test_cli import Run, command, one_line
from test_slices import together

from llamactl.errors import Fault
from llamactl.evals.bench import answering, answers, programs, results
from llamactl.evals.bench.answering import Outcome, picked
from llamactl.evals.bench.known import BENCHMARKS, Given, Likeliest, Passed, Written
from llamactl.evals.bench.likelihood import log_probs
from llamactl.evals.bench.published import LLAMA_2
from llamactl.evals.bench.questions import Choice, Ending, Item, Open, Task, asked, ending, endings
from llamactl.model import trees
from llamactl.model.llama import Llama
from llamactl.text.tokenizer import BOS, Tokenizer

assert command  # a fixture

EVAL = DATA / "eval"
REAL = {  # by its name: where it lies, questions to ask, examples before each
    "humaneval": ("humaneval", 120, 0), "mbpp": ("mbpp", 500, 3), "piqa": ("piqa", 1338, 0), "siqa": ("siqa", 1376, 0),
    "hellaswag": ("hellaswag", 5021, 0), "arc-easy": ("arc", 1800, 0), "arc-challenge": ("arc", 800, 0),
    "openbookqa": ("openbookqa", 500, 0), "commonsenseqa": ("commonsenseqa", 900, 7), "nq": ("nq-open", 2595, 5),
    "triviaqa": ("triviaqa", 1995, 5), "squad": ("squad", 925, 0), "boolq": ("boolq", 2470, 0),
    "gsm8k": ("gsm8k", 1000, 8), "math": ("minerva-math", 196, 4), "mmlu": ("mmlu", 8674, 5), "bbh": ("bbh", 4937, 3),
    "agieval": ("agieval", 2277, 5), "winograd": ("winograd", 273, 0), "svamp": ("svamp", 723, 8),
}  # fmt: skip
real = pytest.mark.skipif(not EVAL.exists(), reason="the benchmarks' files are not here")


# -- files as they are published


@real
@pytest.mark.parametrize("name", REAL)
def test_every_question_of_the_published_files_has_an_answer_that_is_right(name: str) -> None:
    """By the benchmark's own way to read and judge it; of programs see below."""
    folder, questions, shots = REAL[name]
    items = Given.of(f"{name}={EVAL / folder}").items(None, None)
    assert (len(items), max(len(item.examples) for item in items)) == (questions, shots)
    how = BENCHMARKS[name].how
    for question, examples in items:
        assert all(example.strip() for example in examples)
        assert not question.text.endswith(" ")  # a token would be cut in two
        if isinstance(question, Choice):
            assert question.options[question.right] == question.answer
            assert len(question.options) == len(question.ways()) > 1
        elif isinstance(question, Open):
            assert isinstance(how, Written)
            said = how.read(answers.cut(question.answer, how.stops))
            assert all(measure(said, question.answers) == 1 for measure in how.measures.values()), question


@real
def test_the_published_programs_pass_their_tests_and_others_do_not() -> None:
    for name, some in (("humaneval", 8), ("mbpp", 8)):
        items = Given.of(f"{name}={EVAL / REAL[name][0]}").items(None, some)
        tasks = [item.question for item in items if isinstance(item.question, Task)]
        ways = BENCHMARKS[name].how
        assert isinstance(ways, Passed)
        right = [one.before + answers.cut(one.answer, ways.stops) + one.after for one in tasks]
        wrong = [one.before + "    return None\n" + one.after for one in tasks]
        assert list(programs.each(right, PATIENCE)) == [True] * len(tasks)
        assert not any(programs.each(wrong))


def test_what_prepares_the_tests_of_mbpp_may_name_what_the_program_defines(tmp_path: Path) -> None:
    one = {
        "text": "Write a class.", "code": "class Node:\r\n    size = 1", "task_id": 11,
        "test_setup_code": "root = Node()", "test_list": ["assert root.size == 1"],
    }  # fmt: skip
    ((task, _),) = Given.of(f"mbpp={written(tmp_path / 'mbpp.jsonl', [one])}").items(0, None)
    assert isinstance(task, Task)
    assert programs.passed(task.before + answers.cut(task.answer, ("[DONE]",)) + task.after, PATIENCE)


@real
def test_prompts_are_the_published_ones() -> None:
    mmlu = Given.of(f"mmlu={EVAL / 'mmlu'}").items(1, None)[0]
    assert (
        mmlu.question.heading
        == "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    )
    assert mmlu.examples[0] == (
        "Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\nA. 0\nB. 1\nC. 2\nD. 3\nAnswer: B"
    )
    gsm8k = Given.of(f"gsm8k={EVAL / 'gsm8k'}").items(None, 1)[0]
    assert all("<<" not in example and "\n#### " in example for example in gsm8k.examples)
    bbh = Given.of(f"bbh={EVAL / 'bbh'}").items(None, 1)[0]
    assert bbh.question.heading == "Evaluate the result of a random Boolean expression.\n\n"
    assert [example[:3] for example in bbh.examples] == ["Q: "] * 3
    assert "canary" not in bbh.question.heading


CHOICES = [
    {"query": "Question: Which is a bird?", "choices": ["a stone", "an owl", "a very long river"], "gold": 1},
    {"query": "Question: Which is hot?", "choices": ["fire", "ice"], "gold": 0},
    {"query": "Question: Which is blue?", "choices": ["grass", "the sky"], "gold": 1},
]


@pytest.mark.parametrize(
    ("name", "lines", "problem"),
    [
        ("arc-easy", [{**CHOICES[0], "gold": 3}], ":1: gold: 3 is none of the 3 options"),
        ("arc-easy", [CHOICES[0], {"query": "Question: Why?"}], ":2: choices: missing"),
        ("siqa", [{"context": "c", "question": "q", "options": ["a"], "answer": "b"}], ":1: answer: is none of the"),
        ("nq", [{"question": "who", "answer": []}] * 6, ":1: has no answer"),
        ("gsm8k", [{"question": "how many", "answer": "none"}] * 9, ":1: answer: holds no number"),
        ("math", [{"problem": "p", "solution": "s"}] * 5, ":1: solution: has no answer in a box"),
        ("gsm8k", [{"question": "how many", "answer": "1"}] * 4, "0 questions to ask, and 4 of 8 examples"),
        ("piqa", [{"goal": "g", "sol1": "a", "sol2": "b"}], "-labels.lst: no such file"),
        ("winogrande", [{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}], "has no gap (_)"),
    ],
)
def test_a_file_that_is_otherwise_is_refused_at_its_line(
    tmp_path: Path, command: Run, base_model: Path, name: str, lines: Sequence[Any], problem: str
) -> None:
    done = command("eval", "bench", base_model, f"{name}={written(tmp_path / 'file.jsonl', lines)}")
    assert problem in one_line(done)
    assert not done.stdout


@real
def test_all_files_are_known_by_which_questions_are_made() -> None:
    count = {name: len(Given.of(f"{name}={EVAL / folder}").read) for name, (folder, *_) in REAL.items()}
    both = {"mmlu": 80, "bbh": 40, "agieval": 8, "piqa": 2, "gsm8k": 2, "commonsenseqa": 2}
    assert count == {name: both.get(name, 1) for name in REAL}


@pytest.mark.parametrize(
    ("name", "there", "asked"),
    [
        ("siqa", "dev train", ["dev"]),
        ("gsm8k", "example_model_solutions test test_socratic train train_socratic", ["test"]),
        ("nq", "NQ-open.dev NQ-open.train NQ-open.efficientqa.test.1.1 NQ-open.efficientqa.dev", ["NQ-open.dev"]),
        ("hellaswag", "hellaswag_test hellaswag_train hellaswag_val", ["hellaswag_val"]),
        ("piqa", "tests train valid", ["valid"]),
        ("winogrande", "dev test train_l train_xs", ["dev"]),
        ("commonsenseqa", "dev_rand_split test_rand_split_no_answers train_rand_split", ["dev_rand_split"]),
        ("openbookqa", "dev test train", ["test"]),
        ("arc-easy", "ARC-Easy-Dev ARC-Easy-Test ARC-Easy-Train", ["ARC-Easy-Test"]),
        ("humaneval", "HumanEval example_problem example_samples", ["HumanEval"]),
        (
            "agieval", "v1/aqua-rat v1/gaokao-biology v1/jec-qa-ca v1/logiqa-en v1/logiqa-zh v1/lsat-rc v1/math"
            " v1/sat-en v1/sat-en-without-passage v1/sat-math",
            ["aqua-rat", "logiqa-en", "lsat-rc", "sat-en-without-passage", "sat-en", "sat-math"],
        ),
    ],
)  # fmt: skip
def test_of_a_folder_as_it_is_published_what_the_paper_asks_is_asked(
    tmp_path: Path, name: str, there: str, asked: list[str]
) -> None:
    (tmp_path / "v1").mkdir()
    for file in there.split():
        (tmp_path / f"{file}.jsonl").touch()
    assert [file.name.removesuffix(".jsonl") for file in Given.of(f"{name}={tmp_path}").files] == asked
    if name == "agieval":
        assert Given.of(f"agieval={tmp_path / 'v1'}").files == Given.of(f"agieval={tmp_path}").files


def test_examples_are_of_the_train_file_of_the_same_set(tmp_path: Path) -> None:
    for of in ("Challenge", "Easy"):
        for split in ("Test", "Train"):
            written(tmp_path / f"ARC-{of}-{split}.jsonl", [{**one, "query": f"{of} {split}"} for one in CHOICES])
    ((question, (example,)), *_) = Given.of(f"arc-easy={tmp_path}").items(1, None)
    assert (question.text.split("\n")[0], example.split("\n")[0]) == ("Easy Test", "Easy Train")
    # examples of a train file are its own first questions, not the same questions in other words beside it
    written(tmp_path / "ARC-Easy-Train_again.jsonl", CHOICES)
    assert len(Given.of(f"arc-easy={tmp_path / 'ARC-Easy-Train.jsonl'}").items(1, None)) == len(CHOICES) - 1


@pytest.mark.parametrize("letter", ["", "BC"])
def test_a_letter_that_is_none_is_refused(tmp_path: Path, letter: str) -> None:
    (tmp_path / "law_test.csv").write_text(f"why,one,two,three,four,{letter}\n")
    one = {"question": "why", "options": ["(A)one", "(B)two", "(C)three"], "label": letter}
    for given in (f"mmlu={tmp_path / 'law_test.csv'}", f"agieval={written(tmp_path / 'law.jsonl', [one])}"):
        with pytest.raises(Fault, match=r":1(:| is no question)"):
            Given.of(given).items(0, None)


def test_labels_that_are_no_text_are_a_fault_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    written(tmp_path / "valid.jsonl", [{"goal": "g", "sol1": "a", "sol2": "b"}])
    (tmp_path / "valid-labels.lst").write_bytes(b"\xff\n")
    with pytest.raises(Fault, match=r"valid-labels.lst: byte 0 is not UTF-8"):
        Given.of(f"piqa={tmp_path / 'valid.jsonl'}").items(None, None)
    (tmp_path / "svamp.json").write_text('\ufeff[{"Body": "One apple", "Question": "How many?", "Answer": 1}]')
    assert len(Given.of(f"{tmp_path / 'svamp.json'}").items(0, None)) == 1


def test_a_table_of_examples_may_be_ragged_and_not_empty(tmp_path: Path) -> None:
    one = {"question": "Why?", "options": ["(A)this", "(B)that"], "label": "B"}
    (tmp_path / "v1").mkdir()
    written(tmp_path / "v1" / "lsat-lr.jsonl", [one])
    table = tmp_path / "few_shot_prompts.csv"
    cell = json.dumps(one | {"question": "How?"}).replace('"', '""')
    table.write_text(f'"","lsat-ar","lsat-lr"\n"sample 1","","{cell}"\n"explanation 1"\n"sample 2"\n')
    ((question, examples),) = Given.of(f"agieval={tmp_path}").items(None, None)
    assert examples == ["How?\nA. this\nB. that\nAnswer: B"]
    assert question.text == "Why?\nA. this\nB. that\nAnswer:"
    table.write_text("\n")
    with pytest.raises(Fault, match="has no column lsat-lr"):
        Given.of(f"agieval={tmp_path}").items(None, None)


def test_winogrande_and_boolq_as_their_authors_have_them(tmp_path: Path) -> None:
    one = {"sentence": "The cup broke the plate because _ was hard.", "option1": "it", "option2": "she", "answer": "2"}
    ((question, _),) = Given.of(f"winogrande={written(tmp_path / 'w.jsonl', [one])}").items(None, None)
    assert isinstance(question, Choice)
    assert question.ways() == [
        ("The cup broke the plate because it", " was hard."), ("The cup broke the plate because she", " was hard."),
    ]  # fmt: skip
    assert question.right == 1
    two = {"question": "is it so", "passage": "It is.", "answer": True}
    ((question, _),) = Given.of(f"boolq={written(tmp_path / 'b.jsonl', [two])}").items(None, None)
    assert question.solved == "Passage: It is.\nQuestion: is it so?\nAnswer: yes"


def test_siqa_and_triviaqa_as_their_authors_have_them(tmp_path: Path) -> None:
    one = {"context": "Ann fell.", "question": "Why?", "answerA": "ice", "answerB": "sun", "answerC": "luck"}
    written(tmp_path / "dev.jsonl", [one, one])
    (tmp_path / "dev-labels.lst").write_text("1\n3\n")
    given = Given.of(f"siqa={tmp_path / 'dev.jsonl'}")
    assert [item.question.solved for item in given.items(None, None)] == [
        "Ann fell.\nQuestion: Why?\nAnswer: ice", "Ann fell.\nQuestion: Why?\nAnswer: luck",
    ]  # fmt: skip
    assert given.read == [tmp_path / "dev.jsonl", tmp_path / "dev-labels.lst"]
    (tmp_path / "dev-labels.lst").write_text("1\n0\n")
    with pytest.raises(Fault, match="does not hold 1 or 2 or 3 for each of the 2 questions"):
        given.items(None, None)
    two = {"Data": [{"Question": "Who?", "QuestionId": "a", "Answer": {"Value": "Ann", "Aliases": ["Anna", "Ann"]}}]}
    (tmp_path / "unfiltered-web-dev.json").write_text(json.dumps(two))
    ((question, _),) = Given.of(f"triviaqa={tmp_path}").items(0, None)
    assert isinstance(question, Open)
    assert (question.solved, question.answers) == ("Question: Who?\nAnswer: Ann", ("Ann", "Anna"))


def test_a_benchmark_may_come_through_a_pipe(command: Run, base_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    text = "".join(json.dumps(one) + "\n" for one in CHOICES)
    with ThreadPoolExecutor() as pool:
        pool.submit((tmp_path / "pipe").write_text, text)
        done = command("eval", "bench", base_model, f"arc-easy={tmp_path / 'pipe'}")
    assert scores(done.stdout)["arc-easy", "accuracy"]["n"] == 3, done.stderr


# -- likelihoods


@pytest.fixture(scope="module")
def model(base_model: Path) -> Llama:
    return Llama.load(base_model, torch.device("cpu"))


@torch.inference_mode()
def alone(model: Llama, one: Ending) -> float:
    """By a pass over this sequence alone, all of it written out, in torch's own words."""
    tokens = torch.tensor([[*one.given, *one.ids]])
    logs = model.logits(model(tokens[:, :-1]))[0].double().log_softmax(-1)
    return float(logs[len(one.given) - 1 :].gather(1, tokens[0, len(one.given) :, None]).sum())


SHOTS = tuple(range(40, 90))
ENDINGS = [
    *(Ending((BOS, *SHOTS, *range(5, 5 + n)), (letter,)) for n in (3, 9, 9, 20) for letter in (7, 8, 9)),  # letters
    *(Ending((BOS, *SHOTS, 3, n), ids) for n in (4, 5) for ids in ((6,), (6, 7), (6, 7, 8), (9, 9))),  # beginnings
    Ending((BOS,), (5, 6)), Ending((BOS, 5), (6,)), Ending((BOS, 5), (7,)), Ending((BOS, 30), (5, 6)),
    *(Ending((BOS, *range(n, n + 60)), (3, 4)) for n in range(100, 130)),  # that share nothing
]  # fmt: skip


@pytest.mark.parametrize("at_once", [16, 200, 8192])
def test_log_p_of_an_ending_is_that_of_the_sequence_written_out(
    model: Llama, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "BATCH_TOKENS", at_once)
    found = log_probs(model, ENDINGS)
    assert found.keys() == set(ENDINGS)
    for one, value in found.items():
        assert value == pytest.approx(alone(model, one), abs=1e-4)


def test_examples_are_computed_once_for_questions_about_letters(model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    places = []
    forward = Llama.forward

    def seen(self: Llama, tokens: torch.Tensor, **more: Any) -> torch.Tensor:
        places.append(tokens.numel())
        return forward(self, tokens, **more)

    monkeypatch.setattr(Llama, "forward", seen)
    shots, questions = tuple(range(20, 80)), [(90 + n, 91 + n, 92 + n) for n in range(10)]
    log_probs(model, [Ending((BOS, *shots, *one), (letter,)) for one in questions for letter in (5, 6, 7, 8)])
    assert sum(places) <= 1 + 60 + 10 * 3 + trees.MULTIPLE


def test_a_token_that_goes_across_from_question_to_option_is_of_the_option(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_path)
    for text, option in (("Answer:", " A"), ("return", "ed it"), ("x =", " 1"), ("", "self"), ("the th", "e")):
        found = ending(tokenizer, text, option)
        assert found.given[0] == BOS
        assert list(found.given[1:] + found.ids) == list(tokenizer.encode(text + option))
        assert found.ids
        assert tokenizer.decode(found.given[1:]) in text


def test_examples_make_room_for_the_question(tokenizer_path: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_path)
    question = Choice(where="f:1", text="Question: what?\nAnswer:", answer=" a", options=(" a", " b"), right=0)
    examples = ["Question: one\nAnswer: a", "Question: two\nAnswer: b"]
    sizes = [1 + len(tokenizer.encode(question.text + " a"))]
    for number in (1, 2):
        behind = "\n\n".join([*examples[:number], question.text])
        sizes.append(1 + len(tokenizer.encode(behind + " a")))
    for number, size in enumerate(sizes):
        found = endings(tokenizer, question, examples, size - 1)  # the last id is never read
        assert found and found[1] == number
        assert max(len(one.given) + len(one.ids) for one in found[0]) == size
    assert endings(tokenizer, question, examples, sizes[0] - 2) is None
    least = 1 + len(tokenizer.encode(question.text))
    assert asked(tokenizer, question, examples, least + 4, room=5) is None
    room = asked(tokenizer, question, examples, least + 5, room=5)
    assert room and room[1] == 0 and room[0].text == question.text


def test_which_option_is_chosen_by_which_rule() -> None:
    question = Choice(where="f:1", text="", answer="", options=(" ab", " abcdefgh", " abc"), right=0)
    found = {"log_p": [-3.0, -4.0, -2.9], "nothing": [-9.0, -4.5, -3.0]}
    assert [picked(question, rule, found) for rule in ("log_p", "per_character", "less_nothing")] == [2, 1, 0]
    spaced = {"log_p": [-1.0, -3.5, -1.7]}  # were their spaces counted, it would be the first
    assert picked(question, "per_character", spaced) == 1
    assert answering.values(question, Likeliest("less_nothing"), found) == {
        "accuracy": 1.0, "accuracy_log_p": 0.0, "accuracy_per_character": 0.0,
    }  # fmt: skip


# -- verdicts


@pytest.mark.parametrize(
    ("answer", "right", "same"),
    [
        ("The Onion!", "onion", True), ("an  onion", "Onion", True), ("onions", "onion", False), ("", "onion", False),
        ("A", "B", False), ("King\N{RIGHT SINGLE QUOTATION MARK}s", "King's", True),
        ("Beyonc\u00e9", "Beyonce\u0301", True), ("Beyonce", "Beyonc\u00e9", False),
    ],
)  # fmt: skip
def test_words_are_compared_as_squad_has_it(answer: str, right: str, same: bool) -> None:
    assert answers.exact(answer, ["other", right]) == same


def test_f1_is_of_the_nearest_answer() -> None:
    assert answers.f1("the red big car", ["a red car", "bus"]) == pytest.approx(2 * 2 / (3 + 2))
    assert answers.f1("nothing", ["bus"]) == 0
    assert answers.f1("", ["the"]) == 1  # no word on either side


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 5 + 3 = 8\n#### 1,234", "1234"), ("It costs $1,000.50 in all.", "1000.5"), ("-3 degrees", "-3"),
        ("#### 72 or 73", "72"), ("2, 3", "3"), ("none", None), ("about .5", "0.5"), ("in 1999.", "1999"),
        ("#### -$5", "-5"), ("\N{MINUS SIGN}5", "-5"), ("10-20", "20"), ("so 10 - 20 = -10", "-10"), ("#### 1,5", "1"),
    ],
)  # fmt: skip
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    found = answers.number(text)
    assert answers.equal(found, [number]) if number else found == ""


@pytest.mark.parametrize(
    ("text", "right", "same"),
    [
        (r"so \boxed{\frac{1}{2}}", r"\dfrac12", True), (r"\boxed{1{,}000}", r"1{,}000", True),
        (r"$\boxed{x = 5}$.", "5", True), (r"\boxed{10\text{ cm}}", "10", True), (r"\boxed{a}; \boxed{b}", "b", True),
        (r"\boxed{90^\circ}", "90", True), (r"\boxed{\text{even}}", "even", True), (r"\boxed{3}", "4", False),
        (r"\boxed{1{,}000}", "1000", True), (r"\boxed{0.5}", r"\$0.50", True), (r"\boxed{10.0}", r"10\text{ cm}", True),
        (r"\boxed{1/2}", r"\frac{1}{2}", True), (r"\boxed{-0.5}", r"-\frac12", True), (r"\boxed{k=5}", "5", True),
        (r"\boxed{\frac1{72}}", r"\frac{1}{72}", True), (r"\boxed{\frac{1}2}", r"\frac12", True),
        (r"\boxed{\sqrt3}", r"\sqrt{3}", True), (r"\boxed{1/0}", r"\frac{1}{1}", False),
        (r"\boxed{12}", "1,2", False), (r"\boxed{1, 2}", "1,2", True), (r"\boxed{1e999999999}", "1", False),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
        ("The answer is $0.50$.", "0.5", True), ("nothing", "1", False), (r"\boxed{\{1,2\}}", r"\{1, 2\}", True),
        (r"\boxed{50\%}", "50", True), (r"\boxed 7$", "7", True), (r"\boxed{unclosed", "unclosed", False),
    ],
)  # fmt: skip
def test_formulas_are_compared_as_they_look_on_paper(text: str, right: str, same: bool) -> None:
    assert answers.same_formula(answers.boxed(text), [right]) == same


def test_what_is_concluded() -> None:
    assert answers.concluded("Z is not True. So the answer is False.\n\nQ: not") == "False"
    assert answers.concluded("the answer is (B)") == "(B)"
    assert answers.concluded("I do not know") == ""


# -- programs


@pytest.mark.parametrize(
    ("program", "fine"),
    [
        ("assert 1 + 1 == 2", True),
        ("assert 1 + 1 == 3", False),
        ("import sys; sys.exit(0)", False),  # before its tests
        ("import os; os._exit(0)", False),
        ("raise SystemExit", False),
        ("print('x' * 100_000)", True),
        ("input()", False),
        ("x = 'a' * (6 << 30)", False),
        ("open('big', 'wb').write(b'a' * (20 << 20))", False),
        ("import os; assert not os.environ.get('HOME')", True),
        ("if __name__ == '__main__': assert True\nelse: raise ValueError", True),
        ("def f(:", False),
        ("'\ud800'", False),
    ],
)
def test_a_program_has_passed_when_it_has_come_to_its_end(program: str, fine: bool) -> None:
    assert programs.passed(program, PATIENCE) is fine


def test_a_program_without_end_is_ended_with_what_it_has_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    started = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_later(mark)!r}])"
    assert not programs.passed(f"{started}\nwhile True: pass", seconds=1.0)
    assert programs.passed(started, PATIENCE)
    time.sleep(3)
    assert not mark.exists()


def test_what_has_got_away_ends_no_evaluation() -> None:
    writing = "os.setsid()\n  for n in range(1000):\n    open(f'{n}', 'w')\n    time.sleep(1e-3)\n  os._exit(0)"
    assert programs.passed(f"import os, time\nif not os.fork():\n  {writing}\ntime.sleep(0.3)", PATIENCE)


def test_a_program_may_wait_for_others_but_not_compute_for_ever() -> None:
    assert programs.passed("import time; time.sleep(4)", PATIENCE)
    began = time.monotonic()
    assert not programs.passed("while True: pass", 2 * PATIENCE)
    assert time.monotonic() - began < PATIENCE


def test_where_no_program_runs_none_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    programs.tried()
    less = "ulimit -v 3000000; exec \"$0\" -c 'from llamactl.evals.bench import programs; programs.tried()'"
    subprocess.run(["sh", "-c", less, sys.executable], check=True)  # a bound that is there already is kept to
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(Fault, match="none would pass"):
        programs.tried()


def _later(mark: Path) -> str:
    return f"import time; time.sleep(2.5); open({str(mark)!r}, 'w')"


def test_pass_at_k_is_without_bias() -> None:
    assert programs.pass_at(1, 5, 2) == pytest.approx(2 / 5)
    assert programs.pass_at(2, 4, 1) == pytest.approx(1 - 3 / 6)
    assert programs.pass_at(10, 10, 1) == 1
    assert programs.pass_at(10, 100, 0) == 0


# -- results


def test_means_by_part_and_group() -> None:
    def outcomes(*values: tuple[str, float]) -> list[Outcome]:
        return [Outcome(b"%d" % n, 0, part, {"accuracy": value}, {}) for n, (part, value) in enumerate(values)]

    mmlu = list(results.measured("mmlu", outcomes(("law", 1), ("law", 1), ("law", 1), ("art", 0)), 0))
    assert [(one.metric, one.value, one.n, one.group) for one in mmlu] == [
        ("accuracy", 0.75, 4, None), ("mean_of_subjects", 0.5, 2, None),
        ("accuracy", 1, 3, {"subject": "law"}), ("accuracy", 0, 1, {"subject": "art"}),
    ]  # fmt: skip
    found = {
        "mmlu": mmlu,
        **{name: list(results.measured(name, outcomes(("", 1), ("", 0)), 0)) for name in ("nq", "triviaqa")},
    }
    ((group, mean),) = results.grouped(found)
    assert (group, mean.value, mean.n, mean.group) == ("World Knowledge", 0.5, 2, {"of": "nq, triviaqa"})
    first, *parted = results.tables("m", found)
    assert [row[0] for row in first.rows] == ["mmlu", "nq", "triviaqa", "World Knowledge"]
    assert first.rows[0][-4:] == ("45.3", "54.8", "62.6", "68.9")
    assert first.rows[-1][-4:] == ("48.9", "55.4", "58.7", "63.6")
    assert [table.title for table in parted] == ["mmlu by subject, %"]


@pytest.mark.parametrize("group", sorted(results.WHOLE))
def test_published_rows_of_a_group_have_its_published_mean(group: str) -> None:
    rows = [LLAMA_2[name] for name, one in BENCHMARKS.items() if one.group == group]
    for mean, *values in zip(LLAMA_2[group], *rows, strict=True):
        assert sum(values) / len(values) == pytest.approx(mean, abs=0.051)


# -- the command


def scores(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = [json.loads(line) for line in text.splitlines()]
    return {(one["task"], one["metric"]): one for one in found if "subject" not in one.get("group", {})}


def files(folder: Path) -> list[str]:
    """Small benchmarks of each kind."""
    tasks = {
        "task_id": "T/0", "prompt": "def one():\n", "entry_point": "one", "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }  # fmt: skip
    (folder / "mmlu" / "test").mkdir(parents=True)
    (folder / "mmlu" / "dev").mkdir()
    for subject in ("law", "art"):
        rows = [f'"What is {subject} {n}, or\nnot?",one,two,three,four,{"ABCD"[n % 4]}' for n in range(6)]
        (folder / "mmlu" / "test" / f"{subject}_test.csv").write_text("\n".join(rows) + "\n")
        (folder / "mmlu" / "dev" / f"{subject}_dev.csv").write_text("\n".join(rows[:5]) + "\n")
    (folder / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(tasks).encode()))
    return [
        f"arc-easy={written(folder / 'easy.jsonl', CHOICES)}",
        f"mmlu={folder / 'mmlu'}",
        f"nq={written(folder / 'nq.jsonl', [{'question': f'who is {n}', 'answer': [f'{n}']} for n in range(8)])}",
        f"humaneval={folder / 'HumanEval.jsonl.gz'}",
    ]


def test_scores_of_all_kinds(tmp_path: Path, command: Run, base_model: Path, model: Llama) -> None:
    given = files(tmp_path)
    shown, out = tmp_path / "answers.jsonl", tmp_path / "scores.jsonl"
    flags = ["--run-code", "-k", 2, "--answers", shown, "-o", out]
    done = command("eval", "bench", base_model, *given, *flags)
    assert done.status == 0, done.stderr
    found = scores(out.read_text())
    assert found["mmlu", "accuracy"]["n"] == 12 and found["mmlu", "accuracy"]["shots"] == 5
    assert found["nq", "exact_match"]["n"] == 3  # five are the examples
    assert found["humaneval", "pass@1"]["value"] == 0 and found["humaneval", "pass@1"]["n"] == 1
    assert "temperature 0.1, top-p 0.95, seed 0" in found["humaneval", "pass@1"]["scoring"]
    assert "or 64 tokens; 2 samples" in found["humaneval", "pass@1"]["scoring"]  # half of the context
    assert "log p per character" in found["arc-easy", "accuracy"]["scoring"]
    records = [json.loads(line) for line in shown.read_text().splitlines()]
    assert [record["task"] for record in records] == ["arc-easy"] * 3 + ["mmlu"] * 12 + ["nq"] * 3 + ["humaneval"]
    # what was said of the options is what the model says of the texts, and the verdicts follow from it
    tokenizer = Tokenizer.load(base_model)
    for record in records[:15]:
        (text,) = record["prompt"]
        values = [alone(model, ending(tokenizer, text, option)) for option in record["options"]]
        assert record["log_p"] == pytest.approx(values, abs=1e-3)
    right = [max(range(len(r["log_p"])), key=r["log_p"].__getitem__) == r["right"] for r in records[:3]]
    assert found["arc-easy", "accuracy_log_p"]["value"] == pytest.approx(sum(right) / 3)
    # and what was written is what generate writes, up to the stop
    for record in (one for one in records if one["task"] == "nq"):
        (text,) = record["prompt"]
        assert text.count("Question:") == 1 + record["shots"]
        line = {"text": text}
        greedy = command(
            "generate", base_model, written(tmp_path / "text.jsonl", [line]), "--temperature", 0, "--max-new-tokens", 32
        )
        assert json.loads(greedy.stdout)["response"].startswith(record["responses"][0])
    # of what it was made: the examples, too
    made = json.loads((tmp_path / "scores.jsonl.run.json").read_text())
    read = [(one["as"], Path(one["path"]).name) for one in made["inputs"]]
    subjects = [f"{subject}_{part}.csv" for part in ("test", "dev") for subject in ("art", "law")]
    assert read == [
        ("model", base_model.name), ("arc-easy", "easy.jsonl"), *(("mmlu", name) for name in subjects),
        ("nq", "nq.jsonl"), ("humaneval", "HumanEval.jsonl.gz"),
    ]  # fmt: skip
    # again, and otherwise
    assert "already made" in command("eval", "bench", base_model, *given, *flags).stderr
    assert "with shots None, not 1" in one_line(command("eval", "bench", base_model, *given, *flags, "--shots", 1))
    with (tmp_path / "mmlu" / "dev" / "law_dev.csv").open("a") as examples:
        examples.write("why,one,two,three,four,A\n")
    assert "from other inputs" in one_line(command("eval", "bench", base_model, *given, *flags))


def test_what_a_benchmark_gives_does_not_depend_on_others(tmp_path: Path, command: Run, base_model: Path) -> None:
    easy, _, nq, _ = files(tmp_path)
    found = []
    for given in ([easy], [easy, nq]):
        shown = tmp_path / f"{len(given)}.jsonl"
        done = command("eval", "bench", base_model, *given, "--precision", "bf16", "--answers", shown)
        assert done.status == 0, done.stderr
        found.append([json.loads(line)["log_p"] for line in shown.read_text().splitlines()[:3]])
    assert found[0] == found[1]


def test_what_was_interrupted_goes_on_with_the_questions_that_are_left(
    tmp_path: Path, command: Run, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = files(tmp_path)[:3]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "scores.jsonl"
    assert command("eval", "bench", base_model, *given, "-o", whole).status == 0
    at, seen = answering.at, []

    def counted(*arguments: Any, most: int = 10**9) -> Any:
        def work(items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
            for pair in at(*arguments)(items):
                if len(seen) == most:
                    raise KeyboardInterrupt
                seen.append(pair)
                yield pair

        return work

    monkeypatch.setattr(answering, "at", partial(counted, most=5))
    stopped = command("eval", "bench", base_model, *given, "-o", out)
    assert stopped.status == 130
    assert "5 records are through: the same command goes on after them" in stopped.stderr
    seen.clear()
    monkeypatch.setattr(answering, "at", counted)
    done = command("eval", "bench", base_model, *given, "-o", out)
    assert done.status == 0, done.stderr
    assert len(seen) == 3 + 12 + 3 - 5
    assert out.read_bytes() == whole.read_bytes()
    made = [json.loads(path.with_name(f"{path.name}.run.json").read_text()) for path in (out, whole)]
    assert made[0]["done"] == made[1]["done"] == {"questions": 18}
    assert made[0]["noted"] == made[1]["noted"] != {}


def test_what_has_no_room_is_counted_and_said(tmp_path: Path, command: Run, base_model: Path) -> None:
    long = {**CHOICES[0], "query": "Question: " + "which " * 200}
    file = written(tmp_path / "four.jsonl", [*CHOICES, long])
    done = command("eval", "bench", base_model, f"arc-easy={file}", f"mmlu={Path(files(tmp_path)[1][5:])}")
    assert done.status == 0, done.stderr
    assert "skipped 1 arc-easy: questions longer than the context" in done.stderr
    assert "mmlu: examples left out, as the context is full" in done.stderr
    assert scores(done.stdout)["arc-easy", "accuracy"]["n"] == 3
    only = written(tmp_path / "long.jsonl", [long])
    assert "no question has room" in one_line(command("eval", "bench", base_model, f"arc-easy={only}"))


def test_a_limit_is_spread_over_all(tmp_path: Path) -> None:
    mmlu = Given.of(files(tmp_path)[1])
    assert [item.question.part for item in mmlu.items(0, 4)] == ["art", "art", "law", "law"]
    assert [len(mmlu.items(0, limit)) for limit in (1, 5, 7, 11, 12, 100)] == [1, 5, 7, 11, 12, 12]
    assert [len(item.examples) for item in mmlu.items(2, None)] == [2] * 12


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["nothing=."], "nothing is no benchmark; NAME=PATH, with a NAME of humaneval, mbpp"),
        (["mmlu=nowhere"], "no such file or directory; name where it lies"),
        (["mmlu=."], "holds no data/test/*.csv or test/*.csv"),
        (["humaneval=easy.jsonl"], "is measured by running programs that the model writes; --run-code"),
        (["arc-easy=easy.jsonl", "arc-easy=easy.jsonl"], "name a benchmark twice"),
        (["hellaswag=two"], "name the one to ask from"),
        (["arc-easy=torn.jsonl"], "torn.jsonl:1: is no JSON (unexpected end of data); mend it"),
    ],
)
def test_what_cannot_be_asked(
    tmp_path: Path, command: Run, base_model: Path, given: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "easy.jsonl", CHOICES)
    (tmp_path / "torn.jsonl").write_text('{"query": "Q')
    (tmp_path / "two").mkdir()
    for name in ("a_val.jsonl", "b_val.jsonl"):
        written(tmp_path / "two" / name, CHOICES)
    assert problem in one_line(command("eval", "bench", base_model, *given))


@pytest.mark.parametrize("flags", [[], ["--tensor-parallel", 2]], ids=["apart", "as neighbours"])
def test_two_processes_say_what_one_says(tmp_path: Path, command: Run, base_model: Path, flags: list[Any]) -> None:
    given = files(tmp_path)[:3]
    one = scores(command("eval", "bench", base_model, *given).stdout)
    out = tmp_path / "scores.jsonl"
    assert together(["eval", "bench", base_model, *given, "-o", out, *flags]) == [0, 0]
    many = scores(out.read_text())
    assert {key: (value["value"], value["prompt_sha256"]) for key, value in many.items()} == {
        key: (value["value"], value["prompt_sha256"]) for key, value in one.items()
    }


def test_scores_that_are_no_numbers_end_the_run(tmp_path: Path, base_model: Path) -> None:
    broken = Llama.load(base_model, torch.device("cpu"))
    with torch.no_grad():
        broken.norm.weight.fill_(float("nan"))
    items = Given.of(f"arc-easy={written(tmp_path / 'easy.jsonl', CHOICES)}").items(None, None)
    with pytest.raises(Fault, match="no numbers"):
        list(answering.chosen(broken, Tokenizer.load(base_model), Likeliest("log_p"), items))
