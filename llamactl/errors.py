"""What ends a run, and with which exit status.

0 done; 1 a ``Fault``, in one line; 2 usage, a ``Misuse`` or what typer finds; 75 (EX_TEMPFAIL) ``Interrupted`` after
saving, run me again; 130 Ctrl-C, for which a training saves, too; 141 ``ReaderGone``, the reader of our stdout has
left. Anything else is a bug of ours and shows its traceback.
"""

from signal import SIGINT, SIGTERM


class Fault(Exception):
    """Something a user can act on: ``SUBJECT: what is wrong; what to do``.

    ``subject`` is a file, a ``FILE:LINE: FIELD``, or a flag; ``remedy`` is the next thing to try.
    """

    status = 1

    def __init__(self, subject: object, problem: str, remedy: str = "") -> None:
        self.subject, self.problem, self.remedy = str(subject), problem, remedy
        super().__init__(f"{subject}: {problem}" + (f"; {remedy}" if remedy else ""))

    def __reduce__(self) -> tuple[type["Fault"], tuple[str, str, str]]:
        return type(self), (self.subject, self.problem, self.remedy)  # a worker process can hand one back


class Misuse(Fault):
    """A command line that nobody can mean, whatever its files hold."""

    status = 2


class Interrupted(Exception):
    """Stopped by a signal after the state was saved: the same command goes on from there."""

    status = 75

    def __init__(self, said: str, number: int = SIGTERM) -> None:
        super().__init__(said)
        self.status = 128 + number if number == SIGINT else self.status


class ReaderGone(Exception):
    """Whoever read our standard output closed it (``... | head``): stop at once and in silence."""

    status = 141
