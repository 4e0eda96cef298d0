"""Quantized integer dtypes: a name, a width and the range of integers that may be used.

A :class:`QDtype` is data. It does not import torch, so that plug-ins can declare dtypes and schemes
in a module that is light to load.
"""

import attrs

from .errors import QuantizationError

__all__ = [
    "INT2",
    "INT3",
    "INT4",
    "INT8",
    "INT8_NARROW",
    "INT16",
    "INT32",
    "UINT2",
    "UINT3",
    "UINT4",
    "UINT8",
    "QDtype",
]

_STORAGE = {
    (8, True): "int8",
    (8, False): "uint8",
    (16, True): "int16",
    (32, True): "int32",
}


@attrs.frozen(kw_only=True)
class QDtype:
    """An integer dtype of ``bits`` bits, of which the values ``quant_min..quant_max`` are used.

    Args:
        name: how recipes, plans and artifacts call it.
        bits: width of one value in bits, 1 to 32.
        signed: whether the storage is two's complement.
        quant_min: smallest integer that may appear.
        quant_max: largest integer that may appear.

    Raises:
        QuantizationError: the range is empty or does not fit ``bits``.

    >>> INT8.quant_min, INT8.quant_max, INT8_NARROW.quant_min
    (-128, 127, -127)
    >>> QDtype.custom(bits=4, signed=False, quant_max=11)
    QDtype(name='uint4[0,11]', bits=4, signed=False, quant_min=0, quant_max=11)
    """

    name: str
    bits: int
    signed: bool
    quant_min: int
    quant_max: int

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.bits <= 32:
            raise QuantizationError(f"dtype {self.name!r}: bits={self.bits}; use 1 to 32")
        low, high = _full_range(self.bits, self.signed)
        if not low <= self.quant_min < self.quant_max <= high:
            raise QuantizationError(
                f"dtype {self.name!r}: range {self.quant_min}..{self.quant_max} must be ascending "
                f"and lie in {low}..{high}, what {self.bits} "
                f"{'signed' if self.signed else 'unsigned'} bits hold"
            )

    @classmethod
    def custom(
        cls,
        *,
        bits: int,
        signed: bool,
        quant_min: int | None = None,
        quant_max: int | None = None,
        name: str | None = None,
    ) -> "QDtype":
        """A dtype of any width and range; the name states the range when none is given."""
        low, high = _full_range(bits, signed)
        low = low if quant_min is None else quant_min
        high = high if quant_max is None else quant_max
        name = name or f"{'' if signed else 'u'}int{bits}[{low},{high}]"
        return cls(name=name, bits=bits, signed=signed, quant_min=low, quant_max=high)

    @property
    def storage(self) -> str:
        """Name of the torch dtype that holds one value: the next of 8, 16 and 32 bits."""
        for width in (8, 16):
            if self.bits <= width and (width, self.signed) in _STORAGE:
                return _STORAGE[width, self.signed]
        return "int32"

    @property
    def packable(self) -> bool:
        """Whether several values fit one byte, so that stored weights are packed."""
        return self.bits in (1, 2, 4)


def _full_range(bits: int, signed: bool) -> tuple[int, int]:
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def _dtype(name: str, bits: int, *, signed: bool, narrow: bool = False) -> QDtype:
    low, high = _full_range(bits, signed)
    return QDtype(
        name=name, bits=bits, signed=signed, quant_min=low + (1 if narrow else 0), quant_max=high
    )


INT2 = _dtype("int2", 2, signed=True)
UINT2 = _dtype("uint2", 2, signed=False)
INT3 = _dtype("int3", 3, signed=True)
UINT3 = _dtype("uint3", 3, signed=False)
INT4 = _dtype("int4", 4, signed=True)
UINT4 = _dtype("uint4", 4, signed=False)
INT8 = _dtype("int8", 8, signed=True)
INT8_NARROW = _dtype("int8_narrow", 8, signed=True, narrow=True)
UINT8 = _dtype("uint8", 8, signed=False)
INT16 = _dtype("int16", 16, signed=True)
INT32 = _dtype("int32", 32, signed=True)
