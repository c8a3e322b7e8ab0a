"""The chat format of the paper's release, byte for byte (contract, section 3), and the only one in the house.

Each pair is BOS ``[INST] {user} [/INST] {answer} `` EOS; the last user turn has BOS, no EOS and no trailing space. A
system message is ``<<SYS>>\\n{system}\\n<</SYS>>\\n\\n`` before the first user text. The tags are plain text;
BOS and EOS are added by number, and text is never parsed for them.
"""

from collections.abc import Sequence
from typing import Any

from llamactl.artifacts.records import Message
from llamactl.errors import Fault
from llamactl.text.tokenizer import BOS, EOS, Tokenizer

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


def check(messages: Sequence[Message], where: str, allow_tags: bool = False) -> None:
    """Raise Fault, naming the message, where roles are out of order or a text holds the format's own tags."""
    if not messages:
        raise Fault(f"{where}: messages", "is empty")
    first = 1 if messages[0].role == "system" else 0
    if len(messages) == first:
        raise Fault(f"{where}: messages", "holds no user turn")
    for number, message in enumerate(messages):
        place = f"{where}: messages[{number}]"
        wanted = "user" if (number - first) % 2 == 0 else "assistant"
        if number >= first and message.role != wanted:
            raise Fault(f"{place}.role", f"is {message.role}, where {wanted} is due")
        if allow_tags:
            continue
        if tag := next((tag for tag in TAGS if tag in message.content), None):
            raise Fault(f"{place}.content", f"holds {tag}, which is the chat format's own", "--allow-tags to accept it")


def encode(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Ids of a dialogue that ``check`` has passed; one that ends on a user turn is ready to be answered."""
    system, turns = "", [message.content for message in messages]
    if messages[0].role == "system":
        system, turns = SYS + turns[0] + END_SYS, turns[1:]
    turns[0] = system + turns[0]
    ids: list[int] = []
    for user, answer in zip(turns[::2], turns[1::2], strict=False):
        pair = f"{INST} {user.strip()} {END_INST} {answer.strip()} "
        ids += [BOS, *tokenizer.encode(pair), EOS]
    if len(turns) % 2:
        ids += [BOS, *tokenizer.encode(f"{INST} {turns[-1].strip()} {END_INST}")]
    return ids


def tokenizer_config(context: int) -> dict[str, Any]:
    """``tokenizer_config.json`` with which transformers makes our ids: SentencePiece as it is, and our template."""
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": TEMPLATE,
    }
