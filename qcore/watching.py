"""Models that show the values of their layers, and can be given others in their place.

A QFloat model is watched by hooks. A program is rewritten: it returns the value of each layer
beside its results, and takes a value for each layer that is to be replaced, which ``aten.copy``
puts behind the layer. What comes out is again a plain graph of tensors, so any backend can run it,
and what it computes for a layer is seen without knowing how.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from .artifact.replay import input_leaves
from .backend import lowered_from
from .codegen import keep_settings
from .conversion import Layer, ProgramInfo, programs
from .fake_quantize import FakeQuantize
from .op import QFloatOp
from .qfloat_model import is_qfloat

__all__ = ["Values", "Watched", "WatchedPrograms", "WatchedQFloat", "qfloat_layers", "watch"]

Values = dict[str, list[Tensor]]
"""The values of layers: one for each call of the program or module that the layer is in."""

Lower = Callable[[fx.GraphModule], nn.Module]


class Watched:
    """A model that shows the results of its layers."""

    def __call__(
        self, args: Any, kwargs: Any, forced: Mapping[str, list[Tensor]] | None = None
    ) -> tuple[Any, Values]:
        """One call, without gradients.

        Args:
            args, kwargs: of the call.
            forced: by layer, what takes the place of its value for everything behind it.

        Returns:
            The output, and the value that each layer itself computed, in the order of execution.
        """
        raise NotImplementedError


def watch(model: nn.Module) -> Watched:
    """A model that shows its layers.

    Args:
        model: QFloat, in the mode that it has; a program; or a program that was lowered.

    Raises:
        QuantizationError: it is none of these.
        BackendError: the program that a lowered one was made from is gone.
    """
    if is_qfloat(model):
        return WatchedQFloat(model)
    source = lowered_from(model)
    if source is None:
        return WatchedPrograms(model)
    return WatchedPrograms(source.q, lower=source.lower)


class WatchedQFloat(Watched):
    """A QFloat model, seen through hooks that are there only during a call.

    Args:
        model: stays as it is.
        integers: values are integers, in float32, where a layer has a quantizer; else what leaves
            the layer.
    """

    def __init__(self, model: nn.Module, *, integers: bool = True) -> None:
        self.model = model
        self.integers = integers

    def __call__(
        self, args: Any, kwargs: Any, forced: Mapping[str, list[Tensor]] | None = None
    ) -> tuple[Any, Values]:
        values: Values = {}
        handles = [
            module.register_forward_hook(self._hook(name, values, forced or {}))
            for name, module in qfloat_layers(self.model)
        ]
        try:
            with torch.no_grad():
                return self.model(*args, **kwargs), values
        finally:
            for handle in handles:
                handle.remove()

    def _hook(
        self, name: str, values: Values, forced: Mapping[str, list[Tensor]]
    ) -> Callable[[nn.Module, Any, Any], Any]:
        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            quantizer = module.output_quantizer if isinstance(module, QFloatOp) else module
            qparams = None
            # Of several results the first is the layer's.
            (first, *rest), tree = pytree.tree_flatten(output)
            value = first.detach()
            if self.integers and isinstance(quantizer, FakeQuantize):
                qparams = quantizer.qparams()
                value = torch.round(value / qparams.scale) + qparams.zero_point
            seen = values.setdefault(name, [])
            seen.append(value)
            if name not in forced:
                return None
            other = forced[name][len(seen) - 1].to(first.dtype)
            if qparams is not None:
                other = (other - qparams.zero_point) * qparams.scale
            return pytree.tree_unflatten([other, *rest], tree)

        return keep


def qfloat_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each layer of a QFloat model by the name that its program knows it by."""
    for graph in model.modules():
        if isinstance(graph, fx.GraphModule):
            for node in graph.graph.nodes:
                if node.op == "call_module" and "qcore_name" in node.meta:
                    yield node.meta["qcore_name"], graph.get_submodule(str(node.target))


