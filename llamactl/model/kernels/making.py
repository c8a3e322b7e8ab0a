"""How kernels come to be: numba compiles them for this machine's processor, once, and what comes of it is kept.

A kernel is a module here with a ``PLAN`` and a function ``work`` of the address of one. It is compiled by a process of
its own: no other has numba in its memory. Where the machine has a linker it is kept as a library, which the system
loads; where it has none, as an object, which LLVM loads, for 50 MiB of memory.
"""

import ctypes
import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamactl import ui
from llamactl.artifacts import files
from llamactl.errors import Fault
from llamactl.model.kernels.plans import PAIRS, REGISTER, TILES

LONG = 5.0  # seconds: those who wait so long have no kernels yet
ENOUGH = 600.0  # seconds, to make them
ENTRY = "llamactl_{}"  # the name of a kernel's function
DIGEST = 32  # bytes of it
SHARED = 4  # numbers
LIBRARY, OBJECT = ".so", ".o"  # what code is kept as
PROCESSOR = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")  # variables by which numba is told of another one
CAN = ("flags", "Features")  # lines of /proc/cpuinfo that list what a processor can do, by architecture
SAYS = (*CAN, "vendor_id", "cpu family", "model", "CPU implementer", "CPU part", "CPU variant")


@dataclass(frozen=True, eq=False)
class Kernel:
    """A function of the address of its plan, which other threads can go on beside, and its own address."""

    work: Callable[[ctypes.c_void_p], None]
    address: int
    loaded: Any  # what holds its code

    def by(self, threads: int, plan: int) -> None:
        """Have so many threads work by a plan: torch's own, or they would be in each other's way."""
        team, given = _team(), ctypes.c_void_p(plan)
        if threads == 1:
            self.work(given)
        elif team:
            team(ctypes.c_void_p(self.address), given, ctypes.c_uint(threads), ctypes.c_uint(0))
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(self.work, [given] * threads))


@cache
def _team() -> Any:
    """How GNU's OpenMP has its threads do something, where torch's operators run on them."""
    return getattr(ctypes.CDLL(None), "GOMP_parallel", None)


@cache
def installed() -> bool:
    """Whether there is anything to compile with."""
    return importlib.util.find_spec("numba") is not None


def sources() -> list[Path]:
    """Of what is compiled: this folder, and the module of numbers that it shares with others."""
    here = Path(__file__).parent
    return [*sorted(here.glob("*.py")), here.parent / "drawing.py"]


def processor() -> tuple[str, str]:
    """Its name and what it can do, in LLVM's words, or in those that numba is told."""
    from llvmlite import binding

    told = [os.environ.get(name) for name in PROCESSOR]
    return told[0] or binding.get_host_cpu_name(), told[1] or binding.get_host_cpu_features().flatten()


def described() -> list[str]:
    """The processor, and what numba is told of it, without asking LLVM where the system says it."""
    told = [os.environ.get(name, "") for name in PROCESSOR]
    with suppress(OSError):
        first, *_ = Path("/proc/cpuinfo").read_text().split("\n\n")
        lines = [line for line in first.splitlines() if line.startswith(SAYS)]
        if any(line.startswith(CAN) for line in lines):
            return [platform.machine(), *lines, *told]
    return [*processor(), *told]


def digest() -> str:
    """Of all that a kernel is made from, and for, by which it is kept."""
    versions = [metadata.version(package) for package in ("numba", "llvmlite")]
    words = [*versions, *described(), str(REGISTER), str(PAIRS), str(TILES)]
    return sha256(b"\0".join([path.read_bytes() for path in sources()] + [*map(str.encode, words)])).hexdigest()[:16]


def folders() -> list[Path]:
    """To keep them in: beside the program, for all who use it, or the user's own, who may have none."""
    beside, own = Path(__file__).parent / "__pycache__", Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    with suppress(RuntimeError):
        return [beside, own.expanduser() / "llamactl"]
    return [beside]


def places(name: str) -> list[Path]:
    """Where a kernel may be kept."""
    file = f"{name}-{digest()}"
    return [folder / f"{file}{kind}" for folder in folders() for kind in (LIBRARY, OBJECT)]


def writable(folder: Path) -> bool:
    """Whether it is there, or can be made, to be written to."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK | os.X_OK)
    return False


def kernel(name: str) -> Kernel | None:
    """The one of a module, compiled if that has not been done; None where there is no folder to keep it in.

    Without one each process would have to make it anew.
    """
    paths = places(name)
    for path in paths:
        with suppress(OSError):
            if whole(path.read_bytes()):
                return loaded(name, path)
    folder = next((path.parent for path in paths if writable(path.parent)), None)
    if folder is None:
        return None
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as aside:
        made = compiled_apart(name, Path(aside))
        (kept,) = (path for path in paths if path.parent == folder and path.suffix == made.suffix)
        with suppress(OSError, Fault), files.whole_file(kept) as file:  # it is there, if not kept, or kept by another
            file.write(made.read_bytes())
        return loaded(name, made)


def whole(kept: bytes) -> bytes:
    """The code of a file that ends with its digest; empty where it is another's: what is not whole would crash."""
    code, end = kept[:-DIGEST], kept[-DIGEST:]
    return code if end == sha256(code).digest() else b""


def compiled_apart(name: str, folder: Path) -> Path:
    """A file to keep, by ``make`` in a process of its own, which works in a folder, and sees what this one sees.

    Of what numba may be told it is told about the processor alone: the code is kept for those who are told nothing.
    """
    told = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_") or key in PROCESSOR}
    told["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    asked = [sys.executable, "-P", "-m", __name__, name]
    done = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, env=told, cwd=folder)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(said[-1] if said else f"the compiler ended with {done.returncode}")
    return next(folder.glob("made.*"))


