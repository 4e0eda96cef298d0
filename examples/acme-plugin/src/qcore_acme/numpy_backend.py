"""Linear layers on NumPy, equal to the reference on every integer.

Sums are exact in float64, because no accumulator of a program exceeds int32. Then come the float32
steps of qcore's default contract, each rounded by itself:

    y = clamp(rint(float32(acc) * M[n]) + y_zero_point, low, high),   M[n] = (sx * sw[n]) / sy

Groups along K have a sum each, scaled and added up in float32.
"""

import functools
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx, nn

from qcore import Backend

__all__ = ["NumpyBackend", "linear"]

Array = np.ndarray[Any, Any]

_F32 = np.float32


def linear(
    x: Tensor,
    x_scale: float,
    x_zero_point: int,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    y_scale: float,
    y_zero_point: int,
    y_min: int,
    y_max: int,
    y_dtype: torch.dtype,
    numerics: str,
) -> Tensor:
    """What ``torch.ops.qcore.qlinear`` computes by the default contract.

    Args:
        x: integers ``[..., K]``.
        w: integers ``[N, K]``.
        w_scale: float32 ``[]``, ``[N]`` or, with groups along K, ``[N, G]``.
        w_zero_point: int32 like ``w_scale``, or None for 0.
        bias: ``[N]``, int32 with the step ``x_scale * w_scale`` or float32.

    Returns:
        ``[..., N]`` of ``y_dtype``; float32 means values, not integers.
    """
    weight = w.cpu().numpy().astype(np.float64)
    step = _F32(x_scale) * w_scale.cpu().numpy()
    size = weight.shape[1] // (step.shape[1] if step.ndim == 2 else 1)
    if w_zero_point is not None:
        zero_point = w_zero_point.cpu().numpy()
        zero_point = zero_point if zero_point.ndim == 2 else zero_point.reshape(-1, 1)
        weight -= np.repeat(zero_point, size, axis=1)
    data = x.cpu().numpy().astype(np.float64) - x_zero_point
    offset = None if bias is None else bias.detach().cpu().numpy()
    if step.ndim == 2:
        total = _group_sums(data, weight, step, size)
        acc, step, offset = total if offset is None else total + offset, np.ones(1, _F32), None
    else:
        acc = data @ weight.T
    if offset is not None and offset.dtype != _F32:
        acc, offset = acc + offset, None
    if y_dtype == torch.float32:
        y = acc.astype(_F32) * step
        y = y if offset is None else y + offset
    else:
        y = acc.astype(_F32) * (step / _F32(y_scale))
        y = y if offset is None else y + offset / _F32(y_scale)
        y = np.clip(np.rint(y) + _F32(y_zero_point), y_min, y_max)
    return torch.from_numpy(np.asarray(y)).to(device=x.device, dtype=y_dtype)


def _group_sums(x: Array, weight: Array, step: Array, size: int) -> Array:
    """Sums of the groups, each scaled, added in float32 in their order."""
    terms = (
        (x[..., k : k + size] @ weight[:, k : k + size].T).astype(_F32) * step[:, k // size]
        for k in range(0, weight.shape[1], size)
    )
    return functools.reduce(np.add, terms)


class NumpyBackend(Backend):
    """Runs linear layers by :func:`linear`; needs nothing but NumPy."""

    name: ClassVar[str] = "acme_numpy"

    def why_not(self, node: fx.Node) -> str | None:
        if node.target is not torch.ops.qcore.qlinear.default:
            return "it has a kernel for linear layers only"
        return None

    def kernel(self, node: fx.Node) -> str:
        return "numpy linear"

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        for node in program.graph.nodes:
            if node.name in own:
                node.target = linear
        program.recompile()
        return program
