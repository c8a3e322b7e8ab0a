"""The shape of a Llama, and the sizes of the recipe (paper, Table 1 and appendix A.2.1). No torch."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from llamactl.errors import Fault

LANGUAGE, SCORED = "LlamaForCausalLM", "LlamaForSequenceClassification"  # architectures
PAD = 0  # in places that no sequence takes. It ends no answer: transformers looks for the last token by it


@dataclass(frozen=True)
class Config:
    """A decoder-only transformer: pre-normalisation, SwiGLU, rotary positions, no biases, untied embeddings.

    ``kv_heads`` spans multi-head (= heads), grouped-query and multi-query (1) attention.
    """

    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int = 32_000
    context: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    scored: bool = False  # a reward model: its head gives one score, not one for each id

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "ffn", "vocab", "context"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise Fault(f"--{name.replace('_', '-')}", f"{name} {value!r} is no whole number above 0", "mend it")
        for name in ("rope_theta", "norm_eps"):
            if type(value := getattr(self, name)) not in (int, float) or value <= 0:
                raise Fault(name, f"{name} {value!r} is no number above 0", "mend it")
        if self.dim % self.heads:
            raise Fault("--heads", f"{self.heads} heads do not divide dim {self.dim}", "choose a divisor")
        if self.head_dim % 2:
            raise Fault("--heads", f"a head of {self.head_dim} has no pairs to rotate", "choose an even dim / heads")
        if self.heads % self.kv_heads:
            problem = f"{self.kv_heads} key/value heads do not divide {self.heads} heads"
            raise Fault("--kv-heads", problem, "choose a divisor of the heads")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    @property
    def parameters(self) -> int:
        """Exact number of parameters."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.kv_heads * self.head_dim
        layer = attention + 3 * self.dim * self.ffn + 2 * self.dim
        return self.vocab * self.dim + self.layers * layer + self.dim + self.head

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.dim * (1 if self.scored else self.vocab)

    @property
    def flops_per_token(self) -> int:
        """6N: forward and backward through every parameter, as the paper's GPU-hours are read (recipe, section 10)."""
        return 6 * self.parameters

    def to_hf(self, dtype: str) -> dict[str, Any]:
        """``config.json`` with the key names that every reader knows."""
        scored = {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "pad_token_id": PAD}
        return {
            "architectures": [SCORED if self.scored else LANGUAGE],
            "model_type": "llama",
            "hidden_size": self.dim,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "use_cache": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": dtype,
            **(scored if self.scored else {}),
        }

    @classmethod
    def from_hf(cls, raw: dict[str, Any], origin: object) -> Self:
        """From a ``config.json``, of llamactl or of transformers; raises Fault for what is no Llama 1 or 2."""
        if raw.get("model_type") != "llama":
            raise Fault(origin, f"model_type is {raw.get('model_type')!r}", "only Llama 1 and 2 models are read")
        rope = raw.get("rope_parameters") or {}
        scaling = raw.get("rope_scaling") or rope
        scaling = None if scaling.get("rope_type", scaling.get("type", "default")) == "default" else scaling
        unread = {
            "rope_scaling": scaling,
            "attention_bias": raw.get("attention_bias"),
            "mlp_bias": raw.get("mlp_bias"),
            "hidden_act": None if raw.get("hidden_act", "silu") in ("silu", "swish") else raw["hidden_act"],
        }
        for key, value in unread.items():
            if value:
                raise Fault(origin, f"{key} is {value}, which Llama 1 and 2 do not have", "use one of those")
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"):
            if key not in raw:
                raise Fault(origin, f"{key}: missing", "is this the config.json of a Llama?")
            if type(raw[key]) is not int:
                raise Fault(origin, f"{key}: {raw[key]!r} is no whole number", "is this the config.json of a Llama?")
        try:
            config = cls(
                dim=raw["hidden_size"],
                layers=raw["num_hidden_layers"],
                heads=raw["num_attention_heads"],
                kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
                ffn=raw["intermediate_size"],
                vocab=raw["vocab_size"],
                context=raw.get("max_position_embeddings", 2048),
                rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
                norm_eps=raw.get("rms_norm_eps", 1e-6),
                scored=raw.get("architectures") == [SCORED],
            )
        except Fault as fault:
            raise Fault(origin, fault.problem, "is this the config.json of a Llama?") from None
        if raw.get("head_dim") not in (None, config.head_dim):
            problem = f"head_dim is {raw['head_dim']}, not hidden_size / heads = {config.head_dim}"
            raise Fault(origin, problem, "only Llama 1 and 2 models are read")
        labels = raw.get("num_labels") or len(raw.get("id2label") or "01")  # two, where transformers says nothing
        if config.scored and labels != 1:
            problem = f"has {labels} labels, where a reward model has one score"
            raise Fault(origin, problem, "use one of num_labels 1, as llamactl rm-train makes them")
        return config


