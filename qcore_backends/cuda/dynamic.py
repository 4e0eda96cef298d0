"""Linear layers that quantize their inputs at run time, one scale a token.

A first kernel reads each token twice, for its scale and for its integers; the product then
multiplies by the scale of the channel and by that of the token. Each step is rounded as the
definition rounds it, so every bit of the result is that of the reference.
"""

from typing import Any, ClassVar

import torch
import triton
from torch import Tensor

from qcore import SCALE_MIN, largest_magnitude

from .kernels.dynamic import quantize_tokens
from .launch import launch, warps
from .layer import why_weight
from .product import Product

__all__ = ["DynamicLinear"]

_RANGE_MAX = 2.0**126
"""Ranges are clipped to it by the definition."""

_LONGEST = 4096
"""Values of a token that are read at a time."""


class DynamicLinear(Product):
    """``qlinear_dynamic``."""

    label: ClassVar[str] = "triton int8 dynamic linear"
    tokens: ClassVar[bool] = True

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if given["quant_min"] < -128 or given["quant_max"] > 127:
            return "tokens have more than 8 bits"
        return why_weight(given, largest_magnitude(torch.int8, 0))

    def __init__(self, given: dict[str, Any]) -> None:
        float_output = {"y_scale": 1.0, "y_zero_point": 0, "y_min": 0, "y_max": 0}
        super().__init__({**given, **float_output, "y_dtype": torch.float32})
        self.low, self.high = given["quant_min"], given["quant_max"]

    def input_of(self, given: dict[str, Any]) -> tuple[bool, int]:
        return False, 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[:-1].numel(), self.depth).contiguous()
        q = torch.empty_like(rows, dtype=torch.int8)
        scale = rows.new_empty(rows.shape[0])
        block = min(_LONGEST, triton.next_power_of_2(self.depth))
        half_steps = (self.high - self.low) / 2
        launch(
            quantize_tokens, (rows.shape[0],), rows, q, scale, self.depth, half_steps,
            SCALE_MIN, _RANGE_MAX, float(self.low), float(self.high),
            on=rows, warps=warps(block), BLOCK=block,
        )  # fmt: skip
        y = self.compute(q, row_scale=scale)
        return y.reshape(*x.shape[:-1], self.columns)
