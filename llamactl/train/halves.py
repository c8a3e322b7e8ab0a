"""fp32 weights in two parts of 16 bits: what a model computes with, as bf16, and what rounding to that has left.

Both take no more memory than fp32 weights alone, nothing is cast as a model computes, and an update loses nothing: the
kernel of ``model.fused`` computes it in fp32 (as Transformer Engine keeps weights for its FusedAdam).
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

PIECE = 1 << 15  # numbers that stay in a cache, and that torch does not share out to threads


class Parted(NamedTuple):
    """A weight in its two parts."""

    high: Tensor  # bf16: the nearest to each number; of two that are as near, the even one
    rest: Tensor  # int16: how many steps of fp32 from there to the number itself

    @classmethod
    def of(cls, parameter: nn.Parameter) -> Self:
        """Of an fp32 parameter, which is made its own upper part."""
        whole = parameter.detach()
        parameter.data = torch.empty_like(whole, dtype=torch.bfloat16)
        parted = cls(parameter.detach(), torch.empty_like(whole, dtype=torch.int16))
        parted.fill(whole)
        return parted

    def fill(self, whole: Tensor) -> None:
        """Set both from fp32 numbers; one in 131,072 is a step of fp32 off: of ties, those that go down."""
        self.high.copy_(whole)
        steps = whole.view(torch.int32) - self._upper()
        self.rest.copy_(steps.clamp_max_(torch.iinfo(torch.int16).max))

    def whole(self) -> Tensor:
        """The fp32 numbers."""
        return (self._upper() + self.rest).view(torch.float32)

    def pieces(self) -> Iterator[Tensor]:
        """The same, flat, some after the other: by one thread, beside those that train, and in next to no memory."""
        high, rest = (torch.split(part.flatten(), PIECE) for part in self)
        for pair in zip(high, rest, strict=True):
            yield Parted(*pair).whole()

    def _upper(self) -> Tensor:
        return self.high.view(torch.int16).int() << 16
