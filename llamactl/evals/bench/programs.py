"""Programs that a model has written, run against their tests (Chen et al., 2021: HumanEval).

Each is a process of its own, in a folder that is deleted, with a bound on seconds, memory and the size of files, and
no environment. That keeps accidents away, and is no wall against ill will: a program can read what its user can read,
and reach the network. Run them in a container.
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

from llamactl.errors import Fault

SECONDS = 10.0  # until it is ended, also where it sleeps
# The processor's seconds, HumanEval's bound, as what is computed beside is not the program's fault; bytes of addresses
# and of a file.
BOUNDS = {"CPU": 3, "AS": 4 << 30, "FSIZE": 16 << 20, "CORE": 0}

# What the new process begins with: limits are set there, as this one may have threads, which a fork does not bring.
_BEGIN = f"""
import resource, runpy, sys
for what, most in {BOUNDS}.items():
    kind = getattr(resource, "RLIMIT_" + what)
    _, own = resource.getrlimit(kind)
    most = most if own == resource.RLIM_INFINITY else min(most, own)
    resource.setrlimit(kind, (most, most))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def passed(program: str, seconds: float = SECONDS) -> bool:
    """Whether it comes to its own end: what leaves before its tests have run has not passed them."""
    token = secrets.token_hex(16)  # which it leaves behind at its end
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # what has got away may write there yet
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
    """End it, and what it has started, but for what has begun a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tried() -> None:
    """Raise Fault where not even a program that does nothing comes to its end."""
    if not passed(""):
        problem = "a program that does nothing does not come to its end here: none would pass"
        raise Fault("--run-code", problem, "allow it processes, memory (ulimit -v) and files in the temporary folder")


def each(programs: Sequence[str], seconds: float = SECONDS) -> Iterator[bool]:
    """Whether each has passed, in order; as many at once as this process has processors."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // here)) as workers:
        yield from workers.map(partial(passed, seconds=seconds), programs)


def pass_at(k: int, n: int, right: int) -> float:
    """The chance that one of k samples passes where ``right`` of n do: 1 - C(n - c, k) / C(n, k), without bias."""
    return 1.0 - comb(n - right, k) / comb(n, k)
