"""Rewrite operations that write to a tensor into ones that return a new tensor.

A captured graph is cut, changed and run on integers, so no operation in it may change a value that
another one reads. ``x.add_(y)`` becomes ``add(x, y)``, and whatever reads ``x``, a view of ``x`` or
the tensor that ``x`` is a view of *afterwards* reads the new value instead: views are taken again,
and a write through a view is put back into its base by ``select_scatter``, ``slice_scatter`` or a
reshape.

Two kinds of writing stay. State of the model (buffers, attributes) is still written, which is what
the forward means. And a leaf that works in place (``nn.ReLU(inplace=True)``) remains as it is,
since the graph calls the instance itself; nothing reads its argument afterwards.
"""

import operator
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, fx

from ..errors import CaptureError
from .markers import ENTER, EXIT, MARKERS
from .simplify import COPIES, is_identity, schema_name
from .views import apply_view, hands_on, is_view, undo_view

__all__ = ["Writes", "functionalize"]

# Where the name without the trailing underscore is not the functional form.
_FUNCTIONAL_NAMES = {
    "normal_": "normal_functional",
    "zero_": "zeros_like",
    "__iand__": "bitwise_and",
    "__ior__": "bitwise_or",
    "__ixor__": "bitwise_xor",
}
_FUNCTIONAL_OVERLOADS = {"transpose_": "int"}
# These write to the shape of their argument, not to its values.
_IN_PLACE_VIEWS = frozenset(
    {
        "aten::squeeze_", "aten::unsqueeze_", "aten::t_", "aten::transpose_", "aten::swapaxes_",
        "aten::swapdims_",
    }
)  # fmt: skip


@attrs.frozen(kw_only=True)
class Writes:
    """What is still written to when the graph runs.

    Args:
        copies: copies whose source or result the model or a leaf writes to: they must stay copies.
        calls: numbers of the leaf calls that write to an argument.
    """

    copies: frozenset[fx.Node] = frozenset()
    calls: frozenset[int] = frozenset()


# A view operation, and the item of its result where that is a list.
_Step = tuple[fx.Node, int | None]


@attrs.define(eq=False)
class _Storage:
    """Memory that some values of the graph share.

    ``value`` is the node that now stands for the whole of it, ``version`` counts the writes.
    ``state``: it belongs to the model, so it is really written to. ``writer``: a leaf call that
    wrote to it and has not handed it out since; ``before`` is the value before that call, ``part``
    the view of it that the leaf was given. ``shared``: the model or a leaf writes to it at run
    time.
    """

    value: fx.Node
    state: bool = False
    version: int = 0
    writer: int | None = None
    before: fx.Node | None = None
    part: tuple[_Step, ...] = ()
    shared: bool = False


@attrs.define(eq=False)
class _View:
    """How a value lies in its storage: ``current`` is the node that holds it as of ``version``."""

    storage: _Storage
    steps: tuple[_Step, ...]
    version: int
    current: fx.Node


def functionalize(graph: fx.Graph) -> Writes:
    """Rewrite ``graph``, whose arguments are in positional form, in place.

    Raises:
        CaptureError: a write that has no functional form here; the message names it.
    """
    if not any(_written(node) for node in graph.nodes):
        return Writes()
    return _Functionalizer(graph).run()


def _written(node: fx.Node) -> list[int]:
    """Positions of the arguments that an operation writes to."""
    if not schema_name(node) or is_identity(node):
        return []
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    return [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]


