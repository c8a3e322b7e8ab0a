"""Model directories in Hugging Face Llama layout (contract, section 1), in and out. State dicts, not modules.

What is written loads in transformers, vLLM and llama.cpp's converter as it is; what they write loads here. Nothing is a
pickle: files that are get refused with the reason. Rotary pairs are in Hugging Face's order (i, i + E/2) here and on
disk, so no tensor is permuted.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from llamactl import ui
from llamactl.artifacts import files
from llamactl.artifacts import tensors as safetensors
from llamactl.artifacts.manifest import CARD
from llamactl.errors import Fault

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILE_BYTES = 5 << 30  # bytes of one weights file before the next begins

KINDS = {"LlamaForCausalLM": "a language model", "LlamaForSequenceClassification": "a reward model"}

_AGAIN = "copy the model again"
_SAFE = re.compile(r"[A-Za-z0-9._-]+\.safetensors")

_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "score": "score",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}


def hf_name(name: str) -> str:
    """A parameter's Hugging Face name, for example ``model.layers.0.self_attn.q_proj.weight``."""
    stem = name.removesuffix(".weight")
    if layer := re.match(r"layers\.(\d+)\.(.*)", stem):
        return f"model.layers.{layer[1]}.{_NAMES[layer[2]]}.weight"
    return f"{_NAMES[stem]}.weight"


def read_config(path: Path, architecture: str) -> dict[str, Any]:
    """``config.json`` of a model directory; raises Fault with what the directory is where it is no such model."""
    if not path.is_dir():
        raise Fault(path, "is no model directory" if path.exists() else "no such directory", "name a model directory")
    if not (path / CONFIG).exists():
        raise Fault(path, *_what_it_is(path))
    try:
        config = orjson.loads((path / CONFIG).read_bytes())
    except orjson.JSONDecodeError as error:
        raise Fault(path / CONFIG, f"is no JSON ({error})", _AGAIN) from None
    if not isinstance(config, dict):
        raise Fault(path / CONFIG, "is no JSON object", _AGAIN)
    named = config.get("architectures") or [architecture]
    if named != [architecture]:
        kinds = KINDS if str(named[0]) in KINDS else {}  # another architecture may be of the same kind
        is_, wanted = (kinds.get(str(name), f"a {name}") for name in (named[0], architecture))
        raise Fault(path, f"is {is_}, where {wanted} is wanted", "name another model")
    return config


def _what_it_is(path: Path) -> tuple[str, str]:
    if (path / "params.json").exists() or any(path.glob("consolidated.*.pth")):
        return (
            "is Meta's own layout (params.json, consolidated.*.pth): Python pickles, which can run code",
            "use the Hugging Face edition of the model, with .safetensors files",
        )
    if (path / "state").is_dir():
        return "is a training that has not finished", "run its command again to go on"
    return f"holds no {CONFIG}", "name a model directory in Hugging Face layout"


def _weight_files(path: Path) -> list[Path]:
    """The weight files of a directory; raises Fault for pickles, and for names that lead elsewhere."""
    if (path / INDEX).exists():
        if (path / WEIGHTS).exists():
            raise Fault(path, f"holds both {WEIGHTS} and {INDEX}", "remove the one that is out of date")
        try:
            names = sorted(set(orjson.loads((path / INDEX).read_bytes())["weight_map"].values()))
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise Fault(path / INDEX, "is no index of weights (weight_map: missing)", _AGAIN) from None
        for name in names:
            if not isinstance(name, str) or not _SAFE.fullmatch(name):
                raise Fault(
                    path / INDEX, f"weight_map: {name!r} is no bare .safetensors name", "do not trust this copy"
                )
        found = [path / name for name in names]
    elif (path / WEIGHTS).exists():
        found = [path / WEIGHTS]
    else:
        if pickles := sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pth", ".pt")):
            problem = f"its weights are Python pickles ({pickles[0]}), which can run code"
            raise Fault(path, problem, "use an edition with .safetensors files")
        raise Fault(path, f"holds no {WEIGHTS}", "copy the weights there, or name another directory")
    for file in found:
        if file.is_symlink() and not file.resolve().is_file():
            raise Fault(file, "is a link that leads nowhere", "copy the weights there")
    return found


