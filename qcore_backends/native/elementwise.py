"""Operations value by value: the way into integers and back, sums, products and tables."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .layer import (
    BYTES,
    Given,
    Layer,
    channels_last,
    constant,
    contiguous,
    float32_product,
    in_layout,
    output_multiplier,
    output_record,
    storage_of,
    stored_zero,
    why_no_output,
)
from .memory import Value
from .planner import Planner
from .records import Elementwise, Kind

__all__ = ["Add", "Dequantize", "Mul", "Quantize", "Requantize", "Table"]


def dense(planner: Planner, x: Value) -> Value:
    """``x``, copied if it is not the whole of its memory."""
    return x if x.is_dense() else planner.copy(x, contiguous(x.shape))


def written(given: Given) -> dict[str, Any]:
    """The last step, as fields of the operation."""
    output = output_record(given)
    return {name: getattr(output, name) for name in ("low", "high", "zero", "is_float")}


class Quantize(Layer):
    """``quantize`` to 8 bits."""

    label: ClassVar[str] = "quantize"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        dtype = given["dtype"]
        if dtype not in BYTES or given["rounding"] != "half_even":
            return "it does not round half to even to 8 bits"
        info = torch.iinfo(dtype)
        inside = info.min <= given["quant_min"] <= given["quant_max"] <= info.max
        if not inside or not -(2**20) < given["zero_point"] < 2**20:
            return "the range does not fit the dtype"
        return None

    def __init__(self, given: Given) -> None:
        zero = given["zero_point"]
        self.dtype: torch.dtype = given["dtype"]
        self.options = {
            "scale": given["scale"],
            "low": given["quant_min"] - zero,
            "high": given["quant_max"] - zero,
            "zero": stored_zero(zero, self.dtype),
        }
        self.wants_channels_last = False
        """Whether layers of images read it."""

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        x = inputs["x"]
        layout = (
            channels_last(x.shape)
            if self.wants_channels_last and x.layout.ndim > 2
            else contiguous(x.shape)
        )
        y = planner.new(layout, self.dtype)
        planner.move(Kind.QUANTIZE, x, y, **self.options)
        return y


class _Unary(Layer):
    """An operation on one dense tensor of bytes; the result lies as the operand does."""

    kind: ClassVar[Kind]

    def __init__(self, given: Given) -> None:
        self.options = self.record_options(given)

    @staticmethod
    def record_options(given: Given) -> dict[str, Any]:
        """Fields of the operation."""
        raise NotImplementedError

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        x = dense(planner, inputs[self.inputs[0]])
        y = planner.new(x.layout, expected.dtype)
        record = Elementwise(count=x.layout.numel(), **self.options)
        planner.add(self.kind, record, a=x, y=y)
        return y


class Dequantize(_Unary):
    """``dequantize`` of 8-bit integers."""

    label: ClassVar[str] = "dequantize"
    inputs: ClassVar[tuple[str, ...]] = ("q",)
    kind: ClassVar[Kind] = Kind.DEQUANTIZE

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        if storage_of(given["q"]) not in BYTES:
            return "it is not of 8-bit integers"
        return None

    @staticmethod
    def record_options(given: Given) -> dict[str, Any]:
        zero = stored_zero(given["zero_point"], storage_of(given["q"]))
        return {"a_zero": zero, "a_scale": given["scale"], "is_float": 1}


class Requantize(_Unary):
    """``qrequantize`` of 8-bit integers."""

    label: ClassVar[str] = "requantize"
    inputs: ClassVar[tuple[str, ...]] = ("x",)
    kind: ClassVar[Kind] = Kind.REQUANTIZE

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        if storage_of(given["x"]) not in BYTES:
            return "it is not of 8-bit integers"
        return why_no_output(given)

    @staticmethod
    def record_options(given: Given) -> dict[str, Any]:
        step = torch.tensor(given["x_scale"], dtype=torch.float32)
        return {
            "a_zero": stored_zero(given["x_zero_point"], storage_of(given["x"])),
            "a_scale": float(output_multiplier(given, step)),
            **written(given),
        }


class Table(Layer):
    """``qtable``: any function of one byte."""

    label: ClassVar[str] = "table"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        table = constant(given["table"])
        if table is None:
            return "the table is computed at run time"
        if table.dtype not in BYTES or storage_of(given["x"]) not in BYTES or not len(table):
            return "the table is not of 8-bit integers"
        return None

    def __init__(self, given: Given) -> None:
        table, dtype = constant(given["table"]), storage_of(given["x"])
        assert table is not None
        self.dtype = table.dtype
        first = -128 if dtype == torch.int8 else 0
        # Bytes beyond a narrower range never come, but need a place.
        at = (torch.arange(256) + first - given["offset"]).clamp_(0, len(table) - 1)
        stored = table[at].to(torch.int16) + (128 if table.dtype == torch.int8 else 0)
        self.table = stored.to(torch.uint8)

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        x = dense(planner, inputs["x"])
        y = planner.new(x.layout, self.dtype)
        record = Elementwise(count=x.layout.numel())
        planner.add(Kind.TABLE, record, a=x, y=y, table=planner.constant(self.table))
        return y


class _Binary(Layer):
    """An operation on two tensors of bytes; operands that broadcast are written out first."""

    inputs: ClassVar[tuple[str, ...]] = ("a", "b")
    kind: ClassVar[Kind]

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        if any(storage_of(given[side]) not in BYTES for side in ("a", "b")):
            return "an operand is no 8-bit tensor"
        return why_no_output(given)

    @staticmethod
    def factors(given: Given) -> tuple[Tensor, Tensor]:
        """What the operands, or their product, are multiplied by."""
        raise NotImplementedError

    def __init__(self, given: Given) -> None:
        self.options = written(given)
        self.dtype: torch.dtype = given["y_dtype"]
        self.scales = [float(factor) for factor in self.factors(given)]
        self.zeros = [
            stored_zero(given[f"{side}_zero_point"], storage_of(given[side])) for side in "ab"
        ]

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        whole = [x for x in inputs.values() if x.shape == expected.shape and x.is_dense()]
        layout = whole[0].layout if whole else contiguous(expected.shape)
        sides = []
        for x in (inputs["a"], inputs["b"]):
            full = x.like(x.layout.expand(expected.shape))
            sides.append(in_layout(planner, full, layout))
        y = planner.new(layout, self.dtype)
        record = Elementwise(
            count=expected.numel(),
            a_zero=self.zeros[0],
            b_zero=self.zeros[1],
            a_scale=self.scales[0],
            b_scale=self.scales[1],
            **self.options,
        )
        planner.add(self.kind, record, a=sides[0], b=sides[1], y=y)
        return y


class Add(_Binary):
    """``qadd``."""

    label: ClassVar[str] = "sum"
    kind: ClassVar[Kind] = Kind.ADD

    @staticmethod
    def factors(given: Given) -> tuple[Tensor, Tensor]:
        steps = [torch.tensor(given[f"{side}_scale"], dtype=torch.float32) for side in "ab"]
        return output_multiplier(given, steps[0]), output_multiplier(given, steps[1])


class Mul(_Binary):
    """``qmul``."""

    label: ClassVar[str] = "product"
    kind: ClassVar[Kind] = Kind.MUL

    @staticmethod
    def factors(given: Given) -> tuple[Tensor, Tensor]:
        b = torch.tensor(given["b_scale"], dtype=torch.float32)
        step = float32_product(given["a_scale"], b)
        return output_multiplier(given, step), torch.zeros(())
