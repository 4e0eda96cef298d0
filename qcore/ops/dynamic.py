"""A linear layer that quantizes its input itself, at run time, with one scale a token.

    s[t]    = max_k |x[t, k]| / ((quant_max - quant_min) / 2)                  float32
    q[t, k] = clamp(rint(x[t, k] / s[t]), quant_min, quant_max)
    acc     = sum_k q[t, k] * (w[n, k] - w_zero_point[n])                      exact integers
    y[t, n] = (float32(acc) * w_scale[n]) * s[t] + bias[n]                     float32

Each operation of the last line is rounded to float32 by itself, from left to right. With groups
along K, ``float32(acc) * w_scale[n]`` is the float32 sum over the groups in their order, as in
``qlinear``. The scale of the token comes last but for the bias, so that an engine can use an
integer product whose output scale is that of the channel.

Tokens never meet: a row of the result depends on its row of the input alone, whatever the batch.
The contract of a program plays no part, since the result is float and the sums are exact.

References:
    Yao et al., 2022, "ZeroQuant", section 3.2 <https://arxiv.org/abs/2206.01861>
"""

import torch
from torch import Tensor

from ..errors import QuantizationError
from ..numerics import Numerics, integers
from ..qparams import token_scale
from .library import define
from .linear import qlinear

__all__ = ["qlinear_dynamic"]

_FLOAT = (1.0, 0, 0, 0, torch.float32, Numerics().key)
"""The float value of the accumulator, as the output of ``qlinear``."""


def _qlinear_dynamic_meta(
    x: Tensor,
    quant_min: int,
    quant_max: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    if x.dtype != torch.float32 or not x.ndim or w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise QuantizationError(
            f"qlinear_dynamic: x is {x.dtype} {list(x.shape)} and w {list(w.shape)}; they must be "
            "float32 [..., K] and integers [N, K]"
        )
    if not -(2**15) <= quant_min < 0 < quant_max < 2**15:
        raise QuantizationError(
            f"qlinear_dynamic: quant_min={quant_min}, quant_max={quant_max}; they must lie on both "
            "sides of 0 and fit 16 bits"
        )
    if bias is not None and not bias.is_floating_point():
        raise QuantizationError(
            "qlinear_dynamic: each token has its own step, so there is none for an int32 bias; "
            "give it in float32"
        )
    return x.new_empty((*x.shape[:-1], w.shape[0]))


@define(
    "qlinear_dynamic(Tensor x, int quant_min, int quant_max, Tensor w, Tensor w_scale, "
    "Tensor? w_zero_point, Tensor? bias) -> Tensor",
    meta=_qlinear_dynamic_meta,
)
def qlinear_dynamic(
    x: Tensor,
    quant_min: int,
    quant_max: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Linear layer over integers that are found from ``x`` token by token.

    Args:
        x: ``[..., K]``, float32. A token with NaN or an infinity gives a row of NaN.
        quant_min, quant_max: range of the integers of ``x``, on both sides of 0.
        w: ``[N, K]``, integers.
        w_scale: float32 ``[]``, ``[N]`` or ``[N, G]``.
        w_zero_point: int32 like ``w_scale``, or None for 0.
        bias: float32 ``[N]``.

    Returns:
        float32 ``[..., N]``, contiguous.

    Raises:
        QuantizationError: dtypes, shapes or a range that do not belong together.
    """
    _qlinear_dynamic_meta(x, quant_min, quant_max, w, w_scale, w_zero_point, bias)
    scale = token_scale(x, quant_min=quant_min, quant_max=quant_max)
    q = integers(x, scale=scale, zero_point=0, quant_min=quant_min, quant_max=quant_max)
    q = q.to(torch.int8 if quant_min >= -128 and quant_max <= 127 else torch.int16)
    y: Tensor = qlinear(q, 1.0, 0, w, w_scale, w_zero_point, None, *_FLOAT)
    y.mul_(scale)
    return y if bias is None else y.add_(bias)
