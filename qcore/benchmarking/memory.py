"""Resident memory of this process: by how much it grew, at its peak."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

__all__ = ["MemoryWatch"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class MemoryWatch:
    """Growth of the resident memory since it was made, up to the peak since :meth:`restart`.

    On Linux the kernel's record of the peak is restarted, so that what was only needed while an
    engine was made does not count; what it keeps does. Elsewhere the peak can't be restarted and
    is that of the whole life of the process.

    >>> watch = MemoryWatch()
    >>> watch.restart()
    >>> kept = bytearray(64 << 20)
    >>> watch.growth() >= 60 << 20
    True
    """

    def __init__(self) -> None:
        _give_back_freed()
        self._before = _resident()

    def restart(self) -> None:
        """Forgets the peak so far."""
        _give_back_freed()
        # 5 restarts the record of the peak; see proc(5). Some containers forbid it.
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")

    def growth(self) -> int:
        """Bytes from the resident memory at the start to the peak; never negative."""
        return max(0, _peak() - self._before)


def _resident() -> int:
    return _status("VmRSS") or _peak()


def _peak() -> int:
    peak = _status("VmHWM")
    if peak:
        return peak
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes, but on macOS bytes.
    return largest if sys.platform == "darwin" else largest * 1024


def _status(field: str) -> int:
    """A field of the kernel's record in bytes; 0 where there is no such record."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    values = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(next(values, "0")) * 1024


def _give_back_freed() -> None:
    """Returns memory that was freed, and that malloc keeps for later, to the system."""
    gc.collect()
    # Only glibc has it; elsewhere a little too much is counted.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
