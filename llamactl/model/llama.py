"""Llama 1 and 2 (paper, section 2.2): RMSNorm, rotary positions, grouped-query attention, SwiGLU.

B batch, T time (tokens of a sequence), D width, H heads, K key/value heads, E width of a head, F feed-forward width,
V vocabulary. Names are those of the reference code (``wq``, ``w1``); on disk they are Hugging Face's.

Compute runs in ``model.dtype``: weights may be kept in fp32 (training: master weights; each use casts them, and their
gradients come back in fp32) or in the compute dtype itself (inference). RMSNorm, the rotation and its
tables, softmax and logits are in fp32 always.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from llamactl.artifacts import checkpoint
from llamactl.artifacts.tensors import Later
from llamactl.model import flash, functions, fused, matmul, sharded
from llamactl.model.attention import Documents, causal_attention
from llamactl.model.cache import Attending
from llamactl.model.config import LANGUAGE, Config
from llamactl.model.device import PRECISIONS
from llamactl.model.slices import TENSOR, WHOLE, Slice, is_cut

INIT_STD = 0.02  # the paper does not state an initialisation; this and its scaling by depth are GPT-2's


class Linear(nn.Linear):
    """A projection without bias, in the dtype of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Left to ``Llama.initialize`` or a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return functions.linear(x, self.weight)


class Head(Linear):
    """The scores of the next token."""

    def forward(self, x: Tensor) -> Tensor:
        return functions.scores(x, self.weight)

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """-log p of each target, fp32 ``[B, T]``, by its hidden state ``[B, T, D]``."""
        return functions.negative_log_likelihood(hidden, self.weight, targets)


