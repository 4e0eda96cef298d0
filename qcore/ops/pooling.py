"""Pools and means over integers.

An average is an exact integer sum with the step ``float32(x_scale / count)``; where windows at the border
hold fewer values, the count is that of each window. A maximum only selects.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import scalar
from .library import OUTPUT_ARGS, define
from .output import Output, centred, largest

__all__ = ["qadaptive_avg_pool", "qadaptive_max_pool", "qavg_pool", "qmax_pool", "qmean"]

_EXACT = 2**24


def _sum_dtype(x: Tensor, zero_point: int, count: int) -> torch.dtype:
    return torch.float32 if largest(x.dtype, zero_point) * count < _EXACT else torch.float64


def _avg(x: Tensor, kernel: Sequence[int], *options: object) -> Tensor:
    """Average pool in 1 to 3 dimensions with every option in each."""
    kernel, stride, padding, ceil_mode, include_pad, divisor = kernel, *options
    if len(kernel) == 3:
        return F.avg_pool3d(x, kernel, stride, padding, ceil_mode, include_pad, divisor)  # type: ignore[arg-type]
    if len(kernel) == 2:
        return F.avg_pool2d(x, kernel, stride, padding, ceil_mode, include_pad, divisor)  # type: ignore[arg-type]
    flat = F.avg_pool2d(
        x.unsqueeze(-2),
        [1, *kernel],
        [1, *stride],  # type: ignore[misc]
        [0, *padding],  # type: ignore[misc]
        ceil_mode,  # type: ignore[arg-type]
        include_pad,  # type: ignore[arg-type]
        divisor,  # type: ignore[arg-type]
    )
    return flat.squeeze(-2)


def _avg_pool_meta(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    *output: object,
) -> Tensor:
    y = _avg(x.float(), kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return y.to(output[4])  # type: ignore[call-overload,no-any-return]


@define(
    "qavg_pool(Tensor x, float x_scale, int x_zero_point, int[] kernel, int[] stride, int[] padding, "
    f"bool ceil_mode, bool count_include_pad, int? divisor_override, {OUTPUT_ARGS}) -> Tensor",
    meta=_avg_pool_meta,
)
def qavg_pool(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
    *output: object,
) -> Tensor:
    """Average pool of ``[B, C, *spatial]`` integers; the arguments are those of ``torch``'s."""
    out = Output(*output)  # type: ignore[arg-type]
    dtype = _sum_dtype(x, x_zero_point, math.prod(kernel))
    data = centred(x, x_zero_point).to(dtype)
    window = (kernel, stride, padding, ceil_mode)
    total = torch.round(_avg(data, *window, count_include_pad, 1))
    if divisor_override is not None:
        count = scalar(divisor_override, x)
    else:
        # torch's own count of each window, as (ones inside) / (average of ones).
        ones = torch.ones((1, 1, *x.shape[2:]), device=x.device)
        inside = _avg(ones, *window, count_include_pad, 1)
        count = torch.round(inside / _avg(ones, *window, count_include_pad, None))
    return out.finish(total, scalar(x_scale, x) / count)


def _adaptive(x: Tensor, output_size: Sequence[int]) -> Tensor:
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    return pool[len(output_size) - 1](x, list(output_size))  # type: ignore[operator,no-any-return]


def _adaptive_meta(
    x: Tensor, x_scale: float, x_zero_point: int, output_size: Sequence[int], *output: object
) -> Tensor:
    return x.new_empty((*x.shape[: -len(output_size)], *output_size), dtype=output[4])  # type: ignore[call-overload,no-any-return]


@define(
    "qadaptive_avg_pool(Tensor x, float x_scale, int x_zero_point, int[] output_size, "
    f"{OUTPUT_ARGS}) -> Tensor",
    meta=_adaptive_meta,
)
def qadaptive_avg_pool(
    x: Tensor, x_scale: float, x_zero_point: int, output_size: Sequence[int], *output: object
) -> Tensor:
    """Adaptive average pool of ``[..., *spatial]`` integers."""
    out = Output(*output)  # type: ignore[arg-type]
    dims = len(output_size)
    count = torch.ones((), device=x.device)
    for n, m in zip(x.shape[-dims:], output_size, strict=True):
        index = torch.arange(m, device=x.device)
        width = -((-(index + 1) * n) // m) - (index * n) // m
        count = count.unsqueeze(-1) * width
    # The average in float64 is so near that times the count it rounds to the exact sum.
    total = torch.round(_adaptive(centred(x, x_zero_point).double(), output_size) * count)
    return out.finish(total, scalar(x_scale, x) / count.float())


def _mean_meta(
    x: Tensor, x_scale: float, x_zero_point: int, dim: Sequence[int], keepdim: bool, *output: object
) -> Tensor:
    return x.float().mean(list(dim), keepdim=keepdim).to(output[4])  # type: ignore[call-overload,no-any-return]


@define(
    "qmean(Tensor x, float x_scale, int x_zero_point, int[] dim, bool keepdim, "
    f"{OUTPUT_ARGS}) -> Tensor",
    meta=_mean_meta,
)
def qmean(
    x: Tensor, x_scale: float, x_zero_point: int, dim: Sequence[int], keepdim: bool, *output: object
) -> Tensor:
    """Mean over the dimensions ``dim``; all of them if empty."""
    out = Output(*output)  # type: ignore[arg-type]
    dims = list(dim) or list(range(x.ndim))
    count = math.prod(x.shape[d] for d in dims)
    data = centred(x, x_zero_point).to(_sum_dtype(x, x_zero_point, count))
    total = data.sum(dims, keepdim=keepdim)
    return out.finish(total, scalar(x_scale, x) / scalar(count, x))


def _max(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    y = pool(x.float(), list(kernel), list(stride), list(padding), list(dilation), ceil_mode)
    return y.to(x.dtype)  # type: ignore[no-any-return]


@define(
    "qmax_pool(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation, "
    "bool ceil_mode) -> Tensor",
    meta=_max,
)
def qmax_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    """Maximum pool of ``[B, C, *spatial]`` integers; keeps scale and zero point."""
    return _max(x, kernel, stride, padding, dilation, ceil_mode)


def _adaptive_max(x: Tensor, output_size: Sequence[int]) -> Tensor:
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    return pool[len(output_size) - 1](x.float(), list(output_size)).to(x.dtype)  # type: ignore[operator,no-any-return]


def _adaptive_max_meta(x: Tensor, output_size: Sequence[int]) -> Tensor:
    return x.new_empty((*x.shape[: -len(output_size)], *output_size))


@define("qadaptive_max_pool(Tensor x, int[] output_size) -> Tensor", meta=_adaptive_max_meta)
def qadaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Adaptive maximum pool of ``[..., *spatial]`` integers; keeps scale and zero point."""
    return _adaptive_max(x, output_size)
