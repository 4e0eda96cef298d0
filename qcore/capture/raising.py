"""Turn what lies between the markers of a leaf call into one call of the real instance.

The flat graph is not changed: the raised graph is written anew from it, backwards from the outputs,
so dead code never gets in. The flat nodes between the markers stay as the body of the call.
"""

import operator
from collections.abc import Container, Mapping, Sequence
from typing import Any

import attrs
import torch.utils._pytree as pytree
from torch import Tensor, fx

from ..errors import CaptureError
from .bodies import Body
from .functionalize import Writes
from .markers import ENTER, EXIT, MARKERS, Call
from .simplify import schema_name

__all__ = ["CALL_KEY", "Raised", "raise_calls"]

# Where a call_module node keeps the number of its call.
CALL_KEY = "qcore_call"


@attrs.frozen(kw_only=True)
class Raised:
    """The raised graph, and the body of each call that stands in it by the number of the call."""

    graph: fx.Graph
    bodies: Mapping[int, Body]


@attrs.define(kw_only=True)
class _Span:
    """Where a call lies in the flat graph."""

    call: Call
    enters: dict[int, fx.Node] = attrs.field(factory=dict)
    exits: dict[int, fx.Node] = attrs.field(factory=dict)
    first: int = 0
    last: int = 0

    def site(self) -> fx.Node:
        """The node where the call is written: all arguments are known, no result is used yet."""
        if self.exits:
            return self.exits[min(self.exits)]
        return self.enters[max(self.enters)]


def raise_calls(flat: fx.Graph, calls: Sequence[Call], writes: Writes) -> Raised:
    """Write ``flat`` anew with a ``call_module`` in place of each marked call.

    Args:
        flat: simplified graph with markers.
        calls: what the markers belong to.
        writes: what :func:`functionalize` said about ``flat``.

    Raises:
        CaptureError: a leaf depends on a tensor of the forward that is not among its arguments, or
            hands one out that can't be computed again.
    """
    spans = _spans(flat, calls)
    needed, wanted = _needed(flat, spans, writes)
    changes = _changes(flat, spans)
    sites = {spans[index].site(): spans[index] for index in wanted}
    graph = fx.Graph()
    values: dict[fx.Node, Any] = {}
    raised: dict[int, fx.Node] = {}
    # Inputs come first, then everything else as it stands.
    for node in sorted(flat.nodes, key=lambda n: n.op != "placeholder"):
        if node in sites:
            span = sites[node]
            call = _write_call(graph, span, values)
            values.update(_write_results(graph, span, call, needed))
            raised[span.call.index] = call
        if node not in needed or node.target is EXIT:
            continue
        if node.target is ENTER:
            values[node] = values[node.args[0]]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    order = {node: position for position, node in enumerate(flat.nodes)}
    bodies = {
        index: _body(spans[index], call, changes.get(index), order, values)
        for index, call in raised.items()
    }
    return Raised(graph=graph, bodies=bodies)


def _spans(flat: fx.Graph, calls: Sequence[Call]) -> dict[int, _Span]:
    spans: dict[int, _Span] = {}
    for position, node in enumerate(flat.nodes):
        if node.target in MARKERS:
            _, index, tensor, *_ = node.args
            span = spans.setdefault(index, _Span(call=calls[index], first=position))
            (span.enters if node.target is ENTER else span.exits)[tensor] = node
            span.last = position
    return spans


def _needed(
    flat: fx.Graph, spans: Mapping[int, _Span], writes: Writes
) -> tuple[set[fx.Node], set[int]]:
    """The flat nodes that the raised graph needs, and the calls."""
    nodes = list(flat.nodes)
    enclosing = _enclosing(nodes, spans)
    needed: set[fx.Node] = set()
    wanted: set[int] = set()

    def want(index: int) -> None:
        wanted.add(index)
        for enter in spans[index].enters.values():
            needed.update(enter.all_input_nodes)

    for node in reversed(nodes):
        inside = enclosing.get(node)
        changes_state = _changes_state(node)
        if changes_state and inside is not None:
            want(inside)  # the instance itself will do it
        elif changes_state or node.op in {"placeholder", "output"}:
            needed.add(node)
        if node not in needed:
            continue
        if node.target is EXIT:
            want(node.args[1])
            continue
        # A value that leaves a leaf by another way than its results is computed again outside.
        if inside is not None and (changes_state or inside in writes.calls) and not _is_size(node):
            raise CaptureError(
                f"'{spans[inside].call.path}' hands out a tensor ('{node.name}') that is not among "
                "its results, and changes others in place"
            )
        needed.update(node.all_input_nodes)
    return needed, wanted


