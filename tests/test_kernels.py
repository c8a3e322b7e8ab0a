"""How kernels are compiled, kept and loaded: for what, where, and what becomes of it where it fails."""

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llamactl import ui
from llamactl.model.kernels import making, plans

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another processor than there is."""
    for name in making.PROCESSOR:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of their own."""
    monkeypatch.setattr(making, "folders", lambda: [tmp_path / "kept"])
    return tmp_path / "kept"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What comes of the smallest."""
    return making.compiled_apart("drawing", tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def code() -> bytes:
    """Its machine code alone."""
    return making.compiled("drawing")


def compiler(
    monkeypatch: pytest.MonkeyPatch, made: Path | None = None, status: int = 0, said: bytes = b""
) -> list[list[str]]:
    """In place of one: what it comes to; what is asked of it."""
    asked: list[list[str]] = []

    def run(command: list[str], cwd: Path, **how: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        if made:
            shutil.copy(made, cwd)
        return subprocess.CompletedProcess(command, status, b"what a site prints", said)

    monkeypatch.setattr(making.subprocess, "run", run)
    return asked


def nobody(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_one_is_compiled_once_and_then_loaded(kept: Path) -> None:
    made = making.kernel("drawing")
    assert made is not None and made.address
    (file,) = kept.iterdir()
    assert file in making.places("drawing")
    assert (file.suffix == making.LIBRARY) == (shutil.which("cc") is not None)
    with pytest.MonkeyPatch.context() as patch:
        asked = compiler(patch)
        assert making.kernel("drawing") is not None
        assert not asked


LINKERS = {  # by what becomes of it
    "library": 'exec cc "$@"',
    "fails": "exit 1",
    "not linked": 'echo no library >"$3"',
    "misses something": 'echo "int no(void); int yes(void) { return no(); }" >more.c; exec cc "$@" more.c',
}


@pytest.mark.parametrize("linker", [*LINKERS, "none"])
def test_code_is_kept_as_a_library_where_one_can_be_linked_and_loaded(
    linker: str, code: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As an object elsewhere, which does the same."""
    if linker in LINKERS:
        if shutil.which("cc") is None:
            pytest.skip("there is no linker")
        script = tmp_path / "cc"
        script.write_text(f"#!/bin/sh\nPATH={os.environ['PATH']}\n{LINKERS[linker]}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(making, "compiled", lambda name: code)
    monkeypatch.chdir(tmp_path)
    making.make("drawing")
    (path,) = tmp_path.glob("made.*")
    assert path.suffix == (making.LIBRARY if linker == "library" else making.OBJECT)

    logits, token = np.array([1, 3, 2], np.float32), np.full(1, -1)
    temperature, log_p, doubt, none = np.zeros(1, np.float32), np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64)
    given = {"logits": logits, "temperatures": temperature, "keys": none, "said": none, "tokens": token}
    places = {name: array.ctypes.data for name, array in {**given, "log_probs": log_p, "doubtful": doubt}.items()}
    plan = np.zeros(1, plans.DRAW)
    for name, value in {**places, "rows": 1, "vocab": 3, "top_p": 1.0}.items():
        plan[0][name] = value
    kernel = making.loaded("drawing", path)  # whose code is gone when it is
    kernel.work(ctypes.c_void_p(plan.ctypes.data))
    assert (token[0], log_p[0]) == (1, pytest.approx(-0.4076, abs=1e-4))


