"""Linear layers that quantize their inputs at run time, one scale a token.

A first kernel reads each token twice, for its scale and for its integers; the product then
multiplies by the scale of the channel and by that of the token. Each step is rounded as the
definition rounds it, so every bit of the result is that of the reference.
"""

from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from qcore import SCALE_MIN

from .arithmetic import requantized
from .kernel import largest
from .launch import launch, warps
from .product import Product, why_weight

__all__ = ["DynamicLinear"]

_RANGE_MAX = 2.0**126
"""Ranges are clipped to it by the definition."""

_LONGEST = 4096
"""Values of a token that are read at a time."""


@triton.jit
def _quantize_tokens(
    x,
    q,
    scale,
    depth,
    half_steps,
    least,
    most,
    low,
    high,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """A token of ``x``, float32 ``[rows, depth]``: its integers and its scale.

    Args:
        half_steps: ``(quant_max - quant_min) / 2``.
        least, most: bounds of the scale and of the largest magnitude.
    """
    row = tl.program_id(0)
    begin = row.to(tl.int64) * depth
    magnitude = tl.zeros((BLOCK,), dtype=tl.float32)
    finite = tl.full((BLOCK,), 1, dtype=tl.int32)
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.abs(tl.load(x + begin + k, mask=k < depth, other=0.0))
        finite = finite & (value <= 3.4028234663852886e38).to(tl.int32)
        magnitude = tl.maximum(magnitude, value)
    # A quotient of float32 numbers that is rounded to float64 and then to float32 is the one that
    # is rounded once: 53 bits are more than twice 24 and two.
    largest_of_all = tl.minimum(tl.max(magnitude, axis=0), most)
    step = tl.maximum(tl.div_rn(largest_of_all, half_steps), least)
    usable = tl.min(finite, axis=0) == 1
    tl.store(scale + row, tl.where(usable, step, float("nan")))
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.load(x + begin + k, mask=k < depth, other=0.0)
        # The integers of a token without a scale are of no account: NaN times anything is NaN.
        ratio = tl.where(usable, tl.div_rn(value, step), 0.0)
        tl.store(q + begin + k, requantized(ratio, low, high, 0).to(tl.int8), mask=k < depth)


class DynamicLinear(Product):
    """``qlinear_dynamic``."""

    label: ClassVar[str] = "triton int8 dynamic linear"
    tokens: ClassVar[bool] = True

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if given["quant_min"] < -128 or given["quant_max"] > 127:
            return "tokens have more than 8 bits"
        return why_weight(given, largest(torch.int8, 0))

    def __init__(self, given: dict[str, Any]) -> None:
        float_output = {"y_scale": 1.0, "y_zero_point": 0, "y_min": 0, "y_max": 0}
        super().__init__({**given, **float_output, "y_dtype": torch.float32})
        self.low, self.high = given["quant_min"], given["quant_max"]

    def _input(self, given: dict[str, Any]) -> tuple[bool, int]:
        return False, 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[:-1].numel(), self.depth).contiguous()
        q = torch.empty_like(rows, dtype=torch.int8)
        scale = rows.new_empty(rows.shape[0])
        block = min(_LONGEST, triton.next_power_of_2(self.depth))
        half_steps = (self.high - self.low) / 2
        launch(
            _quantize_tokens, (rows.shape[0],), rows, q, scale, self.depth, half_steps,
            SCALE_MIN, _RANGE_MAX, float(self.low), float(self.high),
            on=rows, warps=warps(block), BLOCK=block,
        )  # fmt: skip
        y = self.compute(q, row_scale=scale)
        return y.reshape(*x.shape[:-1], self.columns)
