"""Compiled steps of decoding against the full forward pass: odd shapes, few and many samples, threads, bf16 weights."""

import copy
import math
import statistics
import threading
from collections.abc import Callable

import pytest
import torch

from llamactl.model import decoding, drawing
from llamactl.model import generate as sampler
from llamactl.model.cache import Cache, Size, Step
from llamactl.model.config import Config
from llamactl.model.drawing import Drawing, Sampling
from llamactl.model.functions import weight_dtype
from llamactl.model.kernels import plans
from llamactl.model.kernels.making import Kernel
from llamactl.model.llama import Llama
from llamactl.model.slices import WHOLE
from llamactl.text.tokenizer import EOS

pytest.importorskip("numba")
CPU = torch.device("cpu")
SHAPES = {
    "small": Config(dim=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=61, context=40),
    "odd": Config(dim=42, layers=3, heads=7, kv_heads=1, ffn=51, vocab=101, context=40),
    "long sums": Config(dim=280, layers=2, heads=4, kv_heads=4, ffn=777, vocab=300, context=40),
    "wide heads": Config(dim=128, layers=1, heads=2, kv_heads=1, ffn=96, vocab=53, context=40),
}


FULL = {  # that pairs of bf16 numbers are multiplied for: strips of one, two and three sides, units beside whole tiles
    "tails": Config(dim=160, layers=3, heads=5, kv_heads=1, ffn=176, vocab=304, context=40),
    "wide heads": Config(dim=128, layers=2, heads=2, kv_heads=1, ffn=80, vocab=64, context=40),
}


of_pairs = pytest.mark.skipif(not plans.PAIRS, reason="this processor does not multiply bf16 numbers by itself")
both_processors = pytest.mark.parametrize("pairs", [False, True])


def kernels() -> list[Kernel]:
    made = decoding.kernels(600)
    if made is None:
        pytest.skip("no folder for what numba compiles")
    return made


def network(config: Config, narrow: bool = False, seed: int = 0) -> Llama:
    """In fp32, of weights that bf16 holds."""
    model = Llama.create(config, torch.float32, CPU, seed).gathered(torch.bfloat16)
    if not narrow:
        model.to(torch.float32)
    model.dtype = torch.float32
    return model


