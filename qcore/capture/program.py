"""The flat graph of an exported program, called like the module that it was exported from."""

import inspect
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.graph import _PyTreeInfo

from ..codegen import SharedCodeGen
from ..errors import CaptureError

__all__ = ["argument_names", "flat_module"]

_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def flat_module(program: ExportedProgram, names: list[str]) -> fx.GraphModule:
    """The graph of ``program`` with its state read by ``get_attr`` instead of taken as inputs.

    ``program.module()`` does this too, in a time that grows with the square of the model. The graph
    is changed in place, and its module does not hold the state.

    Args:
        program: fresh from export.
        names: of the arguments, positional ones first.

    Raises:
        CaptureError: an input or output that is neither the user's nor a tensor of the model.
    """
    graph = program.graph
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for node in placeholders:
        spec = kinds[node.name]
        if spec.kind is InputKind.USER_INPUT:
            continue
        if spec.kind not in _STATE or spec.target is None:
            raise CaptureError(f"the forward uses a {spec.kind.name.lower()} ('{spec.target}')")
        if node.users:
            with graph.inserting_before(first):
                # Not graph.get_attr, which warns where the module does not hold the tensor.
                state = graph.create_node("get_attr", spec.target)
            state.meta = {**node.meta}
            node.replace_all_uses_with(state)
        graph.erase_node(node)
    for output in program.graph_signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(f"the forward has a {output.kind.name.lower()} ('{output.target}')")
    spec_in, spec_out = program.call_spec.in_spec, program.call_spec.out_spec
    graph.set_codegen(SharedCodeGen(_PyTreeInfo(names, spec_in, spec_out)))
    module = program.graph_module
    assert isinstance(module, fx.GraphModule)
    return module


def argument_names(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Names of the example's arguments: the forward's own; ``rest_0`` and so on for ``*rest``.

    >>> argument_names(nn.Linear(2, 2), (1,), {})
    ['input']
    """
    parameters = inspect.signature(root.forward).parameters.values()
    single = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "rest")
    more = [f"{rest}_{index}" for index in range(len(args) - len(single))]
    return [*single[: len(args)], *more, *kwargs]
