"""Programs that a model has written, run against their tests (Chen et al., 2021: HumanEval).

Each is a process of its own, in a folder that is deleted, with a bound on seconds, memory and the size of files, and
no environment. That keeps accidents away, and is no wall against ill will: a program can read what
its user can read, and reach the network. Run them in a container.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import comb
from pathlib import Path

SECONDS = 3.0  # HumanEval's own bound
BOUNDS = {"AS": 4 << 30, "FSIZE": 16 << 20, "CORE": 0}  # bytes of addresses, of a file

# What the new process begins with: limits are set there, as this one may have threads, which a fork does not bring.
_BEGIN = f"""
import resource, runpy, sys
for what, most in {BOUNDS}.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def passed(program: str, seconds: float = SECONDS) -> bool:
    """Whether it comes to its own end: what leaves before its tests have run has not passed them."""
    token = secrets.token_hex(16)  # which it leaves behind at its end
    with tempfile.TemporaryDirectory() as folder:
        file, end = Path(folder) / "program.py", Path(folder) / "end"
        try:
            file.write_text(f"{program}\n__import__('pathlib').Path({str(end)!r}).write_text({token!r})\n")
        except UnicodeEncodeError:  # half of a character: no program
            return False
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _BEGIN, str(file)], cwd=folder, env={}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)
        return status == 0 and end.exists() and end.read_text(errors="replace") == token


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End it, and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def each(programs: Sequence[str], seconds: float = SECONDS) -> Iterator[bool]:
    """Whether each has passed, in order; as many at once as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        yield from workers.map(partial(passed, seconds=seconds), programs)


def pass_at(k: int, n: int, right: int) -> float:
    """The chance that one of k samples passes where ``right`` of n do: 1 - C(n - c, k) / C(n, k), without bias."""
    return 1.0 - comb(n - right, k) / comb(n, k)
