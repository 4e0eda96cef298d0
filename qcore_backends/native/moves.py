"""Operations of torch that only say otherwise how a tensor lies: they cost nothing, or a copy."""

import torch
from torch import Tensor, fx

from .layer import contiguous
from .memory import Value
from .planner import Planner

__all__ = ["is_move", "write_move"]

_aten = torch.ops.aten

_SHAPES = frozenset(
    {
        _aten.flatten.using_ints,
        _aten.reshape.default,
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.unflatten.int,
    }
)
"""Keep the order of the elements, whatever the strides."""

_VIEWS = frozenset(
    {
        _aten.transpose.int,
        _aten.permute.default,
        _aten.t.default,
        _aten.unsqueeze.default,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.expand.default,
    }
)
"""Depend on the strides in no way."""


def is_move(node: fx.Node) -> bool:
    """Whether a node is one of these operations."""
    return node.op == "call_function" and (node.target in _SHAPES or node.target in _VIEWS)


def write_move(
    planner: Planner,
    target: torch._ops.OpOverload,
    x: Value,
    rest: tuple[object, ...],
    expected: Tensor,
) -> Value:
    """The result of ``target(x, *rest)``: the memory of ``x``, or a copy where it can't be."""
    if target in _VIEWS:
        return x.like(target(x.layout, *rest))
    try:
        return x.like(x.layout.view(expected.shape))
    except RuntimeError:
        # The strides do not allow it.
        whole = planner.copy(x, contiguous(x.shape))
        return whole.like(whole.layout.view(expected.shape))
