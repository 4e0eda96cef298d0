"""Running a program on the leaves of its inputs, and keeping what every layer gives."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from ..conversion import Layer
from ..errors import ArtifactError

__all__ = ["Replay", "call_leaves", "input_leaves", "output_leaves", "replay"]


@attrs.frozen(kw_only=True)
class Replay:
    """One run.

    Args:
        layers: the result of each layer, in the order of the program's layers.
        outputs: each leaf of the result: tensors and plain values.
    """

    layers: tuple[Tensor, ...]
    outputs: tuple[Any, ...]


def replay(program: fx.GraphModule, layers: Sequence[Layer], leaves: Sequence[Any]) -> Replay:
    """Runs a program node by node.

    Args:
        program: a Q program.
        layers: whose results to keep.
        leaves: its inputs, one for each placeholder.
    """
    runner = _Runner(program, {layer.node for layer in layers})
    with torch.no_grad():
        result = runner.run(*leaves, enable_io_processing=False)
    return Replay(
        layers=tuple(runner.kept[layer.node].cpu() for layer in layers),
        outputs=output_leaves(result),
    )


class _Runner(fx.Interpreter):
    def __init__(self, program: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(program)
        self.wanted = wanted
        self.kept: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.wanted:
            self.kept[n.name] = result
        return result


def output_leaves(result: Any) -> tuple[Any, ...]:
    """The leaves of a result, tensors on the CPU."""
    return tuple(
        leaf.cpu() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(result)
    )


def input_leaves(
    program: fx.GraphModule, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The leaves of the arguments of a call, one for each placeholder.

    Raises:
        ArtifactError: the program is called in another way.
    """
    info = getattr(program.graph._codegen, "pytree_info", None)
    count = sum(node.op == "placeholder" for node in program.graph.nodes)
    if info is None:
        if kwargs or len(args) != count:
            raise ArtifactError(f"the program takes {count} inputs by position")
        return tuple(args)
    given = {**dict(zip(info.orig_args, args, strict=False)), **kwargs}
    positional = info.in_spec.child(0).num_children
    names = list(info.orig_args)
    if len(args) > len(names) or set(given) != set(names):
        raise ArtifactError(f"the program takes ({', '.join(names)})")
    leaves, spec = pytree.tree_flatten(
        (
            tuple(given[name] for name in names[:positional]),
            {name: given[name] for name in names[positional:]},
        )
    )
    if spec != info.in_spec:
        raise ArtifactError(f"the program takes inputs of the structure {info.in_spec}, got {spec}")
    return tuple(leaves)


def call_leaves(program: fx.GraphModule, module: nn.Module, leaves: Sequence[Any]) -> Any:
    """Calls a module that stands for a program (its lowered form) on the leaves of the inputs."""
    info = getattr(program.graph._codegen, "pytree_info", None)
    with torch.no_grad():
        if info is None:
            return module(*leaves)
        args, kwargs = pytree.tree_unflatten(list(leaves), info.in_spec)
        return module(*args, **kwargs)
