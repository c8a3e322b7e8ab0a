"""What a person sees while a stage works, in a terminal."""

import io
import sys

import pytest
from rich.progress import Progress

from llamactl import ui


class Terminal(io.StringIO):
    """A stderr that is one."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on; a fixture's would be taken away again before the test begins."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    return screen


@pytest.mark.parametrize("name", ["data[bold].jsonl", "[/red].jsonl", "a\\[b.jsonl"])
def test_a_name_in_brackets_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    screen = terminal(monkeypatch)
    with ui.Working(f"read {name}", 10) as bar:
        bar.advance(10, model=name)
    assert f"read {name}" in screen.getvalue()
    assert f"model {name}" in screen.getvalue()


def test_a_long_label_leaves_room_for_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ", ".join(f"some-dialogues-{n}.jsonl" for n in range(100))
    screen = terminal(monkeypatch)
    with ui.Working(f"read {names}", 1000, "dialogues") as bar:
        bar.advance(1000, tokens=12)
    last = screen.getvalue().rpartition("\r")[2]
    assert "read some-dialogues-0.js…" in last
    assert "some-dialogues-99.jsonl" in last
    assert "1,000/1,000 tokens 12" in last


def test_a_bar_is_not_written_out_anew_for_each_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """But at the end it says what was done in all."""
    shown, update = [], Progress.update
    monkeypatch.setattr(Progress, "update", lambda *given, **values: (shown.append(values), update(*given, **values)))
    monkeypatch.setattr(ui, "SHOW_EVERY", 3600.0)
    screen = terminal(monkeypatch)
    with ui.Working("convert", None, "records") as bar:
        for number in range(5000):
            bar.advance(records=number + 1)
    assert [values["completed"] for values in shown] == [5000]
    assert "5,000 records 5,000" in screen.getvalue()


def test_what_a_program_reads_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    """It looks for a path in whole, as grep does."""
    path = "/" + "/".join(["directory"] * 60)
    ui.table("inputs", [(path, "1")], ("path", "number"), asked=True)
    assert path in capsys.readouterr().out
