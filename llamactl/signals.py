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


def serve(parent: int) -> None:
    """Make this process a worker of ``parent``, which alone hears Ctrl-C, and which it does not outlive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
