"""QFloat -> Q: writes the integer program that a QFloat model computes in eval mode.

Q is an :class:`torch.fx.GraphModule` over integer tensors. Every quantized operation writes itself
with the same ``emit`` that it runs in eval mode; float operations in between are copied as aten
operations, behind a dequantize and before a quantize.
"""

import copy
import operator
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, fx, nn

from .capture import InputGuard, Piece
from .codegen import SharedGraphModule, shared_codegen
from .errors import QuantizationError
from .fake_quantize import FakeQuantize
from .match import OpTable
from .op import Movement, QFloatOp, QValue
from .planning import Plan
from .preparation import replace_module
from .provenance import Contribution, contributions
from .qfloat_model import QFloatInfo, forget_info, info_of, quantizers
from .qparams import QParams
from .recipe import Recipe

__all__ = ["Layer", "Program", "ProgramInfo", "convert", "programs"]


@attrs.frozen(kw_only=True)
class Layer:
    """Where the result of one quantized layer stands in a program.

    Args:
        name: the layer's name in QFloat.
        node: name of the node that holds its result.
        scale, zero_point: what its integers mean; None where the layer gives float.
    """

    name: str
    node: str
    scale: float | None = None
    zero_point: int | None = None


@attrs.frozen(kw_only=True, eq=False)
class ProgramInfo:
    """What a program remembers of its making.

    Args:
        plan: what was done.
        recipe: what was asked.
        layers: where the result of each quantized layer stands.
        origins: the contributions of plug-ins that had a part in it.
        guard: what the program may be called with; None for one that was not captured.
    """

    plan: Plan
    recipe: Recipe
    layers: tuple[Layer, ...]
    origins: tuple[Contribution, ...] = ()
    guard: InputGuard | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProgramInfo":
        return self


Program = fx.GraphModule
"""A Q program is a plain GraphModule; its ``meta["qcore"]`` is a :class:`ProgramInfo`."""


