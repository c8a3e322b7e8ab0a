"""Writing safetensors files as a stream, with their digest; reading is the safetensors library's.

The library's own writer copies every tensor into memory at once and gives no digest. Here the header goes first, then
one tensor after the other through a running SHA-256, so that memory holds one tensor at a time and a file need not be
read again to be described in a manifest.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import orjson

from llamactl.artifacts.files import Stamp
from llamactl.errors import Fault

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray[Any, Any] | torch.Tensor | Later"


class Later(NamedTuple):
    """A tensor that is made when its turn comes to be written: whole, or in pieces that lie one after the other."""

    dtype: "torch.dtype"
    shape: tuple[int, ...]
    make: "Callable[[], torch.Tensor | Iterator[torch.Tensor]]"

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return self.itemsize * math.prod(self.shape)


CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def _bytes(tensor: "np.ndarray[Any, Any] | torch.Tensor") -> memoryview:
    """A tensor's elements as bytes, little-endian, without a copy where it is contiguous on the CPU."""
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def _pieces(header: bytes, tensors: Iterable[Array]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for tensor in tensors:
        made = tensor.make() if isinstance(tensor, Later) else tensor
        yield from map(_bytes, made if isinstance(made, Iterator) else [made])


def order(tensors: Mapping[str, Array]) -> list[str]:
    """The order in which ``write`` takes them: wider elements first, so that each tensor is aligned in the file."""
    return sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))


def write(
    path: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> Stamp:
    """Write ``tensors`` (numpy arrays or torch tensors, any device) to a synced safetensors file; size and SHA-256.

    ``before_each`` piece is called, and may end it by raising.
    """
    names = order(tensors)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + int(tensor.nbytes)
        code = CODES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = orjson.dumps(header)
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(text, (tensors[name] for name in names)):
            before_each()
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return Stamp(8 + len(text) + offset, digest.hexdigest())


def opened(path: Path, framework: str) -> Any:
    """The safetensors file ``path``, memory-mapped (``framework``: ``np`` or ``pt``); a Fault where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework)
    except FileNotFoundError:
        raise Fault(path, "is missing", "restore it, or make the artifact again") from None
    except SafetensorError as error:
        remedy = "it was cut short or is no safetensors file: copy it again, or make the artifact again"
        raise Fault(path, f"cannot be read ({error})", remedy) from None
