"""Frozen attrs records as data and back, strictly.

The annotations of a record's fields are its schema. Reading takes exactly the fields there are, of
exactly the types they have; what is missing, unknown or of another type is an error that names its
place. Nothing is looked up by a name that the data gives, except the granularities, in the table
here.
"""

import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, cast

import attrs

from ..errors import ArtifactError, QcoreError
from ..granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor, PerToken
from ..suggest import did_you_mean

__all__ = ["from_data", "to_data"]

T = TypeVar("T")

_GRANULARITIES: Mapping[str, type[Granularity]] = {
    "per_tensor": PerTensor,
    "per_channel": PerChannel,
    "per_group": PerGroup,
    "per_token": PerToken,
    "per_block": PerBlock,
}
_PLAIN = (str, int, float, bool, type(None))


def to_data(value: Any, where: str = "value") -> Any:
    """A record as dictionaries, lists and plain values.

    Args:
        value: a record; tuples, lists and mappings with text keys of records; plain values.
        where: how messages call it.

    Raises:
        ArtifactError: a value of another type is in it.

    >>> to_data(PerGroup(32))
    {'kind': 'per_group', 'group_size': 32}
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Granularity):
        for kind, cls in _GRANULARITIES.items():
            if type(value) is cls:
                return {"kind": kind, **_fields(value, where)}
        raise ArtifactError(
            f"{where}: an artifact has no place for {type(value).__name__}; use one of "
            f"{', '.join(_GRANULARITIES)}"
        )
    if attrs.has(type(value)):
        return _fields(value, where)
    if isinstance(value, Mapping):
        for key in value:
            if type(key) is not str:
                raise ArtifactError(f"{where}: the key {key!r} is no text; use text keys")
        return {key: to_data(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_data(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ArtifactError(
        f"{where}: an artifact has no place for a value of type {type(value).__name__}; use text, "
        "numbers, truth values, lists and tables of them"
    )


def _fields(record: Any, where: str) -> dict[str, Any]:
    return {
        field.name: to_data(getattr(record, field.name), f"{where}.{field.name}")
        for field in attrs.fields(type(record))
    }


def from_data(cls: type[T], data: Any, where: str = "value") -> T:
    """A record from data.

    Args:
        cls: the type to read: an attrs class, or an annotation such as ``tuple[int, ...]``.
        data: as :func:`to_data` makes it.
        where: place of ``data`` in the file.

    Raises:
        ArtifactError: the data does not fit.

    >>> from_data(tuple[int, ...], [1, 2])
    (1, 2)
    >>> from_data(tuple[int, ...], [1, "2"])
    Traceback (most recent call last):
    qcore.errors.ArtifactError: value[1]: text where an integer must be
    """
    return cast(T, _read(cls, data, where))


def _read(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin is None:
        return _read_single(kind, data, where)
    arguments = typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, data, where)
    if origin is tuple:
        if type(data) is not list:
            raise _unfit(kind, data, where)
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(data)
        if len(arguments) != len(data):
            raise ArtifactError(f"{where}: {len(data)} items where {len(arguments)} must be")
        return tuple(
            _read(k, item, f"{where}[{i}]")
            for i, (k, item) in enumerate(zip(arguments, data, strict=True))
        )
    # What is left is Mapping[str, X].
    if type(data) is not dict:
        raise _unfit(kind, data, where)
    return {key: _read(arguments[1], item, f"{where}[{key[:80]!r}]") for key, item in data.items()}


def _read_single(kind: Any, data: Any, where: str) -> Any:
    if kind in _PLAIN:
        # Exactly: a bool is an int to Python, and True is no size.
        if type(data) is not kind:
            raise _unfit(kind, data, where)
        return data
    if type(data) is not dict:
        raise _unfit(kind, data, where)
    if kind is Granularity:
        name = data.get("kind")
        found = _GRANULARITIES.get(name) if isinstance(name, str) else None
        if found is None:
            raise ArtifactError(
                f"{where}: kind {name!r:.40} is no granularity; use one of "
                f"{', '.join(_GRANULARITIES)}"
            )
        kind, data = found, {key: item for key, item in data.items() if key != "kind"}
    return _read_record(kind, data, where)


def _read_record(cls: type, data: Mapping[str, Any], where: str) -> Any:
    hints = _hints(cls)
    for key in data:
        if key not in hints:
            raise ArtifactError(f"{where}: unknown key {key!r:.60}{did_you_mean(key[:60], hints)}")
    for key in hints:
        if key not in data:
            raise ArtifactError(f"{where}: key {key!r} is missing")
    values = {key: _read(hints[key], item, f"{where}.{key}") for key, item in data.items()}
    try:
        return cls(**values)
    except ArtifactError:
        raise
    # A record's own rules: a range that is empty, an override that is for nothing.
    except QcoreError as error:
        raise ArtifactError(f"{where}: {error}") from None


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in attrs.fields(cls)}


def _read_union(options: tuple[Any, ...], data: Any, where: str) -> Any:
    """Of a union the one member that the JSON type of the data tells."""
    for option in options:
        plain = option in _PLAIN
        if (plain and type(data) is option) or (not plain and type(data) is _json_type(option)):
            return _read(option, data, where)
    raise ArtifactError(
        f"{where}: {_name(type(data))} where {' or '.join(map(_name, options))} must be"
    )


def _json_type(kind: Any) -> type:
    return list if typing.get_origin(kind) is tuple else dict


def _unfit(kind: Any, data: Any, where: str) -> ArtifactError:
    return ArtifactError(f"{where}: {_name(type(data))} where {_name(kind)} must be")


def _name(kind: Any) -> str:
    names = {
        str: "text", int: "an integer", float: "a float", bool: "true or false",
        type(None): "null", list: "a list", dict: "an object",
    }  # fmt: skip
    return names.get(kind) or names[_json_type(kind)]
