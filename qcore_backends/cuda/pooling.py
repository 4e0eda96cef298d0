"""Pools and means: exact sums, or maxima, over windows of channels-last activations.

Windows are given by where they begin and end along each axis, found once for each size of the
input, so plain and adaptive pools of any geometry are one kernel. The factor of an average is
``float32(x_scale / count)`` over the scale of the output, by window, as the definition has it.
"""

import math
from typing import Any, ClassVar

import attrs
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from qcore import largest_magnitude

from ..values import storage_of
from .kernel import INT32_MAX, Kernel, float32, why_integers
from .kernels.pooling import mean, pool
from .launch import launch
from .output import Output, why_output

__all__ = ["AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool", "Mean"]


@attrs.frozen(kw_only=True, eq=False)
class _Windows:
    """The windows over inputs of one size, two axes each.

    Args:
        size: of the output.
        kernel: taps of the largest window.
        bounds: first and last of each axis, int32, on the device.
        scale: float32 ``[windows]``, of an average.
    """

    size: tuple[int, int]
    kernel: tuple[int, int]
    bounds: tuple[Tensor, ...]
    scale: Tensor | None


class _Pool(Kernel):
    """A pool over one or two axes; one axis is two, the first of size 1."""

    maximum: ClassVar[bool]
    definition: ClassVar[Any]

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if len(given["output_size" if "output_size" in given else "kernel"]) > 2:
            return "it is a pool in three dimensions"
        return why_integers(storage_of(given["x"])) or (None if cls.maximum else why_output(given))

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.given = {key: value for key, value in given.items() if key != "x"}
        self.output = None if self.maximum else Output.of(given)
        dtype = storage_of(given["x"])
        assert dtype is not None
        self.most = 1 if self.maximum else largest_magnitude(dtype, given["x_zero_point"])
        self.dims = len(given["output_size" if "output_size" in given else "kernel"])
        self.dilation = [1] * (2 - self.dims) + list(given.get("dilation", [1] * self.dims))
        self._by_size: dict[tuple[torch.device, int, int], _Windows] = {}

    def windows(self, height: int, width: int) -> _Windows:
        """The windows over an input of that size, on the CPU."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.dims + 2 or x.numel() == 0:
            return self.definition(x, **self.given)  # type: ignore[no-any-return]
        image = x.unsqueeze(2) if self.dims == 1 else x
        image = image.permute(0, 2, 3, 1).contiguous()
        batch, height, width, channels = image.shape
        windows = self._windows_on(x.device, height, width)
        if math.prod(windows.kernel) * self.most > INT32_MAX:
            return self.definition(x, **self.given)  # type: ignore[no-any-return]
        dtype = x.dtype if self.output is None else self.output.dtype
        y = image.new_empty((batch, *windows.size, channels), dtype=dtype)
        rows = batch * math.prod(windows.size)
        across = min(64, triton.next_power_of_2(channels))
        down = 512 // across
        launch(
            pool, (triton.cdiv(rows, down), triton.cdiv(channels, across)),
            image, y, image if windows.scale is None else windows.scale, *windows.bounds, rows,
            channels, height, width, *windows.size, *windows.kernel, *self.dilation,
            self.given.get("x_zero_point", 0),
            *((0.0, 0.0, 0) if self.output is None else self.output.clamp),
            on=x, LARGEST=self.maximum, FLOAT=self.output is not None and self.output.is_float,
            BLOCK_M=down, BLOCK_N=across,
        )  # fmt: skip
        result = y.permute(0, 3, 1, 2)
        return result.squeeze(2).contiguous() if self.dims == 1 else result

    def _windows_on(self, device: torch.device, height: int, width: int) -> _Windows:
        key = (device, height, width)
        if key not in self._by_size:
            found = self.windows(height, width)
            self._by_size[key] = attrs.evolve(
                found,
                bounds=tuple(t.to(device, torch.int32) for t in found.bounds),
                scale=None if found.scale is None else found.scale.to(device),
            )
        return self._by_size[key]

    def _multipliers(self, count: Tensor) -> Tensor:
        """Factors of averages of ``count`` values, float32 ``[windows]``."""
        assert self.output is not None
        return self.output.multiplier(float32(self.given["x_scale"]) / count).reshape(-1)


class _Windowed(_Pool):
    """Windows of one size at equal distances."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        one_more = 2 - self.dims
        kernel = list(given["kernel"])
        self.kernel = [1] * one_more + kernel
        self.stride = [1] * one_more + (list(given["stride"]) or kernel)
        self.padding = [0] * one_more + list(given["padding"])

    def windows(self, height: int, width: int) -> _Windows:
        plain = torch.zeros(1, 1, height, width)
        # torch's own rule for the number of windows, with ceil_mode.
        size = F.max_pool2d(
            plain.expand(1, 1, -1, -1), self.kernel, self.stride, self.padding, self.dilation,
            self.given["ceil_mode"],
        ).shape[2:]  # fmt: skip
        bounds = []
        for axis, n in enumerate((height, width)):
            first = torch.arange(size[axis]) * self.stride[axis] - self.padding[axis]
            reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            bounds += [first, (first + reach).clamp(max=n)]
        scale = None if self.maximum else self._multipliers(self._counts(plain))
        return _Windows(
            size=(size[0], size[1]),
            kernel=(self.kernel[0], self.kernel[1]),
            bounds=tuple(bounds),
            scale=scale,
        )

    def _counts(self, plain: Tensor) -> Tensor:
        """How many values each average counts, float32, by torch's rule for borders."""
        window = (self.kernel, self.stride, self.padding, self.given["ceil_mode"])
        include, divisor = self.given["count_include_pad"], self.given["divisor_override"]
        ones = torch.ones_like(plain)
        inside = F.avg_pool2d(ones, *window, include, 1)
        if divisor is not None:
            return torch.full_like(inside, divisor)
        return torch.round(inside / F.avg_pool2d(ones, *window, include, None))


