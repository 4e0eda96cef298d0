"""Run a captured graph beside the module that it was captured from.

A trace sees one way through a forward. What it can't see (a branch on a batch of 1, which export
takes for granted not to be; a value that went through an object which the trace does not follow)
shows when both compute the same inputs.
"""

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from .untouched import untouched

__all__ = ["difference"]

# Relative to the largest value; a wrong graph is off by far more than the order of additions is.
_TOLERANCE = {torch.float16: 3e-2, torch.bfloat16: 3e-2}
_DEFAULT_TOLERANCE = 1e-3
_PLAIN = (type(None), bool, int, float, str)


def difference(
    module: nn.Module, graph: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """How the results of ``graph`` differ from those of ``module`` in eval mode, or None.

    Both start from the same state of the model and of the random generators, which are put back.

    Args:
        module: the module.
        graph: what was captured from it; calls the module's own instances.
        args: positional inputs.
        kwargs: inputs by keyword.

    Raises:
        Exception: what the module raises for these inputs.
    """
    want = _run(module, module, args, kwargs)
    try:
        got = _run(module, graph, args, kwargs)
    except Exception as error:  # an operation may raise anything
        return f"the graph raises {type(error).__name__}"
    if len(got) != len(want):
        return f"{len(got)} results instead of {len(want)}"
    for index, (one, other) in enumerate(zip(got, want, strict=True)):
        if isinstance(other, Tensor) and isinstance(one, Tensor):
            if one.shape != other.shape or one.dtype != other.dtype:
                return (
                    f"result {index} is {one.dtype} {list(one.shape)} instead of {other.dtype} "
                    f"{list(other.shape)}"
                )
            if not _close(one, other):
                return f"result {index} has other values"
        elif isinstance(other, _PLAIN) and one != other:
            return f"result {index} is {one!r} instead of {other!r}"
    return None


def _run(
    model: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    with untouched(model):
        copies = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        leaves = pytree.tree_leaves(module(*copies[0], **copies[1]))
        # A result may be a buffer, which is about to be put back.
        return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _close(got: Tensor, want: Tensor) -> bool:
    if not (want.is_floating_point() or want.is_complex()):
        return torch.equal(got, want)
    wide = torch.complex128 if want.is_complex() else torch.float64
    tolerance = _TOLERANCE.get(want.dtype, _DEFAULT_TOLERANCE)
    got, want = got.to(wide), want.to(wide)
    finite = want.abs()[want.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(got, want, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
