"""Linear layers of integers: per tensor, per channel, or in groups along the inputs."""

from typing import Any, ClassVar

from torch import Tensor

from .layer import why_layer
from .product import Product

__all__ = ["Linear"]


class Linear(Product):
    """``qlinear``."""

    label: ClassVar[str] = "triton int8 linear"

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        return why_layer(given)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[:-1].numel(), self.depth).contiguous()
        return self.compute(rows).reshape(*x.shape[:-1], self.columns)