def programs(model: nn.Module) -> dict[str, fx.GraphModule]:
    """The Q programs in a model by path; ``{"": model}`` if the whole model is one.

    Raises:
        QuantizationError: there is none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, fx.GraphModule) and isinstance(module.meta.get("qcore"), ProgramInfo)
    }
    if not found:
        raise QuantizationError(
            f"{type(model).__name__} holds no Q program; make one with qcore.convert"
        )
    return found


def convert(model: nn.Module) -> nn.Module:
    """The integer program of a calibrated or trained QFloat model.

    Args:
        model: from :func:`qcore.prepare`, calibrated; stays as it is.

    Returns:
        The program, called like the model. Where the model was not captured whole, a copy of it
        that has a program in the place of each captured part.

    Raises:
        QuantizationError: a layer has no scale, or its accumulator can overflow.
    """
    info = info_of(model)
    for _, quantizer in quantizers(model):
        # Anew: a scale that was written in place since is checked too.
        p = quantizer.qparams()
        QParams(scale=p.scale, zero_point=p.zero_point, scheme=p.scheme)
    origins = contributions(info.recipe, info.plan, info.host)
    if isinstance(model, fx.GraphModule) and "" in info.pieces:
        return _convert_piece(model, info, "", origins)
    result = copy.deepcopy(model)
    for path in info.pieces:
        part = result.get_submodule(path)
        assert isinstance(part, fx.GraphModule)
        program = _convert_piece(part, info, path, origins)
        for place in (path, *info.pieces[path].aliases):
            replace_module(result, place, program)
    forget_info(result)
    return result.eval()


def _convert_piece(
    model: fx.GraphModule, info: QFloatInfo, path: str, origins: tuple[Contribution, ...]
) -> fx.GraphModule:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return _Converter(model, info, info.pieces[path], origins).convert()
    finally:
        for module, mode in modes.items():
            module.training = mode


class _GraphBuilder:
    """Writes operations into a graph; the builder that ``emit`` gets from convert."""

    def __init__(self, graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
        self.graph = graph
        self.tensors = tensors
        self.scope = ""

    def call(self, op: str, *args: Any) -> fx.Node:
        return self.graph.call_function(getattr(torch.ops.qcore, op).default, args)

    def function(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def constant(self, name: str, value: Tensor) -> fx.Node:
        full = self.free_name(f"{self.scope}.{name}" if self.scope else name)
        self.tensors[full] = value.detach().clone().contiguous()
        return self.graph.get_attr(full)

    def free_name(self, name: str) -> str:
        """``name``, or with a number if a tensor of the program has it."""
        free, i = name, 0
        while free in self.tensors:
            i += 1
            free = f"{name}_{i}"
        return free


class _Converter:
    def __init__(
        self,
        model: fx.GraphModule,
        info: QFloatInfo,
        piece: Piece,
        origins: tuple[Contribution, ...],
    ) -> None:
        self.model = model
        self.info = info
        self.piece = piece
        self.origins = origins
        self.modules = dict(model.named_modules())
        self.graph = fx.Graph()
        self.graph.set_codegen(shared_codegen(model.graph))
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, fx.Node] = {}
        self.b = _GraphBuilder(self.graph, self.tensors)
        self.env: dict[fx.Node, Any] = {}
        self.plain: dict[fx.Node, Any] = {}
        """The part of ``env`` that is not held as integers."""
        self.floats: dict[int, Any] = {}
        self.layers: list[Layer] = []
        self.table = OpTable.of(info.host, info.recipe.prefer)

    def convert(self) -> fx.GraphModule:
        for node in self.model.graph.nodes:
            self.b.scope = node.name
            if node.op == "placeholder":
                self.env[node] = self.graph.node_copy(node)
            elif node.op == "get_attr":
                self.env[node] = self._parameter(str(node.target))
            elif node.op == "call_module":
                self.env[node] = self._module(node, self.modules[str(node.target)])
            elif node.op == "call_function":
                self.env[node] = self._function(node)
            else:
                self.graph.output(fx.map_arg(node.args[0], self._float))
                continue
            if not isinstance(self.env[node], QValue):
                self.plain[node] = self.env[node]
        self.graph.eliminate_dead_code()
        self.graph.lint()
        root: dict[str, Any] = dict(self.tensors)
        result = SharedGraphModule(root, self.graph, class_name="Q")
        result.register_forward_pre_hook(self.piece.guard, with_kwargs=True)
        result.eval()
        alive = {node.name for node in self.graph.nodes}
        result.meta["qcore"] = ProgramInfo(
            plan=self.info.plan,
            recipe=self.info.recipe,
            layers=tuple(layer for layer in self.layers if layer.node in alive),
            origins=self.origins,
            guard=self.piece.guard,
        )
        return result

    def _float(self, node: fx.Node) -> Any:
        """The float value of a node of QFloat; a dequantize is written once."""
        value = self.env[node]
        if not isinstance(value, QValue):
            return value
        key = id(value.value)
        if key not in self.floats:
            self.floats[key] = QFloatOp.floats(self.b, value)
        return self.floats[key]

    def _module(self, node: fx.Node, module: nn.Module) -> Any:
        if isinstance(module, FakeQuantize):
            value = QFloatOp.integers(self.b, self._float(node.args[0]), module.qparams())  # type: ignore[arg-type]
            self._note(node, value)
            return value
        if isinstance(module, QFloatOp):
            self.b.scope = str(node.target)
            inputs = self._inputs(node, module)
            value = module.emit(self.b, *inputs)
            self._note(node, value)
            return value
        return self._inline(node, module)

    def _inputs(self, node: fx.Node, op: QFloatOp) -> list[Any]:
        links = op.input_quantizers
        if not links:
            return [self._float(x) for x in node.args]  # type: ignore[arg-type]
        inputs: list[Any] = []
        for x, quantizer in zip(node.args, links, strict=False):
            value = self.env[x]  # type: ignore[index]
            assert isinstance(value, QValue), f"{node}: {x} is not held as integers"
            assert value.scale == float(quantizer.qparams().scale)
            inputs.append(value)
        return inputs + [self._float(x) for x in node.args[len(links) :]]  # type: ignore[arg-type]

    def _note(self, node: fx.Node, value: Any) -> None:
        name = node.meta.get("qcore_name", str(node.target))
        while isinstance(value, tuple):
            value = value[0]
        if isinstance(value, QValue):
            layer = Layer(
                name=name,
                node=value.value.name,
                scale=value.scale,
                zero_point=value.zero_point,
            )
        else:
            layer = Layer(name=name, node=value.name)
        self.layers.append(layer)

    def _parameter(self, name: str, value: Tensor | None = None) -> fx.Node:
        """A parameter or buffer of the model under its own name, or a constant of the capture."""
        if name not in self.parameters:
            owner, _, field = name.rpartition(".")
            try:
                # The model's own: training may have changed it since the capture.
                value = getattr(self.model.get_submodule(owner), field)
            except AttributeError:
                if value is None:
                    raise
            assert isinstance(value, Tensor)
            free = self.b.free_name(name)
            self.tensors[free] = value.detach().clone()
            self.parameters[name] = self.graph.get_attr(free)
        return self.parameters[name]

    def _function(self, node: fx.Node) -> Any:
        whole = self.env.get(node.args[0]) if node.target is operator.getitem else None  # type: ignore[arg-type]
        if isinstance(whole, tuple):
            return whole[node.args[1]]  # type: ignore[index]
        moved = any(isinstance(self.env[n], QValue) for n in node.all_input_nodes)
        if moved:
            spec = self.table.of_function(node.target)
            if spec is not None:
                target = self.info.host.load(spec)
                if isinstance(target, type) and issubclass(target, Movement):
                    return self._move(target, node.target, node.args)
        if not isinstance(node.meta.get("val"), Tensor | list | tuple | None):
            # A size: the integers have the same.
            return self._copy(node, self._raw)
        return self._copy(node, self._float)

    def _raw(self, node: fx.Node) -> Any:
        value = self.env[node]
        return value.value if isinstance(value, QValue) else value

    def _move(self, target: type[Movement], function: Any, args: Any) -> Any:
        plain = fx.map_arg(tuple(args), lambda n: self.env[n])
        return target.emit(self.b, function, list(plain))

    def _copy(self, node: fx.Node, value_of: Callable[[fx.Node], Any]) -> fx.Node:
        new = self.graph.call_function(
            node.target,  # type: ignore[arg-type]
            fx.map_arg(node.args, value_of),
            fx.map_arg(node.kwargs, value_of),
        )
        return new

    def _inline(self, node: fx.Node, module: nn.Module) -> Any:
        """A float module as aten operations; on integers if it only moves them."""
        inputs = node.all_input_nodes
        if any(isinstance(self.env[n], QValue) for n in inputs):
            spec = self.table.of_module(module)
            movement = self.info.host.load(spec) if spec is not None else None
            if isinstance(movement, type) and issubclass(movement, Movement):
                return self._move_module(node, movement)
        values = ChainMap({n: self._float(n) for n in inputs}, self.plain)
        return self.piece.inline(node, self.graph, values, self._parameter)

    def _move_module(self, node: fx.Node, movement: type[Movement]) -> Any:
        """A module's body with every call on integers written by ``movement``."""
        # To a scratch graph first: there it can be read call by call.
        scratch = fx.Graph()
        places = {n: scratch.placeholder(n.name) for n in node.all_input_nodes}
        result = self.piece.inline(
            node, scratch, places, lambda name, tensor: scratch.get_attr(name)
        )
        values: dict[fx.Node, Any] = {place: self.env[n] for n, place in places.items()}
        for inner in scratch.nodes:
            if inner.op == "call_function":
                args = fx.map_arg(inner.args, lambda n: values[n])
                if any(isinstance(a, QValue) for a in _flat(args)):
                    values[inner] = movement.emit(self.b, inner.target, list(args))
                else:
                    values[inner] = self.graph.call_function(inner.target, args)
        return _map(result, values)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]


def _map(result: Any, values: Mapping[fx.Node, Any]) -> Any:
    if isinstance(result, fx.Node):
        return values[result]
    if isinstance(result, list | tuple):
        return type(result)(_map(item, values) for item in result)
    return result