class Size(NamedTuple):
    """A row of the size table: the network, and how it is pretrained."""

    config: Config
    tokens: float  # to train on
    lr: float  # peak
    batch: int  # sequences a step

    def changed(self, **numbers: int | None) -> Config:
        """The network with some numbers replaced; None leaves one as it is."""
        given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
        if "heads" in given and "kv_heads" not in given and self.config.kv_heads == self.config.heads:
            given["kv_heads"] = given["heads"]  # multi-head attention stays multi-head
        return replace(self.config, **given)


# The paper's rows have a global batch of 4 M tokens. The small ones are ours: 15m, 42m and 110m have the shapes of
# llama2.c's, 1b that of TinyLlama; they train on 20 tokens a parameter (Hoffmann et al., 2022).
SIZES = {
    #                       dim  layers  heads  kv    ffn  vocab  context     tokens      lr  batch
    "tiny":      Size(Config(128,     4,     4,  2,   352,  1024,    256),     20e6,   2e-3,    32),
    "15m":       Size(Config(288,     6,     6,  6,   768, 32000,    256),      3e8,   1e-3,   128),
    "42m":       Size(Config(512,     8,     8,  8,  1376, 32000,   1024),      8e8,   1e-3,   128),
    "110m":      Size(Config(768,    12,    12, 12,  2048, 32000,   1024),    2.2e9,   6e-4,   256),
    "1b":        Size(Config(2048,   22,    32,  4,  5632, 32000,   2048),     22e9,   4e-4,  1024),
    "llama1-7b": Size(Config(4096,   32,    32, 32, 11008, 32000,   2048),   1.0e12, 3.0e-4,  2048),
    "llama1-13b":Size(Config(5120,   40,    40, 40, 13824, 32000,   2048),   1.0e12, 3.0e-4,  2048),
    "llama1-33b":Size(Config(6656,   60,    52, 52, 17920, 32000,   2048),   1.4e12, 1.5e-4,  2048),
    "llama1-65b":Size(Config(8192,   80,    64, 64, 22016, 32000,   2048),   1.4e12, 1.5e-4,  2048),
    "7b":        Size(Config(4096,   32,    32, 32, 11008, 32000,   4096),   2.0e12, 3.0e-4,  1024),
    "13b":       Size(Config(5120,   40,    40, 40, 13824, 32000,   4096),   2.0e12, 3.0e-4,  1024),
    "34b":       Size(Config(8192,   48,    64,  8, 22016, 32000,   4096),   2.0e12, 1.5e-4,  1024),
    "70b":       Size(Config(8192,   80,    64,  8, 28672, 32000,   4096),   2.0e12, 1.5e-4,  1024),
}  # fmt: skip


def size(name: str) -> Size:
    """A row of the table by its name; raises Fault with the names there are."""
    try:
        return SIZES[name.lower()]
    except KeyError:
        raise Fault("--size", f"there is no size {name!r}", f"choose one of {', '.join(SIZES)}") from None
