"""The compiled form of :mod:`qcore_fakequants.lattice`: one pass for values, one for gradients.

A training step fake-quantizes every activation of the network, and an operation of torch on a
tensor that is larger than the caches waits for memory. In plain operations values and gradients
take some fifteen such passes; ``csrc/lattice.cpp`` takes one each, as fast as adding two tensors.

It is compiled when it is first asked for, which takes a second, once on a machine. Where that can't
be done, :func:`kernel` is None and the plain operations do the same.
"""

import ctypes
import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from qcore import CppLibrary, CppUnit

__all__ = ["Kernel", "Rule", "kernel", "takes"]

_LIBRARY = CppLibrary(
    name="fakequants",
    folder=Path(__file__).parent / "csrc",
    units=(CppUnit(source="lattice.cpp"),),
    flags=("-Wno-psabi",),
)


class _Rows(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("length", ctypes.c_int64),
    )


class _Lattice(ctypes.Structure):
    _fields_ = (
        ("scale", ctypes.c_void_p),
        ("zero_point", ctypes.c_void_p),
        ("quant_min", ctypes.c_float),
        ("quant_max", ctypes.c_float),
    )


class Rule(NamedTuple):
    """How gradients are found, and which: the options of
    :func:`~qcore_fakequants.lattice.fake_quantize_learned` (its ``count`` is ``values_per_scale``),
    and whether somebody asks for those by scale and zero point."""

    rounded: bool
    through: bool
    values_per_scale: int | None
    of_scale: bool
    of_zero_point: bool


class Kernel:
    """The two functions of ``csrc/lattice.cpp``.

    Args:
        loaded: what was compiled.
    """

    def __init__(self, loaded: ctypes.CDLL) -> None:
        pointer, reference = ctypes.c_void_p, ctypes.POINTER
        self._values = loaded.qcore_lattice_values
        self._values.argtypes = [
            *(reference(_Rows), reference(_Lattice), ctypes.c_int),
            *(pointer, pointer),
        ]
        self._values.restype = None
        self._gradients = loaded.qcore_lattice_gradients
        self._gradients.argtypes = [
            *(reference(_Rows), reference(_Lattice), ctypes.c_int),
            *(pointer, pointer, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
            *(pointer, pointer, pointer),
        ]
        self._gradients.restype = ctypes.c_int

    def values(
        self, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int
    ) -> Tensor:
        """What :func:`takes` accepts, on its lattice."""
        y = torch.empty_like(x)
        x = _laid_out_as(y, x)
        scale, zero_point = scale.contiguous(), zero_point.contiguous()
        lattice = _Lattice(scale.data_ptr(), zero_point.data_ptr(), quant_min, quant_max)
        self._values(_rows(y, scale), lattice, torch.get_num_threads(), x.data_ptr(), y.data_ptr())
        return y

    def gradients(
        self,
        grad: Tensor,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        rule: Rule,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients by ``x``, scale and zero point; None for those that nobody asks for."""
        by_x = torch.empty_like(x)
        x, grad = _laid_out_as(by_x, x), _laid_out_as(by_x, grad)
        scale, zero_point = scale.contiguous(), zero_point.contiguous()
        by_scale = torch.empty_like(scale) if rule.of_scale else None
        by_zero_point = torch.empty_like(zero_point) if rule.of_zero_point else None
        failed = self._gradients(
            _rows(by_x, scale),
            _Lattice(scale.data_ptr(), zero_point.data_ptr(), quant_min, quant_max),
            torch.get_num_threads(),
            grad.data_ptr(),
            x.data_ptr(),
            rule.rounded,
            rule.through,
            rule.values_per_scale or 0,
            by_x.data_ptr(),
            None if by_scale is None else by_scale.data_ptr(),
            None if by_zero_point is None else by_zero_point.data_ptr(),
        )
        if failed:
            raise MemoryError("no memory for the sums of a fake quantizer's gradients")
        return by_x, by_scale, by_zero_point


def takes(x: Tensor, scale: Tensor, zero_point: Tensor) -> bool:
    """Whether the kernel is for these tensors: float32 on the CPU, with one scale, or one for each
    index of a dimension.

    Args:
        x: any shape.
        scale, zero_point: such that they broadcast against ``x``.
    """
    return (
        type(x) in _PLAIN
        and x.device.type == "cpu"
        and x.dtype == scale.dtype == zero_point.dtype == torch.float32
        and scale.shape == zero_point.shape
        and (scale.ndim == 0 or _axis(x, scale) is not None)
    )


# What derives from these may have no memory of its own.
_PLAIN = (Tensor, torch.nn.Parameter)


def _axis(x: Tensor, scale: Tensor) -> int | None:
    """The dimension that there is one scale for each index of."""
    if scale.ndim == x.ndim:
        for axis, size in enumerate(scale.shape):
            if size == scale.numel() == x.shape[axis]:
                return axis
    return None


def _laid_out_as(like: Tensor, x: Tensor) -> Tensor:
    """``x`` in the memory layout of another tensor, which is dense."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def _rows(x: Tensor, scale: Tensor) -> _Rows:
    """The rows of a dense tensor, in the order of its memory."""
    axis = _axis(x, scale)
    if axis is None or scale.numel() == 1:
        return _Rows(1, 1, x.numel())
    length = x.stride(axis)
    return _Rows(x.numel() // length, scale.numel(), length)


@functools.cache
def kernel() -> Kernel | None:
    """The compiled functions; None where there is no compiler, or it fails, which warns once."""
    loaded = _LIBRARY.load_if_possible(
        otherwise="fake quantization in training runs on torch operations, which is slower"
    )
    return None if loaded is None else Kernel(loaded)
