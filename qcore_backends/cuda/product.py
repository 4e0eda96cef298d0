"""The product of activations and a constant weight on int8 tensor cores, with its epilogue fused.

    acc[m, n] = sum_k x[m, k] * w[n, k] + correction[n]                         int32
    t = float32(acc) * scale[n]  [* row_scale[m]]  [+ bias[n]]  [+ other[m, n] * other_scale]
    y = t, or clamp(rint(t) + zero_point)

``x`` is taken as int8, uint8 less 128; ``correction`` holds the int32 bias and ``-x_zero * sum_k
w[n, k]``, so zero points cost nothing. Tensor cores saturate at 32 bits. No sum on the way can reach
that: raw operands are no larger than 128, and when a program is lowered ``sum_k |w| * max|x -
x_zero|``, which is as large at least, is found to fit. The correction itself may wrap around, because
the sum with it does so too.

With groups along K there is one accumulator a group; ``float32(acc) * scale[g, n]`` are added in
float32 in the order of the groups, which no choice of tiles changes.

The weight stays ``[N, K]``: 8-bit tensor cores read both operands along K. Weights of 4 bits stay
two to a byte in memory and are taken apart in registers.
"""

from typing import Any, ClassVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..values import constant, storage_of
from .arithmetic import placed, requantized, signed
from .kernel import INT32_MAX, Kernel, float32, given_tensor, largest, reciprocal, why_integers
from .launch import Tile, launch_tuned
from .output import Output, why_output

__all__ = ["Product", "effective_weight", "why_weight"]


