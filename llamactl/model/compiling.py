"""What numba compiles for this machine's processor, if it is installed: once, for it keeps what it has made."""

import importlib.util
import threading
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from llamactl import ui

LONG = 5.0  # seconds: those who wait so long have no kernels yet
ENOUGH = 600.0  # seconds, to make them


@cache
def installed() -> bool:
    """Whether there is anything to compile with."""
    return importlib.util.find_spec("numba") is not None


Made = TypeVar("Made")


class Making(threading.Thread, Generic[Made]):
    """Kernels in the making. A process that ends before waits for it, and the next one finds them made.

    ``what`` they do is said where it takes long, or fails; ``make`` has None where there is no folder to keep them in.
    """

    def __init__(self, what: str, make: Callable[[], Made | None]) -> None:
        super().__init__(name="llamactl-compiling")
        self.what, self.make = what, make
        self.made: Made | None = None
        self.start()

    def run(self) -> None:
        told = threading.Timer(LONG, ui.note, [f"compiling {self.what}, once for this machine: up to a minute"])
        told.daemon = True
        told.start()
        try:
            self.made = self.make()
        except Exception as error:  # whatever a compiler may say of a processor that it does not know
            ui.warn(f"no kernels for {self.what} are compiled, it is done without: {error!r}")
        finally:
            told.cancel()

    def within(self, seconds: float) -> Made | None:
        """The kernels, if they are made by then."""
        if seconds:
            self.join(seconds)
        return self.made


def digest(modules: Sequence[ModuleType]) -> str:
    """Of the sources that something is made from, for the name that numba keeps it by.

    numba itself looks at the file of what is called alone to tell whether it has changed.
    """
    return sha256(b"".join(Path(module.__file__ or "").read_bytes() for module in modules)).hexdigest()[:16]
