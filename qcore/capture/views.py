"""Views of tensors in a graph: which operations are, taking them again, writing through them."""

import itertools
import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.multiprocessing.reductions import StorageWeakRef

from ..errors import CaptureError
from .markers import MARKERS
from .simplify import is_identity, schema_name, static_size

__all__ = ["apply_view", "hands_on", "is_view", "undo_view"]

aten = torch.ops.aten

# Undone by a reshape to the shape before.
_RESHAPES = frozenset(
    {
        "aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten",
        "aten::squeeze", "aten::unsqueeze", "aten::view_as", "aten::reshape_as", "aten::ravel",
        "aten::_reshape_alias", "aten::contiguous",
    }
)  # fmt: skip
# Undone by doing them once more.
_SELF_INVERSE = frozenset({"aten::transpose", "aten::t", "aten::swapaxes", "aten::swapdims"})
# Views or copies, depending on strides: asked of the operation itself.
_PERHAPS_VIEWS = frozenset(
    {
        "aten::reshape", "aten::reshape_as", "aten::flatten", "aten::ravel", "aten::contiguous",
        "aten::to", "aten::type_as",
    }
)  # fmt: skip


def is_view(node: fx.Node) -> bool:
    """Whether an operation's result, or its items, lie in the memory of its first argument."""
    name = schema_name(node)
    if not name:
        return False
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    if not arguments or arguments[0].alias_info is None:
        return False
    return name not in _PERHAPS_VIEWS or _shares_memory(node)


def _shares_memory(node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    with value.fake_mode:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    # Strides alone decide, so fake tensors, which hold no data, show it as real ones would.
    memory = [StorageWeakRef(t.untyped_storage()) for t in (result, value)]  # type: ignore[no-untyped-call]
    return bool(memory[0] == memory[1])


def apply_view(step: tuple[fx.Node, int | None], value: fx.Node, reader: fx.Node) -> fx.Node:
    """Take a view of ``value`` as ``step`` does, by nodes inserted before ``reader``."""
    node, item = step
    if hands_on(node):
        return value
    graph = reader.graph
    with graph.inserting_before(reader):
        operation: Any = node.target
        result = graph.call_function(operation, (value, *node.args[1:]), node.kwargs)
        result.meta = {**node.meta}
        if item is not None:
            values = result.meta["val"]
            result = graph.call_function(operator.getitem, (result, item))
            result.meta = {**node.meta, "val": values[item]}
    return result


def undo_view(
    step: tuple[fx.Node, int | None], base: fx.Node, value: fx.Node, reader: fx.Node
) -> fx.Node:
    """``base`` with ``value`` where its view ``step`` lies, by nodes inserted before ``reader``.

    Raises:
        CaptureError: a kind of view that can't be written through here.
    """
    node, item = step
    if hands_on(node):
        return value
    graph, name = reader.graph, schema_name(node)
    before = node.args[0]
    assert isinstance(before, fx.Node)
    with graph.inserting_before(reader):
        target, args = _inverse(name, node, item, base, value)
        result = graph.call_function(target, args)
    result.meta = {**node.meta, "val": before.meta["val"]}
    return result


def hands_on(node: fx.Node) -> bool:
    """Whether an operation returns the whole of its argument."""
    return node.target in MARKERS or is_identity(node)


def _inverse(
    name: str, node: fx.Node, item: int | None, base: fx.Node, value: fx.Node
) -> tuple[Any, tuple[Any, ...]]:
    args: tuple[Any, ...] = node.args[1:]
    if name in _RESHAPES:
        return aten.reshape.default, (value, _shape(node, base))
    if name in _SELF_INVERSE:
        return node.target, (value, *args)
    if name == "aten::permute":
        dims = [dim % len(args[0]) for dim in args[0]]
        return aten.permute.default, (value, [dims.index(i) for i in range(len(dims))])
    if name == "aten::select":
        return aten.select_scatter.default, (base, value, *args)
    if name == "aten::slice":
        return aten.slice_scatter.default, (base, value, *args)
    if name == "aten::diagonal":
        return aten.diagonal_scatter.default, (base, value, *args)
    if name == "aten::unbind":
        return aten.select_scatter.default, (base, value, args[0], item)
    if item is not None and name in {"aten::split", "aten::split_with_sizes", "aten::chunk"}:
        dim = args[-1]
        sizes = [static_size(part.shape[dim]) for part in node.meta["val"][: item + 1]]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes):
            *_, start, end = itertools.accumulate(known, initial=0)
            return aten.slice_scatter.default, (base, value, dim, start, end, 1)
    raise CaptureError(f"a tensor is written to through {node.target}, which can't be undone here")


def _shape(node: fx.Node, base: fx.Node) -> list[Any]:
    """The shape of what ``node`` is a view of, symbolic sizes as nodes."""
    before = node.args[0]
    assert isinstance(before, fx.Node)
    value: Tensor = before.meta["val"]
    shape: list[Any] = []
    for dim, size in enumerate(value.shape):
        if static_size(size) is not None:
            shape.append(static_size(size))
            continue
        node_of_size = base.graph.call_function(aten.sym_size.int, (base, dim))
        node_of_size.meta = {"val": size}
        shape.append(node_of_size)
    return shape
