"""Linear layers of integers: per tensor, per channel, or in groups along the inputs."""

from typing import Any, ClassVar

from torch import Tensor

from .product import Product, why_layer

__all__ = ["Linear"]


class Linear(Product):
    """``qlinear``."""

    label: ClassVar[str] = "triton int8 linear"

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        return why_layer(given)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.depth) if x.numel() else x.reshape(x.shape[:-1].numel(), -1)
        return self.compute(rows.contiguous()).reshape(*x.shape[:-1], self.columns)
