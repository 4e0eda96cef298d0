"""Progress of long work: a bar on a terminal, a few plain lines in a log, never on stdout."""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sized
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from .errors import QcoreError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["progress"]

T = TypeVar("T")

VARIABLE = "QCORE_PROGRESS"
LINE_INTERVAL_S = 5.0
_MODES = ("auto", "plain", "off")


def progress(
    iterable: Iterable[T],
    *,
    label: str,
    total: int | None = None,
    status: Callable[[], str] | None = None,
) -> Generator[T, None, None]:
    """Yield from ``iterable`` and show on stderr how far it has got.

    On a terminal, with rich installed (the extra ``qcore-quant[cli]``), it is a bar with the time
    left. Otherwise it is lines of text: the first, the last, and between them at most one every
    five seconds. The environment variable ``QCORE_PROGRESS`` chooses: ``auto`` (as above, the
    default), ``plain`` (lines on a terminal too) or ``off`` (nothing).

    Args:
        iterable: what to go through; taken one by one, never collected.
        label: what is being done, a few words.
        total: number of items; by default ``len(iterable)`` where it has one.
        status: gives a few words to show behind the numbers, such as a loss; called only when
            something is shown.

    Returns:
        A generator of the same items. A loop that may leave early by an exception should close it
        (``contextlib.closing``), so that the bar is gone before the error is printed.

    Raises:
        QcoreError: ``QCORE_PROGRESS`` has another value.

    >>> import os
    >>> os.environ["QCORE_PROGRESS"] = "off"
    >>> sum(progress(range(4), label="adding"))
    6
    >>> del os.environ["QCORE_PROGRESS"]
    """
    mode = os.environ.get(VARIABLE) or "auto"
    if mode not in _MODES:
        raise QcoreError(f"environment variable {VARIABLE}={mode!r}; use {', '.join(_MODES)}")
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if mode == "off":
        return (item for item in iterable)
    console = _console() if mode == "auto" and sys.stderr.isatty() else None
    # A terminal that can't move its cursor (TERM=dumb) gets lines, as a file does.
    if console is None or not console.is_terminal or console.is_dumb_terminal:
        return _lines(iterable, label, total, status)
    return _bar(iterable, label, total, status, console)


@cache
def _console() -> "Console | None":
    # One console for the whole process: it is how rich stacks the bars of nested loops.
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=True)


def _bar(
    iterable: Iterable[T],
    label: str,
    total: int | None,
    status: Callable[[], str] | None,
    console: "Console",
) -> Generator[T, None, None]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}", markup=False),
        console=console,
        # stdout carries data: what the loop prints there must not move to stderr.
        redirect_stdout=False,
    )
    with bar:
        task = bar.add_task(label, total=total, status="")
        shown_at = time.monotonic()
        for item in iterable:
            yield item
            bar.advance(task)
            if status is not None and time.monotonic() - shown_at >= 0.5:
                shown_at = time.monotonic()
                bar.update(task, status=status())
        if status is not None:
            bar.update(task, status=status())


def _lines(
    iterable: Iterable[T], label: str, total: int | None, status: Callable[[], str] | None
) -> Generator[T, None, None]:
    of_total = "" if total is None else f"/{total}"
    started = shown_at = time.monotonic()
    done = 0

    def show(text: str, *, with_status: bool = True) -> None:
        words = status() if status is not None and with_status else ""
        print(f"{label}: {text}{words and ', ' + words}", file=sys.stderr, flush=True)

    show(f"0{of_total}", with_status=False)
    try:
        for item in iterable:
            yield item
            done += 1
            now = time.monotonic()
            if now - shown_at >= LINE_INTERVAL_S and done != total:
                shown_at = now
                spent = now - started
                left = f", {spent / done * (total - done):.0f} s left" if total else ""
                show(f"{done}{of_total}, {spent:.0f} s{left}")
    except BaseException:
        show(f"stopped at {done}{of_total} after {time.monotonic() - started:.1f} s")
        raise
    show(f"{done}{of_total} in {time.monotonic() - started:.1f} s")
