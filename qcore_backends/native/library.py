"""The compiled kernels, loaded, and the instruction set that they use."""

import ctypes
import functools
import os
from pathlib import Path

from qcore import BackendError

from .building import build, instruction_sets
from .records import Op

__all__ = ["ISA_VARIABLE", "Library", "chosen_isa", "library"]

ISA_VARIABLE = "QCORE_NATIVE_ISA"
"""Environment variable with the name of the best instruction set that may be used."""


class Library:
    """The functions of the compiled library.

    Args:
        path: where it is.

    Raises:
        BackendError: the file is not what :func:`~.building.build` makes.
    """

    def __init__(self, path: Path) -> None:
        try:
            loaded = ctypes.CDLL(str(path))
            size = loaded.qcore_native_op_bytes
            self._best = loaded.qcore_native_best
            self._run = loaded.qcore_native_run
        except (OSError, AttributeError) as error:
            raise _broken(path, str(error)) from error
        size.restype = ctypes.c_int64
        if size() != ctypes.sizeof(Op):
            raise _broken(path, f"its operations have {size()} bytes, not {ctypes.sizeof(Op)}")
        self._best.restype = ctypes.c_int
        self._run.restype = ctypes.c_int
        self._run.argtypes = [
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
        ]

    def isas(self) -> list[str]:
        """Names of the instruction sets that work on this machine, weakest first."""
        return list(instruction_sets())[: self._best() + 1]

    def run(self, ops: ctypes.Array[Op], slots: ctypes.Array[ctypes.c_void_p], threads: int,
            isa: int) -> None:  # fmt: skip
        """Runs a program on the memory in ``slots``."""
        if self._run(ops, len(ops), slots, threads, isa):
            raise BackendError("backend 'native': no memory for its threads; free some memory")


def _broken(path: Path, why: str) -> BackendError:
    return BackendError(
        f"backend 'native': {path} is no library of its kernels ({why}); delete the file, and it "
        "is built again"
    )


@functools.cache
def _load(path: Path) -> Library:
    return Library(path)


def library() -> Library:
    """The kernels of this machine; built if they are not in the cache."""
    return _load(build())


def chosen_isa(kernels: Library) -> str:
    """The best instruction set of this machine, or the weaker one that the environment names.

    Raises:
        BackendError: the environment names one that is unknown, or that this machine lacks.
    """
    works = kernels.isas()
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return works[-1]
    if wanted not in works:
        raise BackendError(
            f"${ISA_VARIABLE}={wanted!r}: this machine has {', '.join(works)}; use one of these"
        )
    return wanted
