"""The compiled kernels, loaded, and the instruction set that they use."""

import ctypes
import os

from qcore import BackendError, CompilerError

from .building import instruction_sets, kernel_library
from .records import Op

__all__ = ["ISA_VARIABLE", "Library", "chosen_isa", "library"]

ISA_VARIABLE = "QCORE_NATIVE_ISA"
"""Environment variable with the name of the best instruction set that may be used."""


class Library:
    """The functions of the compiled library.

    Args:
        loaded: what :func:`~.building.kernel_library` loads.

    Raises:
        BackendError: it is something else.
    """

    def __init__(self, loaded: ctypes.CDLL) -> None:
        try:
            size = loaded.qcore_native_op_bytes
            self._best = loaded.qcore_native_best
            self._run = loaded.qcore_native_run
        except AttributeError as error:
            raise _broken(loaded, str(error)) from error
        size.restype = ctypes.c_int64
        if size() != ctypes.sizeof(Op):
            raise _broken(loaded, f"its operations have {size()} bytes, not {ctypes.sizeof(Op)}")
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


def _broken(loaded: ctypes.CDLL, why: str) -> BackendError:
    return BackendError(
        f"backend 'native': {loaded._name} is no library of its kernels ({why}); delete the file, "
        "and it is built again"
    )


def library() -> Library:
    """The kernels of this machine; built if they are not in the cache.

    Raises:
        BackendError: they can't be built or loaded.
    """
    try:
        return Library(kernel_library().load())
    except CompilerError as error:
        raise BackendError(
            f"backend 'native' needs g++ 11, clang++ 14 or later: {error}"
        ) from error


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
