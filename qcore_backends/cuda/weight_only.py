"""Float layers with integer weights, which stay integers in memory.

    y[m, n] = sum_k x[m, k] * float32((q[n, k] - zero_point) * scale) + bias[n]          float32

For a few rows of ``x`` the time is that of reading the weight: the kernel reads the integers, a
byte each or two to a byte, and makes the very float32 weights of the definition in registers. For
many rows it makes all of them, into memory for the time of the call, and torch multiplies.

The sum is one of float32 numbers, whose order torch does not define either: its own result differs
between devices, versions and numbers of rows. In any order

    |y - exact| <= (K + 2) * 2**-24 / (1 - (K + 2) * 2**-24) * (sum_k |x * w| + |bias|)

which is what is promised and tested here. So these layers are equal to the reference within that
bound, not bit for bit; all that computes on integers is.

References:
    Higham, 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, fx

from qcore import schema_arguments

from ..values import constant
from .kernel import Kernel
from .kernels.weight_only import all_weights, few_rows, one_row
from .launch import Tile, launch, launch_tuned

__all__ = ["DequantizedBlocks", "WeightOnlyLinear"]

_DEQUANTIZE = torch.ops.qcore.dequantize_block.default
_FEW = 32
"""Most rows for which reading the weight takes longer than multiplying in float32."""


_ROW_TILES = (
    Tile(1, 16, 256, 4, 3),
    Tile(1, 8, 512, 4, 3),
    Tile(1, 4, 1024, 4, 2),
    Tile(1, 8, 256, 2, 4),
    Tile(1, 32, 128, 4, 4),
    Tile(1, 4, 512, 2, 4),
)
_TILES = (
    Tile(_FEW, 32, 64, 4, 3),
    Tile(_FEW, 64, 64, 4, 3),
    Tile(_FEW, 32, 128, 4, 2),
    Tile(_FEW, 16, 64, 2, 4),
)


class _StoredWeight(Kernel):
    """The integers of a ``dequantize_block`` node, two to a byte where they are of 4 bits."""

    q: Tensor
    scale: Tensor
    zero_point: Tensor | None
    shape: tuple[int, int]

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        stored = {name: _tensor(given[name]) for name in ("q", "scale", "zero_point")}
        q, scale, zero = stored["q"], stored["scale"], stored["zero_point"]
        assert q is not None
        assert scale is not None
        columns, depth = self.shape = (q.shape[0], q.shape[1])
        down, self.size = given["block"]
        # One row of scales for each row of the weight, whatever the blocks were.
        self.hold("scale", _by_row(scale, columns, down))
        self.hold("zero_point", None if zero is None else _by_row(zero, columns, down))
        self.signed = q.dtype == torch.int8
        low, high = (-8, 7) if self.signed else (0, 15)
        self.packed = depth % 2 == 0 and low <= int(q.min()) and int(q.max()) <= high
        if self.packed:
            first, second = q[:, 0::2], q[:, 1::2]
            q = ((first & 15) | (second << 4)).view(torch.uint8)
        self.hold("q", q)

    @property
    def variant(self) -> dict[str, int]:
        """Constants of the kernels."""
        return {
            "SIZE": self.size,
            "ONE": self.size == self.shape[1],
            "PACKED": self.packed,
            "SIGNED": self.signed,
            "AFFINE": self.zero_point is not None,
        }

    @property
    def stored(self) -> tuple[Tensor, Tensor, Tensor]:
        """Integers, scales and zero points, if there are any."""
        return self.q, self.scale, self.scale if self.zero_point is None else self.zero_point

    def dequantized(self) -> Tensor:
        """The float32 weight ``[N, K]``: each bit is that of the definition."""
        columns, depth = self.shape
        w = self.scale.new_empty(self.shape)
        grid = (triton.cdiv(columns, 16), triton.cdiv(depth, 128))
        launch(
            all_weights, grid, *self.stored, w, columns, depth,
            on=w, BLOCK_N=16, BLOCK_K=128, **self.variant,
        )  # fmt: skip
        return w


def _tensor(value: Any) -> Tensor | None:
    found = None if value is None else constant(value)
    return None if found is None else found.cpu()


def _by_row(values: Tensor, columns: int, down: int) -> Tensor:
    """Values of blocks as ``[N, G]``."""
    return values.reshape(columns // down, -1).repeat_interleave(down, dim=0)


def _why_blocks(given: dict[str, Any]) -> str | None:
    """Why a ``dequantize_block`` node can't be one of the kernels' weights; None if it can."""
    names = [name for name in ("q", "scale", "zero_point") if given[name] is not None]
    if any(constant(given[name]) is None for name in names):
        return "the weight is computed at run time"
    q = constant(given["q"])
    assert q is not None
    if q.ndim != 2 or q.dtype not in (torch.int8, torch.uint8) or not q.numel():
        return "the weight is no 8-bit matrix with values"
    return None


class DequantizedBlocks(_StoredWeight):
    """``dequantize_block`` of a constant matrix, at every call."""

    label: ClassVar[str] = "triton dequantize blocks"
    inputs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        return _why_blocks(given)

    def forward(self) -> Tensor:
        return self.dequantized()


class WeightOnlyLinear(_StoredWeight):
    """``aten.linear`` in float32 whose weight is a ``dequantize_block`` of constants."""

    label: ClassVar[str] = "triton weight-only linear"
    inputs: ClassVar[tuple[str, ...]] = ("input", "bias")

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        weight = given["weight"]
        if not isinstance(weight, fx.Node) or weight.target is not _DEQUANTIZE:
            return "it is a float layer"
        return _why_blocks(schema_arguments(weight))

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(schema_arguments(given["weight"]))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        columns, depth = self.shape
        count = math.prod(x.shape[:-1])
        if count > _FEW or count == 0 or x.dtype != torch.float32:
            return F.linear(x, self.dequantized(), bias)
        rows = x.reshape(count, depth).contiguous()
        y = rows.new_empty((count, columns))
        operands = (rows, *self.stored, rows if bias is None else bias, y)
        variant = {**self.variant, "BIASED": bias is not None}
        key = (depth, self.size, self.packed, self.zero_point is not None)
        if count == 1:
            launch_tuned(
                one_row, 1, columns, *operands, columns, depth,
                on=rows, key=key, tiles=_ROW_TILES, enable_fp_fusion=True, **variant,
            )  # fmt: skip
        else:
            launch_tuned(
                few_rows, count, columns, *operands, count, columns, depth,
                on=rows, key=key, tiles=_TILES, **variant,
            )  # fmt: skip
        return y.reshape(*x.shape[:-1], columns)
