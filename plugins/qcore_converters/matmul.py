"""Matrix products of two activations, as in attention."""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qcore import Builder, Match, QConfig, QFloatOp, Quantizers, QValue

__all__ = ["QFloatMatmul"]


class QFloatMatmul(QFloatOp):
    """``torch.matmul`` of two quantized tensors, with its broadcasting."""

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qmatmul"

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        return None if len(match.inputs) == 2 else "one of its inputs is no float tensor"

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        return cls()

    def compute(self, *xs: Tensor) -> Tensor:
        return torch.matmul(*xs)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        operands = [part for x in xs for part in (x.value, x.scale, x.zero_point)]
        return self.result(b.call("qmatmul", *operands, *self.output_args()))
