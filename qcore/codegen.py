"""How a graph takes and returns its caller's structures, in a form that copies of a graph share."""

from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen

__all__ = ["SharedCodeGen", "shared_codegen"]


class SharedCodeGen(_PyTreeCodeGen):
    """A code generator that is not copied with its graph: it is only read.

    Copying the trees inside makes torch warn about a class that it deprecates itself.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedCodeGen":
        return self


def shared_codegen(graph: fx.Graph) -> SharedCodeGen:
    """The inputs and outputs of ``graph`` for another graph that is called the same way."""
    codegen = graph._codegen
    assert isinstance(codegen, _PyTreeCodeGen)
    return codegen if isinstance(codegen, SharedCodeGen) else SharedCodeGen(codegen.pytree_info)
