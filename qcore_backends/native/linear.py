"""Linear layers and products of two activations."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from qcore import BackendError

from .blocking import blocks, uses_tiles
from .layer import (
    BYTES,
    Given,
    Layer,
    contiguous,
    float32_product,
    in_layout,
    output_multiplier,
    output_record,
    plain,
    storage_of,
    stored_zero,
    why_no_output,
)
from .memory import Value
from .planner import Planner
from .records import Gemm, Kind, Pack
from .weights import (
    DEPTH_STEP,
    LANES,
    channel_multipliers,
    grouped_lanes,
    pack_panels,
    padded,
    prepared_bias,
    weight_of,
    why_no_layer,
)

__all__ = ["Linear", "MatMul"]

_DEEPEST = 2**31 // (256 * 256)
"""Terms of a sum of products of two bytes that 32 bits hold for any zero points."""


class Linear(Layer):
    """``qlinear`` with a scale for the tensor or for each channel."""

    label: ClassVar[str] = "matrix product"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        return why_no_layer(given)

    def __init__(self, given: Given) -> None:
        weight = weight_of(given)
        self.columns, self.depth = weight.shape
        self.panels = pack_panels(weight.to(torch.int8)[None])
        self.biases = grouped_lanes(prepared_bias(given, weight), 1)
        self.scales = grouped_lanes(channel_multipliers(given, weight), 1)
        self.dtype: torch.dtype = given["y_dtype"]
        self.options = plain(given)

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        x = in_layout(planner, inputs["x"], contiguous(inputs["x"].shape))
        y = planner.new(contiguous(expected.shape), self.dtype)
        rows = math.prod(expected.shape[:-1])
        depth = padded(self.depth, DEPTH_STEP)
        cut = blocks(planner, products=1, rows=rows, columns=self.columns, depth=depth)
        output = output_record(self.options)
        output.y_row = self.columns
        record = Gemm(
            output=output,
            outer=1,
            inner=1,
            x_row=self.depth,
            rows=rows,
            columns=self.columns,
            depth=self.depth,
            depth_padded=depth,
            rows_a_task=cut.rows,
            panels_a_task=cut.panels,
            tiles=int(uses_tiles(planner, rows)),
        )
        planner.reads_rows(self.depth)
        planner.add(
            Kind.GEMM,
            record,
            x=x,
            weight=planner.constant(self.panels),
            bias=planner.constant(self.biases),
            scale=planner.constant(self.scales),
            output_y=y,
        )
        return y


class MatMul(Layer):
    """``qmatmul``: the right operand is packed like a weight, at every run.

    With the bytes a and b as they are stored, and c = b - 128, which fits int8:

        sum (a - za) (b - zb) = sum a c + (128 - zb) sum a - za sum c - K za (128 - zb)

    The second term belongs to the row, the last two to the column.
    """

    label: ClassVar[str] = "matrix product of activations"
    inputs: ClassVar[tuple[str, ...]] = ("a", "b")

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        for side in ("a", "b"):
            dtype = storage_of(given[side])
            if dtype not in BYTES:
                return "an operand is no 8-bit tensor"
            if not 0 <= stored_zero(given[f"{side}_zero_point"], dtype) <= 255:
                return "a zero point is not an 8-bit integer"
        return why_no_output(given)

    def __init__(self, given: Given) -> None:
        self.zeros = [
            stored_zero(given[f"{side}_zero_point"], storage_of(given[side])) for side in "ab"
        ]
        step = float32_product(
            given["a_scale"], torch.tensor(given["b_scale"], dtype=torch.float32)
        )
        self.multiplier = output_multiplier(given, step)
        self.dtype: torch.dtype = given["y_dtype"]
        self.options = plain(given)
        self._scales: dict[int, Tensor] = {}
        self.heads_inside = False
        """Whether the heads of ``[B, H, M, N]`` lie between rows and columns in memory, as they do
        after the transposition that usually follows."""

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        a, b = _batched(planner, inputs["a"], inputs["b"])
        if a.strides[3] != 1:
            a = planner.copy(a, contiguous(a.shape))
        outer, inner, rows, depth = a.shape
        if depth > _DEEPEST:
            raise BackendError(
                f"backend 'native': a product of activations over {depth} terms could exceed 32 "
                f"bits; at most {_DEEPEST} are exact. Lower to 'reference'"
            )
        columns = b.shape[3]
        deep, lanes = padded(depth, DEPTH_STEP), padded(columns, LANES)
        a_zero, b_zero = self.zeros
        pack = Pack(
            outer=outer,
            inner=inner,
            x_outer=b.strides[0],
            x_inner=b.strides[1],
            x_depth=b.strides[2],
            x_column=b.strides[3],
            depth=depth,
            depth_padded=deep,
            columns=columns,
            x_zero=a_zero,
            constant=-depth * a_zero * (128 - b_zero),
        )
        weight = planner.new_bytes(outer * inner * lanes * deep)
        bias = planner.new_bytes(outer * inner * lanes * 4)
        planner.add(Kind.PACK, pack, x=b, y=weight, bias=bias)

        y, strides = self._output(planner, expected, (outer, inner, rows, columns))
        cut = blocks(planner, products=outer * inner, rows=rows, columns=columns, depth=deep)
        output = output_record(self.options)
        output.y_row = strides[2]
        record = Gemm(
            output=output,
            outer=outer,
            inner=inner,
            x_outer=a.strides[0],
            x_inner=a.strides[1],
            weight_outer=inner * lanes * deep,
            weight_inner=lanes * deep,
            bias_outer=inner * lanes,
            bias_inner=lanes,
            y_outer=strides[0],
            y_inner=strides[1],
            x_row=a.strides[2],
            rows=rows,
            columns=columns,
            depth=depth,
            depth_padded=deep,
            rows_a_task=cut.rows,
            panels_a_task=cut.panels,
            row_factor=128 - b_zero,
            tiles=int(uses_tiles(planner, rows)),
        )
        planner.reads_rows(a.strides[2])
        scale = self._scales.setdefault(lanes, self.multiplier.expand(lanes).contiguous())
        planner.add(
            Kind.GEMM,
            record,
            x=a,
            weight=weight,
            bias=bias,
            scale=planner.constant(scale),
            output_y=y,
        )
        return y

    def _output(
        self, planner: Planner, expected: Tensor, sizes: tuple[int, ...]
    ) -> tuple[Value, tuple[int, ...]]:
        """The value to write, and its strides as ``[outer, inner, rows, columns]``."""
        if self.heads_inside and expected.ndim == 4:
            outer, inner, rows, columns = sizes
            layout = contiguous((outer, rows, inner, columns)).transpose(1, 2)
            return planner.new(layout, self.dtype), tuple(layout.stride())
        y = planner.new(contiguous(expected.shape), self.dtype)
        return y, tuple(contiguous(sizes).stride())


def _batched(planner: Planner, a: Value, b: Value) -> tuple[Value, Value]:
    """Both operands as ``[outer, inner, M, K]`` and ``[outer, inner, K, N]``, by the rules of
    ``torch.matmul``."""
    left = a.layout if a.layout.ndim > 1 else a.layout.unsqueeze(0)
    right = b.layout if b.layout.ndim > 1 else b.layout.unsqueeze(1)
    batch = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
        contiguous(left.shape[:-2]), contiguous(right.shape[:-2])
    )[0].shape
    sides = []
    for x, layout in ((a, left), (b, right)):
        whole = x.like(layout.expand(*batch, *layout.shape[-2:]))
        if len(batch) > 2:
            whole = planner.copy(whole, contiguous(whole.shape))
            whole = whole.like(whole.layout.flatten(0, -4))
        while whole.layout.ndim < 4:
            whole = whole.like(whole.layout.unsqueeze(0))
        sides.append(whole)
    return sides[0], sides[1]