def furthest(model: Llama, samples: int, steps: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """How far scores are from those of the full forward pass, of samples two of which share a prompt."""
    return max(distances(model, samples, steps, threads, monkeypatch)[0])


def distances(
    model: Llama, samples: int, steps: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[float], list[float]]:
    """The same of each step, and how far the model's own forward pass is, where it rounds."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    dice = torch.Generator().manual_seed(1)
    exact = copy.deepcopy(model).double()  # or torch's own rounding, which differs between processors, would count
    exact.dtype = torch.float64
    config, lanes = model.config, [place // 2 for place in range(samples)][::-1]

    def ids(count: int) -> list[int]:
        return torch.randint(0, config.vocab, (count,), generator=dice).tolist()

    prompts = [ids(1 + 5 * lane % 23) for lane in range(max(lanes) + 1)]
    kept = Cache(config, Size(len(prompts), 24, samples, steps), model.dtype, CPU)
    kept.read([len(prompt) for prompt in prompts], 0)
    model(torch.tensor([[token for prompt in prompts for token in prompt]]), kept)
    texts, decoder = [list(prompts[lane]) for lane in lanes], decoding.Decoder(kernels(), model, kept)
    found: tuple[list[float], list[float]] = ([], [])
    for said in range(steps):
        newest = ids(samples)
        scores = decoder(newest, Step(lanes, [len(prompts[lane]) for lane in lanes], [said] * samples))
        for text, token, own in zip(texts, newest, scores, strict=True):
            text.append(token)
            wanted = exact.output(exact(torch.tensor([text])))[0, -1]
            found[0].append(float((own - wanted).abs().max()))
            if model.dtype != torch.float32:
                found[1].append(float((model.output(model(torch.tensor([text])))[0, -1] - wanted).abs().max()))
    return found


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 8, 9, 27])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_scores_are_those_of_a_full_forward(
    shape: str, samples: int, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To what rounding does, a tenth of what draws allow for; bf16 weights are the fp32 numbers that they are."""
    model = network(SHAPES[shape], narrow)
    assert furthest(model, samples, 7, 1 + samples % 3, monkeypatch) < drawing.NOISE / 10


@of_pairs
@pytest.mark.parametrize("samples", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("shape", FULL)
@torch.inference_mode()
def test_scores_in_bf16_are_no_further_off_than_those_of_torch(
    shape: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Llama.create(FULL[shape], torch.float32, CPU, 0).gathered(torch.bfloat16)
    assert decoding.suits(model, torch.bfloat16)
    ours, torchs = distances(model, samples, 7, 1 + samples % 3, monkeypatch)
    assert 0 < statistics.fmean(ours) < statistics.fmean(torchs)
    assert max(ours) < 2 * max(torchs)


@torch.inference_mode()
def test_steps_end_whoever_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there are more threads than processors, or all of them are late."""
    model = network(SHAPES["small"])
    assert furthest(model, 9, 12, 5, monkeypatch) < drawing.NOISE / 10
    late = decoding.Threads(kernels()[0])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: None)
        patch.setattr(decoding, "_threads", lambda made: late)
        assert furthest(model, 9, 12, 3, monkeypatch) < drawing.NOISE / 10


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: network(SHAPES["small"]), id="fp32"),
        pytest.param(
            lambda: Llama.create(FULL["tails"], torch.float32, CPU, 0).gathered(torch.bfloat16),
            marks=of_pairs,
            id="bf16",
        ),
    ],
)
@torch.inference_mode()
def test_threads_do_not_change_a_bit(model: Callable[[], Llama], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of phases, in which they come and go as they like."""
    model, found = model(), []
    for threads in (1, 7, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        decoder = decoding.Decoder(kernels(), model, Cache(model.config, Size(9, 5, 9, 30), model.dtype, CPU))
        steps = [(number, said) for _ in range(15) for number in (9, 1, 3) for said in range(0, 30, 3)]
        found.append([])
        for number, said in steps:
            found[-1].append(decoder([5] * number, Step([*range(number)], [5] * number, [said] * number)).clone())
    assert all(torch.equal(alone, other) for alone, *others in zip(*found, strict=True) for other in others)


def decoder(vocab: int) -> decoding.Decoder:
    config = Config(dim=32, layers=1, heads=2, kv_heads=1, ffn=48, vocab=vocab, context=40)
    return decoding.Decoder(kernels(), network(config), Cache(config, Size(1, 5, 1, 5), torch.float32, CPU))


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.05])
@pytest.mark.parametrize("vocab", [61, 4096, 9001])
def test_tokens_are_those_that_torch_draws(vocab: int, top_p: float, temperature: float) -> None:
    """Where neither is in doubt, which is seldom; so are their log-probabilities."""
    dice = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, vocab, generator=dice)
    keys = torch.randint(-(2**63), 2**63 - 1, (300,), generator=dice)
    facts = [(temperature, key, said % 50) for said, key in enumerate(keys.tolist())]
    sampling = Sampling(top_p, 0, 10, 0)
    theirs = drawing.draw(logits.clone(), Drawing.of(facts, CPU), sampling)
    found = decoder(vocab).draw(logits.clone(), facts, sampling)
    assert found is not None
    tokens, log_probs, doubtful = map(torch.tensor, found)
    sure = ~(theirs.doubtful | doubtful)
    assert (~sure).sum() < 20
    assert torch.equal(tokens[sure], theirs.tokens[sure])
    assert log_probs[sure].tolist() == pytest.approx(theirs.log_probs[sure].tolist(), abs=1e-4)
    if temperature and top_p > 0.3:
        assert len({*tokens.tolist()}) > 20


@pytest.mark.parametrize("sampling", [Sampling(1.0, 0, 9, 0), Sampling(0.5, 0, 9, 0)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_have_no_log_probability(bad: float, sampling: Sampling) -> None:
    logits = torch.zeros(2, 61)
    logits[1, 7] = bad
    found = decoder(61).draw(logits, [(1.0, 5, 0)] * 2, sampling)
    assert found is not None
    assert [math.isnan(log_prob) for log_prob in found[1]] == [False, True]


def test_what_is_nearly_as_likely_is_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The more so, the further rounding may have moved a score."""
    logits = torch.zeros(1, 61)
    logits[0, 7], logits[0, 9] = 1.0, 1.0 + 1e-4
    for noise, expected in ((1e-5, False), (1e-4, True)):
        monkeypatch.setattr(drawing, "NOISE", noise)
        found = decoder(61).draw(logits.clone(), [(0.0, 5, 0)], Sampling(1.0, 0, 9, 0))
        assert found is not None
        assert (found[0], found[2]) == ([9], [expected])


def test_top_k_is_left_to_torch() -> None:
    assert decoder(61).draw(torch.zeros(1, 61), [(1.0, 5, 0)], Sampling(1.0, 5, 9, 0)) is None


def test_what_kernels_are_for() -> None:
    model = network(SHAPES["small"])
    assert decoding.suits(model, torch.float32)
    assert decoding.suits(network(SHAPES["small"], narrow=True), torch.float32)
    assert not decoding.suits(model, torch.bfloat16)
    assert not decoding.suits(Llama.create(SHAPES["small"], torch.bfloat16, CPU, 0), torch.float32)
    model.output.weight.data = model.output.weight.data.T.contiguous().T
    assert not decoding.suits(model, torch.float32)


@both_processors
def test_bf16_is_computed_in_where_a_shape_may_be_rounded(monkeypatch: pytest.MonkeyPatch, pairs: bool) -> None:
    """By processors that multiply it, for shapes that fill their registers; else kernels compute in fp32."""
    monkeypatch.setattr(plans, "PAIRS", pairs)
    narrow = torch.bfloat16
    assert sampler.computing_dtype(narrow, CPU, WHOLE) == torch.float32
    assert sampler.computing_dtype(narrow, CPU, WHOLE, SHAPES["small"]) == torch.float32
    assert sampler.computing_dtype(narrow, CPU, WHOLE, FULL["tails"]) == (
        weight_dtype(narrow, CPU) if pairs else torch.float32
    )
    assert sampler.computing_dtype(torch.float32, CPU, WHOLE, FULL["tails"]) == torch.float32


@of_pairs
def test_what_is_drawn_in_bf16_has_the_log_probabilities_of_a_full_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of samples that begin and end at different times, until one is left; and the same once more."""
    kernels()
    model = Llama.create(FULL["tails"], torch.float32, CPU, 0)
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.dim() > 1 else 1)
    exact, rounded = model.gathered(torch.float32), model.gathered(torch.bfloat16)
    steps, call = [], decoding.Decoder.__call__
    monkeypatch.setattr(decoding.Decoder, "__call__", lambda *given: steps.append(len(given[1])) or call(*given))
    asked = [
        sampler.Request([1, 5 + n, 9][: 1 + n % 3], (1.0,) * (1 + n % 2), 0, lambda said, n=n: len(said) > n)
        for n in range(13)
    ]
    sampling = Sampling(1.0, 0, 20, 0)
    found = list(sampler.generate(rounded, asked, sampling))
    assert found == list(sampler.generate(rounded, asked, sampling))
    assert max(steps) > plans.SIDE and min(steps) == 1
    for request, answers in zip(asked, found, strict=True):
        for answer in answers:
            tokens = answer.ids + [EOS] * answer.stopped
            logits = exact.logits(exact(torch.tensor([[*request.ids, *tokens]])))[0, len(request.ids) - 1 : -1]
            wanted = logits.log_softmax(-1)[range(len(tokens)), tokens]
            assert answer.log_probs == pytest.approx(wanted.tolist(), abs=0.2)


def test_bf16_weights_give_the_tokens_of_their_fp32_copies() -> None:
    """By twos as alone."""
    kernels()
    narrow, wide = (network(SHAPES["small"], narrow) for narrow in (True, False))
    sampling = Sampling(0.9, 0, 20, 0)
    asked = [sampler.Request([1, 5, 9], (1.0,) * 2), sampler.Request([3], (0.7,))]
    texts = [[[a.ids for a in some] for some in sampler.generate(model, asked, sampling)] for model in (narrow, wide)]
    assert texts[0] == texts[1]
    for one, wanted in zip(asked, texts[0], strict=True):
        (some,) = sampler.generate(narrow, [one], sampling)
        assert [answer.ids for answer in some] == wanted
