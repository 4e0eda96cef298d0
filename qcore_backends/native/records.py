"""The program as the kernels read it: mirrors ``csrc/program.h`` field by field.

Sizes and strides are in elements. A :class:`Ref` names the slot and the byte where a tensor starts.
"""

import ctypes
from enum import IntEnum
from typing import Any, ClassVar

__all__ = [
    "DIMS",
    "Depthwise",
    "Elementwise",
    "Gather",
    "Gemm",
    "Kind",
    "Move",
    "Op",
    "Output",
    "Pack",
    "Pool",
    "Ref",
    "Window",
]

DIMS = 5
"""Dimensions of a :class:`Move`."""

_INT = ctypes.c_int64
_SMALL = ctypes.c_int32
_FLOAT = ctypes.c_float


class Kind(IntEnum):
    """What an operation does."""

    GEMM = 0
    GATHER = 1
    DEPTHWISE = 2
    PACK = 3
    QUANTIZE = 4
    DEQUANTIZE = 5
    ADD = 6
    MUL = 7
    REQUANTIZE = 8
    TABLE = 9
    MAX_POOL = 10
    SUM_POOL = 11
    COPY = 12


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class _Record(ctypes.Structure):
    """Base of the records; unset fields are 0, unset references name no tensor."""

    _fields_: ClassVar[list[tuple[str, Any]]] = []

    def __init__(self, **values: Any) -> None:
        super().__init__()
        for name, kind in self._fields_:
            if kind is Ref and name not in values:
                setattr(self, name, Ref(slot=-1))
        for name, value in values.items():
            setattr(self, name, value)


class Ref(_Record):
    """Byte ``offset`` in the memory of ``slot``; a negative slot is no tensor."""

    _fields_: ClassVar = _fields(_INT, "slot offset")


class Output(_Record):
    """From an accumulator to the output."""

    _fields_: ClassVar = [
        *_fields(Ref, "y other"),
        *_fields(_INT, "y_row other_row"),
        ("other_scale", _FLOAT),
        ("other_zero", _SMALL),
        *_fields(_FLOAT, "low high"),
        *_fields(_SMALL, "zero is_float"),
    ]


class Window(_Record):
    """The window of a convolution or pool."""

    _fields_: ClassVar = _fields(
        _INT,
        "h w pixel out_h out_w kernel_h kernel_w stride_h stride_w pad_h pad_w dilation_h "
        "dilation_w",
    )


class Gemm(_Record):
    """A matrix product with packed weights."""

    _fields_: ClassVar = [
        *_fields(Ref, "x weight bias scale"),
        ("output", Output),
        *_fields(
            _INT,
            "outer inner x_outer x_inner weight_outer weight_inner bias_outer bias_inner "
            "scale_inner y_outer y_inner x_row rows columns depth depth_padded rows_a_task "
            "panels_a_task channels",
        ),
        ("window", Window),
        *_fields(_SMALL, "gathers padding_value row_factor tiles"),
    ]


class Gather(_Record):
    """Rows of windows, written out."""

    _fields_: ClassVar = [
        *_fields(Ref, "x y"),
        *_fields(_INT, "rows channels depth_padded rows_a_task"),
        ("window", Window),
        ("padding_value", _INT),
    ]


class Depthwise(_Record):
    """A convolution of each channel by itself."""

    _fields_: ClassVar = [
        *_fields(Ref, "x weight bias scale"),
        ("output", Output),
        *_fields(_INT, "batch channels channels_padded"),
        ("window", Window),
        ("padding_value", _INT),
    ]


class Pack(_Record):
    """The right operand of a matrix product, as packed weights."""

    _fields_: ClassVar = [
        *_fields(Ref, "x y bias"),
        *_fields(
            _INT,
            "outer inner x_outer x_inner x_depth x_column depth depth_padded columns x_zero "
            "constant",
        ),
    ]


class Move(_Record):
    """A quantization or copy between any strides."""

    _fields_: ClassVar = [
        *_fields(Ref, "x y"),
        *_fields(_INT * DIMS, "size x_stride y_stride"),
        *_fields(_INT, "element_bytes flip"),
        *_fields(_FLOAT, "scale low high"),
        ("zero", _SMALL),
    ]


class Elementwise(_Record):
    """An operation on dense tensors, value by value."""

    _fields_: ClassVar = [
        *_fields(Ref, "a b y table"),
        ("count", _INT),
        *_fields(_SMALL, "a_zero b_zero"),
        *_fields(_FLOAT, "a_scale b_scale low high"),
        *_fields(_SMALL, "zero is_float"),
    ]


class Pool(_Record):
    """A pool over an image."""

    _fields_: ClassVar = [
        *_fields(Ref, "x scale bias"),
        ("output", Output),
        *_fields(_INT, "batch channels"),
        ("window", Window),
    ]


class _Any(ctypes.Union):
    _fields_: ClassVar = [
        ("gemm", Gemm),
        ("gather", Gather),
        ("depthwise", Depthwise),
        ("pack", Pack),
        ("move", Move),
        ("elementwise", Elementwise),
        ("pool", Pool),
    ]


class Op(ctypes.Structure):
    """One operation: its kind, and the record that belongs to the kind."""

    _anonymous_: ClassVar = ("record",)
    _fields_: ClassVar = [("kind", _INT), ("record", _Any)]
