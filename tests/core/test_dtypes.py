"""Quantized dtypes: their ranges, storage and names."""

import attrs
import pytest

from qcore import (
    INT2,
    INT4,
    INT8,
    INT8_NARROW,
    INT16,
    INT32,
    UINT2,
    UINT4,
    UINT8,
    QcoreError,
    QDtype,
    QuantizationError,
)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "storage", "packable"),
    [
        (INT2, -2, 1, "int8", True),
        (UINT2, 0, 3, "uint8", True),
        (INT4, -8, 7, "int8", True),
        (UINT4, 0, 15, "uint8", True),
        (INT8, -128, 127, "int8", False),
        (INT8_NARROW, -127, 127, "int8", False),
        (UINT8, 0, 255, "uint8", False),
        (INT16, -32768, 32767, "int16", False),
        (INT32, -(2**31), 2**31 - 1, "int32", False),
    ],
    ids=lambda value: value.name if isinstance(value, QDtype) else None,
)
def test_built_in_dtypes_have_the_ranges_of_their_names(
    dtype: QDtype, low: int, high: int, storage: str, packable: bool
) -> None:
    """Range, storage and packing of every built-in dtype."""
    assert (dtype.quant_min, dtype.quant_max) == (low, high)
    assert dtype.storage == storage
    assert dtype.packable is packable


@pytest.mark.parametrize(
    ("bits", "signed", "storage"),
    [
        (1, False, "uint8"),
        (3, True, "int8"),
        (7, False, "uint8"),
        (9, True, "int16"),
        # No unsigned 16-bit storage is used: torch has few operations for it.
        (9, False, "int32"),
        (17, True, "int32"),
        (31, False, "int32"),
    ],
)
def test_odd_widths_are_stored_in_the_next_type(bits: int, signed: bool, storage: str) -> None:
    """A width between two types takes the wider one."""
    assert QDtype.custom(bits=bits, signed=signed).storage == storage


def test_a_custom_range_names_itself_unless_named() -> None:
    """The default name of a custom dtype states its range."""
    assert QDtype.custom(bits=4, signed=True, quant_min=-7).name == "int4[-7,7]"
    assert QDtype.custom(bits=4, signed=True, name="int4_narrow").name == "int4_narrow"


@pytest.mark.parametrize(
    ("bits", "low", "high", "message"),
    [
        (0, 0, 1, "bits=0; use 1 to 32"),
        (33, 0, 1, "bits=33; use 1 to 32"),
        (8, 5, 5, "range 5..5 must be ascending"),
        (8, 6, 5, "range 6..5 must be ascending"),
        (8, -129, 127, "lie in -128..127, what 8 signed bits hold"),
        (8, -128, 128, "lie in -128..127, what 8 signed bits hold"),
    ],
)
def test_a_range_that_does_not_fit_is_refused(bits: int, low: int, high: int, message: str) -> None:
    """An impossible dtype is an error that says what fits."""
    with pytest.raises(QuantizationError, match="dtype 'odd'") as caught:
        QDtype(name="odd", bits=bits, signed=True, quant_min=low, quant_max=high)
    assert message in str(caught.value)
    assert isinstance(caught.value, QcoreError)
    assert isinstance(caught.value, ValueError)


def test_dtypes_compare_by_value_and_cannot_change() -> None:
    """A dtype is a frozen value."""
    assert QDtype.custom(bits=8, signed=True, name="int8") == INT8
    assert INT8 != INT8_NARROW
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        INT8.bits = 4  # type: ignore[misc]
