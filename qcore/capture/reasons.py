"""Why something could not be captured, in one line that points into the user's code."""

import sysconfig
import traceback
from pathlib import Path

import torch

__all__ = ["decides", "reason_of"]

_TORCH = str(Path(torch.__file__).parent)
_LAYERS = str(Path(torch.nn.__file__).parent)
_HERE = str(Path(__file__).parent)
_STDLIB = sysconfig.get_path("stdlib")
_LONGEST = 300


def reason_of(error: BaseException) -> str:
    """``Type: first line (at file:line)``; the place is the innermost one outside torch and qcore.

    >>> try:
    ...     raise ValueError("no batch\\nand more")
    ... except ValueError as error:
    ...     reason_of(error).partition(" (at ")[0]
    'ValueError: no batch'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    said = said if len(said) <= _LONGEST else said[: _LONGEST - 3] + "..."
    place = _place(error)
    return f"{said} (at {place})" if place else said


def _place(error: BaseException) -> str | None:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _foreign(frame.filename):
            return f"{frame.filename}:{frame.lineno}"
    return None


def decides(file: str) -> bool:
    """Whether code in a file decides what a forward does: the user's, or that of torch.nn."""
    return file.startswith(_LAYERS) or not _foreign(file)


def _foreign(file: str) -> bool:
    """Whether a file is not of the user: torch's, this package's, Python's own or generated."""
    if file.startswith(("<", _TORCH, _HERE)):
        return True
    return file.startswith(_STDLIB) and "site-packages" not in file
