"""The compiled form of the two passes that a histogram observer makes over many values.

The extremes of blocks (:mod:`qcore_observers.excerpt`) are found in one pass instead of two, and
values are counted (:mod:`qcore_observers.dyadic`) without the tensor of their indices. Results are
equal to the last bit.

``csrc/histogram.cpp`` is compiled when it is first asked for, which takes a second, once on a
machine. Where that can't be done, :func:`kernel` is None and operations of torch do the same.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from qcore import CppLibrary, CppUnit

__all__ = ["Kernel", "kernel", "worthwhile"]

_LIBRARY = CppLibrary(
    name="observers",
    folder=Path(__file__).parent / "csrc",
    units=(CppUnit(source="histogram.cpp"),),
    flags=("-Wno-psabi",),
)

_WORTHWHILE = 1 << 16
"""From how many values on. Fewer take no time worth a compilation."""


class Kernel:
    """The two functions of ``csrc/histogram.cpp``.

    Args:
        loaded: what was compiled.
    """

    def __init__(self, loaded: ctypes.CDLL) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._extremes = loaded.qcore_extremes
        self._extremes.argtypes = [pointer, number, number, number, ctypes.c_int, pointer, pointer]
        self._extremes.restype = None
        self._count = loaded.qcore_count
        self._count.argtypes = [
            *(pointer, pointer, number, number, pointer, pointer, number, ctypes.c_int, pointer)
        ]
        self._count.restype = None

    def extremes(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value over dimension 1, NaN where one is; float32 ``[R, size, n]``
        to two float32 ``[R, n]``."""
        blocks = blocks.contiguous()
        rows, size, columns = blocks.shape
        low, high = blocks.new_empty(rows, columns), blocks.new_empty(rows, columns)
        self._extremes(
            *(blocks.data_ptr(), rows, size, columns, torch.get_num_threads()),
            *(low.data_ptr(), high.data_ptr()),
        )
        return low, high

    def count(
        self, rows: Tensor, exponent: Tensor, first: Tensor, bins: int, where: Tensor | None
    ) -> Tensor:
        """What :func:`qcore_observers.dyadic.count` gives."""
        rows, exponent, first = rows.contiguous(), exponent.contiguous(), first.contiguous()
        where = None if where is None else where.contiguous()
        counts = torch.zeros(len(rows), bins, dtype=torch.int64)
        self._count(
            *(rows.data_ptr(), None if where is None else where.data_ptr(), *rows.shape),
            *(exponent.data_ptr(), first.data_ptr(), bins, torch.get_num_threads()),
            counts.data_ptr(),
        )
        return counts


def worthwhile(x: Tensor) -> bool:
    """Whether the kernel is for this tensor: float32, on the CPU, and large."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > _WORTHWHILE
        and not torch.compiler.is_compiling()
    )


@functools.cache
def kernel() -> Kernel | None:
    """The compiled functions; None where there is no compiler, or it fails, which warns once."""
    loaded = _LIBRARY.load_if_possible(
        otherwise="histograms of calibration are counted by torch operations, which is slower"
    )
    return None if loaded is None else Kernel(loaded)
