"""What the layers on oneDNN share: packed weights, scales, and the activation after them."""

from typing import Any

import torch
from torch import Tensor

from ..values import constant, storage_of
from .isa import why_saturates
from .kernel import Kernel

__all__ = ["Packed"]


class Packed(Kernel):
    """A layer whose weight lies in oneDNN's own order.

    The scale of the input is passed as 1 and folded into that of the weight: passed by itself, some
    kernels multiply in another order. Activations go in as uint8, int8 ones shifted by 128, because
    the kernels for int8 activations divide instead of multiplying on some processors.
    """

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        weight, scale = constant(given["w"]), constant(given["w_scale"])
        if weight is None or scale is None:
            return "the weight is computed at run time"
        if given["w_zero_point"] is not None:
            return "the weight has a zero point; oneDNN takes symmetric weights"
        if scale.ndim > 1:
            return "the weight is quantized in groups"
        if storage_of(given["x"]) not in (torch.int8, torch.uint8):
            return "the input is no 8-bit tensor"
        if given["y_dtype"] not in (torch.int8, torch.uint8, torch.float32):
            return f"the output is {given['y_dtype']}"
        return why_saturates(weight)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        w_scale = constant(given["w_scale"])
        bias = None if given["bias"] is None else constant(given["bias"])
        assert w_scale is not None
        channels = self.channels(given)
        scale = torch.tensor(given["x_scale"], dtype=torch.float32) * w_scale
        if scale.numel() > 1:
            # A transposed convolution has one scale for each channel of a group.
            scale = scale.repeat(channels // scale.numel())
        self.scale = scale.reshape(-1).expand(channels).contiguous()
        if bias is not None and not bias.is_floating_point():
            # A program of another contract, lowered because the caller asked for it.
            bias = bias.float() * self.scale
        self.bias = bias
        self.zeros = torch.zeros(channels, dtype=torch.int32)
        self.shift = storage_of(given["x"]) == torch.int8
        self.x_zero_point = given["x_zero_point"] + (128 if self.shift else 0)
        self.dtype: torch.dtype = given["y_dtype"]
        self.output = (
            (1.0, 0, torch.float32)
            if self.dtype == torch.float32
            else (given["y_scale"], given["y_zero_point"], self.dtype)
        )
        self.post, self.low, self.high = _post_operation(given)

    @staticmethod
    def channels(given: dict[str, Any]) -> int:
        """Number of output channels."""
        weight = constant(given["w"])
        assert weight is not None
        return weight.shape[0]

    def unsigned(self, x: Tensor) -> Tensor:
        """The input as uint8: int8 plus 128, by flipping the sign bit."""
        return x.view(torch.uint8) ^ 128 if self.shift else x

    def clamped(self, y: Tensor) -> Tensor:
        """What the kernel's own activation does not clamp."""
        if self.low is None and self.high is None:
            return y
        return y.clamp_(self.low, self.high)


def _post_operation(given: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """The kernel's own activation, and what is left to clamp after it."""
    if given["y_dtype"] == torch.float32:
        return "none", None, None
    info = torch.iinfo(given["y_dtype"])
    low = given["y_min"] if given["y_min"] > info.min else None
    high = given["y_max"] if given["y_max"] < info.max else None
    # torch refuses an activation behind a convolution in three dimensions.
    if low is not None and low == given["y_zero_point"] and len(given.get("stride", ())) < 3:
        return "relu", None, high
    return "none", low, high
