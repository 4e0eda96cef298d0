"""Matrix products of two activations, as in attention, with a clamp."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qcore import (
    Builder,
    Match,
    Numerics,
    QConfig,
    QFloatOp,
    QScheme,
    QuantizationError,
    Quantizers,
    QValue,
)

from .activation import Clamp, clamp_of

__all__ = ["QFloatAddedMatmul", "QFloatMatmul", "largest", "overflow"]

_INT32_MAX = 2**31 - 1


class QFloatMatmul(QFloatOp):
    """``torch.matmul`` of two quantized tensors, with its broadcasting (+ clamp)."""

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qmatmul"

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        assert qconfig.activation is not None
        scheme = qconfig.activation.scheme
        assert isinstance(scheme, QScheme)
        dtype = scheme.dtype
        largest = dtype.quant_max - dtype.quant_min
        if scheme.symmetric and dtype.signed:
            largest = max(-dtype.quant_min, dtype.quant_max)
        return overflow(_terms(match), largest, largest)

    @classmethod
    def why_not_by(cls, numerics: Numerics, qconfig: QConfig) -> str | None:
        if numerics.accumulator != "int32":
            return f"a product of activations has no accumulator {numerics.accumulator!r}"
        return None

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        return cls(quantizers.where, _terms(match), clamp_of(match))

    def __init__(self, where: str, terms: int | None, clamp: Clamp) -> None:
        super().__init__()
        self.where = where
        self.terms = terms
        self.clamp = clamp

    def compute(self, *xs: Tensor) -> Tensor:
        return self.clamp(torch.matmul(*xs))

    def prove_no_overflow(self, xs: Sequence[QValue]) -> None:
        """Refuses operands of which the accumulator can exceed int32."""
        reason = overflow(self.terms, *map(largest, xs))
        if reason is not None:
            raise QuantizationError(f"layer {self.where!r}: {reason}")

    def emit(self, b: Builder, *xs: QValue) -> Any:
        self.prove_no_overflow(xs)
        operands = [part for x in xs for part in (x.value, x.scale, x.zero_point)]
        y = b.call("qmatmul", *operands, *self.output_args(self.clamp.low, self.clamp.high))
        return self.result(y if self.output_quantizer is not None else self.clamp.emit(b, y))


class QFloatAddedMatmul(QFloatMatmul):
    """``baddbmm`` and ``addmm``: ``beta * c + alpha * (a @ b)``, where ``c`` stays float.

    Attention adds its mask so. What it adds may be minus infinity, which no integer stands for.
    """

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        op = super().from_match(match, quantizers)
        op.beta, op.alpha = (float(match.first.arguments.get(k, 1)) for k in ("beta", "alpha"))
        return op

    def __init__(self, where: str, terms: int | None, clamp: Clamp) -> None:
        super().__init__(where, terms, clamp)
        self.beta = 1.0
        self.alpha = 1.0

    def compute(self, *xs: Tensor) -> Tensor:
        left, right, added = xs
        return self.clamp(self.beta * added + self.alpha * torch.matmul(left, right))

    def emit(self, b: Builder, *xs: QValue) -> Any:
        *factors, added = xs
        self.prove_no_overflow(factors)
        operands = [part for x in factors for part in (x.value, x.scale, x.zero_point)]
        to_float = (1.0, 0, 0, 0, torch.float32, self.numerics.key)
        y = b.call("qmatmul", *operands, *to_float)
        # In float, each step rounded by itself, for QFloat and Q alike.
        times = torch.ops.aten.mul.Tensor
        y = b.function(
            torch.ops.aten.add.Tensor,
            b.function(times, added, self.beta),
            b.function(times, y, self.alpha),
        )
        y = self.clamp.emit(b, y)
        if self.output_quantizer is None:
            return y
        return self.integers(b, y, self.output_quantizer.qparams())


def _terms(match: Match) -> int | None:
    """Number of products in a sum; None where it is known only at run time."""
    size = match.inputs[0].meta["val"].shape[-1]
    return size if isinstance(size, int) else None


def largest(x: QValue) -> int:
    """Largest absolute value of the integers less their zero point."""
    return max(x.zero_point - x.dtype.quant_min, x.dtype.quant_max - x.zero_point)


def overflow(terms: int | None, a: int, b: int) -> str | None:
    """Why a sum of so many products can exceed int32; None if it can't, or the number is
    unknown."""
    terms = 1 if terms is None else terms
    if terms * a * b <= _INT32_MAX:
        return None
    return (
        f"{terms} products of integers up to {a} and {b} can reach {terms * a * b}, int32 ends at "
        f"{_INT32_MAX}; use fewer bits, or leave it in float"
    )
