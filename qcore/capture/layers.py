"""Functional layers with tensors of the model, as modules.

A module that calls ``F.linear(x, self.weight)`` computes what ``nn.Linear`` does. Such a call of
``aten.linear`` or ``aten.convNd`` on parameters of the model becomes a call of an instance that
shares these very parameters, so that it can be quantized, and trained, like any other layer. So
does one on buffers and plain attributes that the forward does not write to; they are not trained.
So does one on a part of a parameter, as attention has for query, key and value: the instance has a
parameter of its own, which shares its memory with the whole.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from .simplify import schema_name

__all__ = ["LAYER_KEY", "FunctionalLayer", "raise_layers"]

# Where a call_module node keeps the function that it stands for.
LAYER_KEY = "qcore_layer"

aten = torch.ops.aten

_CONVOLUTIONS: dict[Any, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    aten.conv1d.default: nn.Conv1d,
    aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv2d.padding: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv3d.padding: nn.Conv3d,
}


_PARTS = (
    aten.chunk.default, aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default,
    aten.slice.Tensor, aten.narrow.default, aten.select.int, aten.unbind.int, operator.getitem,
)  # fmt: skip
"""What takes a part of a tensor without computing anything."""


@attrs.frozen(kw_only=True)
class FunctionalLayer:
    """The call ``target(x, weight, bias, *settings)`` that became a call of a module.

    Args:
        target: the aten overload.
        weight: name of the weight in the captured module; of the instance's own if it is a part.
        bias: name of the bias, or None.
        settings: the other arguments.
        parts: of those names, the tensors that the captured module knows as parts of others only.
    """

    target: Any
    weight: str
    bias: str | None
    settings: tuple[Any, ...]
    parts: Mapping[str, Tensor] = attrs.field(factory=dict, repr=False)


def raise_layers(
    graph: fx.Graph, root: nn.Module, is_taken: Callable[[str], bool]
) -> Mapping[str, nn.Module]:
    """Replace, in place, functional layers whose weight and bias are tensors of the model.

    The owner of the parameters itself is called where it is such a layer (attention calls its
    ``out_proj`` this way); else a new instance, named after the weight: ``block_linear`` for
    ``block.weight``, ``block_in_proj_linear`` for ``block.in_proj_weight``.

    Args:
        graph: simplified graph, arguments in positional form.
        root: the module that it was captured from; its tensors are looked up by ``get_attr``.
        is_taken: whether a name can't be given to a new module.

    Returns:
        The called instances by their names in the graph.
    """
    layers: dict[str, nn.Module] = {}
    known: dict[tuple[Any, ...], str] = {}
    shared: dict[Any, nn.Parameter] = {}
    written = _written(graph)
    for node in list(graph.nodes):
        if node.target is not aten.linear.default and node.target not in _CONVOLUTIONS:
            continue
        x, weight_node, bias_node, *settings = node.args
        if {_base(weight_node), _base(bias_node)} & written:
            continue
        weight, bias = (_parameter(root, n, shared) for n in (weight_node, bias_node))
        if weight is None or (bias is None and bias_node is not None):
            continue
        if node.target is aten.linear.default and weight.ndim != 2:
            continue
        key = (node.target, id(weight), id(bias), repr(settings))
        if key not in known:
            owner = _owner(root, weight_node, node, weight, bias)
            if owner is not None:
                known[key], layers[owner[0]] = owner[0], owner[1]
            else:
                whole = str(_base(weight_node).target)
                name = _fresh_name(whole, node, lambda n: is_taken(n) or n in layers)
                layers[name] = _layer(node, weight, bias)
                layers[name].train(root.training)
                known[key] = name
        with graph.inserting_before(node):
            call = graph.call_module(known[key], (x,))
        parts: dict[str, Tensor] = {}
        names = [
            _name_in(known[key], field, part, value, parts)
            for field, part, value in (("weight", weight_node, weight), ("bias", bias_node, bias))
        ]
        assert names[0] is not None
        function = FunctionalLayer(
            target=node.target,
            weight=names[0],
            bias=names[1],
            settings=tuple(settings),
            parts=parts,
        )
        call.meta = {**node.meta, LAYER_KEY: function}
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        for used in (weight_node, bias_node):
            while used is not None and not used.users:
                source = used.args[0] if used.op == "call_function" else None
                graph.erase_node(used)
                used = source
    return layers


def _base(node: Any) -> Any:
    """The node of which another takes a part; the node itself if it takes none."""
    while isinstance(node, fx.Node) and node.target in _PARTS:
        node = node.args[0]
    return node


def _name_in(
    layer: str, field: str, node: fx.Node | None, value: Tensor | None, parts: dict[str, Tensor]
) -> str | None:
    """Name of a layer's tensor: in the captured module, or, for a part, in the layer."""
    if node is None or value is None:
        return None
    if node.op == "get_attr":
        return str(node.target)
    parts[f"{layer}.{field}"] = value
    return f"{layer}.{field}"


