"""Progress: which items come through, what is shown where, and what is never shown."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest

import qcore.progressbar
from qcore import QcoreError, progress


@pytest.fixture(autouse=True)
def _default_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QCORE_PROGRESS", raising=False)


class _Clock:
    """A clock that moves by a fixed step at every look."""

    def __init__(self, step: float) -> None:
        self.now = 0.0
        self.step = step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


def test_lines_are_the_first_the_last_and_few_between(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log gets the first and the last line, and between them one each five seconds."""
    monkeypatch.setattr(qcore.progressbar, "time", _Clock(1.0))
    assert list(progress(range(15), label="load")) == list(range(15))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "load: 0/15",
        "load: 5/15, 5 s, 10 s left",
        "load: 10/15, 10 s, 5 s left",
        "load: 15/15 in 16.0 s",
    ]


def test_quick_work_takes_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A loop that ends at once shows its first and its last line only."""
    assert sum(progress(range(1000), label="add")) == 499500
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_total_is_unknown_for_a_generator(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a length, lines count without a total; a given total is used."""
    list(progress((i for i in range(3)), label="a"))
    list(progress((i for i in range(3)), label="b", total=3))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a: 0"
    assert lines[1].startswith("a: 3 in ")
    assert lines[2] == "b: 0/3"


def test_status_ends_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The status is asked for when a line is shown, and stands at its end."""
    losses = [9.0]
    for step in progress(range(3), label="train", status=lambda: f"loss {losses[-1]}"):
        losses.append(step / 2)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "train: 0/3"
    assert last.endswith(", loss 1.0")


def test_empty_work_is_shown_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to do is a first and a last line, not an error."""
    assert list(progress([], label="none")) == []
    assert capsys.readouterr().err.splitlines()[0] == "none: 0/0"


def test_leaving_early_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    """A loop that is left by an exception, its own or the source's, says how far it came."""

    def source() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(progress(source(), label="read"))
    assert "read: stopped at 1 after " in capsys.readouterr().err
    steps = progress(range(9), label="train")
    next(steps)
    next(steps)
    steps.close()
    assert "train: stopped at 1/9 after " in capsys.readouterr().err


def test_off_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``QCORE_PROGRESS=off`` passes the items on in silence."""
    monkeypatch.setenv("QCORE_PROGRESS", "off")
    assert list(progress("abc", label="spell")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_unknown_mode_is_an_error_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another value of the variable is refused before any work, with the allowed ones."""
    monkeypatch.setenv("QCORE_PROGRESS", "quiet")
    with pytest.raises(QcoreError, match=r"QCORE_PROGRESS='quiet'; use auto, plain, off"):
        progress([], label="x")


def _on_a_terminal(code: str, **env: str) -> tuple[str, str]:
    """What ``code`` writes to stdout, and to a stderr that is a terminal."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=slave,
            text=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **env},
        )
        os.close(slave)
        assert process.stdout is not None
        out = process.stdout.read()
        process.stdout.close()
        assert process.wait() == 0
        shown = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # Linux says EIO once the other side is closed and all is read.
                break
            if not chunk:
                break
            shown += chunk
    finally:
        os.close(master)
    return out, shown.decode()


_LOOP = """
import sys
from qcore import progress
for i in progress(range(3), label="outer[x]", status=lambda: "loss 1"):
    for j in progress(range(2), label="inner"):
        print(i, j)
assert "torch" not in sys.modules
"""


def test_terminal_gets_a_bar_and_stdout_stays_clean() -> None:
    """On a terminal nested loops draw bars on stderr; stdout has the data only; no torch."""
    pytest.importorskip("rich")
    out, shown = _on_a_terminal(_LOOP)
    assert out.splitlines() == ["0 0", "0 1", "1 0", "1 1", "2 0", "2 1"]
    assert "━" in shown
    assert "3/3" in shown
    assert "outer[x]" in shown
    assert "loss 1" in shown
    assert "outer[x]: 0/3" not in shown


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"QCORE_PROGRESS": "plain"}], ids=str)
def test_terminal_gets_lines_where_a_bar_is_not_wanted(env: dict[str, str]) -> None:
    """A terminal that can't move its cursor, and the mode ``plain``, get lines."""
    out, shown = _on_a_terminal(_LOOP, **env)
    assert len(out.splitlines()) == 6
    assert "━" not in shown
    assert "outer[x]: 0/3" in shown


def test_terminal_without_rich_gets_lines() -> None:
    """Where rich is not installed, a terminal gets lines."""
    _, shown = _on_a_terminal("import sys; sys.modules['rich'] = None\n" + _LOOP)
    assert "outer[x]: 0/3" in shown
    assert "inner: 2/2 in 0.0 s" in shown