def test_what_is_kept_is_for_its_sources_versions_and_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, sources = making.digest(), making.sources()
    assert {path.name for path in sources} >= {"attention.py", "step.py", "drawing.py", "plans.py", "vectors.py"}
    for number, path in enumerate(sources):
        changed = tmp_path / path.name
        changed.write_bytes(path.read_bytes() + b"#")
        with monkeypatch.context() as patch:
            others = [changed if place == number else other for place, other in enumerate(sources)]
            patch.setattr(making, "sources", lambda others=others: others)
            assert making.digest() != before
    for name, value in (("NUMBA_CPU_NAME", "znver3"), ("NUMBA_CPU_FEATURES", "+avx2")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert making.digest() != before
    for name, value in (("PAIRS", not plans.PAIRS), ("REGISTER", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(making, name, value)
            assert making.digest() != before
    monkeypatch.setattr(making.metadata, "version", lambda package: "0")
    assert making.digest() != before


def test_a_processor_is_known_by_what_the_system_says_of_it_and_else_by_what_llvm_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, said = Path.read_text, making.described()
    if Path("/proc/cpuinfo").exists():
        assert any(line.startswith(making.CAN) for line in said) and said != [*making.processor(), "", ""]

    for there in ("", "cpu family : 6\n\n", None):

        def text(self: Path, *how: Any, there: str | None = there, **more: Any) -> str:
            if self != Path("/proc/cpuinfo"):
                return read(self, *how, **more)
            if there is None:
                raise FileNotFoundError(2, "No such file or directory", str(self))
            return there

        monkeypatch.setattr(Path, "read_text", text)
        assert making.described() == [*making.processor(), "", ""]


def test_what_a_lookup_fails_by_is_told_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it fails: a run goes on without kernels."""

    def version(package: str) -> str:
        raise making.metadata.PackageNotFoundError(package)

    warned: list[str] = []
    monkeypatch.setattr(ui, "warn", warned.append)
    monkeypatch.setattr(making.metadata, "version", version)
    assert making.Making("attention", ["drawing"]).within(60) is None
    assert len(warned) == 1


def test_what_is_kept_is_there_at_once(kept: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what the first samples are drawn by, and the last bits of log p, would be a matter of time."""
    asked = compiler(monkeypatch, made)
    assert making.Making("this", ["drawing"]).within(60) is not None
    assert making.Making("this", ["drawing"]).within(0) is not None
    assert len(asked) == 1


@pytest.mark.parametrize("damage", [lambda kept: b"", lambda kept: kept[:4000], lambda kept: kept[:-1] + b"!"])
def test_what_is_not_whole_is_made_anew(
    damage: Callable[[bytes], bytes], kept: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such code would end the process without a word."""
    asked = compiler(monkeypatch, made)
    assert making.kernel("drawing") is not None
    (file,) = kept.iterdir()
    right = file.read_bytes()
    file.write_bytes(damage(right))
    assert making.kernel("drawing") is not None and len(asked) == 2
    assert file.read_bytes() == right


def test_what_may_not_be_read_is_passed_over(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = Path.read_bytes

    def forbidden(self: Path) -> bytes:
        if self.name.startswith("drawing-"):
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    asked = compiler(monkeypatch, made)
    monkeypatch.setattr(making, "folders", lambda: [tmp_path])
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert making.kernel("drawing") is not None and len(asked) == 1
    assert stat.S_IMODE(next(tmp_path.glob("drawing-*")).stat().st_mode) & 0o044  # others of a group, of all, may


def test_the_compiler_is_told_of_a_processor_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or code that was made to look for faults would be kept for all."""
    monkeypatch.setenv("NUMBA_OPT", "0")
    monkeypatch.setenv("NUMBA_CPU_NAME", "znver3")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    heard: list[dict[str, Any]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
        heard.append(how)
        (how["cwd"] / "made.o").touch()
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(making.subprocess, "run", run)
    assert making.compiled_apart("drawing", tmp_path) == tmp_path / "made.o"
    (how,) = heard
    assert {key for key in how["env"] if key.startswith("NUMBA_")} == {"NUMBA_CPU_NAME"}
    assert how["env"]["PYTHONPATH"].split(os.pathsep)[0] == str(Path.cwd()) and how["cwd"] == tmp_path


def test_without_a_folder_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each process would have to make them anew."""
    (tmp_path / "file").touch()
    asked = compiler(monkeypatch)
    monkeypatch.setattr(making, "folders", lambda: [tmp_path / "file" / "kept"])
    assert making.kernel("drawing") is None and not asked
    assert making.Making("this", ["drawing"]).within(60) is None


def test_the_users_own_folder_takes_the_place_of_one_that_cannot_be_written_to(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What others have kept there is taken; somebody without a home has but that one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    beside, own = making.folders()
    assert (beside.name, own) == ("__pycache__", tmp_path / "cache" / "llamactl")
    asked, shared = compiler(monkeypatch, made), tmp_path / "shared"
    monkeypatch.setattr(making, "folders", lambda: [shared, own])
    monkeypatch.setattr(making, "writable", lambda folder, writable=making.writable: folder == own and writable(folder))
    assert making.kernel("drawing") is not None
    assert [path.name for path in own.iterdir()] == [f"drawing-{making.digest()}{made.suffix}"]
    own.rename(shared)
    assert making.kernel("drawing") is not None and len(asked) == 1
    monkeypatch.undo()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert making.folders() == [beside]


def test_what_cannot_be_kept_is_loaded_all_the_same(kept: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: Path, target: Path) -> Path:
        raise OSError("no space left")

    compiler(monkeypatch, made)
    monkeypatch.setattr(Path, "replace", replace)
    assert making.kernel("drawing") is not None
    assert not [*kept.iterdir()]


@pytest.mark.parametrize(
    ("said", "expected"),
    [(b"Traceback\nLLVM: no such cpu\n", "LLVM: no such cpu"), (b"", "the compiler ended with -11")],
)
def test_a_compiler_that_fails_is_told(said: bytes, expected: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(ui, "warn", warned.append)
    compiler(monkeypatch, status=-11, said=said)
    assert making.Making("attention", ["drawing"]).within(60) is None
    (line,) = warned
    assert line.startswith("no kernels for attention are compiled, it is done without") and expected in line
    assert not [*kept.iterdir()]


def test_numba_is_in_no_process_but_the_one_that_compiles() -> None:
    """It takes most of a second, and 70 MiB; LLVM 50 MiB, which a library needs not."""
    code = """
import sys, torch
from llamactl.model import decoding, flash
assert decoding.kernels(600) and (flash.prepare(torch.device("cpu"), 64), flash.KERNEL.kernel)[1]
q = torch.randn(1, 50, 2, 64)
assert torch.ops.llamactl.flash_attention(q, q, q, 50, None, None)[0].isfinite().all()
print(*{"numba", "llvmlite"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ([] if shutil.which("cc") else ["llvmlite"])


@pytest.mark.parametrize(
    "plan", [plans.ATTENTION, plans.MATMUL, plans.FUSED, plans.STEP, plans.SEAT, plans.DRAW], ids=str
)
def test_a_plan_has_a_number_for_every_word(plan: "np.dtype[np.void]") -> None:
    """8 bytes each: nothing lies between them that the compiler would place elsewhere."""
    assert plan.itemsize == 8 * len(plan.names or ())


def test_nothing_is_loaded_where_nothing_is_computed() -> None:
    code = (
        "import sys; from llamactl.model import flash, generate; sys.exit(bool({'numba', 'llvmlite'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
