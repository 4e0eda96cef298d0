"""Graphs that are copied without the description of what they take and return, which is only read."""

from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen

__all__ = ["SharedCodeGen", "SharedGraphModule", "shared_codegen"]


class SharedCodeGen(_PyTreeCodeGen):
    """A code generator that copies of a graph share.

    Copying the trees inside makes torch warn about a class that it deprecates itself.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedCodeGen":
        return self


class SharedGraphModule(fx.GraphModule):
    """A graph module whose copies share its trees, which torch keeps as attributes too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for name in ("_in_spec", "_out_spec"):
            tree = self.__dict__.get(name)
            if tree is not None:
                memo[id(tree)] = tree
        return super().__deepcopy__(memo)


def shared_codegen(graph: fx.Graph) -> SharedCodeGen:
    """The inputs and outputs of ``graph`` for another graph that is called the same way."""
    codegen = graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    return codegen if isinstance(codegen, SharedCodeGen) else SharedCodeGen(codegen.pytree_info)
