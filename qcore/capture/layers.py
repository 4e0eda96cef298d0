"""Functional layers with tensors of the model, as modules.

A module that calls ``F.linear(x, self.weight)`` computes what ``nn.Linear`` does. Such a call of
``aten.linear`` or ``aten.convNd`` on parameters of the model becomes a call of an instance that
shares these very parameters, so that it can be quantized, and trained, like any other layer. So
does one on buffers and plain attributes that the forward does not write to; they are not trained.
"""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
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


@attrs.frozen(kw_only=True)
class FunctionalLayer:
    """The call ``target(x, weight, bias, *settings)`` that became a call of a module.

    Args:
        target: the aten overload.
        weight: name of the weight in the captured module.
        bias: name of the bias, or None.
        settings: the other arguments.
    """

    target: Any
    weight: str
    bias: str | None
    settings: tuple[Any, ...]


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
    shared: dict[int, nn.Parameter] = {}
    written = _written(graph)
    for node in list(graph.nodes):
        if node.target is not aten.linear.default and node.target not in _CONVOLUTIONS:
            continue
        x, weight_node, bias_node, *settings = node.args
        if weight_node in written or bias_node in written:
            continue
        weight, bias = (_parameter(root, n, shared) for n in (weight_node, bias_node))
        if weight is None or (bias is None and bias_node is not None):
            continue
        if node.target is aten.linear.default and weight.ndim != 2:
            continue
        key = (node.target, id(weight), id(bias), repr(settings))
        if key not in known:
            owner = _owner(root, weight_node.target, node, weight, bias)
            if owner is not None:
                known[key], layers[owner[0]] = owner[0], owner[1]
            else:
                name = _fresh_name(weight_node.target, node, lambda n: is_taken(n) or n in layers)
                layers[name] = _layer(node, weight, bias)
                layers[name].train(root.training)
                known[key] = name
        with graph.inserting_before(node):
            call = graph.call_module(known[key], (x,))
        function = FunctionalLayer(
            target=node.target,
            weight=str(weight_node.target),
            bias=None if bias_node is None else str(bias_node.target),
            settings=tuple(settings),
        )
        call.meta = {**node.meta, LAYER_KEY: function}
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        for used in (weight_node, bias_node):
            if used is not None and not used.users:
                graph.erase_node(used)
    return layers


def _written(graph: fx.Graph) -> set[Any]:
    """The nodes that read a tensor which the graph writes to, itself or through a view."""
    targets: set[Any] = set()
    for node in graph.nodes:
        if schema_name(node) and node.target._schema.is_mutable:
            while node.op == "call_function":
                node = node.args[0]
            targets.add(node.target)
    return {node for node in graph.nodes if node.op == "get_attr" and node.target in targets}


def _parameter(root: nn.Module, node: Any, shared: dict[int, nn.Parameter]) -> nn.Parameter | None:
    """The parameter that a node reads; for another tensor one that shares its memory."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
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
    root: nn.Module, name: str, node: fx.Node, weight: nn.Parameter, bias: nn.Parameter | None
) -> tuple[str, nn.Module] | None:
    """The module that holds the parameters, where calling it is the very same operation."""
    path = name.rpartition(".")[0]
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
