"""Steps of decoding as CUDA graphs: what a GPU does in a step is told to it once, and started by one call after that.

Without them the calls of a step, some thirty a layer, take longer than what they start.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llamactl.model.cache import Layout

Compute = Callable[[Tensor, Layout], Tensor]


class Captured(NamedTuple):
    """A graph, the tensors that it reads, and the one that it writes."""

    graph: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    scores: Tensor


class Graphs:
    """Scores of tokens ``[1, n]`` in a layout, as a function computes them; a graph for each shape that comes up."""

    def __init__(self) -> None:
        self._captured: dict[tuple[int, ...], Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute, tokens: Tensor, layout: Layout) -> Tensor:
        """The scores; they are overwritten by the next call."""
        shape = (tokens.shape[1], layout.live, layout.most, layout.far, layout.near)
        if shape not in self._captured:
            self._captured[shape] = self._capture(compute, tokens, layout)
        graph, given, scores = self._captured[shape]
        for held, new in zip(given, (tokens, layout.spots, layout.prompts, layout.said), strict=True):
            held.copy_(new)
        graph.replay()
        return scores

    def _capture(self, compute: Compute, tokens: Tensor, layout: Layout) -> Captured:
        given = tuple(tensor.clone() for tensor in (tokens, layout.spots, layout.prompts, layout.said))
        held = layout._replace(spots=given[1], prompts=given[2], said=given[3])
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # what libraries set up at their first call is not to be captured
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute(given[0], held)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            scores = compute(given[0], held)
        return Captured(graph, given, scores)
