"""Build the GraphModule of a captured graph around the module instances of the model."""

import inspect
from collections.abc import Mapping

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeInfo

from ..codegen import SharedCodeGen

__all__ = ["assemble", "lone_call"]


def assemble(
    graph: fx.Graph,
    root: nn.Module,
    modules: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
) -> fx.GraphModule:
    """A GraphModule that holds the very instances, parameters and buffers, named as in ``root``.

    Args:
        graph: what it runs.
        root: the captured module: its training flag, and which of its buffers are persistent.
        modules: the called instances by target.
        tensors: what ``get_attr`` reads, by target; constants included.
    """
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=type(root).__name__)
    module.training = root.training
    # Outer modules first: what lies inside an instance of the model is there already, and nothing
    # is ever attached to one.
    for target in sorted(modules, key=lambda name: name.count(".")):
        owner, field = _owner(module, target, modules)
        if owner is not None:
            owner.add_module(field, modules[target])
    for target, tensor in tensors.items():
        owner, field = _owner(module, target, modules)
        if owner is None:
            continue
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(field, tensor)
        else:
            owner.register_buffer(field, tensor, persistent=_is_persistent(root, target))
    module.graph = graph
    graph.lint()
    return module


def _owner(
    module: nn.Module, target: str, modules: Mapping[str, nn.Module]
) -> tuple[nn.Module | None, str]:
    """The container for a target, made where it is missing; None in an instance of the model."""
    *prefix, field = target.split(".")
    owner = module
    for depth, name in enumerate(prefix):
        if ".".join(prefix[: depth + 1]) in modules:
            return None, field
        if name not in owner._modules:
            owner.add_module(name, nn.Module())
            owner.get_submodule(name).training = module.training
        owner = owner.get_submodule(name)
    return owner, field


def _is_persistent(root: nn.Module, target: str) -> bool:
    path, _, field = target.rpartition(".")
    try:
        owner = root.get_submodule(path)
    except AttributeError:
        return False
    return field in owner._buffers and field not in owner._non_persistent_buffers_set


def lone_call(leaf: nn.Module, target: str) -> fx.Graph:
    """The graph that calls ``leaf`` with one tensor and returns what it returns."""
    parameters = list(inspect.signature(leaf.forward).parameters.values())
    named = parameters and parameters[0].kind is not parameters[0].VAR_POSITIONAL
    name = parameters[0].name if named else "input"
    graph = fx.Graph()
    graph.output(graph.call_module(target, (graph.placeholder(name),)))
    spec = pytree.tree_structure(((0,), {}))
    graph.set_codegen(SharedCodeGen(_PyTreeInfo([name], spec, None)))
    return graph
