"""A graph from data: each node is checked before it is made, and no code is generated here."""

import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch.utils._pytree as pytree
from torch import fx
from torch.fx.graph import _PyTreeInfo

from ..capture import Input, InputGuard
from ..codegen import SharedCodeGen
from ..errors import ArtifactError
from .conditions import StoredCondition, check_expression
from .dtypes import LITERAL_DTYPES
from .manifest import InputSpec, NodeData, ProgramData, Signature
from .operations import Kind, Operation, bind, operation
from .program_writing import is_tensor_name
from .structure import decode_structure
from .values import decode_value

__all__ = ["CheckedCall", "CheckedGraph", "read_graph"]

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}", re.ASCII)
# Names that the generated code uses for itself.
_RESERVED = frozenset(("self", "torch", "fx_pytree", "pytree", "getattr"))
_ALLOWED_OPS = ("input", "tensor", "call", "output")


@attrs.frozen(kw_only=True, eq=False)
class CheckedCall:
    """A call of the graph, with its arguments by the names of the schema."""

    node: fx.Node
    op: Operation
    arguments: Mapping[str, Any]
    where: str


@attrs.frozen(kw_only=True, eq=False)
class CheckedGraph:
    """A graph whose every node is known and well-formed.

    Args:
        graph: the graph; no code was generated from it yet.
        calls: its calls, in order.
        guard: what it may be called with; None if that is not recorded.
    """

    graph: fx.Graph
    calls: tuple[CheckedCall, ...]
    guard: InputGuard | None


def read_graph(data: ProgramData, path: str, where: str) -> CheckedGraph:
    """The graph of a program.

    Args:
        data: the program's part of the manifest.
        path: of the program in the model.
        where: place in the file.

    Raises:
        ArtifactError: the data is no well-formed graph; the message names the node.
    """
    reader = _Reader(data, where)
    for i, node in enumerate(data.nodes):
        reader.read(node, f"{where}.nodes[{i}] {node.name[:60]!r}")
    reader.finish()
    guard = None
    if data.signature is not None:
        signature = _read_signature(data.signature, reader, f"{where}.signature")
        reader.graph.set_codegen(SharedCodeGen(signature))
        if data.inputs is not None:
            guard = InputGuard(
                path=path,
                names=data.signature.names,
                positional=data.signature.positional,
                spec=signature.in_spec,
                inputs=_read_inputs(data.inputs, reader, f"{where}.inputs"),
                conditions=_read_conditions(data, where),
                singles=data.singles,
            )
    if guard is None and (data.inputs is not None or data.conditions or data.singles):
        raise ArtifactError(
            f"{where}: there are inputs or conditions, but nothing to apply them to"
        )
    return CheckedGraph(graph=reader.graph, calls=tuple(reader.calls), guard=guard)


class _Reader:
    """Makes the nodes of one graph, in order."""

    def __init__(self, data: ProgramData, where: str) -> None:
        self.data = data
        self.where = where
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.calls: list[CheckedCall] = []
        self.inputs: list[str] = []
        self.read_tensors: set[str] = set()
        self.output: Any = None
        self.ended = False
        _check_tensor_names(data.tensors, where)

    def read(self, node: NodeData, where: str) -> None:
        if self.ended:
            raise ArtifactError(f"{where}: nothing may come after the output")
        if node.op not in _ALLOWED_OPS:
            raise ArtifactError(
                f"{where}: op={node.op[:40]!r}; use one of {', '.join(_ALLOWED_OPS)}"
            )
        _check_word(node.name, where)
        args = tuple(
            decode_value(v, self.nodes, f"{where}.args[{i}]") for i, v in enumerate(node.args)
        )
        kwargs = {
            key: decode_value(v, self.nodes, f"{where}.kwargs[{key[:40]!r}]")
            for key, v in node.kwargs.items()
        }
        if node.op != "call" and (kwargs or len(args) != (node.op == "output")):
            raise ArtifactError(f"{where}: wrong number of arguments for op={node.op!r}")
        if node.op == "call":
            self._call(node, args, kwargs, where)
        elif node.op == "input":
            self._input(node, where)
        elif node.op == "tensor":
            self._tensor(node, where)
        else:
            self.output = args[0]
            self._add(node, "output", "output", args, {}, "any", where)
            self.ended = True

    def finish(self) -> None:
        if not self.ended:
            raise ArtifactError(f"{self.where}.nodes: there is no output")
        unread = sorted(set(self.data.tensors) - self.read_tensors)
        if unread:
            raise ArtifactError(f"{self.where}.tensors: no node reads {unread[0]!r}")

    def _call(
        self, node: NodeData, args: tuple[Any, ...], kwargs: dict[str, Any], where: str
    ) -> None:
        try:
            op = operation(node.target)
            arguments = bind(op, args, kwargs, self.kinds)
        except ArtifactError as error:
            raise ArtifactError(f"{where}: {error}") from None
        made = self._add(node, "call_function", op.target, args, kwargs, op.gives, where)
        self.calls.append(CheckedCall(node=made, op=op, arguments=arguments, where=where))

    def _input(self, node: NodeData, where: str) -> None:
        _check_word(node.target, where)
        if node.target in self.inputs:
            raise ArtifactError(f"{where}: another input is called {node.target!r}")
        specs = self.data.inputs
        i = len(self.inputs)
        tensor = specs is None or i >= len(specs) or specs[i].tensor
        self.inputs.append(node.target)
        self._add(node, "placeholder", node.target, (), {}, "tensor" if tensor else "any", where)

    def _tensor(self, node: NodeData, where: str) -> None:
        if node.target not in self.data.tensors:
            raise ArtifactError(f"{where}: the program has no tensor {node.target[:80]!r}")
        self.read_tensors.add(node.target)
        self._add(node, "get_attr", node.target, (), {}, "tensor", where)

    def _add(
        self,
        node: NodeData,
        op: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        kind: Kind,
        where: str,
    ) -> fx.Node:
        made = self.graph.create_node(op, target, args, kwargs, name=node.name)
        # fx gives another name to one that is taken, or that Python or torch need.
        if made.name != node.name:
            raise ArtifactError(f"{where}: the name is taken or reserved")
        self.nodes[node.name] = made
        self.kinds[made] = kind
        return made


