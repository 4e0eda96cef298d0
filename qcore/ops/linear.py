"""Quantized linear layers and matrix products.

    acc[..., n] = sum_k (x - x_zero_point) * (w - w_zero_point) + bias          exact integers
    y = requantize(acc, x_scale * w_scale[n])

With groups along K (``w_scale`` of shape ``[N, G]``) there is one accumulator a group; they are scaled
and added in float32 in the order of the groups, then the float32 bias, and the sum is requantized.
"""

import torch
from torch import Tensor

from ..errors import BackendError
from ..numerics import scalar
from .exact import exact_matmul, saturating_matmul
from .library import OUTPUT_ARGS, define
from .output import Output, centred, largest

__all__ = ["qlinear", "qmatmul"]


def _linear_meta(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    *output: object,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=output[4])  # type: ignore[call-overload,no-any-return]


def _matmul_meta(
    a: Tensor,
    a_scale: float,
    a_zero_point: int,
    b: Tensor,
    b_scale: float,
    b_zero_point: int,
    *output: object,
) -> Tensor:
    return torch.matmul(a.float(), b.float()).to(output[4])  # type: ignore[call-overload,no-any-return]


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
    *output: object,
) -> Tensor:
    """Linear layer over integers.

    Args:
        x: ``[..., K]``, int8, uint8 or int16.
        w: ``[N, K]``, integers.
        w_scale: float32 ``[]``, ``[N]`` or ``[N, G]``.
        w_zero_point: int32 like ``w_scale``, or None for 0.
        bias: ``[N]``, int32 with the step ``x_scale * w_scale`` or float32; float32 with groups.

    Returns:
        ``[..., N]`` of ``y_dtype``.
    """
    out = Output(*output)  # type: ignore[arg-type]
    saturates = out.numerics.accumulator == "int16_pairs"
    groups = w_scale.shape[1] if w_scale.ndim == 2 else 1
    size = w.shape[1] // groups
    zw = w_zero_point
    if zw is not None and zw.ndim == 2:
        zw = zw.repeat_interleave(size, dim=1)
    elif zw is not None:
        zw = zw.reshape(-1, 1)
    weight = centred(w, 0 if zw is None else zw)
    data = centred(x, 0 if saturates else x_zero_point)
    x_max = largest(x.dtype, x_zero_point)

    def accumulate(start: int, stop: int) -> Tensor:
        xs, ws = data[..., start:stop], weight[:, start:stop]
        if saturates:
            return saturating_matmul(xs, ws) - x_zero_point * ws.double().sum(1)
        return exact_matmul(xs, ws, x_max=x_max)

    scale = scalar(x_scale, x) * w_scale
    if w_scale.ndim < 2:
        return out.finish(accumulate(0, w.shape[1]), scale, bias=bias)
    if out.numerics.requantization == "fixed_point":
        raise BackendError(
            "qlinear: group-wise weights add up in float32, which requantization='fixed_point' "
            "does not have; use 'multiplier' or per-channel weights"
        )
    total = accumulate(0, size).to(torch.float32) * scale[:, 0]
    for g in range(1, groups):
        part = accumulate(g * size, (g + 1) * size).to(torch.float32)
        total = total + part * scale[:, g]
    if bias is not None:
        total = total + bias
    return out.finish(total, scalar(1.0, x))


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
    *output: object,
) -> Tensor:
    """``torch.matmul`` of two integer tensors, with its broadcasting.

    Args:
        a: ``[..., M, K]``; b: ``[..., K, N]``; int8, uint8 or int16.

    Returns:
        ``[..., M, N]`` of ``y_dtype``.
    """
    out = Output(*output)  # type: ignore[arg-type]
    left, right = centred(a, a_zero_point), centred(b, b_zero_point)
    if right.ndim == 1:
        acc = exact_matmul(left, right[None], x_max=largest(a.dtype, a_zero_point)).squeeze(-1)
    else:
        acc = exact_matmul(
            left, right.transpose(-1, -2), x_max=largest(a.dtype, a_zero_point)
        )
    return out.finish(acc, scalar(a_scale, a) * scalar(b_scale, a))
