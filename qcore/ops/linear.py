"""Quantized linear layers and matrix products.

    acc[..., n] = sum_k (x - x_zero_point) * (w - w_zero_point) + bias          exact integers
    y = requantize(acc, x_scale * w_scale[n])

With groups along K (``w_scale`` of shape ``[N, G]``) there is one accumulator a group; they are
scaled and added in float32 in the order of the groups, then the float32 bias, and the sum is
requantized with the scale 1.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import BackendError, QuantizationError
from ..numerics import scalar
from .batches import fill
from .exact import exact_matmul
from .library import OUTPUT_ARGS, define
from .output import Output, centred, largest_magnitude
from .saturating import saturating_matmul

__all__ = ["qlinear", "qmatmul"]

_ROWS = 256
"""Fewest rows of a slice: enough products for each weight that is read."""


def _linear_meta(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    *output: Any,
) -> Tensor:
    if x.ndim < 1 or w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise QuantizationError(
            f"qlinear: x of shape {list(x.shape)} and w of shape {list(w.shape)}; they must be "
            "[..., K] and [N, K]"
        )
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=output[4])


@define(
    "qlinear(Tensor x, float x_scale, int x_zero_point, Tensor w, Tensor w_scale, "
    f"Tensor? w_zero_point, Tensor? bias, {OUTPUT_ARGS}) -> Tensor",
    meta=_linear_meta,
)
def qlinear(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    *output: Any,
) -> Tensor:
    """Linear layer over integers.

    Args:
        x: ``[..., K]``, int8, uint8 or int16.
        w: ``[N, K]``, integers.
        w_scale: float32 ``[]``, ``[N]`` or ``[N, G]``.
        w_zero_point: int32 like ``w_scale``, or None for 0.
        bias: ``[N]``, int32 with the step ``x_scale * w_scale`` or float32; float32 with groups.

    Returns:
        ``[..., N]`` of ``y_dtype``, contiguous.

    Raises:
        QuantizationError: shapes that do not belong together; an int32 bias with groups.
        BackendError: a float32 bias or groups under a contract without a float step;
            ``int16_pairs`` with activations wider than 8 bits.
    """
    out = Output(*output)
    y = _linear_meta(x, x_scale, x_zero_point, w, w_scale, w_zero_point, bias, *output)
    groups = w_scale.shape[1] if w_scale.ndim == 2 else 1
    if groups < 1 or w.shape[1] % groups:
        raise QuantizationError(
            f"qlinear: w_scale of shape {list(w_scale.shape)} has {groups} groups, which do not "
            f"divide {w.shape[1]} columns"
        )
    zw = w_zero_point
    if zw is not None and zw.ndim == 2:
        zw = zw.repeat_interleave(w.shape[1] // groups, dim=1)
    elif zw is not None:
        zw = zw.reshape(-1, 1)
    weight = centred(w, 0 if zw is None else zw)
    scale = scalar(x_scale, x) * w_scale
    if w_scale.ndim == 2:
        kernel = _grouped(x.dtype, x_zero_point, weight, scale, bias, out)
    else:
        integer = bias is not None and not bias.is_floating_point()

        def kernel(x: Tensor) -> Tensor:
            acc = _accumulate(x, x_zero_point, weight, bias if integer else None, out)
            return out.finish(acc, scale, bias=None if integer else bias)

    rows = y.reshape(math.prod(y.shape[:-1]), y.shape[-1])
    fill(rows, kernel, x.reshape(rows.shape[0], x.shape[-1]), at_least=_ROWS)
    return y


def _accumulate(
    x: Tensor, x_zero_point: int, w: Tensor, bias: Tensor | None, out: Output
) -> Tensor:
    """Exact sums of raw activations ``x`` and weights less their zero point, by the contract."""
    if out.numerics.accumulator == "int16_pairs":
        acc = saturating_matmul(centred(x, 0), w, x_max=largest_magnitude(x.dtype, 0))
        acc -= x_zero_point * w.double().sum(1)
        return acc if bias is None else acc.add_(bias)
    return exact_matmul(
        centred(x, x_zero_point), w, x_max=largest_magnitude(x.dtype, x_zero_point), bias=bias
    )


def _grouped(
    dtype: torch.dtype,
    x_zero_point: int,
    w: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    out: Output,
) -> Callable[[Tensor], Tensor]:
    """Linear layer with a scale for each group of columns; ``scale`` is float32 ``[N, G]``."""
    if out.numerics.requantization == "fixed_point":
        raise BackendError(
            "qlinear: group-wise weights add up in float32, which requantization='fixed_point' "
            "does not have; use 'multiplier' or per-channel weights"
        )
    if bias is not None and not bias.is_floating_point():
        raise QuantizationError(
            "qlinear: group-wise weights have no common step for an int32 bias; give it in float32"
        )
    weights = w.chunk(scale.shape[1], dim=1)

    def kernel(x: Tensor) -> Tensor:
        total = torch.zeros((), device=x.device)
        for g, (part, weight) in enumerate(zip(x.chunk(len(weights), dim=1), weights, strict=True)):
            acc = _accumulate(part, x_zero_point, weight, None, out)
            term = acc.to(torch.float32) * scale[:, g]
            total = term if g == 0 else total.add_(term)
        if bias is not None:
            total.add_(bias)
        return out.finish(total, scalar(1.0, x))

    return kernel


def _matmul_meta(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: Any,
) -> Tensor:
    columns = b.shape[-1:] if b.ndim > 1 else ()
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    if a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[0 if b.ndim == 1 else -2]:
        raise QuantizationError(
            f"qmatmul: a of shape {list(a.shape)} and b of shape {list(b.shape)}; they must be "
            "[..., M, K] and [..., K, N]"
        )
    return a.new_empty((*batch, *a.shape[-2:-1], *columns), dtype=output[4])


@define(
    "qmatmul(Tensor a, float a_scale, int a_zero_point, Tensor b, float b_scale, int b_zero_point, "
    f"{OUTPUT_ARGS}) -> Tensor",
    meta=_matmul_meta,
)
def qmatmul(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: Any,
) -> Tensor:
    """``torch.matmul`` of two integer tensors, with its broadcasting.

    Args:
        a: ``[..., M, K]`` or ``[K]``; b: ``[..., K, N]`` or ``[K]``; int8, uint8 or int16.

    Returns:
        ``[..., M, N]`` of ``y_dtype``, contiguous; without M or N where an operand has one
        dimension.

    Raises:
        QuantizationError: shapes that do not belong together.
        BackendError: ``int16_pairs``.
    """
    out = Output(*output)
    if out.numerics.accumulator != "int32":
        raise BackendError("qmatmul: accumulator 'int16_pairs' is not defined; use 'int32'")
    y = _matmul_meta(a, a_scale, a_zero_point, b, b_scale, b_zero_point, *output)
    scale = scalar(a_scale, a) * scalar(b_scale, a)
    x_max = largest_magnitude(a.dtype, a_zero_point)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        left, right = centred(a, a_zero_point), centred(b, b_zero_point)
        if right.ndim == 1:
            acc = exact_matmul(left, right[None], x_max=x_max).squeeze(-1)
        else:
            acc = exact_matmul(left, right.transpose(-1, -2), x_max=x_max)
        return out.finish(acc, scale)

    # Of two matrices, dimension 0 of b is no batch.
    return fill(y, kernel, a, b) if y.ndim > 2 else y.copy_(kernel(a, b))
