"""Activations that a layer takes in: those that clamp its output, relu and its family."""

import math

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from qcore import Builder, Match, Step

__all__ = ["CLAMPS", "Clamp", "clamp_of"]

CLAMPS = ("relu", "relu6", "hardtanh")
"""Operations that clamp, and so are a narrower output range of the layer before them."""


def _finite(bound: float | None) -> float | None:
    return bound if bound is not None and math.isfinite(bound) else None


@attrs.frozen
class Clamp:
    """A clamp to ``[low, high]``; None is no bound, and so is what no value can reach."""

    low: float | None = attrs.field(default=None, converter=_finite)
    high: float | None = attrs.field(default=None, converter=_finite)

    def __call__(self, y: Tensor) -> Tensor:
        """The clamp in the memory of ``y``, which is a result that nobody else holds.

        By the operations that are fastest in backward: that of ``torch.clamp`` goes over its
        tensors three times. At the bounds the gradient is 0, as that of relu.
        """
        low, high = self.low, self.high
        if low is None and high is None:
            return y
        if low == 0.0 and high is None:
            return torch.relu_(y)
        if low is not None and high is not None and low <= high:
            return F.hardtanh_(y, low, high)
        return y.clamp_(low, high)

    def emit(self, b: Builder, y: object) -> object:
        """The clamp on a float value of a program."""
        if self.low is None and self.high is None:
            return y
        return b.function(torch.ops.aten.clamp.default, y, self.low, self.high)


def clamp_of(match: Match) -> Clamp:
    """The clamp that a match ends with; one without bounds if it has none."""
    step = match.step(*CLAMPS)
    if step is None:
        return Clamp()
    if step.op == "relu":
        return Clamp(0.0)
    if step.op == "relu6":
        return Clamp(0.0, 6.0)
    return Clamp(*_bounds(step))


def _bounds(step: Step) -> tuple[float | None, float | None]:
    if step.module is not None:
        return float(step.module.min_val), float(step.module.max_val)  # type: ignore[arg-type]
    given = step.arguments
    low, high = (given.get(a, given.get(b)) for a, b in (("min_val", "min"), ("max_val", "max")))
    return None if low is None else float(low), None if high is None else float(high)
