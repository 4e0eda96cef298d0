"""Graphs that are copied without the description of what they take and return, which is only
read."""

import copy
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen

__all__ = ["SharedCodeGen", "SharedGraphModule", "shared_codegen"]

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


class SharedCodeGen(_PyTreeCodeGen):
    """A code generator that copies of a graph share.

    Copying the trees inside makes torch warn about a class that it deprecates itself.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedCodeGen":
        return self


class SharedGraphModule(fx.GraphModule):
    """A graph module whose copies share its trees, which torch keeps as attributes too.

    Copies keep the hooks, the check of the inputs among them; those of torch's own class lose them.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for name in ("_in_spec", "_out_spec"):
            tree = self.__dict__.get(name)
            if tree is not None:
                memo[id(tree)] = tree
        result = super().__deepcopy__(memo)
        for name in _HOOKS:
            getattr(result, name).update(copy.deepcopy(getattr(self, name), memo))
        return result


def shared_codegen(graph: fx.Graph) -> SharedCodeGen:
    """The inputs and outputs of ``graph`` for another graph that is called the same way."""
    codegen = graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    return codegen if isinstance(codegen, SharedCodeGen) else SharedCodeGen(codegen.pytree_info)
