"""The signals that ask a run to stop: SIGTERM, and SIGUSR1, by which Slurm warns of a time limit."""

import signal
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
