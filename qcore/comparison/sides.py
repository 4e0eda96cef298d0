"""The two sides of a comparison: how each runs, shows its layers and takes others' values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, fx, nn

from ..backend import Backend, LoweredFrom, lowered_from, lowered_info
from ..conversion import Layer, ProgramInfo, convert, programs
from ..fake_quantize import FakeQuantize
from ..host import default_host
from ..match import schema_arguments
from ..op import QFloatOp
from ..planning import Plan
from ..preparation import prepare, required_inputs
from ..qfloat_model import QFloatInfo, info_of, is_qfloat, set_switches
from ..recipe import Recipe
from ..watching import Watched, WatchedPrograms, WatchedQFloat, qfloat_layers
from .measuring import Lattice

if TYPE_CHECKING:
    from ..host import PluginHost

__all__ = [
    "Place",
    "Side",
    "float_side",
    "is_quantized",
    "lost_kernels",
    "operation_name",
    "quantized_side",
    "recipe_of",
]

_MOVES = ("qmax_pool", "qadaptive_max_pool")
"""Operations of Q with integers in and out that have no qparams of their own."""


@attrs.frozen(kw_only=True, eq=False)
class Place:
    """A layer as data: the program that computes it, and where.

    Args:
        path: of the program in the model.
        program: a Q program.
        node: that gives the layer's value.
        contracts: by name of a node, the contract by which a backend says that it computes it,
            where that is not the node's own.
    """

    path: str
    program: fx.GraphModule
    node: fx.Node
    contracts: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, eq=False)
class Side:
    """One side.

    Args:
        label: the phase, and where it runs.
        model: what was given.
        exact: whether it computes integers.
        arity: number of positional inputs.
        plan: of its making.
        operations: by layer, what computes it.
        lattices: by layer, what its integers stand for; None where it gives float.
        watched: it, with the layers named being replaced.
        places: by layer, its data; empty where there are none.
        moves: operations of Q that are no layers: they only move or select integers, such as a max
            pool. A QFloat model does not show them.
    """

    label: str
    model: nn.Module
    exact: bool
    arity: int
    plan: Plan
    operations: Mapping[str, str]
    lattices: Mapping[str, Lattice | None]
    watched: Callable[[frozenset[str]], Watched]
    places: Callable[[], Mapping[str, Place]]
    moves: frozenset[str] = frozenset()

    def fused(self, name: str) -> tuple[str, ...]:
        """The other layers that became part of a layer."""
        return next((row.fused for row in self.plan.rows if row.name == name), ())

    @contextmanager
    def ready(self) -> Iterator[None]:
        """While it holds, a QFloat model is in eval mode, quantizes and observes nothing."""
        if not is_qfloat(self.model):
            yield
            return
        with ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(setattr, module, "training", module.training)
                for name in ("observer_enabled", "fake_quant_enabled"):
                    if isinstance(getattr(module, name, None), bool):
                        stack.callback(setattr, module, name, getattr(module, name))
            self.model.eval()
            set_switches(self.model, observer=False, fake_quant=self.exact)
            yield


def is_quantized(model: nn.Module) -> bool:
    """Whether a model is QFloat, a program, or lowered."""
    if is_qfloat(model) or lowered_from(model) is not None:
        return True
    graphs = (module for module in model.modules() if isinstance(module, fx.GraphModule))
    return any(isinstance(graph.meta.get("qcore"), ProgramInfo) for graph in graphs)


def recipe_of(model: nn.Module) -> Recipe:
    """The recipe of a quantized model."""
    if is_qfloat(model):
        return info_of(model).recipe
    source = lowered_from(model)
    return _info(model if source is None else source.q).recipe


def quantized_side(model: nn.Module) -> Side:
    """A side that is QFloat, a program, or a program that was lowered.

    Raises:
        QuantizationError: QFloat is not calibrated.
        BackendError: the program that a lowered one was made from is gone.
    """
    if is_qfloat(model):
        return _qfloat_side(model, "QFloat", exact=True)
    source = lowered_from(model)
    if source is not None:
        return _program_side(model, source.q, f"Q on {source.backend}", source)
    return _program_side(model, model, "Q", None)


def float_side(
    model: nn.Module, recipe: Recipe, example_inputs: Any, host: "PluginHost | None"
) -> Side:
    """A side that is Float: it is prepared by a recipe, and its quantizers stay switched off.

    Raises:
        QuantizationError: it can't be prepared.
    """
    qfloat = prepare(model, example_inputs, recipe, host=host)
    return _qfloat_side(qfloat, "Float", exact=False)


def _qfloat_side(model: nn.Module, label: str, *, exact: bool) -> Side:
    info: QFloatInfo = info_of(model)
    layers = dict(qfloat_layers(model))
    lattices: dict[str, Lattice | None] = {}
    for name, module in layers.items():
        quantizer = module.output_quantizer if isinstance(module, QFloatOp) else module
        has = exact and isinstance(quantizer, FakeQuantize)
        lattices[name] = _lattice_of(quantizer) if has else None  # type: ignore[arg-type]
    return Side(
        label=label,
        model=model,
        exact=exact,
        arity=info.arity,
        plan=info.plan,
        operations={
            name: (module.program_op if isinstance(module, QFloatOp) else "quantize") or "float"
            for name, module in layers.items()
        },
        lattices=lattices,
        watched=lambda forced: WatchedQFloat(model, integers=exact),
        # Q is what QFloat computes, written down.
        places=cache(lambda: _noted_places(convert(model))) if exact else dict,
    )


def _lattice_of(quantizer: FakeQuantize) -> Lattice:
    qparams = quantizer.qparams()
    dtype = qparams.scheme.dtype
    return Lattice(
        scale=float(qparams.scale),
        zero_point=int(qparams.zero_point),
        low=dtype.quant_min,
        high=dtype.quant_max,
    )


def _program_side(model: nn.Module, q: nn.Module, label: str, source: LoweredFrom | None) -> Side:
    info = _info(q)
    points = {path: _points(program) for path, program in programs(q).items()}
    found = {
        name: attrs.evolve(place, contracts=_contracts(model, place.path, source))
        for name, place in _places(q, points).items()
    }
    layers = {layer.name: layer for shown in points.values() for layer in shown}
    guard = programs(q)[""].meta["qcore"].guard if "" in programs(q) else None
    lower = None if source is None else source.lower
    noted = {
        layer.name for program in programs(q).values() for layer in program.meta["qcore"].layers
    }
    return Side(
        label=label,
        model=model,
        exact=True,
        arity=required_inputs(q) if guard is None else max(1, guard.positional),
        plan=info.plan,
        operations={name: operation_name(place.node) for name, place in found.items()},
        lattices={name: _lattice(layers[name], place) for name, place in found.items()},
        watched=lambda forced: WatchedPrograms(q, points=points, forced=forced, lower=lower),
        places=lambda: found,
        moves=frozenset(layers) - noted,
    )


def _contracts(model: nn.Module, path: str, source: LoweredFrom | None) -> dict[str, str]:
    """By node, the contract of a backend that is not the node's."""
    table = lowered_info(model).get(path)
    if source is None or table is None or not table.may_differ:
        return {}
    backend: type[Backend] = (source.host or default_host()).get("backend", source.backend)
    return dict.fromkeys(table.may_differ, backend.numerics.key)