class Embedding(nn.Embedding):
    """A row for each id."""

    def reset_parameters(self) -> None:
        """Left to ``Llama.initialize`` or a checkpoint (torch's own costs a second on the meta device)."""

    def forward(self, ids: Tensor) -> Tensor:
        return functions.embedding(ids, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x), in fp32, cast back, then scaled (Zhang and Sennrich, 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return functions.rms_norm(x, self.weight, self.eps)


def rotary(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, fp32 ``[..., T, 1, E]``, for positions ``[..., T]`` (Su et al., 2021).

    The sines of a pair (i, i + E/2) are -sin and sin, so that ``rotate`` needs no halves.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = (positions.float()[..., None] * theta**-exponents)[..., None, :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


class Attention(nn.Module):
    """Causal attention; each key/value head serves H / K query heads (Ainslie et al., 2023)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.wq = Linear(config.dim, config.heads * config.head_dim)
        self.wk = Linear(config.dim, config.kv_heads * config.head_dim)
        self.wv = Linear(config.dim, config.kv_heads * config.head_dim)
        self.wo = Linear(config.heads * config.head_dim, config.dim)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Attending | None,
        documents: Documents | None,
    ) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (w(x).view(batch, time, -1, self.head_dim) for w in (self.wq, self.wk, self.wv))
        q, k = functions.rotate(q, cos, sin), functions.rotate(k, cos, sin)
        mixed = causal_attention(q, k, v, documents) if cache is None else cache.attend(self.layer, q, k, v)
        return cast(Tensor, self.wo(mixed.reshape(batch, time, -1)))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020): w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.ffn)
        self.w2 = Linear(config.ffn, config.dim)
        self.w3 = Linear(config.dim, config.ffn)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.w2(functions.swiglu(self.w1(x), self.w3(x))))


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Attending | None,
        documents: Documents | None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, cache, documents)
        return cast(Tensor, x + self.feed_forward(self.ffn_norm(x)))


class Stem(NamedTuple):
    """What a model begins with: its embeddings, and some of its layers."""

    tok_embeddings: Embedding
    layers: Sequence[Block]

    def parameters(self) -> Iterator[nn.Parameter]:
        """All of them."""
        return chain.from_iterable(module.parameters() for module in (self.tok_embeddings, *self.layers))


class Transformer(nn.Module):
    """The network up to its last norm, and what it is made from and saved as; what stands on it is its subclasses'."""

    architecture: ClassVar[str]  # as config.json names it
    loss: ClassVar[str]  # the method that a training calls in place of ``forward``
    wide: ClassVar[frozenset[str]] = frozenset()  # parameters that stay in fp32, whatever the rest is stored in
    part: Slice = WHOLE  # what of it this process has, where it is for inference
    beneath: Stem | None = None  # another model's, in the place of embeddings and layers of its own

    def __init__(self, config: Config, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.tok_embeddings = Embedding(config.vocab, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, tokens: Tensor, cache: Attending | None = None, documents: Documents | None = None) -> Tensor:
        """Hidden states ``[B, T, D]`` of tokens ``[B, T]``; with a cache, of the tokens that it has been told of.

        Each row is one document, or several that do not see each other.
        """
        if cache is not None:
            positions = cache.positions
        elif documents is not None:
            positions = documents.positions
        else:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        flash.prepare(tokens.device, self.config.head_dim)
        fused.KERNEL.prepare(tokens.device)
        matmul.prepare(tokens.device, self.dtype)
        cos, sin = rotary(positions, self.config.head_dim, self.config.rope_theta)
        beneath = self.beneath or Stem(self.tok_embeddings, ())
        x = beneath.tok_embeddings(tokens).to(self.dtype)
        for block in chain(beneath.layers, self.layers):
            x = block(x, cos, sin, cache, documents)
        return cast(Tensor, self.norm(x))

    def fresh(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """Fresh weights, whole, by name; each depends on (seed, its name) alone, wherever and by whom it is made."""
        depth = (2 * self.config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                yield name, torch.ones(parameter.shape)
                continue
            std = INIT_STD * (depth if name.endswith(("wo.weight", "w2.weight")) else 1.0)
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            yield name, torch.empty(parameter.shape).normal_(0.0, std, generator=generator)

    @classmethod
    def create(
        cls,
        config: Config,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        arrange: Callable[[Self], None] = lambda model: None,
    ) -> Self:
        """A model with fresh fp32 weights that computes in ``dtype``; ``arrange`` may shard it before they are made."""
        model = cls._empty(config, dtype, device, arrange)
        sharded.fill(model, model.fresh(seed))
        return model

    @classmethod
    def _empty(cls, config: Config, dtype: torch.dtype, device: torch.device, arrange: Callable[[Self], None]) -> Self:
        """A model whose weights are there, arranged, and have no values yet."""
        with torch.device("meta"):
            model = cls(config, dtype)
        arrange(model)
        model.to_empty(device=device)
        return model

    @classmethod
    def trainable(
        cls, path: Path, dtype: torch.dtype, device: torch.device, arrange: Callable[[Self], None] = lambda model: None
    ) -> Self:
        """A model directory to train on: fp32 weights, computing in ``dtype``, sharded by ``arrange``."""
        config, _ = cls.described(path)
        model = cls._empty(config, dtype, device, arrange)
        model.fill(path)
        return model

    @classmethod
    def frozen(
        cls, path: Path, dtype: torch.dtype, device: torch.device, arrange: Callable[[Self], None] = lambda model: None
    ) -> Self:
        """A model directory that stays as it is beside one that is trained, and computes the same to the bit.

        Its weights are in what a trained model's are rounded to as it computes; sharded by ``arrange``.
        """
        config, _ = cls.described(path)
        stored = functions.weight_dtype(dtype, device)
        with torch.device("meta"):
            model = cls(config, dtype)
            for name, parameter in model.named_parameters():
                parameter.data = parameter.to(cls._kept(name, stored))
        arrange(model)
        model.to_empty(device=device)
        model.fill(path)
        return model.eval().requires_grad_(False)

    def stem(self, layers: int) -> Stem:
        """Its embeddings and so many layers, from the first on."""
        return Stem(self.tok_embeddings, [*self.layers][:layers])

    def freeze(self, layers: int) -> None:
        """Have the stem of so many layers, if any, stay as it is while the rest learns.

        Where it is whole here it is kept in what it is rounded to as it computes.
        """
        for parameter in self.stem(layers).parameters() if layers else ():
            parameter.requires_grad_(False)
            if not sharded.spread(parameter):
                parameter.data = parameter.to(functions.weight_dtype(self.dtype, parameter.device))

    def stand_on(self, stem: Stem) -> bool:
        """Begin by another model's stem and free its own, if they are the same to the bit; whether they are."""
        own = self.stem(len(stem.layers))
        if not all(map(torch.equal, own.parameters(), stem.parameters())):
            return False
        self.beneath = stem
        del self.tok_embeddings
        self.layers = self.layers[len(stem.layers) :]
        return True

    def fill(self, path: Path, without: str = "", beside: str = "") -> None:
        """Give the parameters, but for those ``without``, their values from a directory.

        ``beside`` is what lies there, by its Hugging Face name, and is not for this model.
        """
        ours = {checkpoint.hf_name(name): name for name, _ in self.named_parameters() if name != without}
        wanted = {theirs: self.get_parameter(name).shape for theirs, name in ours.items()}
        stored = checkpoint.tensors(path, wanted, torch.float32, torch.device("cpu"), beside)
        sharded.fill(self, ((ours[name], tensor) for name, tensor in stored))

    @classmethod
    def described(cls, path: Path) -> tuple[Config, str]:
        """A model directory's shape, and the precision it is stored in; raises Fault where it is no such model."""
        raw = checkpoint.read_config(path, cls.architecture)
        stored = raw.get("torch_dtype") or raw.get("dtype") or "float32"
        return Config.from_hf(raw, path / checkpoint.CONFIG), "fp32" if stored == "float32" else "bf16"

    @classmethod
    def load(
        cls,
        path: Path,
        device: torch.device,
        dtype: torch.dtype | None = None,
        computing: torch.dtype | None = None,
        part: Slice = WHOLE,
    ) -> Self:
        """A model directory, or a part of it, for inference, in ``dtype`` or as stored.

        It may compute in another dtype than its weights are in: each use casts them. Raises Fault where it is none, or
        not whole.
        """
        config, stored = cls.described(path)
        dtype = dtype or PRECISIONS[stored]
        with torch.device("meta"):
            model = cls(config, computing or dtype)
        ours = {checkpoint.hf_name(name): name for name, _ in model.named_parameters()}
        wanted = {theirs: model.get_parameter(name).shape for theirs, name in ours.items()}
        tensors = ((ours[name], tensor) for name, tensor in checkpoint.tensors(path, wanted, None, device))
        return model._with({name: part.of(name, whole).to(cls._kept(name, dtype)) for name, whole in tensors}, part)

    @classmethod
    def _kept(cls, name: str, dtype: torch.dtype) -> torch.dtype:
        """What a parameter is stored in, where the rest is in ``dtype``."""
        return torch.float32 if name in cls.wide else dtype

    def _with(self, weights: dict[str, Tensor], part: Slice) -> Self:
        """The model on the meta device, or a part of it, for inference, with these weights as they are."""
        self.part = part
        part.cut(self)
        self.load_state_dict({name: weights[name] for name in self.state_dict()}, assign=True)
        return self.eval().requires_grad_(False)

    def gathered(self, dtype: torch.dtype, part: Slice = WHOLE, computing: torch.dtype | None = None) -> Self:
        """The model for inference, on each process whole or its ``part``: all have to ask for it.

        It is freed with its last reference. Sampling from sharded weights gathers them anew for each token: some twenty
        times slower (paper, section 3.2.3). The weights are those that this model computes with: rounded as it does
        first. What is whole here, and in ``dtype``, is shared. It may compute in another dtype than its weights are in.
        """
        rounded = functions.weight_dtype(self.dtype, self.norm.weight.device)
        with torch.device("meta"):
            model = type(self)(self.config, computing or dtype)

        def used(name: str, parameter: Tensor) -> Tensor:
            return parameter.detach().to(self._kept(name, rounded)).to(self._kept(name, dtype))

        def here(name: str, tensor: Tensor) -> Tensor:
            if part.parts == 1 or not is_cut(name):
                return sharded.whole(tensor)
            return sharded.among(tensor, TENSOR).clone(memory_format=torch.contiguous_format)

        return model._with({name: here(name, used(name, p)) for name, p in self.named_parameters()}, part)

    def hf_state(self, dtype: torch.dtype) -> Iterator[tuple[str, Later]]:
        """Tensors in ``dtype``, by their Hugging Face names; whole when they are made, which all processes have to."""
        for name, parameter in self.named_parameters():
            kept = self._kept(name, dtype)
            make = partial(lambda tensor, kept: sharded.whole(tensor.detach().to(kept)), parameter, kept)
            yield checkpoint.hf_name(name), Later(kept, tuple(parameter.shape), make)


class Llama(Transformer):
    """The language model: ``logits`` is its head."""

    architecture = LANGUAGE
    loss = "nll"

    def __init__(self, config: Config, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(config, dtype)
        self.output = Head(config.dim, config.vocab)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, fp32 ``[..., V]``."""
        return cast(Tensor, self.output(hidden)).float()

    def nll(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Documents | None = None,
        learned: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """-log p(target), fp32 ``[B, T]``, where ``targets [B, T]`` are what should follow each of ``tokens [B, T]``.

        ``learned [M]`` are the only places, in rows laid one after the other, that count; targets are then ``[M]``.
        """
        hidden = self.forward(tokens, documents=documents)
        hidden = hidden if learned is None else hidden.flatten(0, 1)[learned]
        return self.output.nll(hidden if temperature == 1 else hidden / temperature, targets)
