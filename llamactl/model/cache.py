"""The key/value cache of a batch that is decoded token by token. Letters as in ``llama.py``."""

import torch
from torch import Tensor

from llamactl.model.config import Config


class Cache:
    """Keys and values of ``length`` tokens so far, one pair of ``[B, K, room, E]`` a layer.

    ``pads`` ``[B]`` counts the padding on the left of each row, which is never attended to.
    """

    def __init__(self, config: Config, rows: int, room: int, pads: Tensor, dtype: torch.dtype) -> None:
        shape = (rows, config.kv_heads, room, config.head_dim)
        self.keys = [torch.empty(shape, dtype=dtype, device=pads.device) for _ in range(config.layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=pads.device) for _ in range(config.layers)]
        self.pads, self.length = pads, 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values ``[B, T, K, E]`` of the newest tokens; all so far, ``[B, length + T, K, E]``."""
        end = self.length + k.shape[1]
        self.keys[layer][:, :, self.length : end] = k.transpose(1, 2)
        self.values[layer][:, :, self.length : end] = v.transpose(1, 2)
        return self.keys[layer][:, :, :end].transpose(1, 2), self.values[layer][:, :, :end].transpose(1, 2)

    def positions(self, tokens: int) -> Tensor:
        """Positions ``[B, T]`` of the next tokens; those of padding are 0, and meaningless."""
        steps = torch.arange(self.length, self.length + tokens, device=self.pads.device)
        return (steps[None, :] - self.pads[:, None]).clamp_min(0)

    def mask(self, tokens: int) -> Tensor:
        """What each of the next tokens may attend to: ``[B, 1, T, length + T]``, True where it may."""
        columns = torch.arange(self.length + tokens, device=self.pads.device)
        rows = columns[self.length :]
        real = columns[None, None, :] >= self.pads[:, None, None]
        causal = columns[None, None, :] <= rows[None, :, None]
        itself = columns[None, None, :] == rows[None, :, None]  # so that no row of the softmax is empty
        return ((real & causal) | itself)[:, None]

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.pads = self.pads[rows]
