"""Integer weights of layers that compute in float: dequantized once, not at every call.

A program dequantizes a stored weight and then computes with it in float32. Here that is done when
the program is lowered, by the operation itself: the float layer gets the very values that it would
get at each call, so every bit of its result is that of the reference. While it runs, such a weight
takes the memory of a float one; the artifact stays small.

torch's kernels for packed weights (``_weight_int4pack_mm_for_cpu``, ``_weight_int8pack_mm``) round
activations and scales to bfloat16, so they would not be exact. They are faster for a single token
and slower than the float32 product for many: ``benchmarks/linear_kernels.py`` has the figures.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..values import constant
from .kernel import Kernel

__all__ = ["DequantizedOnce"]


class DequantizedOnce(Kernel):
    """``dequantize_block`` of constants."""

    label: ClassVar[str] = "dequantized once"
    inputs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if any(given[name] is not None and constant(given[name]) is None for name in _TENSORS):
            return "the weight is computed at run time"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        tensors = [None if given[name] is None else constant(given[name]) for name in _TENSORS]
        value: Tensor = torch.ops.qcore.dequantize_block.default(*tensors, given["block"])
        self.value = value

    def forward(self) -> Tensor:
        return self.value


_TENSORS = ("q", "scale", "zero_point")
