"""Graphs that are nearly what a fusion takes: changed copies of an example's graph.

Each has one change at one step of the match: its value is used twice, something stands between it
and the next, its arguments or its neighbours are others. Whether the fusion still takes it is its
own affair; whatever it takes, it must compute.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..capture import capture
from ..codegen import SharedGraphModule
from ..host import PluginHost
from ..match import OpTable, find_matches, schema_arguments
from ..specs import FusionSpec
from .contract import ContractViolation
from .trials import Inputs

__all__ = ["near_misses"]

Variant = tuple[str, fx.GraphModule, Inputs]

_RELATIVES: tuple[tuple[type[nn.Module], ...], ...] = (
    (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.Hardtanh, nn.Hardswish, nn.SiLU, nn.Sigmoid),
)
"""Layers that are easily taken for each other."""


def near_misses(
    model: nn.Module, inputs: Inputs, fusion: FusionSpec, host: PluginHost
) -> Iterator[Variant]:
    """Changed copies of the graph of an example.

    Args:
        model: a float model with a match of the fusion.
        inputs: what to call it with.
        fusion: the record.
        host: what knows it.

    Yields:
        What was changed, the changed graph, and what to call it with. Some can't be run.

    Raises:
        ContractViolation: the model is not captured whole.
    """
    table = OpTable.of(host)
    captured = capture(
        copy.deepcopy(model), inputs, {}, is_leaf=lambda m: table.of_module(m) is not None
    )
    for piece in captured.pieces:
        graph = SharedGraphModule(piece.graph, piece.graph.graph)
        modules = dict(graph.named_modules())
        matches = find_matches(graph.graph, modules, table)
        match = next((m for m in matches if m.fusion is not None and m.fusion == fusion), None)
        if piece.path == "" and match is not None:
            steps = [step.node.name for step in match.steps]
            yield from _uses(graph, steps, inputs)
            yield from _arguments(graph, steps, inputs)
            yield from _operands(graph, steps, inputs)
            yield from _shapes(graph, steps, inputs)
            return
    raise ContractViolation(
        "the first example is not captured whole, or has no match as a whole; give one that is, so "
        "that its graph can be changed"
    )


def _changed(graph: fx.GraphModule, change: Callable[[fx.GraphModule], Any]) -> fx.GraphModule:
    """A copy with a change."""
    variant = copy.deepcopy(graph)
    change(variant)
    variant.graph.lint()
    variant.recompile()
    return variant


def _node(graph: fx.GraphModule, name: str) -> fx.Node:
    found: fx.Node = next(node for node in graph.graph.nodes if node.name == name)
    return found


def _module(graph: fx.GraphModule, name: str) -> nn.Module | None:
    node = _node(graph, name)
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _uses(graph: fx.GraphModule, steps: list[str], inputs: Inputs) -> Iterator[Variant]:
    """Values that others need too, other operations between, the steps in another order."""
    between: dict[str, tuple[Any, ...]] = {
        "negation": (torch.ops.aten.neg.default,),
        "flip": (torch.ops.aten.flip.default, [-1]),
        "view": (torch.ops.aten.unsqueeze.default, 0, torch.ops.aten.squeeze.dim, 0),
        "copy": (torch.ops.aten.clone.default,),
    }
    for name, after in itertools.pairwise(steps):

        def twice(variant: fx.GraphModule, name: str = name) -> None:
            output = next(iter(reversed(variant.graph.nodes)))
            output.args = ((output.args[0], _node(variant, name)),)

        yield f"the value of {name} is also a result", _changed(graph, _flat(twice)), inputs
        for words, parts in between.items():

            def insert(
                variant: fx.GraphModule,
                name: str = name,
                after: str = after,
                parts: tuple[Any, ...] = parts,
            ) -> None:
                value, user = _node(variant, name), _node(variant, after)
                with variant.graph.inserting_before(user):
                    new = value
                    for function, *arguments in _calls(parts):
                        new = variant.graph.call_function(function, (new, *arguments))
                user.replace_input_with(value, new)

            yield f"a {words} between {name} and {after}", _changed(graph, insert), inputs

        def swap(variant: fx.GraphModule, name: str = name, after: str = after) -> None:
            a, b = _node(variant, name), _node(variant, after)
            a.op, b.op, a.target, b.target = b.op, a.op, b.target, a.target
            a.kwargs, b.kwargs = b.kwargs, a.kwargs

        single = all(
            len(_node(graph, n).args) == 1 and not _node(graph, n).kwargs for n in (name, after)
        )
        if single:
            yield f"{name} and {after} in the other order", _changed(graph, swap), inputs


def _calls(parts: tuple[Any, ...]) -> Iterator[list[Any]]:
    """Each function with the arguments that follow it."""
    call: list[Any] = []
    for part in parts:
        if callable(part) and call:
            yield call
            call = []
        call.append(part)
    yield call


def _flat(change: Callable[[fx.GraphModule], None]) -> Callable[[fx.GraphModule], None]:
    """``change``, and the graph then gives what its output node has, in Python's own structure."""

    def both(variant: fx.GraphModule) -> None:
        change(variant)
        variant.graph.set_codegen(fx.graph.CodeGen())
        output = next(iter(reversed(variant.graph.nodes)))
        leaves: list[fx.Node] = []
        fx.map_arg(output.args[0], leaves.append)
        output.args = (tuple(leaves),)

    return both


