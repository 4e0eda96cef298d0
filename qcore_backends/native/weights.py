"""Weights, biases and scales in the order in which the kernels read them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layer import (
    BYTES,
    Given,
    constant,
    float32_product,
    output_multiplier,
    storage_of,
    stored_zero,
    why_no_output,
)

__all__ = [
    "DEPTH_STEP",
    "LANES",
    "channel_multipliers",
    "grouped_lanes",
    "pack_panels",
    "padded",
    "prepared_bias",
    "weight_of",
    "why_no_layer",
]

LANES = 16
DEPTH_STEP = 64

_INT32 = 2**31


def padded(size: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-size // unit) * unit


def weight_of(given: Given) -> Tensor:
    """The weight less its zero point, int16."""
    weight = constant(given["w"])
    assert weight is not None
    centred = weight.to(torch.int16)
    zero = None if given["w_zero_point"] is None else constant(given["w_zero_point"])
    if zero is None:
        return centred
    return centred - zero.reshape(-1, *[1] * (weight.ndim - 1)).to(torch.int16)


def channel_multipliers(given: Given, weight: Tensor) -> Tensor:
    """What the sums of each output channel are multiplied by, float32 ``[N]``."""
    w_scale = constant(given["w_scale"])
    assert w_scale is not None
    scale = output_multiplier(given, float32_product(given["x_scale"], w_scale))
    return scale.reshape(-1).expand(len(weight)).contiguous()


def why_no_layer(given: Given) -> str | None:
    """Why the kernels can't run a layer of 8-bit activations with a constant weight; None if they
    can."""
    if storage_of(given["x"]) not in BYTES:
        return "the input is no 8-bit tensor"
    return why_no_output(given) or _why_no_weight(given)


def _why_no_weight(given: Given) -> str | None:
    """Why the kernels can't multiply by the weight of a node."""
    weight, scale = constant(given["w"]), constant(given["w_scale"])
    missing = [
        key
        for key in ("w_zero_point", "bias")
        if given[key] is not None and constant(given[key]) is None
    ]
    if weight is None or scale is None or missing:
        return "the weight is computed at run time"
    if scale.ndim > 1:
        return "the weight is quantized in groups"
    if weight.dtype not in (torch.int8, torch.uint8) or not weight.numel():
        return "the weight is not of 8 bits or fewer"
    centred = weight_of(given)
    if int(centred.min()) < -128 or int(centred.max()) > 127:
        return "the weight less its zero point does not fit 8 bits"
    bias = None if given["bias"] is None else constant(given["bias"])
    if bias is not None and bias.is_floating_point():
        return "the bias is not an integer"
    return _why_overflow(given, centred, bias)


def _why_overflow(given: Given, weight: Tensor, bias: Tensor | None) -> str | None:
    dtype = storage_of(given["x"])
    assert dtype is not None
    info = torch.iinfo(dtype)
    largest = max(info.max - given["x_zero_point"], given["x_zero_point"] - info.min)
    sums = weight.flatten(1).abs().sum(1, dtype=torch.int64) * largest
    if bias is not None:
        sums = sums + bias.to(torch.int64).abs()
    return "a sum could exceed 32 bits" if int(sums.max()) >= _INT32 else None


def pack_panels(rows: Tensor) -> Tensor:
    """Weights as panels of 16 columns.

    Args:
        rows: int8 ``[groups, N, K]``.

    Returns:
        int8 ``[groups, ceil(N / 16), padded K / 4, 16, 4]``, filled up with zeros.
    """
    groups, n, k = rows.shape
    full = F.pad(rows, (0, padded(k, DEPTH_STEP) - k, 0, padded(n, LANES) - n))
    split = full.reshape(groups, -1, LANES, padded(k, DEPTH_STEP) // 4, 4)
    return split.transpose(2, 3).contiguous()


def prepared_bias(given: Given, weight: Tensor) -> Tensor:
    """What the accumulators start from: the bias, less the share of the input's zero point.

    Args:
        weight: int16 ``[N, ...]``, less its zero point.

    Returns:
        int32 ``[N]``. It may have wrapped around; then the sums wrap back.
    """
    zero = stored_zero(given["x_zero_point"], storage_of(given["x"]))
    start = -zero * weight.flatten(1).sum(1, dtype=torch.int64)
    bias: Any = None if given["bias"] is None else constant(given["bias"])
    if bias is not None:
        start = start + bias.to(torch.int64)
    return wrapped(start)


def wrapped(values: Tensor) -> Tensor:
    """int64 values modulo 2**32, as int32."""
    return ((values + _INT32) % (2 * _INT32) - _INT32).to(torch.int32)


def grouped_lanes(values: Tensor, groups: int) -> Tensor:
    """``[groups * n]`` as ``[groups, n padded to 16]``, filled up with zeros."""
    split = values.reshape(groups, -1)
    return F.pad(split, (0, padded(split.shape[1], LANES) - split.shape[1])).contiguous()
