"""Quantized convolution and transposed convolution, in 1 to 3 dimensions, with a fused residual.

    acc[b, n, ...] = sum (x - x_zero_point) * (w - w_zero_point) + bias        exact integers
    y = requantize(acc, x_scale * w_scale[n])     (+ other)

Padding stands for the real value 0, so it contributes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendError, QuantizationError
from ..numerics import scalar
from .batches import fill, memory_format
from .exact import convolver
from .library import OUTPUT_ARGS, define
from .output import Output, centred, largest_magnitude
from .saturating import saturating_matmul, taps

__all__ = ["qconv", "qconv_transpose"]

_OPERANDS = (
    "Tensor x, float x_scale, int x_zero_point, Tensor w, Tensor w_scale, Tensor? w_zero_point, "
    "Tensor? bias"
)
_OTHER = "Tensor? other, float other_scale, int other_zero_point"


def _empty(x: Tensor, channels: int, spatial: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A result ``[B, channels, *spatial]`` in the memory format of ``x``."""
    # Sizes that are symbols, under torch.export, must not be asked: that would pin them.
    if any(isinstance(n, int) and n < 1 for n in spatial):
        raise QuantizationError(
            f"convolution: x of shape {list(x.shape)} is smaller than the kernel, so the output "
            f"would be {list(spatial)}"
        )
    return torch.empty(
        (x.shape[0], channels, *spatial),
        dtype=dtype,
        device=x.device,
        memory_format=memory_format(x),
    )


def _check(
    operation: str, x: Tensor, w: Tensor, channels: int, groups: int, **options: Sequence[int]
) -> None:
    """Refuses operands whose shapes or options do not belong together."""
    spatial = w.ndim - 2
    if groups < 1 or w.shape[0] % groups:
        raise QuantizationError(
            f"{operation}: groups={groups} does not divide {w.shape[0]}, dimension 0 of w"
        )
    if spatial not in (1, 2, 3) or x.ndim != w.ndim or x.shape[1] != channels:
        raise QuantizationError(
            f"{operation}: x of shape {list(x.shape)} and w of shape {list(w.shape)}; x must be "
            f"[B, {channels}, ...] with as many dimensions as w, 3 to 5"
        )
    for name, values in options.items():
        if len(values) != spatial:
            raise QuantizationError(
                f"{operation}: {name} {list(values)} for {spatial} spatial dimensions; give one "
                "integer for each"
            )


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
    *output: Any,
) -> Tensor:
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    _check("qconv", x, w, w.shape[1] * groups, groups, **options)
    spatial = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    ]
    return _empty(x, w.shape[0], spatial, output[4])


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
    *output: Any,
) -> Tensor:
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    options["output_padding"] = output_padding
    _check("qconv_transpose", x, w, w.shape[0], groups, **options)
    sizes = zip(x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding, strict=True)
    spatial = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sizes]
    return _empty(x, w.shape[1] * groups, spatial, output[4])


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
    *output: Any,
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
        ``[B, N, *out]`` of ``y_dtype``, in the memory format of ``x``.

    Raises:
        QuantizationError: shapes that do not belong together.
        BackendError: a float32 bias under a contract without a float step; ``int16_pairs`` with
            activations wider than 8 bits.
    """
    out = Output(*output)
    y = _conv_meta(
        x, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, stride, padding, dilation, groups,
        other, other_scale, other_zero_point, *output,
    )  # fmt: skip
    if other is not None and other.shape != y.shape:
        raise QuantizationError(
            f"qconv: residual of shape {list(other.shape)}, output of shape {list(y.shape)}; they "
            "must be equal"
        )
    channel = (-1,) + (1,) * (w.ndim - 2)
    zw = None if w_zero_point is None else w_zero_point.reshape(-1, *([1] * (w.ndim - 1)))
    weight = centred(w, 0 if zw is None else zw)
    float_bias, int_bias = _split(bias)
    scale = (scalar(x_scale, x) * w_scale).reshape(channel if w_scale.ndim else ())
    if out.numerics.accumulator == "int16_pairs":
        pairs = _pairs(x.dtype, x_zero_point, weight, int_bias, stride, padding, dilation, groups)
        accumulate = pairs
    else:
        product = convolver(
            weight,
            x_max=largest_magnitude(x.dtype, x_zero_point),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=int_bias,
        )

        def accumulate(x: Tensor) -> Tensor:
            return product(centred(x, x_zero_point))

    def kernel(x: Tensor, other: Tensor | None) -> Tensor:
        return out.finish(
            accumulate(x),
            scale,
            bias=None if float_bias is None else float_bias.reshape(channel),
            other=None if other is None else centred(other, other_zero_point),
            other_scale=other_scale,
        )

    return fill(y, kernel, x, other)


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
    *output: Any,
) -> Tensor:
    """Transposed convolution of integers.

    Args:
        w: ``[C, N / groups, *kernel]``. A ``w_scale`` of shape ``[N / groups]`` belongs to
            dimension 1 and is the same for every group.

    Returns:
        ``[B, N, *out]`` of ``y_dtype``, in the memory format of ``x``.

    Raises:
        QuantizationError: shapes that do not belong together.
        BackendError: a float32 bias under a contract without a float step; ``int16_pairs``.
    """
    out = Output(*output)
    if out.numerics.accumulator != "int32":
        raise BackendError("qconv_transpose: accumulator 'int16_pairs' is not defined; use 'int32'")
    y = _transpose_meta(
        x, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, stride, padding, output_padding,
        dilation, groups, *output,
    )  # fmt: skip
    channel = (-1,) + (1,) * (w.ndim - 2)
    zw = None if w_zero_point is None else w_zero_point.reshape(1, -1, *([1] * (w.ndim - 2)))
    float_bias, int_bias = _split(bias)
    product = convolver(
        centred(w, 0 if zw is None else zw),
        x_max=largest_magnitude(x.dtype, x_zero_point),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        transposed=True,
        output_padding=output_padding,
        bias=int_bias,
    )
    scale = scalar(x_scale, x) * w_scale
    if w_scale.ndim:
        scale = scale.repeat(groups).reshape(channel)

    def kernel(x: Tensor) -> Tensor:
        return out.finish(
            product(centred(x, x_zero_point)),
            scale,
            bias=None if float_bias is None else float_bias.reshape(channel),
        )

    return fill(y, kernel, x)


def _split(bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A bias that is added after the scale, and one that joins the accumulator."""
    if bias is None:
        return None, None
    return (bias, None) if bias.is_floating_point() else (None, bias)


def _pairs(
    dtype: torch.dtype,
    x_zero_point: int,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Callable[[Tensor], Tensor]:
    """The accumulator whose pairs along (tap, channel) saturate to 16 bits.

    Products are of the raw activations, and padding holds their zero point; its share is taken off
    afterwards.
    """
    around = [p for size in reversed(padding) for p in (size, size)]
    rows = [part.flatten(2).transpose(1, 2).flatten(1) for part in w.chunk(groups)]
    offset = torch.cat([-x_zero_point * r.double().sum(1) for r in rows])
    if bias is not None:
        offset = offset + bias

    def accumulate(x: Tensor) -> Tensor:
        padded = F.pad(centred(x, 0), around, value=float(x_zero_point))
        patches = taps(padded, w.shape[2:], stride, dilation).chunk(groups, dim=-1)
        products = [
            saturating_matmul(patch.flatten(-2), row, x_max=largest_magnitude(dtype, 0))
            for patch, row in zip(patches, rows, strict=True)
        ]
        return torch.cat(products, dim=-1).add_(offset).movedim(-1, 1)

    return accumulate
