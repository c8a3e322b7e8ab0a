"""The signals that ask a run to stop: SIGTERM, and SIGUSR1, by which Slurm warns of a time limit.

And processes that work for another one, which alone hears them.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llamactl import ui

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def handled(by: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have them call a function meanwhile."""
    before = {number: signal.signal(number, by) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def first_ctrl_c(by: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have Ctrl-C call a function meanwhile, once; pressed again it ends the run. Where it is ignored it stays so."""

    def once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        if ui.first_rank():  # past the streams, whose locks may be held by what this has interrupted
            os.write(2, b"\nllamactl: stopping after this step; Ctrl-C again to leave at once, with nothing saved\n")
        by(number, frame)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Have Ctrl-C wait for the end of this: a process that is begun is known to who must end it only when it has."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for number in pressed[:1]:
            signal.raise_signal(number)


def serve(parent: int) -> None:
    """Make this process a worker of ``parent``, which alone hears Ctrl-C, and which it does not outlive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
