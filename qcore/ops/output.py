"""The last step of every computing operation: from an exact accumulator to the output."""

import attrs
import torch
from torch import Tensor

from ..numerics import Numerics, requantize, scalar

__all__ = ["Output", "centred", "largest_magnitude"]


def _contract(key: str) -> Numerics:
    return Numerics.parse(key)


@attrs.frozen
class Output:
    """Qparams, clamp, storage and contract of an output, in the order of the schemas."""

    scale: float
    zero_point: int
    min: int
    max: int
    dtype: torch.dtype
    numerics: Numerics = attrs.field(converter=_contract)

    def finish(
        self,
        acc: Tensor,
        scale: Tensor,
        *,
        bias: Tensor | None = None,
        other: Tensor | None = None,
        other_scale: float = 1.0,
    ) -> Tensor:
        """Requantizes ``acc`` whose step is ``scale``, or gives its float value.

        Args:
            acc: exact integers in float32 or float64, an int32 bias included.
            scale: float32, broadcasts against ``acc``.
            bias: float32, broadcasts; added after the scale.
            other: integers less their zero point, with the step ``other_scale``; broadcasts.

        Returns:
            float32, a new tensor; integers within the clamp, or values if ``dtype`` is float32.
        """
        if self.dtype == torch.float32:
            # Integers have no negative zero, but products of floats that stand for them do.
            value = (acc.to(torch.float32) + 0.0) * scale
            if bias is not None:
                value.add_(bias)
            if other is not None:
                value = value + other.to(torch.float32) * scalar(other_scale, acc)
            return value
        return requantize(
            acc,
            scale=scale,
            y_scale=self.scale,
            y_zero_point=self.zero_point,
            y_min=self.min,
            y_max=self.max,
            numerics=self.numerics,
            bias=bias,
            other=other,
            other_scale=other_scale,
        )


def centred(q: Tensor, zero_point: int | Tensor) -> Tensor:
    """``q - zero_point`` in float32, a new tensor; exact for storage of up to 16 bits."""
    x = q.to(torch.float32, copy=True)
    if isinstance(zero_point, int) and zero_point == 0:
        return x
    return x.sub_(zero_point)


def largest_magnitude(dtype: torch.dtype, zero_point: int) -> int:
    """Largest magnitude of ``q - zero_point`` for any ``q`` of a storage dtype.

    >>> largest_magnitude(torch.int8, 3), largest_magnitude(torch.uint8, 0)
    (131, 255)
    """
    info = torch.iinfo(dtype)
    return max(info.max - zero_point, zero_point - info.min)
