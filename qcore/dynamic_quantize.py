"""Simulates an operation that quantizes its input at run time, one scale a token."""

import torch
from torch import Tensor, nn

from .config import QScheme
from .fake_quantize import straight_through
from .numerics import integers
from .qparams import token_scale

__all__ = ["DynamicQuantize"]


class DynamicQuantize(nn.Module):
    """Rounds each token to the integers of its own scale, in training.

    It owns no qparams and has no observer: the scale of a token is that of its largest magnitude,
    :func:`qcore.token_scale`. So nothing is calibrated, and nothing is clipped but by rounding: the
    gradient passes unchanged.

    Args:
        scheme: per token, symmetric.
        where: the place, for error messages.

    Attributes:
        fake_quant_enabled: forward returns quantized values; else its input.

    >>> from qcore import INT4, PerToken
    >>> quantize = DynamicQuantize(scheme=QScheme(dtype=INT4, granularity=PerToken()))
    >>> quantize(torch.tensor([[7.5, -7.5, 2.4], [0.75, 0.3, 0.0]]))
    tensor([[ 7.0000, -8.0000,  2.0000],
            [ 0.7000,  0.3000,  0.0000]])
    """

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__()
        self.scheme = scheme
        self.where = where
        self.fake_quant_enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """The quantized values of ``x``, ``[..., K]``, with the gradient of ``x``."""
        if not self.fake_quant_enabled:
            return x
        dtype = self.scheme.dtype
        value = x.detach().float()
        scale = token_scale(value, quant_min=dtype.quant_min, quant_max=dtype.quant_max)
        q = integers(
            value,
            scale=scale,
            zero_point=0,
            quant_min=dtype.quant_min,
            quant_max=dtype.quant_max,
        )
        return straight_through((q * scale).to(x.dtype), x)

    def get_extra_state(self) -> Tensor:
        """The switch; part of ``state_dict`` as uint8 ``[1]``."""
        return torch.tensor([self.fake_quant_enabled], dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Counterpart of :meth:`get_extra_state`."""
        self.fake_quant_enabled = bool(state.item())

    def extra_repr(self) -> str:
        return f"{self.scheme.describe()}, fake_quant_enabled={self.fake_quant_enabled}"