def _arguments(graph: fx.GraphModule, steps: list[str], inputs: Inputs) -> Iterator[Variant]:
    """Other arguments of each layer and function; another activation."""
    for name in steps:
        module = _module(graph, name)
        if module is None:
            yield from _function_arguments(graph, name, inputs)
            continue
        for words, changed in _layers(module):

            def replace(
                variant: fx.GraphModule, name: str = name, changed: nn.Module = changed
            ) -> None:
                owner, _, field = str(_node(variant, name).target).rpartition(".")
                setattr(variant.get_submodule(owner), field, changed)

            yield f"{name} with {words}", _changed(graph, replace), inputs


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A layer with other arguments."""

    def other(**values: Any) -> tuple[str, nn.Module]:
        changed = copy.deepcopy(module)
        for key, value in values.items():
            setattr(changed, key, value)
        return ", ".join(f"{k}={v!s:.20}" for k, v in values.items()), changed

    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        for mode in ("reflect", "circular", "replicate"):
            if isinstance(module.padding, tuple):
                widths = [width for width in reversed(module.padding) for _ in range(2)]
                yield other(padding_mode=mode, _reversed_padding_repeated_twice=widths)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        yield other(track_running_stats=False, running_mean=None, running_var=None)
        yield other(affine=False, weight=None, bias=None)
    if isinstance(getattr(module, "bias", None), nn.Parameter):
        yield other(bias=None)
    for key, value in vars(module).items():
        if key.startswith("_") or key in ("training", "transposed"):
            continue
        if isinstance(value, bool):
            yield other(**{key: not value})
        elif isinstance(value, float) and math.isfinite(value):
            yield other(**{key: value * 1.7 + 0.1})
    for family in _RELATIVES:
        if type(module) in family:
            for cls in family:
                if cls is not type(module):
                    yield cls.__name__, cls()


def _function_arguments(graph: fx.GraphModule, name: str, inputs: Inputs) -> Iterator[Variant]:
    """Another number or truth value for each argument of a function."""
    node = _node(graph, name)
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return
    names = [argument.name for argument in schema.arguments]
    for key, value in schema_arguments(node).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        new = value + 1 if isinstance(value, int) else value * 1.7 + 0.1

        def replace(variant: fx.GraphModule, key: str = key, new: Any = new) -> None:
            place = _node(variant, name)
            index = names.index(key)
            if index < len(place.args):
                place.args = (*place.args[:index], new, *place.args[index + 1 :])
            else:
                place.kwargs = {**place.kwargs, key: new}

        yield f"{name} with {key}={new}", _changed(graph, replace), inputs


def _operands(graph: fx.GraphModule, steps: list[str], inputs: Inputs) -> Iterator[Variant]:
    """Other second operands of a function of two tensors, and the two exchanged."""
    for before, name in zip(["", *steps], steps, strict=False):
        node = _node(graph, name)
        operands = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if node.op != "call_function" or len(operands) != 2 or len(node.args) != 2:
            continue
        place = 1 if operands[0].name == before or not before else 0

        def broadcast(
            variant: fx.GraphModule, name: str = name, place: int = place, dim: int = -1
        ) -> None:
            node = _node(variant, name)
            with variant.graph.inserting_before(node):
                mean = variant.graph.call_function(
                    torch.ops.aten.mean.dim, (node.args[place], [dim], True)
                )
            node.args = (mean, node.args[1]) if place == 0 else (node.args[0], mean)

        def number(variant: fx.GraphModule, name: str = name, place: int = place) -> None:
            node = _node(variant, name)
            node.args = (node.args[1 - place], 1.5)

        def itself(variant: fx.GraphModule, name: str = name, place: int = place) -> None:
            node = _node(variant, name)
            node.args = (node.args[1 - place],) * 2

        def exchanged(variant: fx.GraphModule, name: str = name) -> None:
            node = _node(variant, name)
            node.args = tuple(reversed(node.args))

        yield f"{name} of a broadcast value", _changed(graph, broadcast), inputs
        yield f"{name} of a number", _changed(graph, number), inputs
        yield f"{name} of a value and itself", _changed(graph, itself), inputs
        yield f"{name} with exchanged operands", _changed(graph, exchanged), inputs


def _shapes(graph: fx.GraphModule, steps: list[str], inputs: Inputs) -> Iterator[Variant]:
    """Inputs with one dimension more, of the size of some parameter of the steps."""
    modules = [m for m in (_module(graph, name) for name in steps) if m is not None]
    sizes = {p.numel() for m in modules for p in m.parameters() if p.ndim == 1}
    for size in sorted(sizes):
        wider: list[Tensor] = [
            x.unsqueeze(1).expand(-1, size, *x.shape[1:]).contiguous() for x in inputs
        ]
        if all(x.is_floating_point() for x in wider):
            yield f"inputs with one more dimension of {size}", copy.deepcopy(graph), tuple(wider)
