"""What layers with a constant weight have in common: the terms of their epilogue.

    t = float32(acc + correction[n]) * scale[n]  [+ bias[n]]  [+ other * other_scale]

``correction`` holds an int32 bias and ``-x_zero * sum_k w[n, k]``, so zero points cost nothing.

Tensor cores saturate at 32 bits. No sum on the way reaches that: raw operands are no larger than
128, and ``sum_k |w| * max|x - x_zero|``, which is as large at least, is found to fit when a program
is lowered. The correction itself may wrap around, because the sum with it does so too.
"""

from typing import Any

import torch
from torch import Tensor

from qcore import largest_magnitude

from ..values import constant, storage_of
from .kernel import INT32_MAX, Kernel, float32, given_tensor, why_integers
from .output import Output, why_output

__all__ = ["Layer", "effective_weight", "why_layer", "why_weight"]


class Layer(Kernel):
    """A layer with a constant weight.

    Attributes:
        weight: int8, in the order of the kernel.
        parts: groups along K with a scale of their own; ``grouped`` says whether they are added in
            float32 even if there is one.
        correction: int32 ``[parts, N]``, or None for 0.
        scale: float32 ``[parts, N]``.
        bias: float32 ``[N]``, or None.
        other_zero, other_scale: of a residual.
    """

    weight: Tensor
    correction: Tensor | None
    scale: Tensor
    bias: Tensor | None

    def hold_terms(self, given: dict[str, Any], weight: Tensor, zero: int) -> None:
        """Keeps the terms.

        Args:
            weight: int8 ``[N, ...]``, less its zero points.
            zero: the zero point of the activations as the kernel takes them.
        """
        self.output = output = Output.of(given)
        columns = len(weight)
        w_scale = given_tensor(given, "w_scale")
        self.grouped = w_scale.ndim == 2
        self.parts = w_scale.shape[1] if self.grouped else 1
        step = float32(given.get("x_scale", 1.0)) * w_scale
        scale = (step if self.grouped else step.reshape(-1, 1)).expand(columns, self.parts).t()
        bias = None if given["bias"] is None else given_tensor(given, "bias")
        integer = bias is not None and not bias.is_floating_point()
        correction = -zero * weight.to(torch.int64).reshape(columns, self.parts, -1).sum(2)
        if bias is not None and integer:
            correction += bias.reshape(-1, 1)
        self.hold("correction", correction.t().to(torch.int32) if zero or integer else None)
        # Groups are added before the step of the output is divided out.
        self.hold("scale", scale if self.grouped else output.multiplier(scale))
        bias = None if integer else bias
        if bias is not None and not self.grouped:
            bias = output.multiplier(bias)
        self.hold("bias", bias)
        self.other_zero, self.other_scale = 0, 1.0
        if given.get("other") is not None:
            self.other_zero = given["other_zero_point"]
            self.other_scale = float(output.multiplier(float32(given["other_scale"])))

    def terms(self, unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Correction, scale and bias, as kernels take them; ``unused`` stands for one that is not
        there."""
        correction = unused if self.correction is None else self.correction
        return correction, self.scale, unused if self.bias is None else self.bias

    def variant(self, other: Tensor | None) -> dict[str, bool]:
        """Which terms there are, as constants of a kernel."""
        return {
            "CORRECTED": self.correction is not None,
            "BIASED": self.bias is not None,
            "ADDED": other is not None,
            "FLOAT": self.output.is_float,
        }


def effective_weight(given: dict[str, Any]) -> Tensor:
    """The weight of a node less its zero points, int8 shaped like it."""
    return _centred(given).to(torch.int8)


def _centred(given: dict[str, Any]) -> Tensor:
    """``w - w_zero_point`` in int32."""
    weight = given_tensor(given, "w").int()
    if given["w_zero_point"] is None:
        return weight
    zero = given_tensor(given, "w_zero_point")
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
    weight = _centred(given)
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
    return why_weight(given, largest_magnitude(dtype, given["x_zero_point"]))
