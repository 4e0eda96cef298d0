"""The named schemes: integers, granularity and symmetry that recipes call by one word.

Names are ``<dtype>[_<granularity>][_<symmetry>]``. Without a granularity the scheme is per tensor.
Signed schemes are symmetric and unsigned ones affine, unless the name says otherwise.

Symmetric 8-bit schemes of weights (``int8_narrow``, ``int8_channel``, ``int8_group*``) use
-127..127: the integers are then as symmetric as the scheme, ``scale = absmax / 127`` puts the
largest weight on an integer, and a product of two int8 values has no ``(-128) * (-128)`` corner.
Those of activations use all of -128..127. Below 8 bits one integer of the range is worth more than
that symmetry, so int4, int3 and int2 use all of theirs, with ``scale = absmax / 7.5``, ``absmax /
3.5`` and ``absmax / 1.5``.
"""

from qcore import (
    INT2,
    INT3,
    INT4,
    INT8,
    INT8_NARROW,
    INT16,
    UINT2,
    UINT3,
    UINT4,
    UINT8,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QDtype,
    QScheme,
    SchemeSpec,
)

__all__ = ["SCHEMES"]

GROUP_SIZES = (32, 64, 128)

_TENSOR, _CHANNEL, _TOKEN = PerTensor(), PerChannel(0), PerToken()


def _scheme(
    name: str, dtype: QDtype, granularity: Granularity, *, symmetric: bool, summary: str
) -> SchemeSpec:
    return SchemeSpec(
        name=name,
        summary=summary,
        scheme=QScheme(dtype=dtype, granularity=granularity, symmetric=symmetric),
    )


def _weights(name: str, dtype: QDtype, *, symmetric: bool) -> tuple[SchemeSpec, ...]:
    """Per output channel, and per group of neighbours along the input."""
    return (
        _scheme(
            f"{name}_channel",
            dtype,
            _CHANNEL,
            symmetric=symmetric,
            summary="weights, one scale an output channel",
        ),
        *(
            _scheme(
                f"{name}_group{size}",
                dtype,
                PerGroup(size),
                symmetric=symmetric,
                summary=f"weights, one scale for {size} neighbours along the last dimension",
            )
            for size in GROUP_SIZES
        ),
    )


SCHEMES: tuple[SchemeSpec, ...] = (
    _scheme("int8", INT8, _TENSOR, symmetric=True, summary="activations that have both signs"),
    _scheme("int8_affine", INT8, _TENSOR, symmetric=False, summary="activations of any range"),
    _scheme("int8_narrow", INT8_NARROW, _TENSOR, symmetric=True, summary="weights, one scale"),
    *_weights("int8", INT8_NARROW, symmetric=True),
    _scheme("int8_token", INT8, _TOKEN, symmetric=True, summary="one scale a row"),
    _scheme("uint8", UINT8, _TENSOR, symmetric=False, summary="activations of any range"),
    _scheme(
        "uint8_symmetric",
        UINT8,
        _TENSOR,
        symmetric=True,
        summary="zero point fixed at 128, for engines that store signed values so",
    ),
    *_weights("uint8", UINT8, symmetric=False),
    _scheme("uint8_token", UINT8, _TOKEN, symmetric=False, summary="one scale a row"),
    _scheme("int4", INT4, _TENSOR, symmetric=True, summary="weights, one scale"),
    *_weights("int4", INT4, symmetric=True),
    _scheme("uint4", UINT4, _TENSOR, symmetric=False, summary="one scale, any range"),
    *_weights("uint4", UINT4, symmetric=False),
    _scheme("int3", INT3, _TENSOR, symmetric=True, summary="weights, one scale"),
    *_weights("int3", INT3, symmetric=True),
    _scheme("uint3", UINT3, _TENSOR, symmetric=False, summary="one scale, any range"),
    *_weights("uint3", UINT3, symmetric=False),
    _scheme("int2", INT2, _TENSOR, symmetric=True, summary="weights, one scale"),
    *_weights("int2", INT2, symmetric=True),
    _scheme("uint2", UINT2, _TENSOR, symmetric=False, summary="one scale, any range"),
    *_weights("uint2", UINT2, symmetric=False),
    _scheme(
        "int16", INT16, _TENSOR, symmetric=True, summary="activations that need more than 8 bits"
    ),
)
