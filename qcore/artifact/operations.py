"""From the name of an operation in an artifact to the operation, and whether a call of it is
well-formed.

Three kinds of names, and no others: ``qcore.qconv.default``, an operation of Q;
``aten.add.Tensor``, an overload of torch; ``operator.floordiv``, arithmetic of sizes. A name is
looked up in tables; nothing is imported for it.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import attrs
import torch
from torch import fx

from .. import ops as _ops  # registers torch.ops.qcore
from ..errors import ArtifactError
from .aten_table import ATEN, FACTORIES, FUNCTIONS, MUST_BE

__all__ = ["QCORE", "Kind", "Operation", "bind", "name_of_target", "operation"]

del _ops

QCORE = frozenset(
    (
        *("quantize", "dequantize", "dequantize_block", "unpack", "qconv", "qconv_transpose"),
        *("qlinear", "qlinear_dynamic", "qmatmul", "qrecurrent"),
        *("qembedding", "qembedding_bag"),
        *("qadd", "qsub", "qmul", "qcat", "qrequantize", "qtable"),
        *("qavg_pool", "qadaptive_avg_pool", "qmean", "qmax_pool", "qadaptive_max_pool"),
    )
)
"""The operations of Q. A test holds this list against what is registered."""

GETITEM = "operator.getitem"

_NAME = re.compile(r"(qcore|aten)\.([a-z0-9A-Z_]+)\.([a-zA-Z0-9_]+)", re.ASCII)
_MODULES = {"_operator": "operator", "torch": "torch", "torch.fx.experimental.sym_node": "torch"}

Kind = str
"""What a node gives: ``"tensor"``, ``"number"``, ``"sequence"`` (several tensors) or ``"any"``."""


@attrs.frozen(kw_only=True, eq=False)
class Operation:
    """An operation that a program may call.

    Args:
        name: in an artifact.
        target: what the node calls.
        gives: kind of its result.
        schema: of an overload; None for a function of sizes.
        count: number of arguments of a function of sizes.
    """

    name: str
    target: Callable[..., Any]
    gives: Kind
    schema: torch.FunctionSchema | None = None
    count: int = 0

    @property
    def of_qcore(self) -> bool:
        """Whether it is an operation of Q."""
        return self.name.startswith("qcore.")


def name_of_target(target: object) -> str:
    """The name of what a node calls; for what has no place in an artifact, one that names it.

    >>> name_of_target(torch.ops.aten.add.Tensor), name_of_target(operator.add)
    ('aten.add.Tensor', 'operator.add')
    """
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = getattr(target, "__name__", type(target).__name__)
    for known, (function, _) in FUNCTIONS.items():
        if function is target:
            return known
    module = getattr(target, "__module__", None) or "?"
    return f"{_MODULES.get(module, module)}.{name}"


@cache
def operation(name: str) -> Operation:
    """The operation of that name.

    Raises:
        ArtifactError: there is none, or none that an artifact may hold.

    >>> operation("aten.add.Tensor").gives
    'tensor'
    >>> operation("aten.from_file.default")
    Traceback (most recent call last):
    qcore.errors.ArtifactError: operation 'aten.from_file.default' is not one that ...
    """
    if name == GETITEM:
        return Operation(name=name, target=operator.getitem, gives="any", count=2)
    if name in FUNCTIONS:
        function, count = FUNCTIONS[name]
        return Operation(name=name, target=function, gives="number", count=count)
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in (QCORE if match[1] == "qcore" else ATEN):
        raise ArtifactError(
            f"operation {name[:80]!r} is not one that an artifact may hold: these are the "
            "operations of qcore, arithmetic of sizes, and those of torch that only compute a "
            "result"
        )
    packet = getattr(getattr(torch.ops, match[1]), match[2], None)
    if packet is None or match[3] not in packet.overloads():
        raise ArtifactError(
            f"operation {name!r} is not in torch {torch.__version__}; use the version of torch "
            "that the artifact was saved with"
        )
    target = getattr(packet, match[3])
    schema = target._schema
    random = torch.Tag.nondeterministic_seeded in target.tags and match[2] not in MUST_BE
    if schema.is_mutable or random or "Dimname" in str(schema):
        why = (
            "changes its arguments"
            if schema.is_mutable
            else "is random"
            if random
            else "takes names"
        )
        raise ArtifactError(f"operation {name!r} {why}, so it is not one that an artifact may hold")
    return Operation(name=name, target=target, gives=_gives(schema), schema=schema)


def _gives(schema: torch.FunctionSchema) -> Kind:
    kinds = [str(result.type) for result in schema.returns]
    if len(kinds) != 1 or kinds[0] == "List[Tensor]":
        return "sequence"
    if kinds[0].startswith("List["):
        return "any"
    return "tensor" if kinds[0] == "Tensor" else "number"


def bind(
    op: Operation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    kinds: Mapping[fx.Node, Kind],
) -> dict[str, Any]:
    """The arguments of a call by name, checked against the types of the schema.

    Args:
        op: what is called.
        args: by position; results of other operations are nodes.
        kwargs: by name.
        kinds: what each node gives.

    Returns:
        Every argument of the schema, defaults filled in; of a function of sizes, those given.

    Raises:
        ArtifactError: an argument is missing, too many or of a wrong type.
    """
    if op.schema is None:
        return _bind_function(op, args, kwargs, kinds)
    bound: dict[str, Any] = {}
    arguments = list(op.schema.arguments)
    positional = [a for a in arguments if not a.kwarg_only]
    if len(args) > len(positional):
        raise ArtifactError(f"{op.name} takes {len(positional)} arguments, here are {len(args)}")
    given = {a.name: value for a, value in zip(positional, args, strict=False)}
    for name in kwargs:
        if name in given or all(a.name != name for a in arguments):
            raise ArtifactError(f"{op.name} has no argument {name[:40]!r}, or it is given twice")
    given.update(kwargs)
    for argument in arguments:
        name = argument.name
        if name not in given:
            if not argument.has_default_value():
                raise ArtifactError(f"{op.name}: argument {name!r} is missing")
            bound[name] = argument.default_value
            continue
        kind = str(argument.real_type)
        if not _fits(kind, given[name], kinds, op, several=_stands_for_many(argument)):
            raise ArtifactError(f"{op.name}: {name}={_short(given[name])} is no {kind}")
        bound[name] = given[name]
    _check_tensors(op, bound, kinds)
    for name, value in MUST_BE.get(op.name.split(".")[1], {}).items():
        if not op.of_qcore and name in bound and bound[name] != value:
            raise ArtifactError(
                f"{op.name}: {name}={_short(bound[name])} would make it random or change its "
                f"state; it must be {value!r}"
            )
    return bound


def _bind_function(
    op: Operation, args: Sequence[Any], kwargs: Mapping[str, Any], kinds: Mapping[fx.Node, Kind]
) -> dict[str, Any]:
    if len(args) != op.count or kwargs:
        raise ArtifactError(f"{op.name} takes {op.count} arguments, by position")
    if op.name == GETITEM:
        sequence, index = args
        fits = isinstance(sequence, fx.Node) and kinds[sequence] in ("sequence", "any")
        fits = (fits or isinstance(sequence, list | tuple)) and type(index) is int
    else:
        fits = all(_is_number(value, kinds) for value in args)
    if not fits:
        what = "a result of several tensors and a number" if op.name == GETITEM else "numbers"
        raise ArtifactError(f"{op.name} takes {what}, here are {_short(list(args))}")
    return {str(i): value for i, value in enumerate(args)}


def _check_tensors(op: Operation, bound: Mapping[str, Any], kinds: Mapping[fx.Node, Kind]) -> None:
    """Of the arguments one at least is a tensor; otherwise the call would be for something else."""
    if op.name.split(".")[1] in FACTORIES:
        return
    nodes: list[fx.Node] = []
    fx.map_arg(tuple(bound.values()), nodes.append)
    if not any(kinds[node] in ("tensor", "any") for node in nodes):
        raise ArtifactError(f"{op.name}: none of its arguments is a tensor")


def _stands_for_many(argument: torch.Argument) -> bool:
    """Whether one number may stand for a list of a fixed length, as in ``stride=2``."""
    length: int | None = argument.N  # type: ignore[attr-defined]
    return length is not None


def _fits(
    kind: str, value: Any, kinds: Mapping[fx.Node, Kind], op: Operation, *, several: bool
) -> bool:
    """Whether a value is of a type of the schema; ``several``: one number may stand for a list."""
    if kind.startswith("Optional["):
        return value is None or _fits(kind[9:-1], value, kinds, op, several=several)
    if kind.startswith("List["):
        inner = kind[5:-1]
        if isinstance(value, list | tuple):
            return all(_fits(inner, item, kinds, op, several=False) for item in value)
        of_tensors = isinstance(value, fx.Node) and kinds[value] in ("sequence", "any")
        if inner == "Tensor" and of_tensors:
            return True
        return several and inner != "Tensor" and _fits(inner, value, kinds, op, several=False)
    if kind == "Tensor":
        if isinstance(value, fx.Node):
            return kinds[value] != "sequence" and not (op.of_qcore and kinds[value] == "number")
        # aten.add.Tensor(x, 1): torch takes a number for a tensor.
        return not op.of_qcore and _is_number(value, kinds)
    if kind in ("int", "float", "number", "bool"):
        return _is_number(value, kinds, kind)
    literal = _LITERALS.get(kind)
    return literal is not None and isinstance(value, literal)


_LITERALS: Mapping[str, type] = {
    "str": str,
    "ScalarType": torch.dtype,
    "MemoryFormat": torch.memory_format,
    "Layout": torch.layout,
    "Device": torch.device,
}


def _is_number(value: Any, kinds: Mapping[fx.Node, Kind], kind: str = "number") -> bool:
    if isinstance(value, fx.Node):
        return kinds[value] in ("number", "any")
    allowed: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "number": (int, float, bool),
        "bool": (bool,),
    }
    return type(value) in allowed[kind]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
