"""Sums, differences, products, extremes and concatenations of quantized values, and functions of
one value by lookup table."""

import operator
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from qcore import (
    Builder,
    FakeQuantize,
    Match,
    QConfig,
    QFloatOp,
    QParams,
    Quantizers,
    QValue,
    quantize_tensor,
)

from .activation import Clamp, clamp_of
from .call import FloatCall

__all__ = [
    "QFloatAdd",
    "QFloatCat",
    "QFloatGlu",
    "QFloatMaximum",
    "QFloatMinimum",
    "QFloatMul",
    "QFloatStack",
    "QFloatSub",
    "QFloatTable",
]


class QFloatTable(QFloatOp):
    """Any function of one value: a table with an entry for each integer.

    The table is made by running the float function on every level of the input, so it holds for any
    activation, and QFloat looks up in the same table as Q.
    """

    program_op: ClassVar[str] = "qtable"

    def __init__(self, call: FloatCall, clamp: Clamp) -> None:
        super().__init__()
        self.call = call
        self.clamp = clamp

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        if len(match.inputs) != 1:
            return "it has several tensor inputs"
        module = match.first.module
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            return "a table holds one function, and this one differs by channel"
        return None

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        # An activation that ends a longer chain clamps; one that stands alone is the function.
        clamp = clamp_of(match) if len(match.steps) > 1 else Clamp()
        return cls(FloatCall(match.first), clamp)

    def compute(self, *xs: Tensor) -> Tensor:
        return self.clamp(self.call(*xs))

    def emit(self, b: Builder, *xs: QValue) -> Any:
        (x,) = xs
        assert self.output_quantizer is not None
        return _looked_up(b, x, self.compute, self.output_quantizer.qparams())


def _looked_up(
    b: Builder, x: QValue, function: Callable[[Tensor], Tensor], qparams: QParams
) -> QValue:
    """``function(x)`` by a table of what the function gives for every level of ``x``."""
    low, high = x.dtype.quant_min, x.dtype.quant_max
    device = qparams.scale.device
    levels = torch.arange(low, high + 1, dtype=torch.int32, device=device)
    values = (levels - x.zero_point).float() * torch.tensor(x.scale, device=device)
    table = quantize_tensor(function(values.reshape(1, -1)).reshape(-1), qparams)
    return QValue.of(b.call("qtable", x.value, b.constant("table", table), low), qparams)


class QFloatGlu(QFloatOp):
    """``a * sigmoid(b)`` of the two halves of a tensor: a table for the gate, then a product.

    Args:
        dim: along which the halves lie.
        gate: quantizer of the sigmoid.
    """

    program_op: ClassVar[str] = "qmul"

    def __init__(self, dim: int, gate: FakeQuantize) -> None:
        super().__init__()
        self.dim = dim
        self.gate = gate

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        first = match.first
        dim = first.module.dim if first.module is not None else first.arguments.get("dim", -1)
        return cls(int(dim), quantizers.activation("gate"))  # type: ignore[arg-type]

    def inner_quantizers(self) -> Iterator[FakeQuantize]:
        yield self.gate

    def compute(self, *xs: Tensor) -> Tensor:
        value, gate = xs[0].chunk(2, self.dim)
        return value * self.gate(torch.sigmoid(gate))  # type: ignore[no-any-return]

    def emit(self, b: Builder, *xs: QValue) -> Any:
        (x,) = xs
        halves = b.function(torch.ops.aten.chunk.default, x.value, 2, self.dim)
        value, gate = (x.replace(b.function(operator.getitem, halves, i)) for i in (0, 1))
        gate = _looked_up(b, gate, torch.sigmoid, self.gate.qparams())
        operands = [part for v in (value, gate) for part in (v.value, v.scale, v.zero_point)]
        return self.result(b.call("qmul", *operands, *self.output_args()))


class _Binary(QFloatOp):
    """A function of two tensors."""

    def __init__(self, call: FloatCall, clamp: Clamp) -> None:
        super().__init__()
        self.call = call
        self.clamp = clamp

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        if match.first.arguments.get("alpha", 1) != 1 and len(match.inputs) == 2:
            return "alpha is not 1"
        if len(match.inputs) not in (1, 2):
            return f"it has {len(match.inputs)} tensor inputs"
        return None

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> QFloatOp:
        if len(match.inputs) == 1:
            # With a number it is a function of one value.
            return QFloatTable.from_match(match, quantizers)
        return cls(FloatCall(match.first), clamp_of(match))

    def compute(self, *xs: Tensor) -> Tensor:
        return self.clamp(self.call(*xs))

    def emit(self, b: Builder, *xs: QValue) -> Any:
        operands = [part for x in xs for part in (x.value, x.scale, x.zero_point)]
        y = b.call(self.program_op, *operands, *self.output_args(self.clamp.low, self.clamp.high))
        return self.result(y)


class QFloatAdd(_Binary):
    """``a + b`` (+ clamp); with a number, a table."""

    program_op: ClassVar[str] = "qadd"


class QFloatSub(_Binary):
    """``a - b`` (+ clamp); with a number on either side, a table."""

    program_op: ClassVar[str] = "qsub"


class QFloatMul(_Binary):
    """``a * b`` (+ clamp); with a number, a table."""

    program_op: ClassVar[str] = "qmul"


class _Extreme(_Binary):
    """The larger or smaller of two values, both brought to the output's scale first.

    Rounding to a lattice never changes the order of two values, so this is the extreme of the real
    values, rounded once.
    """

    program_op: ClassVar[str] = "qrequantize"
    choose: ClassVar[Callable[..., Any]]

    def emit(self, b: Builder, *xs: QValue) -> Any:
        sides = [
            b.call("qrequantize", x.value, x.scale, x.zero_point, *self.output_args()) for x in xs
        ]
        return self.result(b.function(type(self).choose, *sides))


class QFloatMaximum(_Extreme):
    """``torch.maximum``."""

    choose = torch.ops.aten.maximum.default


class QFloatMinimum(_Extreme):
    """``torch.minimum``."""

    choose = torch.ops.aten.minimum.default


class QFloatCat(QFloatOp):
    """Concatenation; each input is requantized to the one output scale."""

    program_op: ClassVar[str] = "qcat"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        return cls(int(match.first.arguments.get("dim", 0)))

    def compute(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, self.dim)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        y = b.call(
            "qcat",
            [x.value for x in xs],
            [x.scale for x in xs],
            [x.zero_point for x in xs],
            self.dim,
            *self.output_args(),
        )
        return self.result(y)


class QFloatStack(QFloatCat):
    """Concatenation along a new dimension."""

    def compute(self, *xs: Tensor) -> Tensor:
        return torch.stack(xs, self.dim)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        unsqueeze = torch.ops.aten.unsqueeze.default
        return super().emit(b, *(x.replace(b.function(unsqueeze, x.value, self.dim)) for x in xs))
