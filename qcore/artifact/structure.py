"""Inputs and outputs of a program as trees of containers, and the trees as data.

============================= ==================================================================
data                          container
============================= ==================================================================
``"leaf"``                    a tensor, or a plain value
``{"tuple": [trees]}``        a tuple
``{"list": [trees]}``         a list
``{"dict": [[key, tree]]}``   a dictionary; keys are text or integers
``{"named": [[key, tree]]}``  a named tuple
``{"fields": [[key, tree]]}`` :class:`~qcore.artifact.fields.Fields`; null for one that is not set
============================= ==================================================================

An artifact names no class, so a container of any other type, a dataclass or the ``ModelOutput`` of
a Hugging Face model, becomes ``Fields``: ``output.logits``, ``output["logits"]`` and ``output[0]``
go on working.
"""

import dataclasses
import keyword
from collections import OrderedDict, namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

import torch.utils._pytree as pytree

from ..errors import ArtifactError
from .fields import Fields
from .strict_json import INT_MAX, INT_MIN

__all__ = ["decode_structure", "encode_structure"]

_LEAF = "leaf"
_MAX_LEAVES = 10_000
_MAX_KEY = 256
_KEYED = ("dict", "named", "fields")


def encode_structure(spec: pytree.TreeSpec) -> Any:
    """A tree as data.

    Raises:
        ArtifactError: a container whose fields can't be told.

    >>> encode_structure(pytree.tree_structure({"logits": 0, "states": (1, 2)}))
    {'dict': [['logits', 'leaf'], ['states', {'tuple': ['leaf', 'leaf']}]]}
    """
    if spec.is_leaf():
        return _LEAF
    children = [encode_structure(child) for child in spec.children()]
    if spec.type in (tuple, list):
        return {spec.type.__name__: children}
    tag, keys, absent = _keys(spec)
    for key in (*keys, *absent):
        if not _is_key(key, tag):
            name = getattr(spec.type, "__name__", str(spec.type))
            raise ArtifactError(f"the key {key!r} of a {name} is no text and no integer; use those")
    return {tag: [*map(list, zip(keys, children, strict=True)), *([k, None] for k in absent)]}


def _keys(spec: pytree.TreeSpec) -> tuple[str, Sequence[Any], Sequence[str]]:
    """Tag, names of the children, and names of fields that are not set."""
    if spec.type in (dict, OrderedDict):
        return "dict", spec.context, ()
    if spec.type is Fields:
        return "fields", *spec.context
    if spec.type is namedtuple:
        return "named", spec.context._fields, ()
    names = spec.context if _is_names(spec.context, spec.num_children) else _own_names(spec)
    declared: tuple[str, ...] = ()
    if dataclasses.is_dataclass(spec.type):
        declared = tuple(f.name for f in dataclasses.fields(spec.type))
    return "fields", names, [name for name in declared if name not in names]


def _is_names(context: Any, count: int) -> bool:
    return (
        isinstance(context, Sequence)
        and not isinstance(context, str)
        and len(context) == count
        and all(isinstance(key, str) for key in context)
    )


def _own_names(spec: pytree.TreeSpec) -> list[str]:
    """The names that the container itself knows, with the numbers of its children for content."""
    try:
        built = pytree.SUPPORTED_NODES[spec.type].unflatten_fn(
            range(spec.num_children), spec.context
        )
        fields = dict(built) if isinstance(built, Mapping) else vars(built)
    # Any class can be registered, and its constructor may refuse numbers in any way.
    except Exception:
        fields = {}
    numbers = range(spec.num_children)
    names = [name for number in numbers for name in fields if fields[name] == number]
    if len(names) != spec.num_children:
        name = getattr(spec.type, "__name__", str(spec.type))
        raise ArtifactError(
            f"an input or output of type {name} has no fields with names; return tensors, tuples, "
            "lists or dictionaries"
        )
    return names


def _is_key(key: object, tag: str) -> bool:
    if isinstance(key, str):
        if not key.isprintable() or len(key) > _MAX_KEY:
            return False
        # Code is generated from the names of a named tuple.
        plain = key.isidentifier() and not keyword.iskeyword(key) and not key.startswith("_")
        return plain or tag != "named"
    integer = isinstance(key, int) and not isinstance(key, bool) and INT_MIN <= key <= INT_MAX
    return integer and tag == "dict"


def decode_structure(data: Any, where: str) -> pytree.TreeSpec:
    """The tree that data stands for.

    Raises:
        ArtifactError: the data is no tree.
    """
    built, leaves = _build(data, where)
    if leaves > _MAX_LEAVES:
        raise ArtifactError(f"{where}: {leaves} tensors; at most {_MAX_LEAVES} are allowed")
    return pytree.tree_structure(built)


def _build(data: Any, where: str) -> tuple[Any, int]:
    """A tree of containers around empty leaves, and how many these are."""
    if data == _LEAF:
        return None, 1
    if not isinstance(data, dict) or len(data) != 1:
        raise ArtifactError(f"{where}: a structure is 'leaf' or tagged by one key")
    ((tag, content),) = data.items()
    if tag not in ("tuple", "list", *_KEYED) or not isinstance(content, list):
        raise ArtifactError(
            f"{where}: {tag!r:.40} is no structure; use tuple, list, {', '.join(_KEYED)}"
        )
    keys: list[Any] = []
    absent: list[str] = []
    if tag in _KEYED:
        for i, pair in enumerate(content):
            if not isinstance(pair, list) or len(pair) != 2 or not _is_key(pair[0], tag):
                raise ArtifactError(f"{where}[{i}]: an entry is a key and a structure")
            unset = tag == "fields" and pair[1] is None
            (absent if unset else keys).append(pair[0])
        if len({*keys, *absent}) != len(content):
            raise ArtifactError(f"{where}: a key comes twice")
        content = [pair[1] for pair in content if pair[0] in keys]
    parts = [_build(item, f"{where}[{i}]") for i, item in enumerate(content)]
    children = [child for child, _ in parts]
    return _container(tag, keys, absent, children), sum(leaves for _, leaves in parts)


def _container(tag: str, keys: list[Any], absent: list[str], children: list[Any]) -> Any:
    if tag == "tuple":
        return tuple(children)
    if tag == "list":
        return children
    if tag == "fields":
        return Fields(zip(keys, children, strict=True), absent=absent)
    if tag == "named":
        return namedtuple("Named", keys)(*children)
    return dict(zip(keys, children, strict=True))
