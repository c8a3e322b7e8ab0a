"""Products of bf16 matrices by the kernel, against float64 and torch's own."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from test_functions import randn
from torch import Tensor, nn

from llamactl.model import functions, matmul
from llamactl.model.config import Config
from llamactl.model.kernels import making
from llamactl.model.llama import Llama
from llamactl.train.parallel import Job

pytest.importorskip("numba")
CPU = torch.device("cpu")
BF16 = torch.bfloat16
# R, V, D: nothing; one number; less than a register, a tile, a unit; whole ones, which are taken as they lie; more than
# are laid out, or added up, at once
SHAPES = [
    (0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (5, 7, 3), (8, 32, 32), (16, 32, 64), (17, 33, 65), (60, 50, 200),
    (64, 688, 256), (688, 64, 258), (33, 40, 1024), (50, 96, 1501), (5000, 40, 1000), (1600, 1100, 1000),
    (40, 700, 4097), (304, 130, 2050), (300, 130, 2050),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _made(monkeypatch: pytest.MonkeyPatch) -> None:
    if not matmul.serves():
        pytest.skip("a processor without products of pairs of bf16 numbers, or with faster ones")
    matmul.prepare(CPU, BF16)
    if matmul.KERNEL.kernel is None:
        pytest.skip("no folder for what numba compiles")
    monkeypatch.setattr(matmul, "LITTLE", 0)


def turned(x: Tensor) -> Tensor:
    """The same numbers, column after column."""
    return x.T.contiguous().T


def error(found: Tensor, a: Tensor, b: Tensor) -> float:
    return float((found.double() - a.double() @ b.double().T).norm())


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many products it makes, from now on."""
    made, real = [0], matmul.put

    def put(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        made[0] += 1
        return real(a, b, out)

    monkeypatch.setattr(matmul, "put", put)
    return made


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Have torch use so many."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
def test_products_of_matrices_that_lie_in_any_order_by_any_threads(
    threads: Callable[[int], None], rows: int, columns: int, depth: int
) -> None:
    a, b = randn(rows, depth, dtype=BF16), randn(columns, depth, dtype=BF16, seed=1)
    first = matmul.product(a, b)
    assert error(first, a, b) <= 1.01 * error(a @ b.T, a, b) + 1e-6
    for number in (1, 2, 3):
        threads(number)
        for x, y in ((a, b), (turned(a), b), (a, turned(b)), (turned(a), turned(b)), (a.repeat(1, 2)[:, :depth], b)):
            assert torch.equal(matmul.product(x, y), first)


@pytest.mark.parametrize("depth", [64, 3000])
def test_a_row_does_not_depend_on_others(depth: int) -> None:
    a, b = randn(700, depth, dtype=BF16), randn(90, depth, dtype=BF16, seed=1)
    whole = matmul.product(a, b)
    assert torch.equal(matmul.product(a[37:190], b), whole[37:190])
    assert torch.equal(matmul.product(a, b[5:71]), whole[:, 5:71])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none_in_its_row(bad: float) -> None:
    a, b = randn(60, 33, dtype=BF16), randn(40, 33, dtype=BF16, seed=1)
    a[7, 32] = bad
    found = matmul.product(a, b)
    assert not found[7].isfinite().any() and found.isfinite().all(1).sum() == 59


@pytest.mark.parametrize("rows", [50, 56, 20])
def test_nothing_is_written_behind(rows: int) -> None:
    a, b = randn(rows, 20, dtype=BF16), randn(37, 20, dtype=BF16, seed=1)
    place = torch.full((rows + 2, 37), torch.nan, dtype=BF16)
    matmul.put(a, b, place[1:-1])
    assert place[[0, -1]].isnan().all() and torch.equal(place[1:-1], matmul.product(a, b))


def test_linear_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = randn(3, 50, 70, dtype=BF16).requires_grad_(), nn.Parameter(randn(90, 70, dtype=BF16, seed=1))
    grad = randn(3, 50, 90, dtype=BF16, seed=2)
    found = {}
    for ours in (True, False):
        if not ours:
            monkeypatch.setattr(matmul, "suits", lambda a, b: False)
        y = functions.linear(x, weight)
        found[ours] = [y, *torch.autograd.grad(y, (x, weight), grad)]
    wide_x, wide_weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    wanted = wide_x @ wide_weight.T
    exact = [wanted, *torch.autograd.grad(wanted, (wide_x, wide_weight), grad.double())]
    for own, other, right in zip(found[True], found[False], exact, strict=True):
        assert own.dtype == other.dtype == BF16
        assert (own.double() - right).norm() <= 1.01 * (other.double() - right).norm()


def test_compiled_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph, whatever length follows."""
    made = counted(monkeypatch)
    compiled = torch.compile(functions.linear, fullgraph=True, backend="aot_eager")
    for rows in (50, 64, 72):
        x, weight = randn(3, rows, 70, dtype=BF16).requires_grad_(), nn.Parameter(randn(90, 70, dtype=BF16, seed=1))
        found = []
        for linear in (functions.linear, compiled):
            made[0] = 0
            y = linear(x, weight)
            found.append([y, *torch.autograd.grad(y.sum(), (x, weight))])
            assert made[0] == 3
        assert all(map(torch.equal, *found))


def test_compiled_layers_say_the_same_of_all_lengths_learning_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """They once did not, and the compiler did not come to an end with sizes of what is flattened."""
    made = counted(monkeypatch)
    config = Config(dim=64, layers=1, heads=2, kv_heads=1, ffn=96, vocab=61, context=40)
    arrange = partial(Job(None, CPU).arrange, checkpointing="none", compiled=True)
    model = Llama.create(config, BF16, CPU, 0, arrange)
    ids = torch.randint(61, (6, 41), generator=torch.Generator().manual_seed(0))
    first = None
    for learning in (False, True):
        for rows, length in ((6, 40), (4, 40), (6, 30), (6, 40)):
            some = ids[:rows, : length + 1]
            made[0] = 0
            with torch.set_grad_enabled(learning):
                found = model.nll(some[:, :-1], some[:, 1:])
            assert made[0] == 8  # seven of the layer, and the head
            first = found if first is None else first
            assert torch.equal(found, first[:rows, :length])
    found.sum().backward()
    assert made[0] == 24


def test_what_is_frozen_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    x, weight = randn(50, 70, dtype=BF16), randn(90, 70, dtype=BF16, seed=1)
    for of_x, of_weight in ((True, False), (False, True)):
        some = x.clone().requires_grad_(of_x), weight.clone().requires_grad_(of_weight)
        made[0] = 0
        functions.linear(*some).sum().backward()
        assert [one.grad is not None for one in some] == [of_x, of_weight] and made[0] == 2


def test_selective_checkpointing_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    config = Config(dim=64, layers=2, heads=2, kv_heads=1, ffn=96, vocab=61, context=40)
    ids, counts = torch.randint(61, (2, 41), generator=torch.Generator().manual_seed(0)), {}
    for which in ("none", "selective", "full"):
        arrange = partial(Job(None, CPU).arrange, checkpointing=which, compiled=False)
        model, made[0] = Llama.create(config, BF16, CPU, 0, arrange), 0
        model.nll(ids[:, :-1], ids[:, 1:]).sum().backward()
        counts[which] = made[0]
    assert counts["selective"] == counts["none"] < counts["full"]


def test_what_it_is_for(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    x, weight = randn(2, 25, 30, dtype=BF16), nn.Parameter(randn(40, 30, dtype=BF16))
    assert matmul.suits(x, weight) and matmul.suits(x, weight.detach()) and matmul.suits(x[:1, :2], weight)
    assert not matmul.suits(x.float(), weight) and not matmul.suits(x, weight.float())
    assert not matmul.suits(x[:1, :1], weight) and not matmul.suits(x.to("meta"), weight.to("meta"))
    monkeypatch.setattr(matmul, "LITTLE", weight.numel() + 1)
    assert not matmul.suits(x, weight)
    monkeypatch.setattr(matmul, "LITTLE", weight.numel())
    threads(matmul.THREADS)
    assert matmul.suits(x, weight)
    threads(matmul.THREADS + 1)
    assert not matmul.suits(x, weight)
    threads(1)
    monkeypatch.setattr(matmul.KERNEL, "kernel", None)
    assert not matmul.suits(x, weight)
    for name, value in (("PAIRS", False), ("TILES", True)):
        with monkeypatch.context() as patch:
            patch.setattr(matmul, name, value)
            assert not matmul.serves()
    matmul.prepare(CPU, torch.float32)
    assert matmul.KERNEL.kernel is None
    monkeypatch.setattr(making, "installed", lambda: False)
    matmul.prepare(CPU, BF16)
    assert matmul.KERNEL.kernel is None
