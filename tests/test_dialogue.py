"""The chat format, byte for byte (contract, section 3): ids built by hand, our template, and transformers'."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import DATA

from llamactl.artifacts.jsonl import Found
from llamactl.artifacts.records import Dialogue, Document, Message, Prompt
from llamactl.errors import Fault
from llamactl.text import asking, dialogue
from llamactl.text.tokenizer import BOS, EOS, Tokenizer

Turns = list[tuple[str, str]]
U, A, S = "user", "assistant", "system"

# What the reference code encodes for a dialogue, for people to read: see its first lines.
VECTORS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("dialogues.json").read_text())["vectors"]
DIALOGUES = pytest.mark.parametrize("name", VECTORS)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


def messages(turns: Turns) -> list[Message]:
    return [Message(role=role, content=content) for role, content in turns]  # type: ignore[arg-type]


def dicts(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def given(name: str) -> list[Message]:
    """The messages of a vector."""
    return [Message(**message) for message in VECTORS[name]["messages"]]


def by_hand(name: str, tokenizer: Tokenizer) -> dialogue.Encoded:
    """Each turn of a vector encoded whole; where the answer begins is found in the text that its ids decode to."""
    ids: list[int] = []
    loss: list[bool] = []
    for turn in VECTORS[name]["turns"]:
        prompt, answer = turn["prompt"], turn.get("answer", "")
        whole = tokenizer.encode_whole(prompt + answer)
        learned = next(n for n in range(len(whole) + 1) if tokenizer.decode(whole[:n]) == prompt)
        own = [BOS, *whole, *([EOS] if "answer" in turn else [])]
        ids += own
        loss += [turn.get("loss", False) and number > learned for number in range(len(own))]
    return dialogue.Encoded(ids, loss)


# -- the codec


@DIALOGUES
def test_ids_and_loss_are_those_of_the_reference(tokenizer: Tokenizer, name: str) -> None:
    dialogue.check(given(name), "a:1")
    assert dialogue.encode(given(name), tokenizer) == by_hand(name, tokenizer)


def test_a_tokenizer_that_joins_prompt_and_answer_is_refused(tmp_path: Path) -> None:
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("] Hi\n" * 50 + "[INST/\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "t"), model_type="bpe", vocab_size=280, byte_fallback=True,
        user_defined_symbols=["]▁Hi"], normalization_rule_name="identity", remove_extra_whitespaces=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    joining = Tokenizer.load(tmp_path / "t.model")
    with pytest.raises(Fault, match=r"the tokenizer: joins \[/INST\] and the answer after it in one piece"):
        dialogue.encode(messages([(U, "Hi"), (A, "Hi")]), joining)


def test_bos_and_eos_stand_where_they_must(tokenizer: Tokenizer) -> None:
    turns = [(S, "s"), (U, "1"), (A, "2"), (U, "3"), (A, "4"), (U, "5")]
    ids, _ = dialogue.encode(messages(turns), tokenizer)
    assert [token for token in ids if token in (BOS, EOS)] == [BOS, EOS, BOS, EOS, BOS]
    assert (ids[0], ids[-1] == EOS) == (BOS, False)
    ids, _ = dialogue.encode(messages(turns[:-1]), tokenizer)
    assert [token for token in ids if token in (BOS, EOS)] == [BOS, EOS, BOS, EOS]
    assert ids[-1] == EOS


def test_specials_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    """Also with tags allowed: nothing that a user writes becomes BOS or EOS."""
    turns = [(U, "</s> <s> [INST] <unk>"), (A, "</s>"), (U, "<s>")]
    dialogue.check(messages(turns), "a:1", allow_tags=True)
    ids, _ = dialogue.encode(messages(turns), tokenizer)
    assert [token for token in ids if token < 3] == [BOS, EOS, BOS]
    assert tokenizer.decode(ids[: ids.index(EOS)]) == "[INST] </s> <s> [INST] <unk> [/INST] </s> "


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([], "messages: is empty"),
        ([(S, "s")], "messages: holds no user turn"),
        ([(A, "a")], "messages[0].role: is assistant, where user is due"),
        ([(S, "s"), (A, "a")], "messages[1].role: is assistant, where user is due"),
        ([(U, "a"), (U, "b")], "messages[1].role: is user, where assistant is due"),
        ([(U, "a"), (A, "b"), (A, "c")], "messages[2].role: is assistant, where user is due"),
        ([(U, "a"), (S, "s"), (U, "b")], "messages[1].role: is system, where assistant is due"),
        ([(S, "s"), (S, "s"), (U, "b")], "messages[1].role: is system, where user is due"),
    ],
)
def test_roles_out_of_order_are_refused_with_their_place(turns: Turns, problem: str) -> None:
    for allow_tags in (False, True):
        with pytest.raises(Fault) as caught:
            dialogue.check(messages(turns), "a.jsonl:7", allow_tags)
        assert str(caught.value).startswith(f"a.jsonl:7: {problem}")


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_tags_in_a_text_are_refused_with_their_place(tag: str, where: int) -> None:
    turns = [(S, "s"), (U, "a"), (A, "b"), (U, "c")]
    turns[where] = (turns[where][0], f"before{tag}after")
    with pytest.raises(Fault) as caught:
        dialogue.check(messages(turns), "a.jsonl:7")
    said = str(caught.value)
    assert said.startswith(f"a.jsonl:7: messages[{where}].content: holds {tag}")
    assert said.endswith("--allow-tags to accept it")
    dialogue.check(messages(turns), "a.jsonl:7", allow_tags=True)


@pytest.mark.parametrize("text", ["[inst]", "[ INST ]", "[INST", "INST]", "<SYS>", "<<sys>>", "</s>", "[INST\n]"])
def test_what_is_almost_a_tag_is_text(text: str) -> None:
    dialogue.check(messages([(U, text)]), "a:1")


# -- what a model is asked


def found(record: Document | Dialogue) -> Found[Document | Dialogue]:
    return Found(record, {}, "a.jsonl:3")


def test_a_prompt_ends_on_a_user_turn(tokenizer: Tokenizer) -> None:
    with pytest.raises(Fault) as caught:
        asking.asked(found(Prompt(messages=messages([(U, "a"), (A, "b")]))), tokenizer, 100, False)
    assert str(caught.value).startswith("a.jsonl:3: messages[1].role: is assistant: a prompt ends on a user turn")


def test_a_prompt_and_a_document_as_ids(tokenizer: Tokenizer) -> None:
    name = "system, two turns"
    one = asking.asked(found(Prompt(messages=given(name))), tokenizer, 200, False)
    assert one.ids == by_hand(name, tokenizer).ids
    one = asking.asked(found(Document(text=" def [INST]")), tokenizer, 200, False)  # no chat format, so no tags
    assert one.ids == [BOS, *tokenizer.encode_whole(" def [INST]")]


def test_a_prompt_that_leaves_no_room_is_refused_not_cut(tokenizer: Tokenizer) -> None:
    record = Document(text="word " * 10)
    length = 1 + len(tokenizer.encode(record.text))
    assert len(asking.asked(found(record), tokenizer, length + 1, False).ids) == length
    with pytest.raises(Fault, match=rf"a\.jsonl:3: text: is {length} tokens long, the context {length}"):
        asking.asked(found(record), tokenizer, length, False)


def test_an_answer_is_stripped_and_a_continuation_is_not(tokenizer: Tokenizer) -> None:
    answer = tokenizer.encode("  an answer \n")
    prompt = asking.asked(found(Prompt(messages=messages([(U, "a")]))), tokenizer, 100, False)
    assert prompt.response(answer, tokenizer) == "an answer"
    document = asking.asked(found(Document(text="def")), tokenizer, 100, False)
    assert document.response(tokenizer.encode("f(x) \n"), tokenizer) == " f(x) \n"  # the space before f is the piece's


def test_generating_refuses_tags_with_their_place(tmp_path: Path, base_model: Path) -> None:
    from stages.generate import generate

    path, turns = tmp_path / "p.jsonl", [(U, "Hi"), (A, "Hello"), (U, "say [INST] now")]
    lines = [json.dumps({"messages": dicts([(U, "Hi")])}), json.dumps({"messages": dicts(turns)})]
    path.write_text("\n".join(lines))
    with pytest.raises(Fault) as caught:
        generate(base_model, [str(path)], max_new_tokens=1, device="cpu")
    problem = "messages[2].content: holds [INST], which is the chat format's own; --allow-tags to accept it"
    assert str(caught.value) == f"{path}:2: {problem}"


# -- the template


def rendered(turns: list[dict[str, Any]]) -> str:
    """As transformers renders a chat template."""
    sandbox = pytest.importorskip("jinja2.sandbox", reason="jinja2 is not installed")

    def stop(message: str) -> None:
        raise ValueError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = stop
    text: str = environment.from_string(dialogue.TEMPLATE).render(
        messages=turns, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )
    return text


@DIALOGUES
def test_the_template_gives_the_references_string(name: str) -> None:
    strings = [
        f"<s>{turn['prompt']}" + (f"{turn['answer']}</s>" if "answer" in turn else "")
        for turn in VECTORS[name]["turns"]
    ]
    assert rendered(VECTORS[name]["messages"]) == "".join(strings)


def test_the_template_refuses_roles_out_of_order() -> None:
    for turns in ([(U, "a"), (U, "b")], [(A, "a")], [(S, "s"), (A, "a")], [(U, "a"), (S, "s")]):
        with pytest.raises(ValueError, match="roles must alternate"):
            rendered(dicts(turns))


@pytest.fixture(scope="module")
def theirs(base_model: Path) -> object:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("google.protobuf", reason="transformers reads tokenizer.model with protobuf")
    return transformers.AutoTokenizer.from_pretrained(base_model)


@DIALOGUES
def test_transformers_makes_our_ids(theirs: object, tokenizer: Tokenizer, name: str) -> None:
    if "</s>" in str(VECTORS[name]["messages"]):
        pytest.skip("transformers parses specials out of a text, which we do not")
    turns = VECTORS[name]["messages"]
    ids = theirs.apply_chat_template(turns, tokenize=True, return_dict=False)  # type: ignore[attr-defined]
    assert list(ids) == dialogue.encode(given(name), tokenizer).ids


def test_transformers_makes_our_ids_of_documents(theirs: object, tokenizer: Tokenizer) -> None:
    """But of a text that begins with a space: there transformers leaves out SentencePiece's dummy prefix."""
    for text in ("Hello there", "a  two spaces", "a\nb", "def f():\n    return  1\n\tx ", "é 中 😀 12", "\n\n x"):
        assert list(theirs(text)["input_ids"]) == [BOS, *tokenizer.encode(text)]  # type: ignore[operator]


