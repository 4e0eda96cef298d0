"""Shapes and dtypes of every value of a program, found without computing any of them.

Each operation runs on fake tensors, which have a shape and a dtype and no memory. What cannot run
so would fail on real data too: sizes that don't fit together, a dimension that isn't there. Limits
keep a hostile program from using up time or memory here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from ..errors import ArtifactError
from .program_reading import CheckedCall, CheckedGraph
from .strict_json import INT_MAX, INT_MIN

__all__ = ["Operand", "propagate"]

_MAX_NUMEL = 2**40
_MAX_PIECES = 2**16


@attrs.frozen(kw_only=True, eq=False)
class Operand:
    """A tensor among the arguments of a call.

    Args:
        value: a fake tensor, a number or several of them; None where it depends on data.
        stored: the tensor itself where it is one of the artifact's.
    """

    value: Any
    stored: Tensor | None = None

    @property
    def tensor(self) -> Tensor | None:
        """Shape and dtype, where they are known."""
        return self.value if isinstance(self.value, Tensor) else None


def propagate(
    graph: CheckedGraph,
    tensors: Mapping[str, Tensor],
    inputs: Sequence[Any],
    check: Callable[[CheckedCall, Mapping[str, Any]], None],
) -> None:
    """Run a graph on fake tensors.

    Args:
        graph: from :func:`read_graph`.
        tensors: those of the program.
        inputs: one for each input of the graph; only dtypes and shapes of tensors are used.
        check: called before each call with its arguments; nodes among these are :class:`Operand`.

    Raises:
        ArtifactError: an operation can't run on what it is given.
    """
    mode = FakeTensorMode()
    calls = {call.node: call for call in graph.calls}
    values: dict[fx.Node, Operand] = {}
    given = iter(inputs)
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            value = next(given)
            fake = mode.from_tensor(value) if isinstance(value, Tensor) else value
            values[node] = Operand(value=fake)
        elif node.op == "get_attr":
            stored = tensors[str(node.target)]
            values[node] = Operand(value=mode.from_tensor(stored), stored=stored)
        elif node.op == "call_function":
            call = calls[node]
            # Outside of the mode: the rules look at values, which fake tensors have none of.
            check(call, {k: _map(v, values.__getitem__) for k, v in call.arguments.items()})
            with mode, torch.no_grad():
                values[node] = Operand(value=_run(call, values))


def _run(call: CheckedCall, values: Mapping[fx.Node, Operand]) -> Any:
    known = all(values[node].value is not None for node in call.node.all_input_nodes)
    if not known:
        return None
    args = _map(tuple(call.node.args), lambda n: values[n].value)
    kwargs = {
        key: _map(value, lambda n: values[n].value) for key, value in call.node.kwargs.items()
    }
    try:
        if call.op.gives == "sequence" and call.op.schema is not None:
            _check_pieces(call, args)
        result = call.op.target(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    except ArtifactError:
        raise
    # Kernels refuse what they can't do in every way there is.
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ArtifactError(
            f"{call.where}: {call.op.name} can't run on its arguments: {said}"
        ) from None
    _check_result(result, call.where)
    return result


def _check_pieces(call: CheckedCall, args: tuple[Any, ...]) -> None:
    """Refuses to cut a tensor into more pieces than there can be reason for."""
    name = call.op.name.split(".")[1]
    if not args or not isinstance(args[0], Tensor):
        return
    options = [a for a in args[1:] if type(a) is int]
    longest = max(args[0].shape, default=1)
    pieces = 0
    if name == "unbind":
        pieces = args[0].shape[options[0] if options else 0] if args[0].ndim else 0
    elif name in ("split", "unsafe_split") and options:
        pieces = longest // max(options[0], 1)
    elif (
        name in ("chunk", "unsafe_chunk", "tensor_split", "hsplit", "vsplit", "dsplit") and options
    ):
        pieces = min(options[0], longest)
    if pieces > _MAX_PIECES:
        raise ArtifactError(f"{call.where}: {call.op.name} would give {pieces} tensors")


def _check_result(result: Any, where: str) -> None:
    for item in result if isinstance(result, list | tuple) else [result]:
        if isinstance(item, Tensor):
            if item.numel() > _MAX_NUMEL:
                raise ArtifactError(f"{where}: its result would have {item.numel()} values")
        # Sizes multiplied with each other without end would fill the memory.
        elif isinstance(item, int) and not INT_MIN <= item <= INT_MAX:
            raise ArtifactError(f"{where}: its result has more than 64 bits")


def _map(value: Any, function: Callable[[fx.Node], Any]) -> Any:
    if isinstance(value, fx.Node):
        return function(value)
    if isinstance(value, list):
        return [_map(item, function) for item in value]
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    return value
