"""The native backend: which operations it runs, and the segments that it makes of a program."""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import fx, nn
from torch.fx.node import map_arg

from qcore import Backend, schema_arguments, why_no_cpp_compiler

from .convolution import Convolution, DepthwiseConvolution
from .elementwise import Add, Dequantize, Mul, Quantize, Requantize, Table
from .layer import Layer, constant
from .library import chosen_isa, library
from .linear import Linear, MatMul
from .moves import is_move
from .pooling import GlobalAverage, MaxPool
from .segment import Place, Segment, Step, Workspace

__all__ = ["NativeBackend"]

_qcore = torch.ops.qcore

_LAYERS: dict[torch._ops.OpOverload, tuple[type[Layer], ...]] = {
    _qcore.dequantize.default: (Dequantize,),
    _qcore.qadaptive_avg_pool.default: (GlobalAverage,),
    _qcore.qadd.default: (Add,),
    _qcore.qconv.default: (DepthwiseConvolution, Convolution),
    _qcore.qlinear.default: (Linear,),
    _qcore.qmatmul.default: (MatMul,),
    _qcore.qmax_pool.default: (MaxPool,),
    _qcore.qmul.default: (Mul,),
    _qcore.qrequantize.default: (Requantize,),
    _qcore.qtable.default: (Table,),
    _qcore.quantize.default: (Quantize,),
}
"""By operation, in the order of preference; the last runs the most."""

_IMAGES = frozenset({_qcore.qconv.default, _qcore.qmax_pool.default})
_ANY_ORDER = frozenset(
    {_qcore.qadd.default, _qcore.qmul.default, _qcore.qrequantize.default, _qcore.qtable.default}
)


class NativeBackend(Backend):
    """Runs whole stretches of a program by kernels that are compiled on this machine.

    Its contract is the default one, so what was prepared for no backend in particular runs on it.
    """

    name: ClassVar[str] = "native"

    @classmethod
    def unavailable(cls) -> str | None:
        return why_no_cpp_compiler()

    def why_not(self, node: fx.Node) -> str | None:
        if is_move(node):
            source = _source(node)
            if source is not None and self.why_not(source) is None:
                return None
            return "it moves values that are not the backend's"
        candidates = _LAYERS.get(cast(torch._ops.OpOverload, node.target))
        if candidates is None:
            return "it has no kernel of its own for this operation"
        given = schema_arguments(node)
        reasons = [layer.why_not(given) for layer in candidates]
        return None if None in reasons else reasons[-1]

    def kernel(self, node: fx.Node) -> str:
        if is_move(node):
            return "view"
        return f"{_chosen(node).label}, {self._isa}"

    @functools.cached_property
    def _isa(self) -> str:
        # Once, not for each node: to find the library is to ask the compiler what it is.
        return chosen_isa(library())

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        workspace = Workspace()
        runs = list(_runs(program.graph.nodes, own))
        # All are made first: a layer asks the operations before it what they store.
        layers = {node: _layer(node) for run in runs for node in run if not is_move(node)}
        for number, run in enumerate(runs):
            _replace(program, run, layers, f"native_{number}", workspace)
        program.graph.eliminate_dead_code()
        program.delete_all_unused_submodules()
        program.recompile()
        return program


def _source(node: fx.Node) -> fx.Node | None:
    """The operation whose result a chain of moves moves."""
    while is_move(node) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node if node.op == "call_function" else None


def _chosen(node: fx.Node) -> type[Layer]:
    """The layer of a node that there is one for."""
    given = schema_arguments(node)
    candidates = _LAYERS[cast(torch._ops.OpOverload, node.target)]
    return next(layer for layer in candidates if layer.why_not(given) is None)


def _runs(nodes: Iterable[fx.Node], own: frozenset[str]) -> Iterable[list[fx.Node]]:
    """Maximal stretches of own nodes. A foreign node that needs nothing of a stretch does not end
    it, since the stretch runs at the place of its last node."""
    run: dict[fx.Node, None] = {}
    for node in nodes:
        if node.name in own:
            run[node] = None
        elif any(source in run for source in node.all_input_nodes):
            yield from _worthwhile(run)
            run = {}
    yield from _worthwhile(run)


def _worthwhile(run: Iterable[fx.Node]) -> Iterable[list[fx.Node]]:
    """The stretch, unless it only moves."""
    nodes = list(run)
    if any(not is_move(node) for node in nodes):
        yield nodes


def _layer(node: fx.Node) -> Layer:
    """What runs a node, and how its result lies, which is decided by what reads it."""
    layer = _chosen(node)(schema_arguments(node))
    if isinstance(layer, Quantize):
        layer.wants_channels_last = _feeds_images(node)
    if isinstance(layer, MatMul):
        layer.heads_inside = _heads_move_inside(node)
    return layer


def _replace(
    program: fx.GraphModule,
    run: list[fx.Node],
    layers: Mapping[fx.Node, Layer],
    name: str,
    workspace: Workspace,
) -> None:
    """Puts a segment in the place of a stretch of nodes."""
    index = {node: i for i, node in enumerate(run)}
    inputs: dict[fx.Node, int] = {}

    def place(node: fx.Node) -> Place:
        if node in index:
            return Place(is_input=False, index=index[node])
        return Place(is_input=True, index=inputs.setdefault(node, len(inputs)))

    steps = [_step(node, layers.get(node), index, place) for node in run]
    outputs = [node for node, step in zip(run, steps, strict=True) if step.is_output]
    segment = Segment(steps, [node.name for node in inputs], workspace)
    program.add_module(name, segment)
    with program.graph.inserting_after(run[-1]):
        call = program.graph.call_module(name, tuple(inputs))
    if len(outputs) == 1:
        outputs[0].replace_all_uses_with(call)
    else:
        for i, node in reversed(list(enumerate(outputs))):
            with program.graph.inserting_after(call):
                part = program.graph.call_function(operator.getitem, (call, i))
            node.replace_all_uses_with(part, delete_user_cb=lambda user: user not in index)
    for node in reversed(run):
        program.graph.erase_node(node)


def _step(
    node: fx.Node,
    layer: Layer | None,
    index: Mapping[fx.Node, int],
    place: Callable[[fx.Node], Place],
) -> Step:
    """One operation of a segment; what only moves has no layer."""
    given = schema_arguments(node)
    inputs = ("self", "input") if layer is None else layer.inputs
    return Step(
        target=cast(torch._ops.OpOverload, node.target),
        args=tuple(_described(value, key in inputs, place) for key, value in given.items()),
        layer=layer,
        inputs={key: place(given[key]) for key in inputs if given.get(key) is not None},
        is_output=any(user not in index for user in node.users),
    )


def _described(value: Any, is_run: bool, place: Callable[[fx.Node], Place]) -> Any:
    """An argument as a step keeps it; constants by their shape alone."""
    tensor = None if is_run else constant(value)
    return map_arg(value, cast(Any, place)) if tensor is None else tensor.to("meta")


def _feeds_images(node: fx.Node) -> bool:
    """Whether layers of images read a value, directly or through operations that keep its order."""
    return any(
        user.target in _IMAGES or (user.target in _ANY_ORDER and _feeds_images(user))
        for user in node.users
    )


def _heads_move_inside(node: fx.Node) -> bool:
    """Whether all that happens to ``[B, H, M, N]`` is that it becomes ``[B, M, H, N]``."""
    users = list(node.users)
    if len(users) != 1 or users[0].target is not torch.ops.aten.transpose.int:
        return False
    return users[0].args[1:] in ((1, 2), (2, 1), (-3, -2), (-2, -3))
