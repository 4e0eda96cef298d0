"""Passes that bring an exported graph into one plain form, before its calls are raised.

- :func:`inline_wrappers`: blocks under ``torch.no_grad`` and the like become part of the graph;
- :func:`drop_checks`: assertions go;
- :func:`positional`: arguments of operations stand by position as their schema lists them;
- :func:`share_sizes`: a symbolic size of an input is read from that input, once;
- :func:`drop_identities`: operations that only hand on their input go; ``view`` becomes
  ``reshape``, so that nothing depends on memory layout.
"""

import operator
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import CaptureError

__all__ = [
    "COPIES",
    "argument",
    "drop_checks",
    "drop_identities",
    "inline_wrappers",
    "is_identity",
    "positional",
    "schema_name",
    "share_sizes",
    "static_size",
]

aten = torch.ops.aten

_CHECKS = frozenset(
    {
        "aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::_assert_async",
        "aten::_functional_assert_scalar", "aten::_functional_assert_async",
        "aten::sym_constrain_range", "aten::sym_constrain_range_for_size",
    }
)  # fmt: skip
# What these compute depends on how their input lies in memory.
_LAYOUT_BOUND = frozenset(
    {"aten::as_strided", "aten::view_as_complex", "aten::view_as_real", "aten::stride"}
)
_CONVERSIONS = frozenset({"aten::to", "aten::_to_copy", "aten::type_as"})
_ALIASES = frozenset({"aten::detach", "aten::alias", "aten::detach_", "aten::resolve_conj"})
# The values of their input, perhaps in new memory.
COPIES = _CONVERSIONS | {"aten::clone", "aten::lift_fresh_copy", "aten::contiguous"}
_DROPOUTS = frozenset({"aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"})


def schema_name(node: fx.Node) -> str:
    """``"aten::add"`` for a node that calls an overload of it; empty for any other node."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return ""
    return target._schema.name


def static_size(size: int | torch.SymInt) -> int | None:
    """A size as a number, or None for a symbol. Export writes known sizes as symbols too."""
    return size if isinstance(size, int) else size.node.maybe_as_int()


def inline_wrappers(module: fx.GraphModule) -> None:
    """Replace blocks under a grad mode, or under a switched off autocast, by their operations.

    Raises:
        CaptureError: another higher-order operation (a branch, a loop, an autocast that is on).
    """
    graph = module.graph
    for node in list(graph.nodes):
        target = node.target
        if not isinstance(target, torch._ops.HigherOrderOperator):
            continue
        if target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            _, body, *operands = node.args
        elif target is torch.ops.higher_order.wrap_with_autocast and not node.args[2]:
            _, _, _, _, body, *operands = node.args
        else:
            raise CaptureError(f"higher-order operation {target} in the forward")
        assert isinstance(body, fx.Node)
        inner = module.get_submodule(str(body.target))
        assert isinstance(inner, fx.GraphModule)
        inline_wrappers(inner)
        values: dict[fx.Node, Any] = {}
        remaining = iter(operands)
        with graph.inserting_before(node):
            for part in inner.graph.nodes:
                if part.op == "placeholder":
                    values[part] = next(remaining)
                elif part.op == "output":
                    results = fx.map_arg(part.args[0], values.__getitem__)
                else:
                    values[part] = graph.node_copy(part, values.__getitem__)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)


def drop_checks(graph: fx.Graph) -> None:
    """Erase assertions; an :class:`~qcore.capture.InputGuard` does their work."""
    for node in reversed(list(graph.nodes)):
        if not node.users and schema_name(node) in _CHECKS:
            graph.erase_node(node)


def positional(graph: fx.Graph) -> None:
    """All positional arguments by position, with defaults; keyword-only ones where they differ."""
    for node in graph.nodes:
        if schema_name(node):
            node.args, node.kwargs = _by_schema(node)


def _by_schema(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = list(node.args), dict(node.kwargs)
    keywords: dict[str, Any] = {}
    for index, known in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        value = kwargs.get(known.name, known.default_value)
        if known.kwarg_only and value != known.default_value:
            keywords[known.name] = value
        elif not known.kwarg_only and index >= len(args):
            args.append(value)
    return tuple(args), keywords


def share_sizes(graph: fx.Graph) -> None:
    """Read each symbolic size that is a dimension of an input from that input, at the graph's top.

    Export reads a size from whichever tensor it meets first, which may be one inside a leaf.
    """
    sources: dict[Any, tuple[fx.Node, int]] = {}
    last: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            last = node
            value = node.meta.get("val")
            sizes: Iterable[Any] = value.shape if isinstance(value, Tensor) else ()
            for dim, size in enumerate(sizes):
                if static_size(size) is None:
                    sources.setdefault(size.node.expr, (node, dim))
    shared: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is not aten.sym_size.int:
            continue
        value = node.meta["val"]
        if static_size(value) is not None:
            _replace(node, static_size(value))
        elif value.node.expr in sources:
            expression = value.node.expr
            if expression not in shared:
                assert last is not None
                with graph.inserting_after(last):
                    shared[expression] = graph.call_function(aten.sym_size.int, sources[expression])
                shared[expression].meta = {**node.meta}
            node.replace_all_uses_with(shared[expression])
            graph.erase_node(node)


def _replace(node: fx.Node, value: Any) -> None:
    """Put a number in the place of a node."""
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(
            (user.args, user.kwargs), lambda n: value if n is node else n
        )
    node.graph.erase_node(node)


def is_identity(node: fx.Node) -> bool:
    """Whether an operation returns its first argument itself: same values, in the same memory."""
    name = schema_name(node)
    if name in _ALIASES:
        return True
    if name in _DROPOUTS:
        _, p, train = node.args
        return not train or p in (0, 0.0)
    if name == "aten::slice":
        return _is_full_slice(node)
    # `to` hands on its input where nothing changes, unless told to copy or to lay it out anew.
    return (
        name in {"aten::to", "aten::type_as"}
        and _keeps_type(node)
        and not argument(node, "copy")
        and argument(node, "memory_format") in (None, torch.preserve_format)
    )


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an operation by its name in the schema; None where the schema lacks it."""
    for index, known in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if known.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, known.default_value)
    return None


def _keeps_type(node: fx.Node) -> bool:
    before, after = _source(node).meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return (before.dtype, before.device, before.layout) == (
        after.dtype,
        after.device,
        after.layout,
    )


def _is_full_slice(node: fx.Node) -> bool:
    _, dim, start, end, step = node.args
    value = _source(node).meta.get("val")
    if start not in (None, 0) or step != 1 or not isinstance(value, Tensor):
        return False
    # A symbolic end would have to be proven equal; a plain one past any size needs no proof.
    if end is None or (isinstance(end, int) and end >= torch.iinfo(torch.int64).max):
        return True
    size = static_size(value.shape[dim])  # type: ignore[index]
    return isinstance(end, int) and size is not None and end >= size


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def drop_identities(graph: fx.Graph, keep: Collection[fx.Node] = ()) -> None:
    """Erase what hands on its input, and write ``view`` as ``reshape``.

    Args:
        graph: must hold no operation that writes to a tensor of the graph.
        keep: copies that must stay, because the copy or its source is written to by a leaf.
    """
    layout_bound = any(
        schema_name(node) in _LAYOUT_BOUND or node.target is aten.view.dtype for node in graph.nodes
    )
    for node in list(graph.nodes):
        name = schema_name(node)
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        copy = name in COPIES and _keeps_type(node)
        if is_identity(node) or (copy and node not in keep and not layout_bound):
            source = _source(node)
            node.replace_all_uses_with(source)
            graph.erase_node(node)
