"""Linear layers on oneDNN."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..values import constant
from .packed import Packed

__all__ = ["PackedLinear"]

_POINTWISE = torch.ops.onednn.qlinear_pointwise.default


class PackedLinear(Packed):
    """``qlinear``."""

    label: ClassVar[str] = "onednn.qlinear"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        packed = torch.ops.onednn.qlinear_prepack(self.weight(given).contiguous(), None)
        self.operands = (1.0, self.x_zero_point, packed, self.scale, self.zeros)
        self.layer = (self.bias, *self.output, self.post, [], "")

    @staticmethod
    def weight(given: dict[str, Any]) -> Tensor:
        """``[N, K]``."""
        weight = constant(given["w"])
        assert weight is not None
        return weight

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == 0:
            return x.new_empty((*x.shape[:-1], self.scale.numel()), dtype=self.dtype)
        x = self.unsigned(x).contiguous()
        return self.clamped(_POINTWISE(x, *self.operands, *self.layer))