class MaxPool(_Windowed):
    """``qmax_pool``."""

    label: ClassVar[str] = "triton max pool"
    maximum: ClassVar[bool] = True
    definition: ClassVar[Any] = torch.ops.qcore.qmax_pool.default


class AvgPool(_Windowed):
    """``qavg_pool``."""

    label: ClassVar[str] = "triton average pool"
    maximum: ClassVar[bool] = False
    definition: ClassVar[Any] = torch.ops.qcore.qavg_pool.default


class _Adaptive(_Pool):
    """Windows that share an input among a given number of outputs."""

    def windows(self, height: int, width: int) -> _Windows:
        size = [1] * (2 - self.dims) + list(self.given["output_size"])
        bounds, widths = [], []
        for n, m in zip((height, width), size, strict=True):
            index = torch.arange(m)
            first, last = index * n // m, -(-(index + 1) * n // m)
            bounds += [first, last]
            widths.append(last - first)
        count = (widths[0][:, None] * widths[1]).float()
        return _Windows(
            size=(size[0], size[1]),
            kernel=(int(widths[0].max()), int(widths[1].max())),
            bounds=tuple(bounds),
            scale=None if self.maximum else self._multipliers(count),
        )


class AdaptiveAvgPool(_Adaptive):
    """``qadaptive_avg_pool``."""

    label: ClassVar[str] = "triton adaptive average pool"
    maximum: ClassVar[bool] = False
    definition: ClassVar[Any] = torch.ops.qcore.qadaptive_avg_pool.default


class AdaptiveMaxPool(_Adaptive):
    """``qadaptive_max_pool``."""

    label: ClassVar[str] = "triton adaptive max pool"
    maximum: ClassVar[bool] = True
    definition: ClassVar[Any] = torch.ops.qcore.qadaptive_max_pool.default


class Mean(Kernel):
    """``qmean``: the dimensions that are left are rows, those that go are columns."""

    label: ClassVar[str] = "triton mean"

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        return why_integers(storage_of(given["x"])) or why_output(given)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.given = {key: value for key, value in given.items() if key != "x"}
        self.output = Output.of(given)
        dtype = storage_of(given["x"])
        assert dtype is not None
        self.most = largest_magnitude(dtype, given["x_zero_point"])

    def forward(self, x: Tensor) -> Tensor:
        gone = [d % x.ndim for d in self.given["dim"]] or list(range(x.ndim))
        left = [d for d in range(x.ndim) if d not in gone]
        count = math.prod(x.shape[d] for d in gone)
        if not x.numel() or count * self.most > INT32_MAX:
            return torch.ops.qcore.qmean.default(x, **self.given)  # type: ignore[no-any-return]
        kept = [x.shape[d] for d in left]
        rows = x.permute(*left, *gone).reshape(math.prod(kept), count).contiguous()
        y = rows.new_empty(len(rows), dtype=self.output.dtype)
        scale = float32(self.given["x_scale"]) / float32(float(count))
        deep = min(256, triton.next_power_of_2(count))
        down = 1024 // deep
        launch(
            mean, (triton.cdiv(len(rows), down),), rows, y, len(rows), count,
            self.given["x_zero_point"], float(self.output.multiplier(scale)), *self.output.clamp,
            on=x, FLOAT=self.output.is_float, BLOCK_M=down, BLOCK_K=deep,
        )  # fmt: skip
        if self.given["keepdim"]:
            kept = [1 if d in gone else n for d, n in enumerate(x.shape)]
        return y.reshape(kept)
