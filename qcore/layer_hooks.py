"""The hooks that a user put on a layer, on the quantized operation that takes its place."""

from collections.abc import Callable
from typing import Any

import torch.utils._pytree as pytree
from torch import nn

from .errors import QuantizationError

__all__ = ["copy_hooks", "hooks_of"]

_WATCHES = ("_forward_pre_hooks", "_forward_hooks")
_OTHER_HOOKS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    return [getattr(module, name) for name in (*_WATCHES, *_OTHER_HOOKS)]


def copy_hooks(source: nn.Module, target: nn.Module, where: str) -> None:
    """Gives the hooks that a user put on a layer to the operation that takes its place.

    They see what goes into the whole operation and what comes out of it.
    """
    for name in _WATCHES:
        hooks = {key: _only_watching(hook, where) for key, hook in getattr(source, name).items()}
        getattr(target, name).update(hooks)
    for name in _OTHER_HOOKS:
        getattr(target, name).update(getattr(source, name))
    if source._is_full_backward_hook is not None:
        target._is_full_backward_hook = source._is_full_backward_hook


def _only_watching(hook: Callable[..., Any], where: str) -> Callable[..., None]:
    """``hook``, with an error if it changes a value: the integer program would not do that."""

    def watch(module: nn.Module, *seen: Any) -> None:
        given = {id(leaf) for leaf in pytree.tree_leaves(seen)}
        changed = [leaf for leaf in pytree.tree_leaves(hook(module, *seen)) if leaf is not None]
        if any(id(leaf) not in given for leaf in changed):
            raise QuantizationError(
                f"layer {where!r}: a forward hook changes its input or output, which the integer "
                "program can't do; move that into a forward, or leave the layer in float with an "
                "override quantize = false"
            )

    return watch