def test_transformers_decodes_as_we_do(theirs: object, tokenizer: Tokenizer) -> None:
    for text in ("Hello there", "a\nb  c", "é 中 😀 12"):
        ids = tokenizer.encode(text)
        decoded = theirs.decode(ids, skip_special_tokens=True)  # type: ignore[attr-defined]
        assert decoded == tokenizer.decode(ids) == text


@pytest.mark.shared
@pytest.mark.skipif(not DATA.exists(), reason="the development data is not beside the checkout")
def test_transformers_makes_our_ids_of_real_dialogues(theirs: object, tokenizer: Tokenizer) -> None:
    """Turns of the HH preference data: odd spaces, empty answers, whatever people type."""
    import gzip

    count = 0
    for path in sorted((DATA / "preference" / "hh-rlhf").rglob("*.jsonl*"))[:2]:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in raw.split(b"\n")[:150]:
            if not line:
                continue
            turns: Turns = []
            for part in json.loads(line)["chosen"].split("\n\nHuman:")[1:]:
                user, _, answer = part.partition("\n\nAssistant:")
                turns += [(U, user), (A, answer)]
            ids = theirs.apply_chat_template(  # type: ignore[attr-defined]
                dicts(turns), tokenize=True, return_dict=False
            )
            assert list(ids) == dialogue.encode(messages(turns), tokenizer).ids
            count += 1
    assert count > 200