def _check_word(word: str, where: str) -> None:
    if _WORD.fullmatch(word) is None or keyword.iskeyword(word) or word in _RESERVED:
        raise ArtifactError(f"{where}: {word[:60]!r} can't name a part of a program")


def _check_tensor_names(names: Mapping[str, str], where: str) -> None:
    parents = {name[:i] for name in names for i, c in enumerate(name[:1000]) if c == "."}
    for name in names:
        if not is_tensor_name(name) or name in parents:
            raise ArtifactError(f"{where}.tensors: {name[:80]!r} can't name a tensor of a program")


def _read_signature(data: Signature, reader: _Reader, where: str) -> _PyTreeInfo:
    for name in data.names:
        _check_word(name, f"{where}.names")
    if len(set(data.names)) != len(data.names) or not 0 <= data.positional <= len(data.names):
        raise ArtifactError(f"{where}: its names are not different, or fewer than are positional")
    inputs = decode_structure(data.inputs, f"{where}.inputs")
    outputs = None
    if data.outputs is not None:
        outputs = decode_structure(data.outputs, f"{where}.outputs")
        results = reader.output if isinstance(reader.output, list | tuple) else [reader.output]
        if outputs.num_leaves != len(results):
            raise ArtifactError(
                f"{where}.outputs: {outputs.num_leaves} places for {len(results)} results"
            )
    if not _is_call(inputs, data.names, data.positional):
        raise ArtifactError(f"{where}.inputs: it is no tree of ({', '.join(data.names)})")
    if inputs.num_leaves != len(reader.inputs):
        raise ArtifactError(
            f"{where}.inputs: {inputs.num_leaves} places for {len(reader.inputs)} inputs"
        )
    return _PyTreeInfo(list(data.names), inputs, outputs)


def _is_call(spec: pytree.TreeSpec, names: Sequence[str], positional: int) -> bool:
    """Whether a tree is that of ``(args, kwargs)`` of a call with these names."""
    if spec.type is not tuple or spec.num_children != 2:
        return False
    args, kwargs = spec.children()
    return bool(
        args.type is tuple
        and args.num_children == positional
        and kwargs.type is dict
        and list(kwargs.context) == list(names[positional:])
    )


def _read_inputs(specs: Sequence[InputSpec], reader: _Reader, where: str) -> tuple[Input, ...]:
    if len(specs) != len(reader.inputs):
        raise ArtifactError(f"{where}: {len(specs)} for {len(reader.inputs)} inputs of the graph")
    inputs: list[Input] = []
    for i, spec in enumerate(specs):
        here = f"{where}[{i}]"
        dtype = None
        if spec.dtype is not None:
            dtype = LITERAL_DTYPES.get(spec.dtype)
            if dtype is None:
                raise ArtifactError(f"{here}: {spec.dtype[:40]!r} is no dtype")
        if spec.shape is not None and any(isinstance(n, int) and n < 0 for n in spec.shape):
            raise ArtifactError(f"{here}: shape {list(spec.shape)} has a negative size")
        if spec.same_as is not None and all(known.name != spec.same_as for known in inputs):
            raise ArtifactError(f"{here}: no input {spec.same_as[:40]!r} comes before it")
        inputs.append(
            Input(
                name=spec.name,
                is_tensor=spec.tensor,
                dtype=dtype,
                shape=spec.shape,
                value=decode_value(spec.value, {}, f"{here}.value"),
                same_as=spec.same_as,
            )
        )
    return tuple(inputs)


def _read_conditions(data: ProgramData, where: str) -> tuple[StoredCondition, ...]:
    conditions = []
    for i, condition in enumerate(data.conditions):
        check_expression(condition.expression, f"{where}.conditions[{i}]")
        conditions.append(StoredCondition(expression=condition.expression, place=condition.place))
    return tuple(conditions)