@triton.jit
def _product(
    x,
    w,
    y,
    correction,
    scale,
    bias,
    row_scale,
    other,
    rows,
    columns,
    depth,
    size,
    groups,
    low,
    high,
    zero_point,
    inverse,
    other_zero,
    other_scale,
    UNSIGNED: tl.constexpr,  # noqa: N803
    PACKED: tl.constexpr,  # noqa: N803
    GROUPED: tl.constexpr,  # noqa: N803
    CORRECTED: tl.constexpr,  # noqa: N803
    BIASED: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
    ADDED: tl.constexpr,  # noqa: N803
    FLOAT: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr,  # noqa: N803
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_K: tl.constexpr,  # noqa: N803
):
    """One tile of the output.

    Args:
        x: 8-bit ``[rows, depth]``; w: int8 ``[columns, depth]``, or two to a byte ``[columns,
            depth / 2]``; y: ``[rows, columns]``.
        correction: int32; scale: float32; both ``[columns]`` or ``[groups, columns]``.
        bias: float32 ``[columns]``; row_scale: float32 ``[rows]``; other: like ``y``.
        size: columns of x in a group; the whole depth if there is one.
        inverse: what the sum over groups is multiplied by before it is rounded.
    """
    tile_m, tile_n = placed(tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N))
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    in_m, in_n = m < rows, n < columns
    # Beyond the edges the last row is read once more: no mask is needed along it. Offsets of
    # large tensors do not fit 32 bits.
    row = tl.minimum(m, rows - 1).to(tl.int64)
    column = tl.minimum(n, columns - 1).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for group in range(groups):
        if GROUPED:
            acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        for begin in range(0, size, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            a = tl.load(
                x + (row[:, None] * depth + group * size + k[None, :]),
                mask=k[None, :] < size,
                other=0,
            )
            if PACKED:
                pair = begin // 2 + tl.arange(0, BLOCK_K // 2)
                byte = tl.load(
                    w + (column[:, None] * (depth // 2) + group * (size // 2) + pair[None, :]),
                    mask=pair[None, :] < size // 2,
                    other=0,
                )
                first = (byte << 4).to(tl.int8, bitcast=True) >> 4
                second = byte.to(tl.int8, bitcast=True) >> 4
                b = tl.trans(tl.interleave(first, second))
            else:
                b = tl.load(
                    w + (column[None, :] * depth + group * size + k[:, None]),
                    mask=k[:, None] < size,
                    other=0,
                )
            acc = tl.dot(signed(a, UNSIGNED), b, acc, out_dtype=tl.int32)
        if GROUPED:
            if CORRECTED:
                acc += tl.load(correction + group * columns + n, mask=in_n, other=0)[None, :]
            step = tl.load(scale + group * columns + n, mask=in_n, other=0.0)
            total += acc.to(tl.float32) * step[None, :]
    if not GROUPED:
        if CORRECTED:
            acc += tl.load(correction + n, mask=in_n, other=0)[None, :]
        step = tl.load(scale + n, mask=in_n, other=0.0)
        total = acc.to(tl.float32) * step[None, :]
    if TOKENS:
        total = total * tl.load(row_scale + m, mask=in_m, other=0.0)[:, None]
    if BIASED:
        total = total + tl.load(bias + n, mask=in_n, other=0.0)[None, :]
    inside = in_m[:, None] & in_n[None, :]
    place = row[:, None] * columns + n[None, :]
    if ADDED:
        residual = tl.load(other + place, mask=inside, other=0).to(tl.int32) - other_zero
        total = total + residual.to(tl.float32) * other_scale
    if FLOAT:
        tl.store(y + place, total, mask=inside)
    else:
        if GROUPED:
            total = total * inverse
        stored = requantized(total, low, high, zero_point)
        tl.store(y + place, stored.to(y.dtype.element_ty), mask=inside)


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


class Product(Kernel):
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
        w_scale = given_tensor(given, "w_scale")
        self.groups = w_scale.shape[1] if w_scale.ndim == 2 else 1
        self.grouped = w_scale.ndim == 2
        self._hold_weight(weight)
        unsigned, zero = self._input(given)
        self.unsigned = unsigned
        step = float32(given.get("x_scale", 1.0)) * w_scale
        bias = None if given["bias"] is None else given_tensor(given, "bias")
        integer = bias is not None and not bias.is_floating_point()
        sums = weight.to(torch.int64).reshape(self.columns, self.groups, -1).sum(2)
        correction = -zero * sums
        if bias is not None and integer:
            correction += bias.reshape(-1, 1)
        held = correction.t().to(torch.int32) if zero or integer else None
        self.hold("correction", held)
        by_group = step.reshape(-1, 1) if step.ndim < 2 else step
        scale = by_group.expand(self.columns, self.groups).t()
        self._finish(given, scale, None if integer else bias)

    def _hold_weight(self, weight: Tensor) -> None:
        """Keeps the weight, two values to a byte where that loses nothing."""
        size = self.depth // self.groups
        # A row and a group must begin with a byte.
        fits = weight.numel() and -8 <= int(weight.min()) and int(weight.max()) <= 7
        self.packed = bool(fits) and size % 32 == 0
        if self.packed:
            low, high = weight[:, 0::2], weight[:, 1::2]
            weight = ((low & 15) | (high << 4)).view(torch.uint8)
        self.hold("weight", weight)

    def _input(self, given: dict[str, Any]) -> tuple[bool, int]:
        """Whether the activations are unsigned, and the zero point that they have as int8."""
        unsigned = storage_of(given["x"]) == torch.uint8
        return unsigned, given["x_zero_point"] - (128 if unsigned else 0)

    def _finish(self, given: dict[str, Any], scale: Tensor, bias: Tensor | None) -> None:
        """Keeps what the epilogue needs; ``scale`` is float32 ``[G, N]``."""
        self.output = output = Output.of(given)
        # Groups are added before the step of the output is divided out.
        self.inverse = reciprocal(given["y_scale"])
        self.hold("scale", scale if self.grouped else output.multiplier(scale))
        if bias is not None and not self.grouped:
            bias = output.multiplier(bias)
        self.hold("bias", bias)
        self.other_zero, self.other_scale = 0, 1.0
        if given.get("other") is not None:
            self.other_zero = given["other_zero_point"]
            self.other_scale = float(output.multiplier(float32(given["other_scale"])))

    def compute(
        self, x: Tensor, *, row_scale: Tensor | None = None, other: Tensor | None = None
    ) -> Tensor:
        """The output ``[M, N]``, contiguous.

        Args:
            x: ``[M, K]``, contiguous.
            row_scale: float32 ``[M]``.
            other: a residual, contiguous like the output.
        """
        rows, size = x.shape[0], self.depth // self.groups
        y = x.new_empty((rows, self.columns), dtype=self.output.dtype)
        tiles = _FEW if rows <= 16 else _SOME if rows <= 128 else _MANY
        if self.grouped:
            deepest = max(32, triton.next_power_of_2(size))
            tiles = tuple(
                dict.fromkeys(Tile(t.rows, t.columns, min(t.depth, deepest), t.warps, t.stages)
                              for t in tiles)
            )  # fmt: skip
        unused = x
        variant = (self.unsigned, self.packed, self.grouped, other is not None)
        launch_tuned(
            _product, rows, self.columns, x, self.weight, y,
            unused if self.correction is None else self.correction,
            self.scale,
            unused if self.bias is None else self.bias,
            unused if row_scale is None else row_scale,
            unused if other is None else other,
            rows, self.columns, self.depth, size, self.groups, *self.output.clamp,
            self.inverse, self.other_zero, self.other_scale,
            on=x, key=(self.depth, self.groups, *variant), tiles=tiles,
            UNSIGNED=self.unsigned, PACKED=self.packed, GROUPED=self.grouped,
            CORRECTED=self.correction is not None, BIASED=self.bias is not None,
            TOKENS=self.tokens, ADDED=other is not None, FLOAT=self.output.is_float,
        )  # fmt: skip
        return y


def effective_weight(given: dict[str, Any]) -> Tensor:
    """The weight of a node less its zero points, int8 shaped like it."""
    weight = given_tensor(given, "w")
    return weight if given["w_zero_point"] is None else _centred(given).to(torch.int8)


def _centred(given: dict[str, Any]) -> Tensor:
    """``w - w_zero_point`` in int32."""
    weight, zero = given_tensor(given, "w").int(), given_tensor(given, "w_zero_point")
    if zero.ndim == 2:
        zero = zero.repeat_interleave(weight.shape[1] // zero.shape[1], dim=1)
    elif zero.ndim:
        zero = zero.reshape(-1, *[1] * (weight.ndim - 1))
    return weight - zero


def why_weight(given: dict[str, Any], x_largest: int) -> str | None:
    """Why a layer with such a weight can't run; None if it can.

    Args:
        given: arguments of the node.
        x_largest: largest magnitude of an activation less its zero point, at least 128.
    """
    names = [n for n in ("w", "w_scale", "w_zero_point", "bias") if given[n] is not None]
    if any(constant(given[name]) is None for name in names):
        return "the weight is computed at run time"
    weight = given_tensor(given, "w")
    if weight.dtype not in (torch.int8, torch.uint8) or not weight.numel():
        return "the weight is no 8-bit tensor with values"
    weight = weight.int() if given["w_zero_point"] is None else _centred(given)
    if int(weight.min()) < -128 or int(weight.max()) > 127:
        return "the weight less its zero point has more than 8 bits"
    bias = given_tensor(given, "bias") if given["bias"] is not None else None
    most = int(weight.abs().flatten(1).sum(1, dtype=torch.int64).max()) * x_largest
    if bias is not None and not bias.is_floating_point():
        most += int(bias.long().abs().max())
    if most > INT32_MAX:
        return f"a sum can reach {most}, which 32 bits do not hold"
    return None


def why_layer(given: dict[str, Any]) -> str | None:
    """Why a layer of 8-bit activations can't run; None if it can."""
    dtype = storage_of(given["x"])
    why = why_integers(dtype) or why_output(given)
    if why is not None:
        return why
    assert dtype is not None
    return why_weight(given, largest(dtype, given["x_zero_point"]))
