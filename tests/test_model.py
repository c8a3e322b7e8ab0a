"""The network against transformers' Llama, on the same weights, and its properties."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llamactl.artifacts import checkpoint
from llamactl.errors import Fault
from llamactl.model import functions
from llamactl.model.cache import Cache, Size, Step
from llamactl.model.config import Config
from llamactl.model.functions import rotate
from llamactl.model.heads import RewardModel
from llamactl.model.llama import Llama, RMSNorm, Transformer, rotary
from llamactl.train import planning

CPU = torch.device("cpu")
torch.set_num_threads(1)  # faster for small tensors, on a machine that others use as well

HEADS = [(4, 4), (4, 1), (8, 2), (6, 3)]  # query heads, key/value heads; a head is 12 wide
ODD = Config(dim=72, layers=3, heads=6, kv_heads=3, ffn=112, vocab=131, context=96)
Attention = pytest.mark.parametrize(("heads", "kv_heads"), HEADS)


def shape(heads: int, kv_heads: int) -> Config:
    return replace(ODD, dim=12 * heads, heads=heads, kv_heads=kv_heads)


def fresh(
    config: Config, dtype: torch.dtype = torch.float32, seed: int = 1, kind: type[Transformer] = Llama
) -> Transformer:
    """A model with weights large enough that attention is not uniform."""
    model = kind.create(config, dtype, CPU, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.mul_(6)
    return model.eval().requires_grad_(False)


def some_ids(config: Config, rows: int = 3, time: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab, (rows, time), generator=torch.Generator().manual_seed(seed))


def theirs(model: Llama) -> LlamaForCausalLM:
    config = LlamaConfig.from_dict(model.config.to_hf("float32"))
    other = LlamaForCausalLM(config).eval()
    missing = other.load_state_dict({name: later.make() for name, later in model.hf_state(torch.float32)}, strict=True)
    assert not missing.missing_keys
    return other


def written(model: Transformer, directory: Path, limit: int | None = None, tokenizer: bytes = b"") -> Path:
    """The model as ``pretrain`` writes it; with a limit, in several files."""
    directory.mkdir(exist_ok=True)
    config = model.config.to_hf("float32")
    checkpoint.save(directory, config, model.hf_state(torch.float32), tokenizer, {}, "")
    if limit:
        (directory / checkpoint.WEIGHTS).unlink()
        checkpoint._save_weights(directory, model.hf_state(torch.float32), limit)
    return directory


def same(a: Transformer, b: Transformer) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# -- parity


@Attention
@torch.no_grad()
def test_logits_are_those_of_transformers(heads: int, kv_heads: int) -> None:
    model = fresh(shape(heads, kv_heads))
    ids = some_ids(model.config)
    ours, reference = model.logits(model(ids)), theirs(model)(ids).logits
    assert ours.dtype == torch.float32
    assert reference.std() > 0.8  # or the comparison would say little
    assert (ours - reference).abs().max() < 1e-4


@torch.no_grad()
def test_parity_with_another_theta_and_eps() -> None:
    model = fresh(replace(ODD, rope_theta=500_000.0, norm_eps=0.1))
    ids = some_ids(model.config)
    assert (model.logits(model(ids)) - theirs(model)(ids).logits).abs().max() < 1e-4
    plain = Llama.create(ODD, torch.float32, CPU, 1).eval()
    plain.load_state_dict(model.state_dict())
    assert (model.logits(model(ids)) - plain.logits(plain(ids))).abs().max() > 1e-2


@torch.no_grad()
def test_gradients_are_those_of_transformers() -> None:
    model = fresh(ODD)
    other, ids = theirs(model), some_ids(model.config)
    with torch.enable_grad():
        model.requires_grad_(True)
        other.requires_grad_(True)
        logits = model.logits(model(ids))
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        other(ids, labels=ids).loss.backward()
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        reference = gradients[checkpoint.hf_name(name)]
        assert (parameter.grad - reference).norm() < 1e-5 * reference.norm(), name


# -- files from and to elsewhere


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
@torch.no_grad()
def test_a_model_that_transformers_wrote_loads(tmp_path: Path, shard: str) -> None:
    model = fresh(ODD)
    other = theirs(model)
    other.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 if shard == "5GB" else (tmp_path / checkpoint.INDEX).exists()
    loaded = Llama.load(tmp_path, CPU)
    assert loaded.config == ODD
    assert loaded.dtype == torch.float32
    assert same(loaded, model)


@torch.no_grad()
def test_a_bf16_model_that_transformers_wrote_loads_as_it_is_stored(tmp_path: Path) -> None:
    model = fresh(ODD)
    theirs(model).to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = Llama.load(tmp_path, CPU)
    assert (loaded.dtype, loaded.norm.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    wide = Llama.load(tmp_path, CPU, torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.output.weight, model.output.weight.bfloat16().float())


def test_a_model_with_tied_embeddings_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = LlamaConfig.from_dict({**ODD.to_hf("float32"), "tie_word_embeddings": True})
    other = LlamaForCausalLM(config).eval()
    other.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / checkpoint.WEIGHTS)
    loaded = Llama.load(tmp_path, CPU)
    assert "tied" in capsys.readouterr().err
    ids = some_ids(ODD)
    with torch.no_grad():
        assert (loaded.logits(loaded(ids)) - other(ids).logits).abs().max() < 1e-4


def test_an_old_export_with_rotary_tables_loads(tmp_path: Path) -> None:
    model = fresh(ODD)
    written(model, tmp_path)
    tensors = load_file(tmp_path / checkpoint.WEIGHTS)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    save_file(tensors, tmp_path / checkpoint.WEIGHTS, {"format": "pt"})
    assert same(Llama.load(tmp_path, CPU), model)


@pytest.mark.parametrize("limit", [None, 60_000])
@torch.no_grad()
def test_a_model_that_we_wrote_loads_in_transformers(tmp_path: Path, limit: int | None) -> None:
    model = fresh(ODD)
    written(model, tmp_path, limit)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == ["model.safetensors"] if limit is None else len(files) > 3
    other, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    ids = some_ids(ODD)
    assert (other(ids).logits - model.logits(model(ids))).abs().max() < 1e-4
    assert same(Llama.load(tmp_path, CPU), model)


def test_several_files_keep_to_the_limit_and_to_the_index(tmp_path: Path) -> None:
    model, limit = fresh(ODD), 60_000
    written(model, tmp_path, limit)
    index = orjson.loads((tmp_path / checkpoint.INDEX).read_bytes())
    found: dict[str, str] = {}
    total = 0
    for path in sorted(tmp_path.glob("*.safetensors")):
        tensors = load_file(path)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= limit or len(tensors) == 1
        total += size
        found |= dict.fromkeys(tensors, path.name)
    assert found == index["weight_map"]
    assert total == index["metadata"]["total_size"] == 4 * ODD.parameters


def test_a_trained_model_loads_in_transformers(base_model: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(base_model, output_loading_info=True)
    assert not any(report.values()), report
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    ours = Llama.load(base_model, CPU)
    ids = some_ids(ours.config)
    with torch.no_grad():
        assert (model(ids).logits - ours.logits(ours(ids))).abs().max() < 1e-4


# -- files that are no model


def change_config(directory: Path, **changes: Any) -> None:
    config = orjson.loads((directory / checkpoint.CONFIG).read_bytes())
    (directory / checkpoint.CONFIG).write_bytes(orjson.dumps(config | changes))


def change_tensors(directory: Path, **changes: Tensor | None) -> None:
    tensors: dict[str, Any] = load_file(directory / checkpoint.WEIGHTS) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, directory / checkpoint.WEIGHTS, {"format": "pt"})


def test_damaged_and_foreign_directories_are_refused(tmp_path: Path) -> None:
    model = fresh(ODD)
    cases = {
        "a config of another shape": lambda d: change_config(d, intermediate_size=64),
        "a layer too many": lambda d: change_config(d, num_hidden_layers=2),
        "a layer too few": lambda d: change_config(d, num_hidden_layers=4),
        "another architecture": lambda d: change_config(d, architectures=["LlamaForSequenceClassification"]),
        "no JSON": lambda d: (d / checkpoint.CONFIG).write_text("{"),
        "no object": lambda d: (d / checkpoint.CONFIG).write_text("[]"),
        "no config": lambda d: (d / checkpoint.CONFIG).unlink(),
        "no weights": lambda d: (d / checkpoint.WEIGHTS).unlink(),
        "a tensor missing": lambda d: change_tensors(d, **{"model.norm.weight": None}),
        "a tensor unexpected": lambda d: change_tensors(d, **{"model.extra.weight": torch.ones(2)}),
        "weights cut short": lambda d: (d / checkpoint.WEIGHTS).write_bytes(
            (d / checkpoint.WEIGHTS).read_bytes()[:-10]
        ),
        "two sets of weights": lambda d: (d / checkpoint.INDEX).write_text('{"weight_map": {}}'),
    }
    for number, (name, harm) in enumerate(cases.items()):
        directory = written(model, tmp_path / str(number))
        harm(directory)
        try:
            Llama.load(directory, CPU)
        except Fault:
            continue
        pytest.fail(f"{name}: was loaded")


def test_pickles_and_metas_own_layout_are_refused_with_the_reason(tmp_path: Path) -> None:
    directory = written(fresh(ODD), tmp_path / "pickled")
    (directory / checkpoint.WEIGHTS).rename(directory / "pytorch_model.bin")
    with pytest.raises(Fault, match="pickles"):
        Llama.load(directory, CPU)
    meta = tmp_path / "meta"
    meta.mkdir()
    (meta / "params.json").write_text("{}")
    with pytest.raises(Fault, match="Meta's own layout"):
        Llama.load(meta, CPU)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "x.bin", 7, None]
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, name: Any) -> None:
    directory = written(fresh(ODD), tmp_path / "model")
    (directory / checkpoint.WEIGHTS).rename(tmp_path / "outside.safetensors")
    (directory / checkpoint.INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(Fault, match="no bare"):
        Llama.load(directory, CPU)


# -- precision


@torch.no_grad()
def test_norm_is_computed_in_fp32() -> None:
    x = (torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 300).bfloat16()
    norm = RMSNorm(64, 1e-5)
    wide = x.double()
    exact = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), exact.float().bfloat16())


def test_norm_of_what_overflows_a_half_is_finite() -> None:
    assert torch.isfinite(RMSNorm(8, 1e-5)(torch.full((1, 8), 1e4, dtype=torch.float16))).all()


@torch.no_grad()
def test_rotation_is_computed_in_fp32_from_fp32_tables() -> None:
    """Also at the end of the context, where tables in bf16 are wrong by up to 0.78 (gpt-neox #1003)."""
    positions = torch.tensor([0, 1, 255, 2047, 4095, 8191])
    cos, sin = rotary(positions, 128, 10_000.0)
    assert cos.dtype == sin.dtype == torch.float32
    angles = positions.double()[:, None] * 10_000.0 ** -(torch.arange(0, 128, 2).double() / 128)
    assert (cos[:, 0] - angles.cos().repeat(1, 2)).abs().max() < 2e-3
    assert (sin[:, 0] - torch.cat((-angles.sin(), angles.sin()), -1)).abs().max() < 2e-3
    x = torch.randn(1, 6, 2, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    left, right = x.double().chunk(2, -1)
    wide_cos, wide_sin = cos.double()[..., 64:], sin.double()[..., 64:]
    exact = torch.cat((left * wide_cos - right * wide_sin, right * wide_cos + left * wide_sin), -1)
    rotated = rotate(x, cos, sin)
    assert rotated.dtype == torch.bfloat16
    assert (rotated == exact.bfloat16()).float().mean() > 0.99  # rounded once


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    x, y = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(3))
    products = []
    for offset in (0, 100, 4000):
        cos, sin = rotary(torch.tensor([offset, offset + 7]), 16, 10_000.0)
        q, k = rotate(x, cos[:1], sin[:1]), rotate(y, cos[1:], sin[1:])
        assert torch.allclose(q.norm(), x.norm())
        products.append((q * k).sum())
    assert torch.allclose(products[0], products[1], atol=1e-3)
    assert torch.allclose(products[0], products[2], atol=1e-3)


@torch.no_grad()
def test_a_bf16_model_is_accurate_at_large_positions() -> None:
    """Its error at position 4,095 and beyond is that at the beginning."""
    config = replace(ODD, layers=2, context=4200)
    wide = fresh(config)
    narrow = Llama.create(config, torch.bfloat16, CPU, 1).eval()
    narrow.load_state_dict(wide.state_dict())
    ids = some_ids(config, 1, 4160)
    exact, rough = wide.logits(wide(ids))[0], narrow.logits(narrow(ids))[0]
    error = (exact - rough).norm(dim=-1) / exact.norm(dim=-1)
    assert error[4095:].mean() < 1.5 * error[64:192].mean() < 0.1


@torch.no_grad()
def test_master_weights_in_fp32_compute_in_bf16() -> None:
    model = fresh(ODD, torch.bfloat16)
    hidden = model(some_ids(ODD))
    assert model.output.weight.dtype == torch.float32
    assert hidden.dtype == torch.bfloat16
    assert model.logits(hidden).dtype == torch.float32


# -- the cache

PROMPTS = [7, 1, 12, 5]  # tokens of the prompt in each lane


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Llama, RewardModel])
@torch.no_grad()
def test_a_model_that_stays_says_what_one_says_that_is_trained(
    tmp_path: Path, dtype: torch.dtype, kind: type[Transformer]
) -> None:
    """To the bit, also where products are made of fp32 weights as they are; and it has no gradients."""
    config = replace(ODD, scored=kind is RewardModel)
    path = written(fresh(config, kind=kind), tmp_path / "model")
    stays, trained = kind.frozen(path, dtype, CPU), kind.trainable(path, dtype, CPU)
    ids = some_ids(config)
    assert torch.equal(stays(ids), trained(ids))
    assert not any(parameter.requires_grad for parameter in stays.parameters())
    assert all(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [Llama, RewardModel])
