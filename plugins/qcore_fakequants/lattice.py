"""Rounding to a lattice whose step and zero point may be learned: one function, all gradients.

With ``u = x / scale``, ``low = quant_min - zero_point`` and ``high = quant_max - zero_point``

    y = clamp(round(u), low, high) * scale

which is the formula of qcore, and straight through the rounding

===================== ============== ===== ===== ===============================
gradient of y by      inside         below above
===================== ============== ===== ===== ===============================
``x``                 1              0     0
``scale``             round(u) - u   low   high  0 inside without ``through``
``zero_point``        0              -s    -s    ``s`` is the scale
===================== ============== ===== ===== ===============================

Inside is ``low < u < high``, or with ``rounded`` where ``round(u)`` is within ``low..high``. What a
method learns (the step, its logarithm, a clip) is a small tensor that scale and zero point are
computed from, so autograd does the rest.

For float32 on a CPU :mod:`qcore_fakequants.compiled` computes this in one pass over memory. What is
below in operations of torch is for other dtypes, devices and granularities, for torch.compile, and
for a machine without a C++ compiler; values and gradients are the same.
"""

from typing import Any

import torch
from torch import Tensor

from qcore import Granularity, QDtype, expand

from .compiled import Kernel, Rule, kernel, takes

__all__ = ["fake_quantize_learned", "gradient_scale"]


def fake_quantize_learned(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    dtype: QDtype,
    granularity: Granularity,
    rounded: bool = False,
    through: bool = True,
    count: int | None = None,
) -> Tensor:
    """``x`` on the lattice of scale and zero point, with the gradients of this module's table.

    NaN stays NaN: where a model is trained it must be seen.

    Args:
        x: any shape, floating point.
        scale: float32, positive, shaped by ``granularity``; gets its gradient if it asks for one.
        zero_point: integers in any dtype, shaped like ``scale``; gets its gradient if it is
            floating point and asks for one.
        dtype: the range of the integers.
        granularity: what shares a scale.
        rounded: whether "inside" is decided by the rounded value.
        through: whether the error of rounding inside counts for the scale.
        count: if given, the gradients by scale and zero point are multiplied by
            :func:`gradient_scale` with it.

    Returns:
        Shaped like ``x`` and of its dtype, equal to what :func:`qcore.quantize_tensor` and
        :func:`qcore.dequantize_tensor` give.

    >>> from qcore import INT4, PerTensor
    >>> x = torch.tensor([0.3, 3.2, 9.0], requires_grad=True)
    >>> scale = torch.tensor(0.5, requires_grad=True)
    >>> y = fake_quantize_learned(x, scale, torch.tensor(0), dtype=INT4, granularity=PerTensor())
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist(), round(scale.grad.item(), 4)
    ([0.5, 3.0, 3.5], [1.0, 1.0, 0.0], 7.0)
    """
    wide = torch.float64 if x.dtype == torch.float64 or dtype.bits > 16 else torch.float32
    result: Tensor = _Lattice.apply(  # type: ignore[no-untyped-call]
        x,
        expand(scale, granularity, x.shape),
        expand(zero_point, granularity, x.shape).to(wide),
        dtype.quant_min,
        dtype.quant_max,
        rounded,
        through,
        count,
    )
    return result


def gradient_scale(zero_point: Tensor, *, count: int, quant_min: int, quant_max: int) -> Tensor:
    """``1 / sqrt(count * Q_P)``, what LSQ multiplies the gradient of a step by.

    ``Q_P`` is the number of steps above the zero point, as in the paper, or one less than below it
    where that is more: the two agree for signed integers and a zero point of 0.

    Args:
        zero_point: integers in any dtype, any shape.
        count: number of values that a step counts for.
        quant_min, quant_max: range of the integers.

    Returns:
        float32, shaped like ``zero_point``.

    References:
        Esser et al., 2020, section 2.2 <https://arxiv.org/abs/1902.08153>

    >>> g = gradient_scale(torch.tensor(0), count=100, quant_min=-4, quant_max=3)
    >>> round(g.item() ** -2)
    300
    """
    levels = torch.maximum(quant_max - zero_point, zero_point - quant_min - 1).clamp(min=1)
    return (levels.float() * count).rsqrt()


