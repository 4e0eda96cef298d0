"""A captured piece of a model: its graph, and what the graph leaves out."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, fx, nn

from ..codegen import shared_codegen
from ..errors import CaptureError
from .assembly import assemble, lone_call
from .bodies import Body
from .functionalize import functionalize
from .guard import InputGuard, guard_of
from .layers import LAYER_KEY, raise_layers
from .raising import CALL_KEY, raise_calls
from .simplify import drop_checks, drop_identities, inline_wrappers, positional, share_sizes
from .tracing import Trace

__all__ = ["LEAF_TARGET", "Piece", "build_piece", "lone_leaf"]

# What a leaf that was captured by itself is called in its graph.
LEAF_TARGET = "module"


@attrs.frozen(kw_only=True, eq=False)
class Piece:
    """A model, or a part of it, as a graph that calls the real module instances.

    Args:
        path: qualified name of the captured module; ``""`` for the whole model.
        aliases: the other qualified names of the same instance.
        rung: ``"whole"``, ``"submodule"`` or ``"module"`` (a leaf by itself).
        graph: takes the arguments of the captured module, as the example gave them, and returns
            what it returns. Its nodes are placeholders; ``call_module`` of the instances of the
            model, named as in the captured module; ``call_function`` of aten overloads with
            positional arguments in the order of the schema, of ``operator.*`` and ``torch.sym_*``;
            ``get_attr`` of parameters, buffers and constants; and one output. ``meta["val"]`` holds
            a fake tensor (or a tree of them) with the shape and dtype of the node's value.
        guard: checks the inputs; it is registered on ``graph``, and to be registered on what
            replaces it.
        static: why the graph holds for the batch size of the example only; None where it does not.
    """

    path: str
    aliases: tuple[str, ...] = ()
    rung: str = attrs.field(validator=attrs.validators.in_(("whole", "submodule", "module")))
    graph: fx.GraphModule
    guard: InputGuard
    static: str | None
    _root: nn.Module = attrs.field(repr=False)
    _constants: Mapping[str, Tensor] = attrs.field(repr=False)
    _bodies: Mapping[int, Body] = attrs.field(repr=False)

    def qualified(self, target: str) -> str:
        """Name in the whole model of a ``call_module`` or ``get_attr`` target of the graph."""
        if self.rung == "module" and target.partition(".")[0] == LEAF_TARGET:
            target = target.partition(".")[2]
        return ".".join(filter(None, (self.path, target)))

    def inline(
        self,
        node: fx.Node,
        graph: fx.Graph,
        values: Mapping[fx.Node, Any],
        get_attr: Callable[[str, Tensor], fx.Node],
    ) -> Any:
        """Write what a leaf does in eval mode, as aten operations, where ``graph`` inserts.

        Args:
            node: a ``call_module`` node of :attr:`graph` or of a copy of it. Its present arguments
                are taken.
            graph: where the operations go.
            values: what stands in ``graph`` for each argument of the call, by node of the graph of
                ``node``. Sizes are read from its placeholders, so these should be there too.
            get_attr: called with a name and the tensor which has it: returns the node of ``graph``
                that reads this parameter, buffer or constant. The name is the one in :attr:`graph`,
                which holds the instances of the model; a constant has a name of its own.

        Returns:
            What the module returns: a node of ``graph``, or a tree with nodes for its tensors. A
            leaf that does nothing in eval mode (dropout) returns the value that it was given.

        Raises:
            CaptureError: the node has no body (a leaf that was captured without example inputs), a
                value is missing, or the leaf changes its own state.
        """
        layer = node.meta.get(LAYER_KEY)
        body = self._bodies.get(node.meta.get(CALL_KEY, -1))
        if layer is not None:
            weight, bias = (
                None
                if name is None
                else get_attr(name, layer.parts[name] if name in layer.parts else self.tensor(name))
                for name in (layer.weight, layer.bias)
            )
            (x,) = fx.map_arg(node.args, values.__getitem__)
            return graph.call_function(layer.target, (x, weight, bias, *layer.settings))
        if body is None:
            raise CaptureError(
                f"node '{node.name}' of '{self.path or 'the model'}' has no captured body; call "
                "the module instead"
            )
        # A tied parameter goes by its name in the leaf that is being copied.
        own = _names_under(self._root, body.call.path)

        def read(part: fx.Node) -> fx.Node:
            name = str(part.target)
            tensor = self.tensor(name)
            return get_attr(own.get(id(tensor), name), tensor)

        return body.copy_to(graph, node, values, read)

    def tensor(self, name: str) -> Tensor:
        """The parameter, buffer, attribute or constant of a name that ``get_attr`` asks for."""
        if name in self._constants:
            return self._constants[name]
        return tensor_of(self._root, name)


def _names_under(root: nn.Module, path: str) -> dict[int, str]:
    module, prefix = root.get_submodule(path), f"{path}." if path else ""
    named = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return {id(tensor): prefix + name for name, tensor in named}


def build_piece(
    root: nn.Module, trace: Trace, *, path: str, aliases: tuple[str, ...], rung: str
) -> Piece:
    """The piece that a trace of ``root`` gives.

    Raises:
        CaptureError: the trace holds what a graph of module calls can't express.
    """
    flat = trace.module.graph
    if rung == "module":
        root = _held(root, trace)
    inline_wrappers(trace.module)
    drop_checks(flat)
    positional(flat)
    share_sizes(flat)
    with torch.no_grad():
        writes = functionalize(flat)
    share_sizes(flat)  # those that functionalize asks for
    drop_identities(flat, keep=writes.copies)
    raised = raise_calls(flat, trace.calls, writes)
    instances = {call.path: root.get_submodule(call.path) for call in trace.calls}
    constants = {k: v for k, v in trace.constants.items() if not _has(root, k)}

    def is_taken(name: str) -> bool:
        inside = any(name.startswith(f"{target}.") for target in instances)
        return inside or name in constants or _has(root, name)

    instances.update(raise_layers(raised.graph, root, is_taken))
    raised.graph.set_codegen(shared_codegen(flat))
    called = {str(n.target) for n in raised.graph.nodes if n.op == "call_module"}
    read = dict.fromkeys(str(n.target) for n in raised.graph.nodes if n.op == "get_attr")
    module = assemble(
        raised.graph,
        root,
        {target: instance for target, instance in instances.items() if target in called},
        {name: constants[name] if name in constants else tensor_of(root, name) for name in read},
    )
    guard = guard_of(
        raised.graph,
        path,
        aliases=trace.aliases,
        conditions=trace.conditions,
        any_shape=rung == "module",
    )
    return Piece(
        path=path,
        aliases=aliases,
        rung=rung,
        graph=module,
        guard=guard,
        static=trace.static,
        root=root,
        constants=constants,
        bodies=raised.bodies,
    )


def _holder(leaf: nn.Module) -> nn.Module:
    """A module that holds a leaf which was captured by itself, as the graph of its piece does."""
    holder = nn.Module()
    holder.training = leaf.training
    holder.add_module(LEAF_TARGET, leaf)
    return holder


def _held(leaf: nn.Module, trace: Trace) -> nn.Module:
    """The holder of a leaf, with the names in its trace turned into names in the holder."""
    for node in trace.module.graph.nodes:
        if node.op == "get_attr" and _has(leaf, str(node.target)):
            node.target = f"{LEAF_TARGET}.{node.target}"
    for call in trace.calls:
        call.path = f"{LEAF_TARGET}.{call.path}" if call.path else LEAF_TARGET
    return _holder(leaf)


def lone_leaf(leaf: nn.Module, *, path: str, aliases: tuple[str, ...]) -> Piece:
    """The piece that calls ``leaf`` with one tensor, for want of example inputs: without bodies."""
    graph = lone_call(leaf, LEAF_TARGET)
    module = assemble(graph, leaf, {LEAF_TARGET: leaf}, {})
    guard = guard_of(graph, path, any_shape=True)
    return Piece(
        path=path,
        aliases=aliases,
        rung="module",
        graph=module,
        guard=guard,
        static=None,
        root=_holder(leaf),
        constants={},
        bodies={},
    )


def tensor_of(root: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or tensor attribute of this qualified name."""
    owner, _, field = name.rpartition(".")
    value = getattr(root.get_submodule(owner), field)
    assert isinstance(value, Tensor)
    return value


def _has(root: nn.Module, name: str) -> bool:
    owner, _, field = name.rpartition(".")
    try:
        return hasattr(root.get_submodule(owner), field)
    except AttributeError:
        return False
