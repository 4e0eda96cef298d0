"""How a graph takes and returns its caller's structures, in a form that copies of a graph share."""

from collections.abc import Callable
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

__all__ = ["SharedCodeGen", "shared_codegen"]


class SharedCodeGen(_PyTreeCodeGen):
    """A code generator that is not copied with its graph, nor are its trees: they are only read.

    Copying a tree makes torch warn about a class that it deprecates itself, and a module with a
    graph keeps the trees as attributes, so the trees themselves are told to stay.
    """

    def __init__(self, info: _PyTreeInfo) -> None:
        super().__init__(info)
        for tree in (info.in_spec, info.out_spec):
            if tree is not None:
                object.__setattr__(tree, "__deepcopy__", _always(tree))

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedCodeGen":
        return self


def _always(value: Any) -> Callable[[dict[int, Any]], Any]:
    return lambda memo: value


def shared_codegen(graph: fx.Graph) -> SharedCodeGen:
    """The inputs and outputs of ``graph`` for another graph that is called the same way."""
    codegen = graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    return codegen if isinstance(codegen, SharedCodeGen) else SharedCodeGen(codegen.pytree_info)
