"""The last step of the backend's contract for kernels that are plain torch."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["Finish", "slices"]

_AT_ONCE = 1 << 18
"""Values of a slice of the batch: temporaries of four bytes a value stay in a core's cache."""


class Finish:
    """From an exact accumulator in float32 to the output, in its own memory.

    ``t = acc * scale``; for a float output that is all, else
    ``clamp(round_half_even(t * float32(1 / y_scale) + y_zero_point))``.

    Args:
        given: arguments of the node.
        scale: float32, what a step of the accumulator stands for; broadcasts.
    """

    def __init__(self, given: dict[str, Any], scale: Tensor) -> None:
        self.scale = scale
        self.dtype: torch.dtype = given["y_dtype"]
        self.zero_point = given["y_zero_point"]
        self.low, self.high = given["y_min"], given["y_max"]
        self.inverse = (torch.tensor(1.0) / torch.tensor(given["y_scale"])).item()

    def __call__(self, acc: Tensor) -> Tensor:
        """The result in float32; integers if the output is."""
        acc.mul_(self.scale)
        if self.dtype == torch.float32:
            return acc
        return acc.mul_(self.inverse).add_(self.zero_point).round_().clamp_(self.low, self.high)


def slices(x: Tensor) -> list[slice]:
    """Ranges of dimension 0 that are worked through one after the other."""
    if x.ndim == 0 or x.numel() <= _AT_ONCE:
        return [slice(None)]
    step = max(1, _AT_ONCE * x.shape[0] // x.numel())
    return [slice(begin, begin + step) for begin in range(0, x.shape[0], step)]
