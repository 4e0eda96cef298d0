"""Linear layers that quantize their inputs at run time, on oneDNN.

Each token is quantized by its own scale, in a few passes over the rows. oneDNN then computes
``float32(acc) * w_scale[n]`` in its own epilogue; the scale of the token and the bias follow in
place. That is the order of the definition, so every bit of the result is that of the reference.

Weights in groups are one product a group, which oneDNN adds to the sum so far:
``fma(sum, 1, float32(acc) * w_scale[n, g])``. A fused product with 1 rounds as a sum does.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from qcore import token_scale

from ..values import constant
from .isa import why_saturates
from .kernel import Kernel

__all__ = ["DynamicLinear"]

_POINTWISE = torch.ops.onednn.qlinear_pointwise.default
_ADDING = torch.ops.onednn.qlinear_pointwise.binary

_SHIFT = 128
"""oneDNN multiplies uint8 by int8 on every processor: int8 tokens go in plus 128."""

_FLOAT = (1.0, 0, torch.float32)
"""Scale, zero point and dtype of a float result."""

_NO_POST: tuple[str, list[float], str] = ("none", [], "")


class DynamicLinear(Kernel):
    """``qlinear_dynamic``."""

    label: ClassVar[str] = "onednn.qlinear_dynamic"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        weight, scale = constant(given["w"]), constant(given["w_scale"])
        if weight is None or scale is None:
            return "the weight is computed at run time"
        if given["w_zero_point"] is not None:
            return "the weight has a zero point; oneDNN takes symmetric weights"
        if weight.dtype != torch.int8 or not weight.numel():
            return "the weight is no int8 matrix with values"
        if given["quant_min"] < -128 or given["quant_max"] > 127:
            return "tokens have more than 8 bits"
        return why_saturates(weight)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        weight, w_scale = constant(given["w"]), constant(given["w_scale"])
        assert weight is not None
        assert w_scale is not None
        self.range: tuple[int, int] = (given["quant_min"], given["quant_max"])
        self.bias = None if given["bias"] is None else constant(given["bias"])
        self.channels = weight.shape[0]
        zeros = torch.zeros(self.channels, dtype=torch.int32)
        by_group = w_scale if w_scale.ndim == 2 else w_scale.reshape(-1, 1)
        scales = by_group.expand(self.channels, -1).unbind(1)
        self.groups = [
            (
                1.0,
                _SHIFT,
                torch.ops.onednn.qlinear_prepack(part.contiguous(), None),
                scale.contiguous(),
                zeros,
            )
            for part, scale in zip(weight.chunk(len(scales), dim=1), scales, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        if rows.shape[0] == 0:
            return x.new_empty((*x.shape[:-1], self.channels))
        q, scale = self._quantized(rows)
        y = self._product(q).mul_(scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.reshape(*x.shape[:-1], self.channels)

    def _quantized(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``[M, K]`` as uint8, int8 plus 128; and their scales, float32 ``[M, 1]``."""
        low, high = self.range
        scale = token_scale(rows, quant_min=low, quant_max=high)
        # The integers of a token without a scale are of no account: NaN times anything is NaN.
        q = (rows / scale).round_().clamp_(low, high).to(torch.int8)
        return q.view(torch.uint8).bitwise_xor_(_SHIFT), scale

    def _product(self, q: Tensor) -> Tensor:
        """``float32(acc) * w_scale``, summed over the groups in their order; ``[M, N]``."""
        first, *others = self.groups
        if not others:
            return _POINTWISE(q, *first, None, *_FLOAT, *_NO_POST)  # type: ignore[no-any-return]
        # [M, K] to [G, M, K / G], so that the columns of each group lie together.
        by_group = q.reshape(q.shape[0], len(self.groups), -1)
        part, *parts = by_group.transpose(0, 1).contiguous()
        y: Tensor = _POINTWISE(part, *first, None, *_FLOAT, *_NO_POST)
        for part, group in zip(parts, others, strict=True):
            # It adds into the memory of the sum so far.
            y = _ADDING(part, *group, y, None, *_FLOAT, 1.0, 0, "sum", 1.0, *_NO_POST)
        return y