def _info(q: nn.Module) -> ProgramInfo:
    info: ProgramInfo = next(iter(programs(q).values())).meta["qcore"]
    return info


def _points(program: fx.GraphModule) -> tuple[Layer, ...]:
    """The layers of a program, and its operations that move integers, in the order of execution."""
    layers: dict[str, Layer] = {layer.node: layer for layer in program.meta["qcore"].layers}
    points: dict[str, Layer] = {}
    for node in program.graph.nodes:
        if node.name in layers:
            points[node.name] = layers[node.name]
        elif node.op == "call_function" and operation_name(node) in _MOVES:
            of = _source(node, points)
            if of is not None:
                name = node.name.replace("_default", "")
                points[node.name] = attrs.evolve(of, name=name, node=node.name)
    return tuple(points.values())


def _source(node: fx.Node, points: Mapping[str, Layer]) -> Layer | None:
    """The layer whose integers a node moves; None if that can't be told."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.name in points:
            return points[node.name]
        if str(node.target).startswith("qcore."):
            return None
    return None


def _places(q: nn.Module, points: Mapping[str, Sequence[Layer]]) -> dict[str, Place]:
    places = {}
    for path, program in programs(q).items():
        nodes = {node.name: node for node in program.graph.nodes}
        for layer in points[path]:
            places[layer.name] = Place(path=path, program=program, node=nodes[layer.node])
    return places


def _noted_places(q: nn.Module) -> dict[str, Place]:
    return _places(q, {path: p.meta["qcore"].layers for path, p in programs(q).items()})


def operation_name(node: fx.Node) -> str:
    """``qconv`` for ``qcore.qconv.default``; of other namespaces the whole name."""
    return str(node.target).removeprefix("qcore.").removesuffix(".default")


def _lattice(layer: Layer, place: Place) -> Lattice | None:
    if layer.scale is None or layer.zero_point is None:
        return None
    low, high = _range(place)
    return Lattice(scale=layer.scale, zero_point=layer.zero_point, low=low, high=high)


def _range(place: Place) -> tuple[int, int]:
    """The integers that an operation can give."""
    given = schema_arguments(place.node) if place.node.op == "call_function" else {}
    for low, high in (("y_min", "y_max"), ("quant_min", "quant_max")):
        if isinstance(given.get(low), int):
            return given[low], given[high]
    table = given.get("table")
    if isinstance(table, fx.Node) and table.op == "get_attr":
        owner, _, field = str(table.target).rpartition(".")
        values = getattr(place.program.get_submodule(owner), field)
        if isinstance(values, Tensor) and values.numel():
            return int(values.min()), int(values.max())
    info = torch.iinfo(torch.int8)
    return info.min, info.max


def lost_kernels(side: Side, watched: Watched) -> list[str]:
    """Operations that the backend has kernels for, but does not run by them while watched."""
    if not isinstance(watched, WatchedPrograms):
        return []
    lost = []
    for path, table in lowered_info(side.model).items():
        seen = getattr(watched.lowered.get(path), "qcore_lowered", None)
        if seen is not None:
            lost += [name for name in table.kernels if name not in seen.kernels]
    return lost
