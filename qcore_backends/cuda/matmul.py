"""Products of two activations, as in attention: batches of matrices with any strides.

    sum((a - za) * (b - zb)) = sum(a * b) - zb * sum(a) - za * sum(b) + K * za * zb

The sums over the rows of one operand and the columns of the other are taken of the tiles while
they are there; a zero point of 0 costs nothing.

Tensor cores read both operands along K, and memory 16 bytes at a time. An operand that lies in
another order is copied into this one, and a sum of another length is filled up with zero points,
which add nothing.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from qcore import largest_magnitude

from ..values import storage_of
from .kernel import INT32_MAX, Kernel, float32, why_integers
from .kernels.matmul import matmul
from .launch import Tile, launch_tuned
from .output import Output, why_output

__all__ = ["MatMul"]

_DEFINITION = torch.ops.qcore.qmatmul.default


_TILES = (
    Tile(64, 64, 64, 4, 3),
    Tile(128, 64, 64, 4, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(64, 64, 128, 4, 3),
    Tile(32, 64, 64, 4, 4),
    Tile(32, 32, 64, 2, 4),
    Tile(16, 64, 128, 4, 4),
)


_VECTOR = 16
"""Values that are read at once."""


class MatMul(Kernel):
    """``qmatmul``. A sum that 32 bits might not hold runs as it is defined."""

    label: ClassVar[str] = "triton int8 matmul"
    inputs: ClassVar[tuple[str, ...]] = ("a", "b")

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        return why_integers(*(storage_of(given[side]) for side in ("a", "b"))) or why_output(given)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.given = {key: value for key, value in given.items() if key not in ("a", "b")}
        self.output = Output.of(given)
        step = float32(given["a_scale"]) * float32(given["b_scale"])
        self.scale = float(self.output.multiplier(step))
        most = 1
        self.unsigned, self.zeros, self.fillers = [], [], []
        for side in ("a", "b"):
            dtype, zero = storage_of(given[side]), given[f"{side}_zero_point"]
            assert dtype is not None
            most *= largest_magnitude(dtype, zero)
            self.unsigned.append(dtype == torch.uint8)
            self.zeros.append(zero - (128 if dtype == torch.uint8 else 0))
            info = torch.iinfo(dtype)
            self.fillers.append(zero if info.min <= zero <= info.max else None)
        if None in self.fillers:
            # What is filled up must add nothing on both sides: the sums of each count it.
            self.fillers = [None, None]
        self.deepest = INT32_MAX // max(most, 1) - _VECTOR

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if b.ndim == 1:
            return self(a, b[:, None]).squeeze(-1)  # type: ignore[no-any-return]
        if a.ndim == 1:
            return self(a[None], b).squeeze(-2)  # type: ignore[no-any-return]
        rows, depth = a.shape[-2:]
        columns = b.shape[-1]
        if depth > self.deepest:
            return _DEFINITION(a=a, b=b, **self.given)  # type: ignore[no-any-return]
        batch: torch.Size = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
        count = math.prod(batch)
        left = a.expand(*batch, rows, depth).reshape(count, rows, depth)
        right = b.transpose(-1, -2).expand(*batch, columns, depth).reshape(count, columns, depth)
        left, right = (_along(x, zero) for x, zero in zip((left, right), self.fillers, strict=True))
        y = a.new_empty((count, rows, columns), dtype=self.output.dtype)
        # The second axis of a grid is short.
        for begin in range(0, count, 65535):
            part = slice(begin, begin + 65535)
            self._start(left[part], right[part], y[part])
        return y.reshape(*batch, rows, columns)

    def _start(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        count, rows, columns = y.shape
        depth = a.shape[2]
        launch_tuned(
            matmul, rows, columns, a, b, y, rows, columns, depth, *a.stride()[:2],
            *b.stride()[:2], *self.zeros, *self.output.clamp, self.scale,
            on=a, key=(depth, *self.unsigned), tiles=_TILES, others=count,
            A_UNSIGNED=self.unsigned[0], B_UNSIGNED=self.unsigned[1],
            A_ZERO=self.zeros[0] != 0, B_ZERO=self.zeros[1] != 0, FLOAT=self.output.is_float,
        )  # fmt: skip


def _along(x: Tensor, filler: int | None) -> Tensor:
    """``x`` of shape ``[batch, rows, depth]`` so that rows are read fast, perhaps longer.

    Args:
        filler: what rows are filled up with; None if there is no such value.
    """
    more = -x.shape[2] % _VECTOR
    if more and filler is not None:
        return F.pad(x, (0, more), value=filler)
    return x if x.stride(2) == 1 else x.contiguous()
