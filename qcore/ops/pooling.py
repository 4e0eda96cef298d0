"""Pools and means over integers.

An average is an exact integer sum with the step ``float32(x_scale / count)``; where windows at the
border hold fewer values, the count is that of each window. A maximum only selects.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import scalar
from .batches import memory_format
from .exact import FLOAT32_EXACT
from .library import OUTPUT_ARGS, define
from .output import Output, centred, largest_magnitude

__all__ = ["qadaptive_avg_pool", "qadaptive_max_pool", "qavg_pool", "qmax_pool", "qmean"]


def _sum_dtype(x: Tensor, zero_point: int, count: int) -> torch.dtype:
    """A dtype in which the sum of ``count`` values is exact in any order."""
    most = largest_magnitude(x.dtype, zero_point) * count
    return torch.float32 if most <= FLOAT32_EXACT else torch.float64


def _avg(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Average pool in 1 to 3 dimensions with every option in each; no stride means the kernel."""
    window, step, pad = list(kernel), list(stride) or list(kernel), list(padding)
    if len(window) == 3:
        return F.avg_pool3d(x, window, step, pad, ceil_mode, include_pad, divisor)
    if len(window) == 2:
        return F.avg_pool2d(x, window, step, pad, ceil_mode, include_pad, divisor)
    # torch's own 1-dimensional pool has no divisor.
    rows = x.unsqueeze(-2)
    flat = F.avg_pool2d(rows, [1, *window], [1, *step], [0, *pad], ceil_mode, include_pad, divisor)
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
    *output: Any,
) -> Tensor:
    y = _avg(x.float(), kernel, stride, padding, ceil_mode, count_include_pad, divisor_override)
    return y.to(output[4], memory_format=memory_format(x))


@define(
    "qavg_pool(Tensor x, float x_scale, int x_zero_point, int[] kernel, int[] stride, "
    "int[] padding, bool ceil_mode, bool count_include_pad, int? divisor_override, "
    f"{OUTPUT_ARGS}) -> Tensor",
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
    *output: Any,
) -> Tensor:
    """Average pool of integers; the arguments are those of ``torch``'s, an empty stride the kernel.

    Args:
        x: ``[B, C, *spatial]``, int8, uint8 or int16.

    Returns:
        ``[B, C, *out]`` of ``y_dtype``, in the memory format of ``x``.
    """
    out = Output(*output)
    dtype = _sum_dtype(x, x_zero_point, math.prod(kernel))
    data = centred(x, x_zero_point).to(dtype)
    window = (kernel, stride, padding, ceil_mode)
    total = _avg(data, *window, count_include_pad, 1)
    if divisor_override is not None:
        count = scalar(divisor_override, x)
    else:
        # torch's own count of each window, as (ones inside) / (average of ones).
        ones = torch.ones((1, 1, *x.shape[2:]), dtype=torch.float32, device=x.device)
        inside = _avg(ones, *window, count_include_pad, 1)
        count = torch.round(inside / _avg(ones, *window, count_include_pad, None))
    y = out.finish(total, scalar(x_scale, x) / count)
    return y.to(out.dtype, memory_format=memory_format(x))


def _adaptive(x: Tensor, output_size: Sequence[int]) -> Tensor:
    pools: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    y: Tensor = pools[len(output_size) - 1](x, list(output_size))
    return y


def _adaptive_meta(
    x: Tensor, x_scale: float, x_zero_point: int, output_size: Sequence[int], *output: Any
) -> Tensor:
    return torch.empty(
        (*x.shape[: -len(output_size)], *output_size),
        dtype=output[4],
        device=x.device,
        memory_format=memory_format(x),
    )


@define(
    "qadaptive_avg_pool(Tensor x, float x_scale, int x_zero_point, int[] output_size, "
    f"{OUTPUT_ARGS}) -> Tensor",
    meta=_adaptive_meta,
)
def qadaptive_avg_pool(
    x: Tensor, x_scale: float, x_zero_point: int, output_size: Sequence[int], *output: Any
) -> Tensor:
    """Adaptive average pool of integers.

    Window i of m over n values is ``[floor(i n / m), ceil((i + 1) n / m))``.

    Args:
        x: ``[B, C, *spatial]`` or ``[C, *spatial]``, int8, uint8 or int16.
        output_size: as many sizes as spatial dimensions.

    Returns:
        ``[..., *output_size]`` of ``y_dtype``, in the memory format of ``x``.
    """
    out = Output(*output)
    dims = len(output_size)
    count = torch.ones((), dtype=torch.float64, device=x.device)
    for n, m in zip(x.shape[-dims:], output_size, strict=True):
        index = torch.arange(m, device=x.device)
        width = -((-(index + 1) * n) // m) - (index * n) // m
        count = count.unsqueeze(-1) * width
    # The average in float64 is so near that times the count it rounds to the exact sum.
    total = torch.round(_adaptive(centred(x, x_zero_point).double(), output_size) * count)
    y = out.finish(total, scalar(x_scale, x) / count.float())
    return y.to(out.dtype, memory_format=memory_format(x))


def _mean_meta(
    x: Tensor, x_scale: float, x_zero_point: int, dim: Sequence[int], keepdim: bool, *output: Any
) -> Tensor:
    return x.float().mean(list(dim), keepdim=keepdim).to(output[4]).contiguous()


@define(
    "qmean(Tensor x, float x_scale, int x_zero_point, int[] dim, bool keepdim, "
    f"{OUTPUT_ARGS}) -> Tensor",
    meta=_mean_meta,
)
def qmean(
    x: Tensor, x_scale: float, x_zero_point: int, dim: Sequence[int], keepdim: bool, *output: Any
) -> Tensor:
    """Mean over the dimensions ``dim``; all of them if empty.

    Args:
        x: any shape, int8, uint8 or int16.

    Returns:
        Of ``y_dtype``, contiguous.
    """
    out = Output(*output)
    dims = list(dim) or list(range(x.ndim))
    count = math.prod(x.shape[d] for d in dims)
    data = centred(x, x_zero_point).to(_sum_dtype(x, x_zero_point, count))
    total = data.sum(dims, keepdim=keepdim)
    y = out.finish(total, scalar(x_scale, x) / scalar(count, x))
    return y.to(out.dtype).contiguous()


def _max(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Tensor:
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    step = list(stride) or list(kernel)
    y: Tensor = pool(x.float(), list(kernel), step, list(padding), list(dilation), ceil_mode)
    return y.to(x.dtype, memory_format=memory_format(x))


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
    """Maximum pool of integers ``[B, C, *spatial]``; keeps scale, zero point and memory format.

    An empty stride is the kernel.
    """
    return _max(x, kernel, stride, padding, dilation, ceil_mode)


def _adaptive_max_meta(x: Tensor, output_size: Sequence[int]) -> Tensor:
    shape = (*x.shape[: -len(output_size)], *output_size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@define("qadaptive_max_pool(Tensor x, int[] output_size) -> Tensor", meta=_adaptive_max_meta)
def qadaptive_max_pool(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Adaptive maximum pool of integers ``[..., *spatial]``; keeps scale, zero point and format."""
    pools: Any = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
    y: Tensor = pools[len(output_size) - 1](x.float(), list(output_size))
    return y.to(x.dtype, memory_format=memory_format(x))
