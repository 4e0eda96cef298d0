"""How an operation describes its output, as the kernels take it."""

from typing import Any

import attrs
import torch
from torch import Tensor

from .kernel import float32

__all__ = ["Output", "why_output"]

_STORED = (torch.int8, torch.uint8, torch.int16)


@attrs.frozen(kw_only=True)
class Output:
    """Output of a node.

    Args:
        dtype: of the result.
        scale, zero_point: its qparams.
        low, high: its clamp, less the zero point; exact in float32.
    """

    dtype: torch.dtype
    scale: Tensor
    zero_point: int
    low: float
    high: float

    @classmethod
    def of(cls, given: dict[str, Any]) -> "Output":
        """That of a node by its arguments."""
        return cls(
            dtype=given["y_dtype"],
            scale=float32(given["y_scale"]),
            zero_point=given["y_zero_point"],
            low=float(given["y_min"] - given["y_zero_point"]),
            high=float(given["y_max"] - given["y_zero_point"]),
        )

    @property
    def is_float(self) -> bool:
        """Whether the result is the float value of the accumulator."""
        return self.dtype == torch.float32

    @property
    def clamp(self) -> tuple[float, float, int]:
        """What :func:`~qcore_backends.cuda.arithmetic.requantized` takes behind the values."""
        return self.low, self.high, self.zero_point

    def multiplier(self, scale: Tensor) -> Tensor:
        """What a sum whose step is ``scale`` is multiplied by: ``float32(scale / y_scale)``, or
        ``scale`` itself for a float result."""
        return scale if self.is_float else scale / self.scale


def why_output(given: dict[str, Any]) -> str | None:
    """Why an output can't be written; None if it can."""
    if given["y_dtype"] == torch.float32 or given["y_dtype"] in _STORED:
        return None
    return f"the output is {given['y_dtype']}"