def test_a_model_that_stays_is_the_one_that_is_loaded(
    tmp_path: Path, dtype: torch.dtype, kind: type[Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "BF16_PRODUCTS", True)
    path = written(fresh(replace(ODD, scored=kind is RewardModel), kind=kind), tmp_path / "model")
    stays, loaded = kind.frozen(path, dtype, CPU), kind.load(path, CPU, dtype)
    assert {name: p.dtype for name, p in stays.named_parameters()} == {
        name: p.dtype for name, p in loaded.named_parameters()
    }
    assert same(stays, loaded)
    assert (stays.dtype, stays.training) == (dtype, False)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_stays_may_stand_on_the_layers_that_another_does_not_train(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """It says the same to the bit, has none of its own, and leaves them where they are."""
    path = written(fresh(ODD), tmp_path / "model")
    trained, alone, stays = Llama.trainable(path, dtype, CPU), *(Llama.frozen(path, dtype, CPU) for _ in range(2))
    trained.freeze(2)
    stem = [*trained.stem(2).parameters()]
    assert [parameter.requires_grad for parameter in trained.parameters()].count(False) == len(stem) == 1 + 2 * 9
    assert {parameter.dtype for parameter in stem} == {functions.weight_dtype(dtype, CPU)}
    assert sum(parameter.numel() for parameter in stem) == planning.stem(ODD, 2)
    assert stays.stand_on(trained.stem(2))
    ids = some_ids(ODD)
    with torch.no_grad():
        assert torch.equal(stays(ids), alone(ids)) and torch.equal(trained(ids), alone(ids))
    assert sum(parameter.numel() for parameter in stays.parameters()) == ODD.parameters - planning.stem(ODD, 2)
    stays.to("meta")
    with torch.no_grad():
        assert torch.equal(trained(ids), alone(ids))


def test_it_does_not_stand_on_other_layers_than_its_own(tmp_path: Path) -> None:
    path = written(fresh(ODD), tmp_path / "model")
    trained, stays = Llama.trainable(path, torch.float32, CPU), Llama.frozen(path, torch.float32, CPU)
    trained.freeze(0)
    assert all(parameter.requires_grad for parameter in trained.parameters())
    with torch.no_grad():
        trained.layers[1].ffn_norm.weight[3] += 1e-3  # type: ignore[union-attr, operator, index]
    trained.freeze(2)
    assert not stays.stand_on(trained.stem(2))
    assert stays.stand_on(trained.stem(1))


@torch.no_grad()
def test_gathered_weights_are_those_the_model_computes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded to its own dtype first; what need not be made anew is shared."""
    monkeypatch.setattr(functions, "BF16_PRODUCTS", True)
    ids = some_ids(ODD)
    narrow = fresh(ODD, torch.bfloat16)
    assert isinstance(narrow, Llama)
    for dtype in (torch.bfloat16, torch.float32):
        found = narrow.gathered(dtype)
        assert (found.dtype, found.norm.weight.dtype, found.training) == (dtype, dtype, False)
        for whole, own in zip(found.parameters(), narrow.parameters(), strict=True):
            assert torch.equal(whole.float(), own.bfloat16().float())
            assert not whole.requires_grad
    assert torch.equal(narrow.gathered(torch.bfloat16)(ids), narrow(ids))
    wide = fresh(ODD).requires_grad_(True)
    shared = wide.gathered(torch.float32)
    assert [p.data_ptr() for p in shared.parameters()] == [p.data_ptr() for p in wide.parameters()]
    assert all(parameter.requires_grad for parameter in wide.parameters())


class Decoding:
    """A cache with prompts in its lanes, and the ids of samples in its places, which are told it one at a time."""

    def __init__(self, model: Llama, padded: bool = False) -> None:
        self._model, self._padded = model, padded
        self.prompts = [some_ids(model.config, 1, length, length)[0].tolist() for length in PROMPTS]
        self.lanes: list[int] = []  # of the samples
        self.said: list[list[int]] = []
        self._cache = Cache(model.config, Size(6, 14, 8, 16), torch.float32, CPU)
        for kept in (*self._cache._prompts, *self._cache._said):
            for one in kept:
                one.fill_(1e3)  # as if others had been there before
        self._read([0, 1], 0)
        self._read([2, 3], 2)

    def _read(self, lanes: list[int], first: int) -> None:
        self._cache.read([PROMPTS[lane] for lane in lanes], first)
        hidden = self._model(torch.tensor([[token for lane in lanes for token in self.prompts[lane]]]), self._cache)
        whole = [self._model(torch.tensor([self.prompts[lane]]))[0] for lane in lanes]
        assert (hidden[0] - torch.cat(whole)).abs().max() < 1e-5

    def begin(self, *lanes: int) -> None:
        """Samples of the prompts in these lanes."""
        self.lanes += lanes
        self.said += [[] for _ in lanes]

    def leave(self, place: int) -> None:
        """As the sampler does when a sample has ended: the last one takes its place."""
        lane, said = self.lanes.pop(), self.said.pop()
        if place < len(self.said):
            self._cache.move_place(len(self.said), place, len(said))
            self.lanes[place], self.said[place] = lane, said

    def leave_lane(self, lane: int) -> None:
        """As when all samples of a prompt have ended: the last one takes its lane."""
        assert lane not in self.lanes
        last = len(self.prompts) - 1
        self._cache.move_lane(last, lane)
        self.prompts[lane] = self.prompts.pop()
        self.lanes = [lane if one == last else one for one in self.lanes]

    def go_on(self, steps: int) -> None:
        """Another token of each sample, against a full forward of all that is before it."""
        for _ in range(steps):
            newest = [(31 * place + 7 * len(said)) % self._model.config.vocab for place, said in enumerate(self.said)]
            step = Step(self.lanes, [len(self.prompts[lane]) for lane in self.lanes], list(map(len, self.said)))
            layout = self._cache.layout(step, self._padded)
            self._cache.go_on(layout)
            spare = [0] * (len(layout.said) - len(newest))
            hidden = self._model(torch.tensor([newest + spare]), self._cache)[0]
            for place, (lane, said) in enumerate(zip(self.lanes, self.said, strict=True)):
                said.append(newest[place])
                whole = self._model(torch.tensor([[*self.prompts[lane], *said]]))[0, -1]
                assert (hidden[place] - whole).abs().max() < 1e-5


@pytest.mark.parametrize("padded", [False, True])
@Attention
@torch.no_grad()
def test_cached_decoding_is_the_full_forward(heads: int, kv_heads: int, padded: bool) -> None:
    """Of several samples of a prompt, of one, and of none, begun at different times."""
    decoding = Decoding(fresh(shape(heads, kv_heads)), padded)
    decoding.begin(2)
    decoding.go_on(3)
    decoding.begin(0, 3, 0)
    decoding.go_on(2)
    decoding.begin(3, 0)
    decoding.go_on(4)


@pytest.mark.parametrize("padded", [False, True])
@Attention
@torch.no_grad()
def test_samples_and_prompts_can_move(heads: int, kv_heads: int, padded: bool) -> None:
    decoding = Decoding(fresh(shape(heads, kv_heads)), padded)
    decoding.begin(1, 0, 3)
    decoding.go_on(3)
    decoding.begin(2, 3)
    decoding.go_on(2)
    decoding.leave(0)  # the only one of lane 1
    assert [len(said) for said in decoding.said] == [2, 5, 5, 2]
    decoding.go_on(1)
    decoding.leave_lane(1)
    assert decoding.lanes == [1, 0, 1, 2]
    decoding.go_on(2)
    decoding.leave(3)
    decoding.begin(1, 0)
    decoding.go_on(3)


@torch.no_grad()
def test_samples_fill_the_cache_to_its_last_token() -> None:
    """All places, and all that a sample may say; also where padding would ask for more."""
    for padded in (False, True):
        decoding = Decoding(fresh(ODD), padded)
        decoding.begin(0, 1, 2, 3, 3, 3, 1, 0)
        decoding.go_on(16)


def test_a_cache_takes_the_bytes_that_it_is_said_to() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        size = Size(lanes=3, prompt=10, places=5, room=7)
        cache = Cache(ODD, size, dtype, CPU)
        taken = sum(x.nbytes for kept in (*cache._prompts, *cache._said) for x in kept)
        assert taken == size.bytes(ODD, dtype) == 2 * 3 * 3 * 12 * dtype.itemsize * (30 + 35)


def test_padded_steps_come_in_few_shapes() -> None:
    cache = Cache(ODD, Size(6, 14, 8, 16), torch.float32, CPU)
    shapes = set()
    for count in range(1, 9):
        for said in range(16):
            layout = cache.layout(Step(list(range(count))[:6] + [5] * (count - 6), [3] * count, [said] * count), True)
            assert layout.near > said
            assert len(layout.spots) == len(layout.prompts) == len(layout.said) in (1, 2, 4, 8)
            shapes.add((len(layout.spots), *layout[:4]))
    assert len(shapes) <= 4 * 5 * 3


@torch.no_grad()
def test_attention_is_causal() -> None:
    model = fresh(ODD)
    ids = some_ids(ODD, time=20)
    other = ids.clone()
    other[:, 12:] = (other[:, 12:] + 1) % ODD.vocab
    assert torch.equal(model(ids)[:, :12], model(other)[:, :12])
    assert (model(ids)[:, 12:] - model(other)[:, 12:]).abs().min(0).values.max() > 0.01


# -- initialisation and the kinds of attention


def test_initialisation_depends_on_seed_and_name_alone() -> None:
    a, b = (Llama.create(replace(ODD, layers=n), torch.float32, CPU, 5) for n in (3, 3))
    assert same(a, b)
    torch.manual_seed(99)
    torch.rand(7)
    assert same(a, Llama.create(ODD, torch.bfloat16, CPU, 5))
    other = Llama.create(ODD, torch.float32, CPU, 6)
    assert not any(torch.equal(p, q) for p, q in zip(a.parameters(), other.parameters(), strict=True) if p.dim() > 1)
    # in a network of another depth the tensors of the same name and scale are the same
    deep = dict(Llama.create(replace(ODD, layers=5, kv_heads=1), torch.float32, CPU, 5).named_parameters())
    for name, parameter in a.named_parameters():
        if name.endswith(("wq.weight", "w1.weight", "w3.weight", "embeddings.weight", "output.weight")):
            assert torch.equal(parameter, deep[name]), name


def test_initialisation_has_the_stated_spread() -> None:
    model = Llama.create(replace(ODD, dim=240, ffn=640), torch.float32, CPU, 0)
    values = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
    for name, parameter in values.items():
        wanted = 0.02 / 6**0.5 if name.endswith(("wo.weight", "w2.weight")) else 0.02
        assert abs(parameter.std().item() / wanted - 1) < 0.05, name
        assert abs(parameter.mean().item()) < 0.001, name
    tensors = [parameter.flatten()[:1000] for parameter in values.values()]
    for number, one in enumerate(tensors):
        for other in tensors[number + 1 :]:
            assert abs(torch.corrcoef(torch.stack((one, other)))[0, 1]) < 0.2
    assert all(bool((p == 1).all()) for p in model.parameters() if p.dim() == 1)


@torch.no_grad()
def test_grouped_queries_are_multi_head_with_repeated_keys_and_values() -> None:
    grouped = fresh(shape(8, 2))
    whole = Llama(shape(8, 8)).eval()
    state = dict(grouped.state_dict())
    for name, weight in state.items():
        if name.endswith(("wk.weight", "wv.weight")):
            heads = weight.view(2, 12, -1)
            state[name] = heads.repeat_interleave(4, 0).reshape(96, -1)
    whole.load_state_dict(state)
    ids = some_ids(grouped.config)
    assert (whole.logits(whole(ids)) - grouped.logits(grouped(ids))).abs().max() < 1e-4
