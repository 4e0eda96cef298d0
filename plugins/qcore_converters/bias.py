"""The rounding of biases, as training simulates it.

Where the contract has an int32 bias it is part of the accumulator, in steps of input scale times
weight scale. That is fine at 8 bits; at 2 to 4 bits the accumulator of an output step is a few
integers, and half a step of the bias a tenth of an output step. A float32 bias is not rounded.
"""

import torch
from torch import Tensor

from qcore import (
    FakeQuantize,
    LearnedFakeQuantize,
    Numerics,
    PerChannel,
    PerTensor,
    straight_through,
)

__all__ = ["bias_step", "round_bias"]


def round_bias(bias: Tensor, step: Tensor) -> Tensor:
    """The nearest multiple of ``step``, with the gradient of ``bias``.

    Args:
        bias: ``[N]``.
        step: ``[]`` or ``[N]``, positive; gets no gradient.

    >>> round_bias(torch.tensor([0.24, 0.26]), torch.tensor(0.5))
    tensor([0.0000, 0.5000])
    """
    wide = step.double()
    rounded = torch.round(bias.detach().double() / wide) * wide
    return straight_through(rounded.to(bias.dtype), bias)


def bias_step(
    of_input: FakeQuantize, of_weight: FakeQuantize, numerics: Numerics, *, repeats: int = 1
) -> Tensor | None:
    """Step of a bias in the accumulator, float32 ``[]`` or ``[N]``; None where it is not rounded.

    Args:
        of_input, of_weight: the quantizers of the layer.
        numerics: the contract.
        repeats: number of groups that share the weight's scales, of a transposed convolution.
    """
    granularity = of_weight.scheme.granularity
    rounds = numerics.bias == "int32" and isinstance(granularity, PerTensor | PerChannel)
    if not (rounds and of_input.fake_quant_enabled and of_weight.fake_quant_enabled):
        return None
    step = _scale(of_input) * _scale(of_weight)
    return step.repeat(repeats) if step.ndim and repeats > 1 else step


def _scale(quantizer: FakeQuantize) -> Tensor:
    if isinstance(quantizer, LearnedFakeQuantize) and quantizer.started:
        # Not by qparams, whose check waits for a GPU.
        scale = quantizer.current()[0].detach()
        return scale if quantizer.unit is None else scale * quantizer.unit
    return quantizer.qparams().scale