def loaded(name: str, path: Path) -> Kernel:
    """What is kept, as a function."""
    holder: Any
    if path.suffix == LIBRARY:
        holder = ctypes.CDLL(str(path))
        address = ctypes.cast(holder[ENTRY.format(name)], ctypes.c_void_p).value
    else:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine()
        holder = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        holder.add_object_file(binding.ObjectFileRef.from_data(whole(path.read_bytes())))
        holder.finalize_object()
        address = holder.get_function_address(ENTRY.format(name))
    assert address
    return Kernel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address), address, holder)


def make(name: str) -> None:
    """Compile a kernel into the working directory: a library, if one can be linked, and loaded from there."""
    best, library = Path(f"{name}{OBJECT}"), Path(f"{name}{LIBRARY}")
    best.write_bytes(compiled(name))
    linker = shutil.which("cc")
    if linker and subprocess.run([linker, "-shared", "-o", library, best, "-lm"]).returncode == 0:
        with suppress(OSError):  # the code of no file here may be run, or something is missing
            loaded(name, library.absolute())
            best = library
    code = best.read_bytes()
    Path(f"made{best.suffix}").write_bytes(code + sha256(code).digest())


def compiled(name: str) -> bytes:
    """Machine code of a module's ``work``, with nothing of numba's own in it.

    No kernel ends with an error, or owns the arrays that it sees.
    """
    from llvmlite import binding
    from numba import cfunc, from_dtype, types

    from llamactl.model.kernels.products import OPTIONS

    module: Any = import_module(f"{__package__}.{name}")
    pointer: Any = types.CPointer
    made = cfunc(types.void(pointer(from_dtype(module.PLAN))), **OPTIONS)(module.work)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    inner, entry = made.native_name.removeprefix("cfunc."), ENTRY.format(name)
    whole = binding.parse_assembly(f"""
        declare i32 @"{inner}"(ptr, ptr, ptr)
        define void @NRT_incref(ptr %array) {{ ret void }}
        define void @NRT_decref(ptr %array) {{ ret void }}
        define void @{entry}(ptr %plan) {{
            %result = alloca ptr
            %error = alloca ptr
            %status = call i32 @"{inner}"(ptr %result, ptr %error, ptr %plan)
            ret void
        }}""")
    parts = binding.parse_assembly(made.inspect_llvm())
    for function in parts.functions:
        if not function.is_declaration:
            function.linkage = "linkonce_odr"  # what nobody calls is left out
    whole.link_in(parts)
    for function in whole.functions:
        if not function.is_declaration and function.name != entry:
            function.linkage = "internal"
    cpu, features = processor()
    target = binding.Target.from_default_triple()
    options: Any = {"opt": 3, "reloc": "pic", "codemodel": "small"}
    return bytes(target.create_target_machine(cpu=cpu, features=features, **options).emit_object(whole))


class Making(threading.Thread):
    """Kernels in the making. A process that ends before waits for it, and the next one finds them made.

    ``what`` they do is said where it takes long, or fails. What is kept is waited for: runs begin with it alike.
    """

    def __init__(self, what: str, names: Sequence[str]) -> None:
        super().__init__(name="llamactl-compiling")
        self.what, self.names = what, names
        self.made: list[Kernel] | None = None
        self._looked = threading.Event()
        self.start()
        self._looked.wait()

    def run(self) -> None:
        told = threading.Timer(LONG, ui.note, [f"compiling {self.what}, once for this machine: up to a minute"])
        told.daemon = True
        told.start()
        try:
            if not all(any(path.exists() for path in places(name)) for name in self.names):
                self._looked.set()  # it takes long
            made = [kernel(name) for name in self.names]
            self.made = [one for one in made if one] if all(made) else None
        except Exception as error:  # whatever a compiler may say of a processor that it does not know
            ui.warn(f"no kernels for {self.what} are compiled, it is done without: {error!r}")
        finally:
            told.cancel()
            self._looked.set()

    def within(self, seconds: float) -> list[Kernel] | None:
        """The kernels in the order of their names, if they are made by then, and there is a folder for them."""
        if seconds:
            self.join(seconds)
        return self.made


class Lone:
    """A module's kernel that models ask for once (``prepare``), so that all passes of a run are computed alike.

    ``what`` it does is said where it takes long to make.
    """

    def __init__(self, name: str, what: str, plan: "np.dtype[np.void]") -> None:
        self.name, self.what = name, what
        self.kernel: Kernel | None = None  # which torch.compile looks at
        self._words = plan.names or ()
        kinds = (kind for kind, *_ in (plan.fields or {}).values())
        self._layout = struct.Struct("".join("qd"[kind == np.float64] for kind in kinds))

    @cached_property
    def _making(self) -> Making:
        return Making(self.what, [self.name])

    def prepare(self, device: torch.device) -> None:
        """Have it made, if it can be."""
        if self.kernel is None and device.type == "cpu" and installed():
            (self.kernel,) = self._making.within(ENOUGH) or (None,)

    def work(self, threads: int, **facts: float) -> None:
        """Have so many threads work by a plan: 0 for what it has words for and is not told here.

        ``threads`` is how many; ``shared``, unless it is told, where they have ``SHARED`` numbers in common, from 0 on.
        """
        block = ctypes.create_string_buffer(8 * SHARED + self._layout.size)
        facts = {"threads": threads, "shared": ctypes.addressof(block), **facts}
        self._layout.pack_into(block, 8 * SHARED, *[facts.get(word, 0) for word in self._words])
        assert self.kernel is not None
        self.kernel.by(threads, ctypes.addressof(block) + 8 * SHARED)


if __name__ == "__main__":
    make(sys.argv[1])
