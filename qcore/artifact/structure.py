"""Inputs and outputs of a program as trees of plain containers, and the trees as data.

A tree is ``"leaf"``, ``{"tuple": [trees]}``, ``{"list": [trees]}`` or ``{"dict": [[key, tree],
...]}`` with text or integer keys. An artifact names no class, so a container of any other
registered type becomes the dictionary of its fields: a named tuple, a dataclass, or the
``ModelOutput`` of a Hugging Face model, whose ``output["logits"]`` goes on working.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch.utils._pytree as pytree

from ..errors import ArtifactError
from .strict_json import INT_MAX, INT_MIN

__all__ = ["decode_structure", "encode_structure", "plain"]

_LEAF = "leaf"
_MAX_LEAVES = 10_000
_MAX_KEY = 256


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
    keys = _keys(spec)
    return {"dict": [[key, child] for key, child in zip(keys, children, strict=True)]}


def _keys(spec: pytree.TreeSpec) -> list[Any]:
    """The name of each field of a container that is no tuple and no list, in the tree's order."""
    name = getattr(spec.type, "__name__", str(spec.type))
    keys: Any = spec.context
    if spec.type not in (dict, OrderedDict) and not _is_names(keys, spec.num_children):
        # The container itself knows: one is built, with the numbers of its children for content.
        try:
            unflatten = pytree.SUPPORTED_NODES[spec.type].unflatten_fn
            fields = _fields(unflatten(range(spec.num_children), spec.context))
        # Any class can be registered, and its constructor may refuse numbers in any way.
        except Exception:
            fields = {}
        keys = [
            key for number in range(spec.num_children) for key in fields if fields[key] == number
        ]
        if len(keys) != spec.num_children:
            raise ArtifactError(
                f"an input or output of type {name} has no fields with names; return tensors, "
                "tuples, lists or dictionaries"
            )
    for key in keys:
        if not _is_key(key):
            raise ArtifactError(f"the key {key!r} of a {name} is no text and no integer; use those")
    return list(keys)


def _is_names(context: Any, count: int) -> bool:
    return (
        isinstance(context, Sequence)
        and not isinstance(context, str)
        and len(context) == count
        and all(isinstance(key, str) for key in context)
    )


def _fields(container: Any) -> Mapping[Any, Any]:
    if isinstance(container, tuple) and hasattr(container, "_asdict"):
        fields: Mapping[Any, Any] = container._asdict()
        return fields
    if isinstance(container, Mapping):
        return container
    if dataclasses.is_dataclass(container):
        return {f.name: getattr(container, f.name) for f in dataclasses.fields(container)}
    return {}


def _is_key(key: object) -> bool:
    if isinstance(key, str):
        return len(key) <= _MAX_KEY and key.isprintable()
    return isinstance(key, int) and not isinstance(key, bool) and INT_MIN <= key <= INT_MAX


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
    """A tree of plain containers around empty leaves, and how many these are."""
    if data == _LEAF:
        return None, 1
    if not isinstance(data, dict) or len(data) != 1:
        raise ArtifactError(f"{where}: a structure is 'leaf' or tagged by one key")
    ((tag, content),) = data.items()
    if tag not in ("tuple", "list", "dict") or not isinstance(content, list):
        raise ArtifactError(f"{where}: {tag!r:.40} is no structure; use tuple, list or dict")
    if tag == "dict":
        keys = [_key(pair, f"{where}[{i}]") for i, pair in enumerate(content)]
        if len(set(keys)) != len(keys):
            raise ArtifactError(f"{where}: a key of the dictionary comes twice")
        content = [pair[1] for pair in content]
    parts = [_build(item, f"{where}[{i}]") for i, item in enumerate(content)]
    leaves = sum(count for _, count in parts)
    children = [child for child, _ in parts]
    if tag == "dict":
        return dict(zip(keys, children, strict=True)), leaves
    return (tuple(children) if tag == "tuple" else children), leaves


def _key(pair: Any, where: str) -> Any:
    if not isinstance(pair, list) or len(pair) != 2 or not _is_key(pair[0]):
        raise ArtifactError(f"{where}: an entry of a dictionary is a key and a structure")
    return pair[0]


def plain(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The tree as it will be after saving and loading."""
    return decode_structure(encode_structure(spec), "structure")