def tensors(
    path: Path,
    wanted: Mapping[str, Iterable[int]],
    dtype: "torch.dtype | None",
    device: "torch.device",
    beside: str = "",
) -> Iterator[tuple[str, "torch.Tensor"]]:
    """The tensors of a model directory, each in ``dtype`` or as it is, on ``device``, one at a time in memory.

    ``wanted`` gives the name and shape of each; raises Fault for one that is missing, unexpected or of another shape.
    ``beside`` is the name of one that may be there, and is passed over.
    """
    seen: set[str] = set()
    for file in _weight_files(path):
        opened = safetensors.opened(file, "pt")
        for name in opened.keys():  # noqa: SIM118
            if name.endswith("rotary_emb.inv_freq") or name == beside:
                continue  # old exports carry the table; it follows from the config
            if name not in wanted:
                raise Fault(file, f"holds a tensor that a Llama of this config has not: {name}", _AGAIN)
            if (shape := opened.get_slice(name).get_shape()) != list(wanted[name]):
                raise Fault(file, f"{name} is {shape}, {CONFIG} says {list(wanted[name])}", _AGAIN)
            seen.add(name)
            yield name, opened.get_tensor(name).to(device=device, dtype=dtype)
            if name == "model.embed_tokens.weight" and "lm_head.weight" in wanted and _tied(path):
                seen.add("lm_head.weight")
                ui.note(f"{path}: embeddings are tied; the head starts as a copy of them")
                yield "lm_head.weight", opened.get_tensor(name).to(device=device, dtype=dtype)
    if absent := sorted(wanted.keys() - seen):
        raise Fault(path, f"{len(absent)} tensors are missing (first: {absent[0]})", _AGAIN)


def _tied(path: Path) -> bool:
    return bool(orjson.loads((path / CONFIG).read_bytes()).get("tie_word_embeddings"))


def save(
    directory: Path,
    config: Mapping[str, Any],
    state: Iterable[tuple[str, safetensors.Later]],
    tokenizer: bytes,
    tokenizer_config: Mapping[str, Any],
    card: str,
) -> list[dict[str, Any]]:
    """Write a model directory but for its ``run.json``; the manifest's entries, the weights first.

    ``config.json`` comes last: until it is there, nobody takes the directory for a model. Where many processes hold the
    tensors all have to call this; the first writes.
    """
    outputs = _save_weights(directory, state)
    if not ui.first_rank():
        return []
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    outputs += [
        _write(directory, "tokenizer.model", tokenizer),
        _write(directory, "tokenizer_config.json", _json(tokenizer_config)),
        _write(directory, "generation_config.json", _json({"_from_model_config": True, **generation})),
        _write(directory, CARD, card.encode()),
        _write(directory, CONFIG, _json(config)),
    ]
    return outputs


def _save_weights(
    directory: Path, state: Iterable[tuple[str, safetensors.Later]], limit: int = FILE_BYTES
) -> list[dict[str, Any]]:
    """Tensors to ``model.safetensors``, or to several files of at most ``limit`` bytes and an index."""
    groups: list[dict[str, safetensors.Later]] = [{}]
    size = 0
    for name, tensor in state:
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    outputs = []
    where: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        if not ui.first_rank():
            for each in safetensors.order(group):
                group[each].make()
            continue
        name = WEIGHTS if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        written = safetensors.write(directory / name, group, {"format": "pt"})
        outputs.append(files.entry(directory / name, "weights", written))
        where |= dict.fromkeys(group, name)
    if len(groups) > 1 and ui.first_rank():
        total = sum(tensor.nbytes for group in groups for tensor in group.values())
        outputs.append(_write(directory, INDEX, _json({"metadata": {"total_size": total}, "weight_map": where})))
    return outputs


def _json(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _write(directory: Path, name: str, data: bytes) -> dict[str, Any]:
    with files.whole_file(directory / name) as file:
        file.write(data)
    kind = "tokenizer" if name.endswith(".model") else name.rpartition(".")[2]
    return files.entry(directory / name, kind)
