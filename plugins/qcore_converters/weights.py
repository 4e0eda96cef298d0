"""What every layer with a weight shares: BatchNorm folding, integer weights and biases, overflow
proof."""

import math

import attrs
import torch
from torch import Tensor, nn

from qcore import (
    Builder,
    FakeQuantize,
    Numerics,
    PerGroup,
    PerTensor,
    QParams,
    QuantizationError,
    QValue,
    pack,
    quantize_tensor,
)

__all__ = [
    "IntegerWeight",
    "batch_norm_factor",
    "fold_batch_norm",
    "fold_bias",
    "integer_weight",
    "put_float_weight",
    "put_weight",
]

_BIAS_MAX = 2**30
_INT32_MAX = 2**31 - 1


def batch_norm_factor(bn: nn.Module) -> Tensor:
    """``gamma / sqrt(running_var + eps)``, shape ``[C]``: what folding multiplies a weight with."""
    var, eps = bn.running_var, bn.eps
    assert isinstance(var, Tensor)
    assert isinstance(eps, float)
    factor = torch.rsqrt(var + eps)
    return factor * bn.weight if isinstance(bn.weight, Tensor) else factor


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, bn: nn.Module, *, ch_axis: int = 0, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that equals layer and BatchNorm in eval mode.

    Args:
        weight: output channels along ``ch_axis``; a transposed convolution has ``N / groups`` of
            them
            there, and its groups along dimension 0.
        bias: ``[N]`` or None.
        bn: a BatchNorm with running statistics over N channels.

    Returns:
        ``weight * factor`` and ``beta + (bias - mean) * factor`` with
        ``factor = gamma / sqrt(var + eps)``.

    References:
        Jacob et al., 2018, section 3.2 <https://arxiv.org/abs/1712.05877>
    """
    factor = batch_norm_factor(bn)
    weight = scale_channels(weight, factor, ch_axis=ch_axis, groups=groups)
    return weight, fold_bias(bias, bn, factor)


def fold_bias(bias: Tensor | None, bn: nn.Module, factor: Tensor) -> Tensor:
    """The bias alone of :func:`fold_batch_norm`, given its factor."""
    mean = bn.running_mean
    assert isinstance(mean, Tensor)
    shift = -mean if bias is None else bias - mean
    folded = shift * factor
    return folded + bn.bias if isinstance(bn.bias, Tensor) else folded


def scale_channels(weight: Tensor, factor: Tensor, *, ch_axis: int = 0, groups: int = 1) -> Tensor:
    """``weight`` with output channel n times ``factor[n]``."""
    tail = [1] * (weight.ndim - 2)
    if ch_axis == 0:
        return weight * factor.reshape(-1, 1, *tail)
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * factor.reshape(groups, 1, -1, *tail)).reshape(weight.shape)


@attrs.frozen(kw_only=True, eq=False)
class IntegerWeight:
    """A weight and its bias as a program holds them.

    Args:
        q: integers in their storage dtype, shaped like the weight.
        scale: float32 ``[]``, ``[N]`` or ``[N, G]``.
        zero_point: int32 like ``scale``; None if all are 0.
        bias: ``[N]``, int32 or float32; None without bias.
        qparams: scale, zero point and scheme.
    """

    q: Tensor
    scale: Tensor
    zero_point: Tensor | None
    bias: Tensor | None
    qparams: QParams


def integer_weight(
    weight: Tensor,
    bias: Tensor | None,
    quantizer: FakeQuantize,
    x: QValue,
    numerics: Numerics,
    *,
    ch_axis: int = 0,
    groups: int = 1,
) -> IntegerWeight:
    """Integers of a weight, and of the bias that goes with it, for the input ``x``.

    An int32 bias has the step ``x.scale * scale[n]``. Where a channel's weights are so small that
    its bias would not fit, its scale is widened until the bias takes 30 bits: the weights lose bits
    that the sum could not show.

    Raises:
        QuantizationError: the worst-case accumulator exceeds int32.
    """
    qparams = quantizer.qparams()
    grouped = isinstance(qparams.scheme.granularity, PerGroup)
    int_bias = bias is not None and numerics.bias == "int32" and not grouped
    if int_bias:
        assert bias is not None
        per_channel = bias.abs().reshape(groups if ch_axis == 1 else 1, -1).amax(0)
        if isinstance(qparams.scheme.granularity, PerTensor):
            per_channel = per_channel.max()
        least = (per_channel.double() / (x.scale * _BIAS_MAX)).float()
        qparams = attrs.evolve(qparams, scale=torch.maximum(qparams.scale, least))
    q = quantize_tensor(weight, qparams)
    zero_point = qparams.zero_point if bool(qparams.zero_point.any()) else None
    if int_bias:
        assert bias is not None
        step = torch.tensor(x.scale) * qparams.scale.cpu()
        step = step.repeat(groups) if ch_axis == 1 and step.ndim else step
        bias = torch.round(bias.double() / step.double().to(bias.device)).to(torch.int32)
    result = IntegerWeight(
        q=q, scale=qparams.scale, zero_point=zero_point, bias=bias, qparams=qparams
    )
    _prove_no_overflow(result, x, quantizer.where, ch_axis=ch_axis)
    return result


def _prove_no_overflow(w: IntegerWeight, x: QValue, where: str, *, ch_axis: int) -> None:
    x_max = max(x.dtype.quant_max - x.zero_point, x.zero_point - x.dtype.quant_min)
    if w.q.numel() == 0:
        return
    w_max = max(w.qparams.scheme.dtype.quant_max, -w.qparams.scheme.dtype.quant_min) * (
        1 if w.zero_point is None else 2
    )
    size = w.q.numel() // max(w.q.shape[ch_axis], 1)
    bias_max = _BIAS_MAX if w.bias is not None and not w.bias.is_floating_point() else 0
    if size * x_max * w_max + bias_max <= _INT32_MAX:
        return
    # The quick bound does not prove it; the weights themselves may.
    d = w.q.double()
    if w.zero_point is not None:
        d = d.abs() + w.zero_point.abs().double().max()
    dims = [i for i in range(d.ndim) if i != ch_axis]
    total = d.abs().sum(dims) * x_max
    worst = float(total.max()) + (float(w.bias.double().abs().max()) if bias_max else 0.0)  # type: ignore[union-attr]
    if worst > _INT32_MAX:
        raise QuantizationError(
            f"layer {where!r}: the accumulator can reach {worst:.0f}, int32 ends at {_INT32_MAX}; "
            "use "
            "fewer bits for weight or activation, or leave the layer in float"
        )


def put_weight(
    b: Builder, w: IntegerWeight, name: str = "weight"
) -> tuple[object, object, object, object]:
    """Writes weight, scale, zero point and bias into a program; the weight packed if it is
    narrow."""
    dtype = w.qparams.scheme.dtype
    if dtype.packable and w.q.ndim and w.q.shape[-1]:
        packed = b.constant(name, pack(w.q, dtype.bits))
        q = b.call("unpack", packed, dtype.bits, dtype.signed, w.q.shape[-1])
    else:
        q = b.constant(name, w.q)
    scale = b.constant(f"{name}_scale", w.scale)
    zero_point = None if w.zero_point is None else b.constant(f"{name}_zero_point", w.zero_point)
    bias = None if w.bias is None else b.constant(name.replace("weight", "bias"), w.bias)
    return q, scale, zero_point, bias


def put_float_weight(
    b: Builder, weight: Tensor, quantizer: FakeQuantize, name: str = "weight"
) -> object:
    """Writes a quantized weight and its way back to float, for a layer that computes in float."""
    qparams = quantizer.qparams()
    q = quantize_tensor(weight, qparams)
    zero_point = qparams.zero_point if bool(qparams.zero_point.any()) else None
    w = IntegerWeight(q=q, scale=qparams.scale, zero_point=zero_point, bias=None, qparams=qparams)
    value, scale, zero, _ = put_weight(b, w, name)
    block = qparams.scheme.granularity.block_shape(q.shape)
    assert math.prod(q.shape) == 0 or math.prod(block) > 0
    return b.call("dequantize_block", value, scale, zero, list(block))
