"""Quantized convolution and transposed convolution, in 1 to 3 dimensions, with a fused residual.

    acc[b, n, ...] = sum (x - x_zero_point) * (w - w_zero_point) + bias        exact integers
    y = requantize(acc, x_scale * w_scale[n])     (+ other)

Padding stands for the real value 0, so it contributes nothing.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendError
from ..numerics import scalar
from .exact import exact_conv, saturating_matmul, taps
from .library import OUTPUT_ARGS, define
from .output import Output, centred, largest

__all__ = ["qconv", "qconv_transpose"]

_OPERANDS = (
    "Tensor x, float x_scale, int x_zero_point, Tensor w, Tensor w_scale, Tensor? w_zero_point, "
    "Tensor? bias"
)
_OTHER = "Tensor? other, float other_scale, int other_zero_point"


def _conv_meta(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    other: Tensor | None,
    other_scale: float,
    other_zero_point: int,
    *output: object,
) -> Tensor:
    conv = (F.conv1d, F.conv2d, F.conv3d)[w.ndim - 3]
    y = conv(x.float(), w.float(), None, list(stride), list(padding), list(dilation), groups)
    return y.to(output[4])  # type: ignore[call-overload,no-any-return]


def _transpose_meta(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *output: object,
) -> Tensor:
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[w.ndim - 3]
    y = conv(
        x.float(),
        w.float(),
        None,
        list(stride),
        list(padding),
        list(output_padding),
        groups,
        list(dilation),
    )
    return y.to(output[4])  # type: ignore[call-overload,no-any-return]


@define(
    f"qconv({_OPERANDS}, int[] stride, int[] padding, int[] dilation, int groups, {_OTHER}, "
    f"{OUTPUT_ARGS}) -> Tensor",
    meta=_conv_meta,
)
def qconv(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    other: Tensor | None,
    other_scale: float,
    other_zero_point: int,
    *output: object,
) -> Tensor:
    """Convolution of integers.

    Args:
        x: ``[B, C, *spatial]``, int8, uint8 or int16.
        w: ``[N, C / groups, *kernel]``, integers.
        w_scale: float32 ``[]`` or ``[N]``.
        w_zero_point: int32 like ``w_scale``, or None for 0.
        bias: ``[N]``; int32 with the step ``x_scale * w_scale``, or float32, by the contract.
        other: a residual shaped like the output, with its own scale and zero point.

    Returns:
        ``[B, N, *out]`` of ``y_dtype``.
    """
    out = Output(*output)  # type: ignore[arg-type]
    channel = (-1,) + (1,) * (w.ndim - 2)
    zw = None if w_zero_point is None else w_zero_point.reshape(-1, *([1] * (w.ndim - 1)))
    weight = centred(w, 0 if zw is None else zw)
    if out.numerics.accumulator == "int16_pairs":
        acc = _pairs(x, x_zero_point, weight, stride, padding, dilation, groups)
    else:
        acc = exact_conv(
            centred(x, x_zero_point),
            weight,
            x_max=largest(x.dtype, x_zero_point),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
    return out.finish(
        acc,
        (scalar(x_scale, x) * w_scale).reshape(channel if w_scale.ndim else ()),
        bias=None if bias is None else bias.reshape(channel),
        other=None if other is None else centred(other, other_zero_point),
        other_scale=other_scale,
    )


@define(
    f"qconv_transpose({_OPERANDS}, int[] stride, int[] padding, int[] output_padding, "
    f"int[] dilation, int groups, {OUTPUT_ARGS}) -> Tensor",
    meta=_transpose_meta,
)
def qconv_transpose(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    *output: object,
) -> Tensor:
    """Transposed convolution of integers.

    Args:
        w: ``[C, N / groups, *kernel]``. A ``w_scale`` of shape ``[N / groups]`` belongs to dimension
            1 and is the same for every group.

    Returns:
        ``[B, N, *out]`` of ``y_dtype``.
    """
    out = Output(*output)  # type: ignore[arg-type]
    if out.numerics.accumulator != "int32":
        raise BackendError("qconv_transpose: accumulator 'int16_pairs' is not defined; use 'int32'")
    channel = (-1,) + (1,) * (w.ndim - 2)
    zw = None if w_zero_point is None else w_zero_point.reshape(1, -1, *([1] * (w.ndim - 2)))
    acc = exact_conv(
        centred(x, x_zero_point),
        centred(w, 0 if zw is None else zw),
        x_max=largest(x.dtype, x_zero_point),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        transposed=True,
        output_padding=output_padding,
    )
    scale = scalar(x_scale, x) * w_scale
    return out.finish(
        acc,
        scale.repeat(groups).reshape(channel) if w_scale.ndim else scale,
        bias=None if bias is None else bias.reshape(channel),
    )


def _pairs(
    x: Tensor,
    x_zero_point: int,
    w: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Accumulator whose pairs along (tap, channel) saturate to 16 bits; zero point corrected after."""
    around = [p for size in reversed(padding) for p in (size, size)]
    # Not through F.pad's constant on integers: the value must be the zero point in every dtype.
    padded = F.pad(centred(x, 0), around, value=float(x_zero_point))
    patches = taps(padded, w.shape[2:], stride, dilation)
    results = []
    for xg, wg in zip(patches.chunk(groups, dim=-1), w.chunk(groups), strict=True):
        rows = wg.flatten(2).transpose(1, 2).flatten(1)
        acc = saturating_matmul(xg.flatten(-2), rows)
        results.append(acc - x_zero_point * rows.double().sum(1))
    return torch.cat(results, dim=-1).movedim(-1, 1)
