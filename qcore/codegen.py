"""Graphs that are copied without the description of what they take and return, which is only
read."""

import copy
from typing import Any

from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen

__all__ = ["SharedCodeGen", "SharedGraphModule", "keep_settings", "shared_codegen"]

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_SETTINGS = (bool, int, float, str, tuple)
_KEPT = "qcore_settings"
"""Attribute with the settings that a stand-in was given, by the path of each submodule."""


class SharedCodeGen(_PyTreeCodeGen):
    """A code generator that copies of a graph share.

    Copying the trees inside makes torch warn about a class that it deprecates itself.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedCodeGen":
        return self


class SharedGraphModule(fx.GraphModule):
    """A graph module whose copies share its trees, which torch keeps as attributes too.

    Copies keep the hooks, the check of the inputs among them, and plain attributes; those of
    torch's own class lose them.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for name in ("_in_spec", "_out_spec"):
            tree = self.__dict__.get(name)
            if tree is not None:
                memo[id(tree)] = tree
        result = super().__deepcopy__(memo)
        for name in _HOOKS:
            getattr(result, name).update(copy.deepcopy(getattr(self, name), memo))
        if hasattr(self, _KEPT):
            keep_settings(self, result)
        return result


def shared_codegen(graph: fx.Graph) -> SharedCodeGen:
    """The inputs and outputs of ``graph`` for another graph that is called the same way."""
    codegen = graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    return codegen if isinstance(codegen, SharedCodeGen) else SharedCodeGen(codegen.pytree_info)


def keep_settings(old: nn.Module, new: nn.Module) -> None:
    """Gives ``new`` the plain attributes of ``old``, and those of its submodules by their names.

    Where ``old`` stands in the place of a module itself, it is that module's attributes.
    """
    kept: dict[str, dict[str, Any]] | None = getattr(old, _KEPT, None)
    if kept is None:
        kept = {path: _settings(module) for path, module in old.named_modules()}
    for path, settings in kept.items():
        holder = new
        for name in filter(None, path.split(".") if settings else ()):
            if not isinstance(getattr(holder, name, None), nn.Module):
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        for key, value in settings.items():
            if not hasattr(holder, key):
                setattr(holder, key, value)
    setattr(new, _KEPT, kept)


def _settings(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, _SETTINGS) and key[0] != "_" and key != "training"
    }
