"""The chat format of the paper's release, byte for byte (contract, section 3), and the only one in the house.

Each pair is BOS ``[INST] {user} [/INST] {answer} `` EOS; the last user turn has BOS, no EOS and no trailing space. A
system message is ``<<SYS>>\\n{system}\\n<</SYS>>\\n\\n`` before the first user text. The tags are plain text;
BOS and EOS are added by number, and text is never parsed for them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from llamactl.artifacts.records import Message
from llamactl.errors import Fault
from llamactl.text.tokenizer import BOS, EOS, Tokenizer

CODEC = "llama-2/1"  # this format and its edition, stored with each model
CONFIG = "tokenizer_config.json"
INST, END_INST = "[INST]", "[/INST]"
SYS, END_SYS = "<<SYS>>\n", "\n<</SYS>>\n\n"
TAGS = (INST, END_INST, "<<SYS>>", "<</SYS>>")

# What `apply_chat_template` of transformers needs to give our ids.
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}"
    "{% if turn['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + turn['content']).strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'].strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)


def check(messages: Sequence[Message], where: str, allow_tags: bool = False, field: str = "messages") -> None:
    """Raise Fault, naming the message, where roles are out of order or a text holds the format's own tags."""
    if not messages:
        raise Fault(f"{where}: {field}", "is empty")
    first = 1 if messages[0].role == "system" else 0
    if len(messages) == first:
        raise Fault(f"{where}: {field}", "holds no user turn")
    for number, message in enumerate(messages):
        place = f"{where}: {field}[{number}]"
        wanted = "user" if (number - first) % 2 == 0 else "assistant"
        if number >= first and message.role != wanted:
            raise Fault(f"{place}.role", f"is {message.role}, where {wanted} is due")
        check_text(message.content, f"{place}.content", allow_tags)


def check_prompt(messages: Sequence[Message], where: str, allow_tags: bool = False, field: str = "messages") -> None:
    """``check``, and that it ends on a user turn."""
    check(messages, where, allow_tags, field)
    if messages[-1].role != "user":
        place = f"{where}: {field}[{len(messages) - 1}].role"
        raise Fault(place, "is assistant: a prompt ends on a user turn", "leave it off")


def check_answers(messages: Sequence[Message], where: str, allow_tags: bool = False) -> None:
    """``check``, and that there is something to learn from: an answer that carries loss, and none of them blank."""
    check(messages, where, allow_tags)
    for number, message in enumerate(messages):
        if message.role == "assistant" and message.weight and not message.content.strip():
            raise Fault(f"{where}: messages[{number}].content", "is an answer without a text", "leave it off")
    if not any(message.role == "assistant" and message.weight for message in messages):
        raise Fault(f"{where}: messages", "holds no answer to learn from", "leave the record out")


def check_comparison(
    prompt: Sequence[Message], chosen: Message, rejected: Message, where: str, allow_tags: bool = False
) -> None:
    """Raise Fault where the prompt is none, or the two answers are not answers, blank, or the same."""
    check_prompt(prompt, where, allow_tags, "prompt")
    for field, answer in (("chosen", chosen), ("rejected", rejected)):
        place = f"{where}: {field}[0]"
        if answer.role != "assistant":
            raise Fault(f"{place}.role", f"is {answer.role}, where assistant is due")
        if not answer.content.strip():
            raise Fault(f"{place}.content", "is an answer without a text", "leave the record out")
        check_text(answer.content, f"{place}.content", allow_tags)
    if chosen.content.strip() == rejected.content.strip():
        raise Fault(f"{where}: rejected", "is the same as chosen", "leave the record out")


def check_record(record: Mapping[str, Any], where: str, allow_tags: bool = False) -> None:
    """The check that the fields of a record call for."""
    if "chosen" in record:
        check_comparison(record["prompt"], record["chosen"][0], record["rejected"][0], where, allow_tags)
    elif "messages" in record:
        check(record["messages"], where, allow_tags)


def check_text(text: str, place: str, allow_tags: bool) -> None:
    """Raise Fault where a text holds the format's own tags."""
    if not allow_tags and (tag := next((tag for tag in TAGS if tag in text), None)):
        raise Fault(place, f"holds {tag}, which is the chat format's own", "--allow-tags to accept it")


class Encoded(NamedTuple):
    """A dialogue as ids; ``loss`` says of each whether it is learned: those of answers, and the EOS after them."""

    ids: list[int]
    loss: list[bool]


def encode(messages: Sequence[Message], tokenizer: Tokenizer) -> Encoded:
    """A dialogue that ``check`` has passed; one that ends on a user turn is ready to be answered.

    Each pair is encoded whole, as the reference code does. Raises Fault for a tokenizer with a piece that holds both
    the prompt's end and the answer's beginning: a model would not find that piece when it answers.
    """
    system, turns = "", list(messages)
    if messages[0].role == "system":
        system, turns = SYS + messages[0].content + END_SYS, turns[1:]
    ids: list[int] = []
    loss: list[bool] = []
    for number, turn in enumerate(turns):
        if turn.role != "user":
            continue
        asked = f"{INST} {(system * (number == 0) + turn.content).strip()} {END_INST}"
        prompt = [BOS, *tokenizer.encode(asked)]
        ids += prompt
        loss += [False] * len(prompt)
        if number + 1 < len(turns):
            answer = turns[number + 1]
            pair = tokenizer.encode(f"{asked} {answer.content.strip()} ")
            if pair[: len(prompt) - 1] != prompt[1:]:
                problem = f"joins {END_INST} and the answer after it in one piece"
                raise Fault("the tokenizer", problem, "use one whose pieces begin words, as Llama's do")
            learned = [*pair[len(prompt) - 1 :], EOS]
            ids += learned
            loss += [bool(answer.weight)] * len(learned)
    return Encoded(ids, loss)


def stranger(model: Path) -> str:
    """What is wrong with asking a model in our format, in words; empty where its directory does not say so.

    A model of ours says by ``chat_codec`` what it was made with; one from elsewhere by a template without our tags.
    """
    try:
        config = orjson.loads((model / CONFIG).read_bytes())
        codec, template = config.get("chat_codec"), config.get("chat_template") or ""
    except (FileNotFoundError, orjson.JSONDecodeError, AttributeError):
        return ""
    if codec and codec != CODEC:
        return f"was made with the chat format {codec}, and is asked in {CODEC}"
    if template and not codec and INST not in str(template):
        return f"has a chat template without {INST}, and is asked in {CODEC}"
    return ""


def tokenizer_config(context: int, pad: str | None = None) -> dict[str, Any]:
    """``tokenizer_config.json`` with which transformers makes our ids: SentencePiece as it is, and our template.

    A reward model has a ``pad`` token, by which transformers finds the last one of each row.
    """
    return {
        "chat_codec": CODEC,
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": pad,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": TEMPLATE,
    }