def _written(graph: fx.Graph) -> set[Any]:
    """The nodes that read a tensor which the graph writes to, itself or through a view."""
    targets: set[Any] = set()
    for node in graph.nodes:
        if schema_name(node) and node.target._schema.is_mutable:
            while node.op == "call_function":
                node = node.args[0]
            targets.add(node.target)
    return {node for node in graph.nodes if node.op == "get_attr" and node.target in targets}


def _parameter(root: nn.Module, node: Any, shared: dict[Any, nn.Parameter]) -> nn.Parameter | None:
    """The parameter that a node reads; for another tensor, or a part, one that shares its
    memory."""
    if not isinstance(node, fx.Node):
        return None
    base = _base(node)
    if base is not node:
        whole = _parameter(root, base, shared)
        part = None if whole is None else _part(node, base, whole.detach())
        if whole is None or part is None:
            return None
        place = (id(whole), part.storage_offset(), part.shape, part.stride())
        made = nn.Parameter(part, requires_grad=whole.requires_grad)
        return shared.setdefault(place, made)
    if node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    try:
        value = getattr(root.get_submodule(owner), name)
    except AttributeError:
        return None  # a constant of the graph
    if isinstance(value, nn.Parameter):
        return value
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.requires_grad:
        return None
    return shared.setdefault(id(value), nn.Parameter(value, requires_grad=False))


def _part(node: fx.Node, base: fx.Node, whole: Tensor) -> Tensor | None:
    """The part of a tensor that a node takes; None where it depends on a size of the input."""
    chain = [node]
    while chain[-1].args[0] is not base:
        chain.append(chain[-1].args[0])  # type: ignore[arg-type]
    value: Any = whole
    for step in reversed(chain):
        rest = step.args[1:]
        if any(isinstance(a, fx.Node) for a in pytree.tree_leaves(rest)) or step.kwargs:
            return None
        value = step.target(value, *rest)  # type: ignore[operator]
    assert isinstance(value, Tensor)
    return value


def _layer(node: fx.Node, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    """An instance with these parameters. Built on the meta device, so that nothing is drawn."""
    layer: Any
    if node.target is aten.linear.default:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    else:
        kind: Any = _CONVOLUTIONS[node.target]
        stride, padding, dilation, groups = _settings(node, weight)
        layer = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
            device="meta",
        )
    layer.weight = weight
    layer.bias = bias
    assert isinstance(layer, nn.Module)
    return layer


def _settings(node: fx.Node, weight: Tensor) -> tuple[Any, Any, Any, Any]:
    """Stride, padding, dilation and groups of a convolution as its module holds them."""
    dims = weight.ndim - 2

    def every(value: Any) -> Any:
        if isinstance(value, str):
            return value
        return tuple(value) if len(value) == dims else tuple(value) * dims

    stride, padding, dilation, groups = node.args[3:]
    return every(stride), every(padding), every(dilation), groups


def _owner(
    root: nn.Module,
    read: fx.Node,
    node: fx.Node,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
) -> tuple[str, nn.Module] | None:
    """The module that holds the parameters, where calling it is the very same operation."""
    if read.op != "get_attr":
        return None
    path = str(read.target).rpartition(".")[0]
    module = root.get_submodule(path)
    expected = nn.Linear if node.target is aten.linear.default else _CONVOLUTIONS[node.target]
    if not path or not isinstance(module, expected) or type(module).forward is not expected.forward:
        return None
    if module.weight is not weight or module.bias is not bias or _has_hooks(module):
        return None
    if isinstance(module, nn.Linear):
        return path, module
    found = (module.stride, module.padding, module.dilation, module.groups)
    plain = type(module)._conv_forward is expected._conv_forward  # type: ignore[union-attr]
    same = plain and module.padding_mode == "zeros" and found == _settings(node, weight)
    return (path, module) if same else None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def _fresh_name(weight: str, node: fx.Node, is_taken: Callable[[str], bool]) -> str:
    owner, _, field = weight.rpartition(".")
    stem = field.removesuffix("weight").strip("_")
    kind = schema_name(node).removeprefix("aten::")
    name = "_".join(filter(None, (owner, stem, kind)))
    if is_taken(name):
        name = name.replace(".", "_")
    count = 1
    while is_taken(name if count == 1 else f"{name}_{count}"):
        count += 1
    return name if count == 1 else f"{name}_{count}"