class WatchedPrograms(Watched):
    """A program, or a copy of a model with programs, that shares their tensors.

    Args:
        model: stays as it is.
        points: by path of each program, what to show; by default its layers.
        forced: names of those whose values every call replaces.
        lower: what makes each rewritten program runnable; by default it runs as it is.

    Attributes:
        lowered: the runnable form of each program, by path.
        leaves: during and after a call, the inputs of each call of each program, by path.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        points: Mapping[str, Sequence[Layer]] | None = None,
        forced: Set[str] = frozenset(),
        lower: Lower | None = None,
    ) -> None:
        self.leaves: dict[str, list[tuple[Any, ...]]] = {}
        self.lowered: dict[str, nn.Module] = {}
        self._values: Values = {}
        self._forced: Mapping[str, list[Tensor]] = {}
        found = programs(model)
        places: dict[int, Any] = {}
        for path, program in found.items():
            info: ProgramInfo = program.meta["qcore"]
            shown = info.layers if points is None else points[path]
            rewritten = _rewritten(program, shown, forced)
            self.lowered[path] = lower(rewritten) if lower is not None else rewritten
            places[id(program)] = _Stand(self, path, program, [p.name for p in shown], forced)
        self.model = places[id(found[""])] if "" in found else copy.deepcopy(model, places)

    def __call__(
        self, args: Any, kwargs: Any, forced: Mapping[str, list[Tensor]] | None = None
    ) -> tuple[Any, Values]:
        self._values, self._forced, self.leaves = {}, forced or {}, {}
        try:
            with torch.no_grad():
                return self.model(*args, **kwargs), self._values
        finally:
            self._values, self._forced = {}, {}

    def run(self, path: str, leaves: tuple[Any, ...], forced: list[str], names: list[str]) -> Any:
        """One call of a rewritten program; keeps what it shows."""
        seen = self.leaves.setdefault(path, [])
        given = [self._forced[name][len(seen)] for name in forced]
        seen.append(leaves)
        output, values = self.lowered[path](*leaves, *given)
        for name, value in zip(names, values, strict=True):
            self._values.setdefault(name, []).append(value)
        return output


class _Stand(nn.Module):
    """Stands in the place of a program and is called like it."""

    def __init__(
        self,
        owner: WatchedPrograms,
        path: str,
        program: fx.GraphModule,
        names: list[str],
        forced: Set[str],
    ) -> None:
        super().__init__()
        self.path = path
        # In tuples: neither is a part of this module.
        self._owner = (owner,)
        self._program = (program,)
        self._names = names
        self._forced = [name for name in names if name in forced]
        keep_settings(program, self)
        guard = program.meta["qcore"].guard
        if guard is not None:
            # As on the program: torch asks a layer for hooks before it goes past its forward.
            self.register_forward_pre_hook(guard, with_kwargs=True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (program,) = self._program
        leaves = input_leaves(program, args, kwargs)
        output = self._owner[0].run(self.path, leaves, self._forced, self._names)
        return program.graph.process_outputs(output)


def _rewritten(
    program: fx.GraphModule, layers: Sequence[Layer], forced: Set[str]
) -> fx.GraphModule:
    """A program from its inputs as they lie in the graph, and the forced values, to a pair: its
    results as they lie in the graph, and the value of each layer."""
    graph = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    results = graph.output(graph.graph_copy(program.graph, places))
    by_name = {old.name: new for old, new in places.items()}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    shown = [by_name[layer.node] for layer in layers]
    for number, (layer, node) in enumerate(zip(layers, shown, strict=True)):
        if layer.name in forced:
            with graph.inserting_after(inputs[-1]) if inputs else graph.inserting_before():
                inputs.append(graph.placeholder(f"forced_{number}"))
            _replace(graph, node, inputs[-1])
    results.args = ((results.args[0], tuple(shown)),)
    graph.lint()
    # A tensor that has several names is needed under each of them.
    root: dict[str, Any] = {
        **dict(program.named_parameters(remove_duplicate=False)),
        **dict(program.named_buffers(remove_duplicate=False)),
    }
    result = fx.GraphModule(root, graph, class_name="Q")
    # What lowering asks a program for.
    result.meta["qcore"] = program.meta["qcore"]
    return result.eval()


def _replace(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    """Gives what is behind a node the value of another, in the dtype and shape of its own."""
    with graph.inserting_after(node):
        replaced = graph.call_function(torch.ops.aten.copy.default, (node, other))
    node.replace_all_uses_with(replaced, lambda user: user is not replaced)
