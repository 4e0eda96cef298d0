"""Pools on 8-bit integers."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from qcore import FLOAT32_EXACT, largest_magnitude, memory_format

from ..values import storage_of
from .finish import Finish
from .kernel import Kernel

__all__ = ["GlobalAvgPool", "MaxPool"]

_AVG_POOL = torch.ops.qcore.qadaptive_avg_pool.default


class MaxPool(Kernel):
    """``qmax_pool``: along one dimension after the other, the larger of shifted copies.

    Each step is a maximum of whole rows of bytes; torch's own pools of integers go value by value.
    """

    label: ClassVar[str] = "maximum of shifted copies"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if storage_of(given["x"]) not in (torch.int8, torch.uint8):
            return "the input is no 8-bit tensor"
        if given["ceil_mode"]:
            return "windows may hang over the edge (ceil_mode)"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.kernel = list(given["kernel"])
        self.stride = list(given["stride"]) or self.kernel
        self.padding, self.dilation = list(given["padding"]), list(given["dilation"])

    def forward(self, x: Tensor) -> Tensor:
        dims = len(self.kernel)
        first = x.ndim - dims
        for i in range(dims):
            x = self._along(x, first + i, i)
        return x

    def _along(self, x: Tensor, dim: int, i: int) -> Tensor:
        k, s, p, d = self.kernel[i], self.stride[i], self.padding[i], self.dilation[i]
        n = x.shape[dim]
        out_size = (n + 2 * p - d * (k - 1) - 1) // s + 1
        shape = list(x.shape)
        shape[dim] = out_size
        y = torch.empty(shape, dtype=x.dtype, memory_format=memory_format(x))
        y.fill_(torch.iinfo(x.dtype).min)
        for tap in range(k):
            # Outputs j with 0 <= j * s + tap * d - p < n.
            offset = tap * d - p
            begin = max(0, -(offset // s))
            end = min(out_size, (n - 1 - offset) // s + 1)
            if begin >= end:
                continue
            source = x[(slice(None),) * dim + (slice(begin * s + offset, None, s),)]
            source = source.narrow(dim, 0, end - begin)
            target = y.narrow(dim, begin, end - begin)
            torch.maximum(target, source, out=target)
        return y


class GlobalAvgPool(Kernel):
    """``qadaptive_avg_pool`` to a single value a channel: an exact sum in float32."""

    label: ClassVar[str] = "float32 sum, exact"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if storage_of(given["x"]) not in (torch.int8, torch.uint8):
            return "the input is no 8-bit tensor"
        if any(size != 1 for size in given["output_size"]):
            return "it gives more than one value a channel"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.given = {key: value for key, value in given.items() if key != "x"}
        self.dims = len(given["output_size"])
        dtype = storage_of(given["x"])
        assert dtype is not None
        self.most = FLOAT32_EXACT // max(largest_magnitude(dtype, given["x_zero_point"]), 255)
        self.by_count: dict[int, Finish] = {}

    def forward(self, x: Tensor) -> Tensor:
        count = math.prod(x.shape[-self.dims :])
        if not 0 < count <= self.most or x.ndim != self.dims + 2:
            return _AVG_POOL(x, **self.given)  # type: ignore[no-any-return]
        if count not in self.by_count:
            scale = torch.tensor(self.given["x_scale"]) / torch.tensor(float(count))
            self.by_count[count] = Finish(self.given, scale)
        finish = self.by_count[count]
        acc = x.flatten(2).sum(2, dtype=torch.float32).sub_(count * self.given["x_zero_point"])
        y = finish(acc).to(finish.dtype)
        return y.reshape(*y.shape, *[1] * self.dims).contiguous(memory_format=memory_format(x))