class _Lattice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        rounded: bool,
        through: bool,
        count: int | None,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.options = quant_min, quant_max, rounded, through, count
        if (compiled := _compiled(x, scale, zero_point)) is not None:
            return compiled.values(x, scale, zero_point, quant_min, quant_max)
        low, high = quant_min - zero_point, quant_max - zero_point
        q = _clamp(_quotient(x, scale, low).round_(), low, high)
        # The value is computed in float32 whatever the input is, as dequantize does.
        return q.to(scale.dtype).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, scale, zero_point = ctx.saved_tensors
        quant_min, quant_max, rounded, through, count = ctx.options
        _, of_scale, of_zero_point = ctx.needs_input_grad[:3]
        rule = Rule(rounded, through, count, of_scale, of_zero_point)
        compiled = _compiled(x, scale, zero_point)
        gradients = _gradients
        if compiled is not None and not torch.is_grad_enabled():
            gradients = compiled.gradients
        found = gradients(grad, x, scale, zero_point, quant_min, quant_max, rule)
        return (*found, None, None, None, None, None)


def _compiled(x: Tensor, scale: Tensor, zero_point: Tensor) -> Kernel | None:
    # torch.compile makes kernels of its own out of the operations.
    if torch.compiler.is_compiling() or not takes(x, scale, zero_point):
        return None
    return kernel()


def _quotient(x: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    return x.to(low.dtype) / scale.to(low.dtype)


def _clamp(u: Tensor, low: Tensor, high: Tensor) -> Tensor:
    # Not torch.clamp, which is not vectorized for bounds that are tensors.
    return torch.minimum(torch.maximum(u, low), high)


def _gradients(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    rule: Rule,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients by ``x``, scale and zero point; None for those that nobody asks for."""
    low, high = quant_min - zero_point, quant_max - zero_point
    form = _by_numbers if _has_numbers(x, scale, low) else _by_tensors
    by_x, by_scale, by_zero_point = form(grad, x, scale, low, high, rule)
    if rule.values_per_scale is not None:
        factor = gradient_scale(
            zero_point, count=rule.values_per_scale, quant_min=quant_min, quant_max=quant_max
        )
        by_scale = None if by_scale is None else by_scale * factor
        by_zero_point = None if by_zero_point is None else by_zero_point * factor
    return by_x, by_scale, by_zero_point


def _by_tensors(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    rule: Rule,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients before their factor, in operations that every tensor has."""
    u = _quotient(x, scale, low)
    r = torch.round(u)
    inside = r == _clamp(r, low, high) if rule.rounded else (u > low) & (u < high)
    # Not a product with the mask, which would turn an infinite gradient into NaN.
    by_x = torch.where(inside, grad, _zero(x))
    wide = grad.to(low.dtype)
    by_scale = by_zero_point = None
    if rule.of_scale:
        slope = torch.where(inside, r - u if rule.through else 0.0, _clamp(r, low, high))
        by_scale = (wide * slope).sum_to_size(scale.shape).to(scale.dtype)
    if rule.of_zero_point:
        outside = torch.where(inside, 0.0, wide)
        by_zero_point = -(outside * scale).sum_to_size(low.shape)
    return by_x, by_scale, by_zero_point


def _has_numbers(x: Tensor, scale: Tensor, low: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and scale.ndim == low.ndim == 0
        and x.dtype == low.dtype
        and x.device.type == "cpu"
    )


def _by_numbers(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    low: Tensor,
    high: Tensor,
    rule: Rule,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same for one scale, in half as many passes over memory."""
    u = _quotient(x, scale, low)
    r = torch.round(u)
    first, last = low.item(), high.item()
    # Rounded values are integers, so half a step beyond the last one there is nothing.
    place, reach = (r, 0.5) if rule.rounded else (u, 0.0)

    def inside(values: Tensor) -> Tensor:
        """Values where the place is inside, 0 elsewhere: what the gradient of a clamp is."""
        masked: Tensor = torch.ops.aten.hardtanh_backward(
            values, place, first - reach, last + reach
        )
        return masked

    by_x = inside(grad)
    by_scale = by_zero_point = None
    if rule.of_scale:
        q = r.clamp(first, last)
        slope = q.sub_(inside(u if rule.through else q))
        by_scale = slope.mul_(grad).sum().to(scale.dtype)
    if rule.of_zero_point:
        by_zero_point = -(grad.sum() - by_x.sum()) * scale
    return by_x, by_scale, by_zero_point


def _zero(x: Tensor) -> Tensor | float:
    if not torch.compiler.is_compiling():
        return 0.0
    # A zero that depends on x. Else torch.compile keeps comparisons for backward, one byte each,
    # and inductor stores these twenty times slower than floats on a CPU (torch 2.11 to 2.13).
    return torch.sign(x) * 0.0
