"""A program as data: its graph, its tensors, how it is called and with what."""

import keyword
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from ..capture import Input, InputGuard
from ..errors import ArtifactError
from .conditions import encode_expression, shorten_place
from .dtypes import name_of_dtype
from .manifest import ConditionData, InputSpec, NodeData, Signature
from .operations import name_of_target, operation
from .structure import encode_structure
from .values import encode_value

__all__ = [
    "encode_guard",
    "encode_nodes",
    "encode_signature",
    "is_tensor_name",
    "safe_names",
    "tensors_of",
]

_PART = re.compile(r"[A-Za-z0-9_]{1,200}", re.ASCII)
_MAX_PARTS = 64
_BLANK = fx.GraphModule({}, fx.Graph())


def is_tensor_name(name: str) -> bool:
    """Whether a tensor of a program can be called so: words with dots between, none of them in use.

    Code is generated from these names, and they become attributes of a module, so neither may be
    anything but a plain word, nor an attribute that every module has.

    >>> is_tensor_name("layer1.0.weight"), is_tensor_name("forward"), is_tensor_name('a"b')
    (True, False, False)
    """
    parts = name.split(".")
    return len(parts) <= _MAX_PARTS and all(
        _PART.fullmatch(part) is not None
        and not part.startswith("__")
        and not keyword.iskeyword(part)
        and not hasattr(_BLANK, part)
        for part in parts
    )


def tensors_of(program: fx.GraphModule) -> dict[str, Tensor]:
    """The tensors that a program reads, by the target of the nodes that read them.

    Raises:
        ArtifactError: what a node reads is no tensor.
    """
    found: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr" and str(node.target) not in found:
            owner, _, field = str(node.target).rpartition(".")
            value = getattr(program.get_submodule(owner), field)
            if not isinstance(value, Tensor):
                raise ArtifactError(
                    f"node {node.name!r} reads {node.target}, a {type(value).__name__}; a program "
                    "holds tensors only"
                )
            found[str(node.target)] = value.detach()
    return found


def safe_names(targets: Mapping[str, Tensor]) -> dict[str, str]:
    """For each target a name that :func:`is_tensor_name` accepts; itself where possible.

    >>> import torch
    >>> safe_names({"a-b.weight": torch.ones(1), "a_b.weight": torch.ones(1)})
    {'a-b.weight': 'a_b.weight_1', 'a_b.weight': 'a_b.weight'}
    """
    fitting = {target for target in targets if is_tensor_name(target)}
    # A tensor can't be called "a" where another is called "a.b".
    fitting -= {prefix for target in fitting for prefix in _prefixes(target)}
    names: dict[str, str] = {target: target for target in fitting}
    for target in targets:
        if target not in fitting:
            parts = [re.sub(r"\W", "_", part, flags=re.ASCII)[:100] for part in target.split(".")]
            base = ".".join(p if is_tensor_name(p) else f"tensor_{p.strip('_')}" for p in parts)
            name, i = base, 0
            taken = {*names.values(), *(p for n in names.values() for p in _prefixes(n))}
            while name in taken or taken.intersection(_prefixes(name)) & set(names.values()):
                i += 1
                name = f"{base}_{i}"
            names[target] = name
    return {target: names[target] for target in targets}


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def encode_nodes(program: fx.GraphModule, names: Mapping[str, str]) -> tuple[NodeData, ...]:
    """The graph of a program.

    Args:
        program: from :func:`qcore.convert`.
        names: what each ``get_attr`` target is called in the artifact.

    Raises:
        ArtifactError: a node calls what an artifact has no place for.
    """
    return tuple(_encode_node(node, names) for node in program.graph.nodes)


def _encode_node(node: fx.Node, names: Mapping[str, str]) -> NodeData:
    kwargs: dict[str, Any] = {}
    if node.op == "call_function":
        op, target = "call", name_of_target(node.target)
        kwargs = {key: value for key, value in node.kwargs.items() if key != "pin_memory"}
    elif node.op == "get_attr":
        op, target = "tensor", names[str(node.target)]
    elif node.op == "placeholder":
        op, target = "input", str(node.target)
        if node.args:
            raise ArtifactError(
                f"input {target!r} has a default; an artifact has no place for it: give every "
                "input in the example inputs of qcore.prepare"
            )
    elif node.op == "output":
        op, target = "output", "output"
    else:
        raise ArtifactError(
            f"node {node.name!r} is a {node.op} of {node.target!r}; a program calls operations only"
        )
    try:
        if op == "call":
            operation(target)
        return NodeData(
            name=node.name,
            op=op,
            target=target,
            args=tuple(encode_value(value) for value in node.args),
            kwargs={key: encode_value(value) for key, value in kwargs.items()},
        )
    except ArtifactError as error:
        raise ArtifactError(f"node {node.name!r} ({target}): {error}") from None


def encode_signature(program: fx.GraphModule) -> Signature | None:
    """How a program is called; None: by position, one argument a placeholder.

    Raises:
        ArtifactError: an input or output is a container without named fields.
    """
    info = getattr(program.graph._codegen, "pytree_info", None)
    if info is None:
        return None
    return Signature(
        names=tuple(info.orig_args),
        positional=info.in_spec.child(0).num_children,
        inputs=encode_structure(info.in_spec),
        outputs=None if info.out_spec is None else encode_structure(info.out_spec),
    )


def encode_guard(guard: InputGuard | None) -> dict[str, Any]:
    """What a program may be called with: the fields of its record that say so.

    Sizes that may change are called ``n0``, ``n1``, ... as they come.

    Raises:
        ArtifactError: a plain value among the inputs, or a condition, has no place in an artifact.
    """
    if guard is None:
        return {"inputs": None, "conditions": (), "singles": ()}
    names: dict[str, str] = {}
    for given in guard.inputs:
        for size in given.shape or ():
            if isinstance(size, str):
                names.setdefault(size, f"n{len(names)}")
    conditions = (
        (encode_expression(condition.expression, names), shorten_place(condition.place))
        for condition in guard.conditions
    )
    return {
        "inputs": tuple(_encode_input(given, names) for given in guard.inputs),
        "conditions": tuple(
            ConditionData(expression=expression, place=place)
            for expression, place in conditions
            if expression is not None
        ),
        "singles": tuple(names[size] for size in guard.singles if size in names),
    }


def _encode_input(given: Input, names: Mapping[str, str]) -> InputSpec:
    return InputSpec(
        name=given.name,
        tensor=given.is_tensor,
        dtype=None if given.dtype is None else name_of_dtype(given.dtype),
        shape=None
        if given.shape is None
        else tuple(names[n] if isinstance(n, str) else int(n) for n in given.shape),
        value=encode_value(given.value),
        same_as=given.same_as,
    )