class _Functionalizer:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.views: dict[fx.Node, _View] = {}
        self.lists: dict[fx.Node, _View] = {}
        self.copies: list[tuple[fx.Node, _View, _View]] = []
        self.dead: list[fx.Node] = []
        self.writers: set[int] = set()
        self.open_call: Any = None

    def run(self) -> Writes:
        last_exit = {n.args[1]: n for n in self.graph.nodes if n.target is EXIT}
        for node in list(self.graph.nodes):
            if node.target is ENTER:
                self.open_call = node.args[1]
            read = partial(self.read, reader=node)
            node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), read)
            if _written(node):
                self.write(node)
            else:
                self.define(node)
            if node.target is EXIT:
                self.hand_out(node)
            if node is last_exit.get(self.open_call):
                self.open_call = None
        for node in reversed(self.dead):
            self.graph.erase_node(node)
        copies = (n for n, a, b in self.copies if a.storage.shared or b.storage.shared)
        return Writes(copies=frozenset(copies), calls=frozenset(self.writers))

    def read(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """The node that holds, where ``reader`` stands, the value that ``node`` denotes."""
        view = self.views.get(node)
        if view is None:
            return node
        storage = view.storage
        if view.version != storage.version:
            if storage.writer is not None and storage.writer != self.open_call:
                raise CaptureError(
                    f"'{node.name}' is read after a layer has written to it without returning it"
                )
            value = storage.value
            for step in view.steps:
                value = apply_view(step, value, reader)
            view.current, view.version = value, storage.version
            self.views.setdefault(value, _View(storage, view.steps, storage.version, value))
        return view.current

    def define(self, node: fx.Node) -> None:
        """Note in which memory the result of an operation that writes nothing lies."""
        value = node.meta.get("val")
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if node.target is operator.getitem and source is not None and source in self.lists:
            item: Any = node.args[1]
            self.alias(node, self.lists[source], (source, item))
            return
        origin = self.views.get(source) if source is not None else None
        if not isinstance(value, Tensor):
            if isinstance(value, list | tuple) and origin is not None and is_view(node):
                self.lists[node] = origin
        elif origin is not None and (node.target in MARKERS or is_identity(node) or is_view(node)):
            self.alias(node, origin, (node, None))
        else:
            state = node.op == "get_attr"
            view = _View(_Storage(value=node, state=state), (), 0, node)
            self.views[node] = view
            if origin is not None and schema_name(node) in COPIES:
                self.copies.append((node, origin, view))

    def alias(self, node: fx.Node, origin: _View, *step: _Step) -> None:
        storage = origin.storage
        self.views[node] = _View(storage, (*origin.steps, *step), storage.version, node)

    def write(self, node: fx.Node) -> None:
        """Replace an operation that writes to one argument."""
        positions = _written(node)
        target = node.args[positions[0]] if positions[0] < len(node.args) else None
        if len(positions) != 1 or not isinstance(target, fx.Node) or target not in self.views:
            raise CaptureError(f"{node.target} writes to its arguments and has no other form")
        view = self.views[target]
        storage = view.storage
        if schema_name(node) in _IN_PLACE_VIEWS:
            node.target = _functional(node)
            self.define(node)
            return
        if storage.state:
            storage.shared = True
            self.alias(node, view)
            return
        value = self.functional_call(node)
        part = self.part_given(view)
        if part is not None:
            if storage.writer != self.open_call:
                storage.before, storage.part = storage.value, part
            elif part != storage.part:
                storage.before = None  # given twice in different ways: too much to follow
            storage.writer, storage.shared = self.open_call, True
            self.writers.add(self.open_call)
        self.store(view, value, node)
        self.views[value] = _View(storage, view.steps, storage.version, value)
        self.views[node] = _View(storage, view.steps, storage.version, value)
        self.dead.append(node)

    def functional_call(self, node: fx.Node) -> fx.Node:
        """The result of the operation as a new tensor, of the dtype of the one written to."""
        target = _functional(node)
        expected: Tensor = node.meta["val"]
        with self.graph.inserting_before(node):
            value = self.graph.call_function(target, node.args, node.kwargs)
            value.meta = {**node.meta}
            with expected.fake_mode:  # type: ignore[attr-defined]
                found = target(*_values(node.args), **_values(node.kwargs))
            if found.dtype != expected.dtype:
                value.meta["val"] = found
                cast = (value, expected.dtype, False, False, None)
                value = self.graph.call_function(torch.ops.aten.to.dtype, cast)
                value.meta = {**node.meta}
        return value

    def store(self, view: _View, value: fx.Node, reader: fx.Node) -> None:
        """Make ``value`` what ``view`` shows, and so change the storage that it is a view of."""
        storage = view.storage
        bases = [storage.value]
        for step in view.steps[:-1]:
            bases.append(apply_view(step, bases[-1], reader))
        for step, base in zip(
            reversed(view.steps), reversed(bases[: len(view.steps)]), strict=True
        ):
            value = undo_view(step, base, value, reader)
        storage.value = value
        storage.version += 1
        self.views.setdefault(value, _View(storage, (), storage.version, value))

    def part_given(self, view: _View) -> tuple[_Step, ...] | None:
        """The view of its storage that the running leaf call was given, if it was given one."""
        for position, (node, _) in enumerate(view.steps):
            if node.target is ENTER and node.args[1] == self.open_call:
                return view.steps[:position]
        return None

    def hand_out(self, node: fx.Node) -> None:
        """What a leaf wrote to its argument is read, from here on, from what it returns.

        That needs the whole of the argument to be returned. Otherwise the storage keeps its writer,
        and reading it is an error.
        """
        view = self.views[node]
        storage = view.storage
        if storage.writer is None or storage.writer != node.args[1] or storage.before is None:
            return
        part = self.part_given(view)
        if part != storage.part or not all(hands_on(n) for n, _ in view.steps[len(part) :]):
            return
        storage.value = storage.before
        self.store(_View(storage, part, 0, node), node, node.next)
        view.version = storage.version
        storage.writer = None


def _functional(node: fx.Node) -> Any:
    """The overload that computes what an in-place one writes."""
    schema = node.target._schema  # type: ignore[union-attr]
    namespace, _, name = schema.name.partition("::")
    packet = getattr(
        getattr(torch.ops, namespace), _FUNCTIONAL_NAMES.get(name, name.removesuffix("_")), None
    )
    overload = schema.overload_name or _FUNCTIONAL_OVERLOADS.get(name, "default")
    found = getattr(packet, overload, None)
    if found is None or found is node.target:
        raise CaptureError(f"{node.target} writes to its argument and has no functional form")
    return found


def _values(arguments: Any) -> Any:
    return fx.map_arg(arguments, lambda n: n.meta["val"])