def _enclosing(nodes: list[fx.Node], spans: Mapping[int, _Span]) -> dict[fx.Node, int]:
    """The call in which each node lies that lies in one."""
    return {
        node: index
        for index, span in spans.items()
        for node in nodes[span.first : span.last + 1]
        if node.target not in MARKERS
    }


def _changes(flat: fx.Graph, spans: Mapping[int, _Span]) -> dict[int, str]:
    """An operation of each call that changes the model's state, by name, for calls that do."""
    enclosing = _enclosing(list(flat.nodes), spans)
    return {index: str(node.target) for node, index in enclosing.items() if _changes_state(node)}


def _changes_state(node: fx.Node) -> bool:
    """Whether it writes to a buffer or attribute: other writes are gone from a simplified graph."""
    return bool(schema_name(node)) and node.target._schema.is_mutable  # type: ignore[union-attr]


def _is_size(node: fx.Node) -> bool:
    return not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))


def _write_call(graph: fx.Graph, span: _Span, values: Mapping[fx.Node, Any]) -> fx.Node:
    call = span.call
    sizes: Any = span.enters[0].args[3] if span.enters else []
    leaves = [
        values[span.enters[slot.index].args[0]]  # type: ignore[index]
        if slot.kind == "tensor"
        else fx.map_arg(sizes[slot.index], values.__getitem__)
        if slot.kind == "size"
        else slot.value
        for slot in call.arg_slots
    ]
    args, kwargs = pytree.tree_unflatten(leaves, call.arg_spec)
    node = graph.call_module(call.path, args, kwargs)
    node.meta = {**span.site().meta, CALL_KEY: call.index}
    if call.out_spec is not None:
        results = [
            span.exits[slot.index].meta["val"] if slot.kind == "tensor" else slot.value
            for slot in call.out_slots
        ]
        node.meta["val"] = pytree.tree_unflatten(results, call.out_spec)
    return node


def _write_results(
    graph: fx.Graph, span: _Span, call: fx.Node, needed: Container[fx.Node]
) -> dict[fx.Node, fx.Node]:
    """For each result tensor that is used: the node that takes it out of the module's result."""
    parts: dict[tuple[tuple[str, Any], ...], fx.Node] = {(): call}
    results: dict[fx.Node, fx.Node] = {}
    for slot in span.call.out_slots:
        if slot.kind != "tensor":
            continue
        leaving = span.exits[slot.index]
        if leaving not in needed or leaving in results:
            continue
        for depth, (kind, key) in enumerate(slot.accessors):
            path = slot.accessors[: depth + 1]
            if path not in parts:
                access = operator.getitem if kind == "item" else getattr
                whole = parts[slot.accessors[:depth]]
                parts[path] = graph.call_function(access, (whole, key))
                parts[path].meta = {**span.site().meta, "val": access(whole.meta["val"], key)}
        results[leaving] = parts[slot.accessors]
    return results


def _body(
    span: _Span,
    raised: fx.Node,
    changes: str | None,
    order: Mapping[fx.Node, int],
    values: Mapping[fx.Node, fx.Node],
) -> Body:
    """The nodes from which the results of a call are computed, down to what goes in."""
    entries = set(span.enters.values())
    inner: set[fx.Node] = set()
    outer: dict[fx.Node, str | None] = {}

    def is_outer(node: fx.Node) -> bool:
        if node.op == "get_attr":
            return False
        before = bool(entries) and order[node] < span.first
        return before or node.op == "placeholder" or node.target in MARKERS

    def add_size(node: fx.Node) -> None:
        if node not in outer:
            outer[node] = values[node].name if node in values else None
            for source in node.all_input_nodes:
                add_size(source)

    pending: list[Any] = [node.args[0] for node in span.exits.values()]
    while pending:
        node = pending.pop()
        if node in entries or node in inner:
            continue
        if not is_outer(node):
            inner.add(node)
            pending.extend(node.all_input_nodes)
        elif _is_size(node):
            add_size(node)
        else:
            raise CaptureError(
                f"'{span.call.path}' uses a tensor of the forward ('{node.name}') that is not "
                "among its arguments"
            )
    return Body(
        call=span.call,
        arg_spec=pytree.tree_structure((raised.args, raised.kwargs)),
        enters=tuple(span.enters[i] for i in sorted(span.enters)),
        exits=tuple(span.exits[i] for i in sorted(span.exits)),
        nodes=tuple(sorted(inner, key=order.__getitem__)),
        changes=changes,
        outer=outer,
    )
