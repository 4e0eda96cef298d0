"""The way into integers and back, in as few passes over the values as torch has."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..values import storage_of
from .finish import slices
from .kernel import Kernel

__all__ = ["Dequantize", "Quantize"]

_QUANTIZE = torch.ops.qcore.quantize.default


class Quantize(Kernel):
    """``quantize``: ``clamp(round_half_even(x / scale) + zero_point)``."""

    label: ClassVar[str] = "quantize by slices"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if given["dtype"] not in (torch.int8, torch.uint8) or given["rounding"] != "half_even":
            return "it does not round half to even to 8 bits"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.scale = given["scale"]
        self.zero_point = given["zero_point"]
        self.low, self.high = given["quant_min"], given["quant_max"]
        self.dtype: torch.dtype = given["dtype"]
        self.definition = tuple(given[key] for key in list(given) if key != "x")

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return _QUANTIZE(x, *self.definition)  # type: ignore[no-any-return]
        out = torch.empty_like(x, dtype=self.dtype)
        for part in slices(x):
            q = (x[part] / self.scale).round_()
            if self.zero_point:
                q.add_(self.zero_point)
            q.clamp_(self.low, self.high)
            # After the clamp the sum is finite, but for NaN, whose integer is the zero point.
            if math.isnan(q.sum().item()):
                q.nan_to_num_(nan=float(self.zero_point))
            out[part].copy_(q)
        return out


class Dequantize(Kernel):
    """``dequantize`` of 8-bit integers: ``(q - zero_point) * scale``."""

    label: ClassVar[str] = "dequantize by slices"
    inputs: ClassVar[tuple[str, ...]] = ("q",)

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if storage_of(given["q"]) not in (torch.int8, torch.uint8):
            return "it is not of 8-bit integers"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.scale, self.zero_point = given["scale"], given["zero_point"]

    def forward(self, q: Tensor) -> Tensor:
        out = torch.empty_like(q, dtype=torch.float32)
        for part in slices(q):
            x = out[part]
            x.copy_(q[part])
            if self.zero_point:
                x.sub_(self.zero_point)
            x.mul_(self.scale)
        return out
