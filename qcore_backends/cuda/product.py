"""The product of activations and a constant weight on int8 tensor cores, with its epilogue fused.

    acc[m, n] = sum_k x[m, k] * w[n, k] + correction[n]                         int32
    t = float32(acc) * scale[n]  [* row_scale[m]]  [+ bias[n]]  [+ other[m, n] * other_scale]
    y = t, or clamp(rint(t) + zero_point)

``x`` is taken as int8, uint8 less 128. With groups along K there is one accumulator a group;
``float32(acc) * scale[g, n]`` are added in float32 in the order of the groups, which no choice of
tiles changes.

The weight stays ``[N, K]``: 8-bit tensor cores read both operands along K. Weights of 4 bits stay
two to a byte in memory and are taken apart in registers.
"""

from typing import Any, ClassVar

import attrs
import torch
import triton
from torch import Tensor

from ..values import storage_of
from .kernel import reciprocal
from .kernels.product import product
from .launch import Tile, launch_tuned
from .layer import Layer, effective_weight

__all__ = ["Product"]

_FEW = (
    Tile(16, 64, 256, 4, 4),
    Tile(16, 32, 256, 4, 4),
    Tile(16, 32, 512, 4, 3),
    Tile(16, 64, 128, 4, 5),
    Tile(16, 128, 128, 4, 4),
)
_SOME = (
    Tile(64, 64, 128, 4, 4),
    Tile(32, 64, 128, 4, 5),
    Tile(32, 128, 128, 4, 4),
    Tile(64, 128, 128, 4, 4),
    Tile(64, 32, 256, 4, 3),
)
_MANY = (
    Tile(128, 128, 64, 4, 4),
    Tile(128, 128, 128, 8, 3),
    Tile(128, 128, 128, 4, 3),
    Tile(128, 256, 64, 8, 4),
    Tile(128, 256, 128, 8, 3),
    Tile(256, 128, 64, 8, 4),
    Tile(128, 64, 128, 4, 4),
    Tile(64, 128, 128, 4, 4),
    Tile(64, 64, 128, 4, 4),
)
"""Tiles for up to 16 rows, up to 128, and more."""


class Product(Layer):
    """A layer whose weight is multiplied by a matrix of activations.

    Args:
        given: arguments of the node, with a ``w`` that is ``[N, K]`` behind its first dimension.
    """

    tokens: ClassVar[bool] = False
    """Whether each row has a scale of its own, found at run time."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        weight = effective_weight(given).flatten(1)
        self.columns, self.depth = weight.shape
        self.unsigned, zero = self.input_of(given)
        self.hold_terms(given, weight, zero)
        self.inverse = reciprocal(given["y_scale"])
        # Two values lie in a byte where that loses nothing; a row and a group must begin with one.
        narrow = int(weight.min()) >= -8 and int(weight.max()) <= 7
        self.packed = narrow and self.depth // self.parts % 32 == 0
        if self.packed:
            first, second = weight[:, 0::2], weight[:, 1::2]
            weight = ((first & 15) | (second << 4)).view(torch.uint8)
        self.hold("weight", weight)

    def input_of(self, given: dict[str, Any]) -> tuple[bool, int]:
        """Whether the activations are unsigned, and the zero point that they have as int8."""
        unsigned = storage_of(given["x"]) == torch.uint8
        return unsigned, given["x_zero_point"] - (128 if unsigned else 0)

    def compute(
        self, x: Tensor, *, row_scale: Tensor | None = None, other: Tensor | None = None
    ) -> Tensor:
        """The output ``[M, N]``, contiguous.

        Args:
            x: ``[M, K]``, contiguous.
            row_scale: float32 ``[M]``.
            other: a residual, contiguous like the output.
        """
        rows, size = x.shape[0], self.depth // self.parts
        y = x.new_empty((rows, self.columns), dtype=self.output.dtype)
        tiles: tuple[Tile, ...] = _FEW if rows <= 16 else _SOME if rows <= 128 else _MANY
        if self.grouped:
            deepest = max(32, triton.next_power_of_2(size))
            shallow = (attrs.evolve(tile, depth=min(tile.depth, deepest)) for tile in tiles)
            tiles = tuple(dict.fromkeys(shallow))
        variant = (self.unsigned, self.packed, self.grouped, other is not None)
        launch_tuned(
            product, rows, self.columns, x, self.weight, y, *self.terms(x),
            x if row_scale is None else row_scale, x if other is None else other,
            rows, self.columns, self.depth, size, self.parts, *self.output.clamp,
            self.inverse, self.other_zero, self.other_scale,
            on=x, key=(self.depth, self.parts, *variant), tiles=tiles,
            UNSIGNED=self.unsigned, PACKED=self.packed, GROUPED=self.grouped,
            TOKENS=self.tokens, **self.variant(other),
        )  # fmt: skip
        return y
