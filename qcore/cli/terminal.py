"""What the command line returns and how it prints."""

import contextlib
import json
import sys
from collections.abc import Sequence
from enum import IntEnum

__all__ = ["ExitCode", "note", "only_stderr", "print_json", "print_table", "printable"]


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    DEGRADED = 3


def note(message: str) -> None:
    """One line for people, on stderr."""
    print(f"qcore: {printable(message)}", file=sys.stderr)


def only_stderr() -> contextlib.AbstractContextManager[object]:
    """While it holds, what plug-ins print goes to stderr, so that the data on stdout stay data."""
    return contextlib.redirect_stdout(sys.stderr)


def print_json(value: object) -> None:
    """Data for programs, on stdout: keys in their own order, ASCII only."""
    print(json.dumps(value, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on stdout; the last one, which may be long, is not padded.

    >>> print_table(("NAME", "BITS"), [("int8", "8"), ("int8_narrow", "8")])
    NAME         BITS
    int8         8
    int8_narrow  8
    """
    lines = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def printable(text: str) -> str:
    """``text`` on one line without control characters, which could fool a terminal.

    >>> printable("a\\x1b[2Jb\\nc")
    'a?[2Jb c'
    """
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
