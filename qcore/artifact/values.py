"""The arguments of a program's operations as data.

=============================== ==========================================
value                           data
=============================== ==========================================
None, bool, int, str            themselves
finite float                    itself, exact: the shortest digits that give it back
infinities and NaN              ``{"float": "inf"}``, ``"-inf"``, ``"nan"``
result of an earlier operation  ``{"node": "conv1"}``
list                            a list
tuple                           ``{"tuple": [...]}``
``torch.int8``                  ``{"dtype": "int8"}``
``torch.channels_last``         ``{"memory_format": "channels_last"}``
``torch.strided``               ``{"layout": "strided"}``
a device                        ``{"device": "cpu"}``, whichever it was
=============================== ==========================================
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ..errors import ArtifactError
from .dtypes import LITERAL_DTYPES, MEMORY_FORMATS, name_of_dtype
from .strict_json import INT_MAX, INT_MIN

__all__ = ["MAX_TEXT", "decode_value", "encode_value"]

MAX_TEXT = 256
"""Longest text argument; real ones are modes and einsum equations."""

_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_FORMAT_NAMES = {value: name for name, value in MEMORY_FORMATS.items()}


def encode_value(value: Any) -> Any:
    """An argument as data.

    Raises:
        ArtifactError: a value of another type is in it.

    >>> encode_value(([1, 2.5], None, torch.int8, float("inf")))
    {'tuple': [[1, 2.5], None, {'dtype': 'int8'}, {'float': 'inf'}]}
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if not INT_MIN <= value <= INT_MAX:
            raise ArtifactError(f"the integer {value} does not fit 64 bits")
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return {"float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):
        return [encode_value(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode_value(item) for item in value]}
    return _encode_torch(value)


def _encode_torch(value: Any) -> Any:
    if isinstance(value, torch.dtype) and name_of_dtype(value) in LITERAL_DTYPES:
        return {"dtype": name_of_dtype(value)}
    if isinstance(value, torch.memory_format) and value in _FORMAT_NAMES:
        return {"memory_format": _FORMAT_NAMES[value]}
    if value is torch.strided:
        return {"layout": "strided"}
    if isinstance(value, torch.device):
        return {"device": "cpu"}
    raise ArtifactError(f"an artifact has no place for {value!r} of type {type(value).__name__}")


def decode_value(data: Any, nodes: Mapping[str, fx.Node], where: str) -> Any:
    """The argument that data stands for.

    Args:
        data: as :func:`encode_value` makes it.
        nodes: the operations so far, by name.
        where: place in the file.

    Raises:
        ArtifactError: no argument has this form, or it refers to an operation that does not come
            before.
    """
    if data is None or isinstance(data, bool | int | float):
        return data
    if isinstance(data, str):
        if len(data) > MAX_TEXT or not data.isascii() or not data.isprintable():
            raise ArtifactError(f"{where}: {data[:40]!r} is no text that an operation takes")
        return data
    if isinstance(data, list):
        return [decode_value(item, nodes, f"{where}[{i}]") for i, item in enumerate(data)]
    if len(data) != 1:
        raise ArtifactError(f"{where}: an argument is tagged by one key, not by {len(data)}")
    ((tag, content),) = data.items()
    if tag == "tuple" and isinstance(content, list):
        return tuple(decode_value(item, nodes, f"{where}[{i}]") for i, item in enumerate(content))
    if tag in _NAMED and isinstance(content, str):
        found = nodes.get(content) if tag == "node" else _NAMED[tag](content)
        if found is not None:
            return found
        if tag == "node":
            raise ArtifactError(f"{where}: no operation {content!r:.60} comes before this one")
    raise ArtifactError(f"{where}: {_short(data)} is no argument of an operation")


_NAMED: Mapping[str, Callable[[str], Any]] = {
    "node": lambda name: None,
    "float": _FLOATS.get,
    "dtype": LITERAL_DTYPES.get,
    "memory_format": MEMORY_FORMATS.get,
    "layout": {"strided": torch.strided}.get,
    "device": {"cpu": torch.device("cpu")}.get,
}


def _short(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:60]}..."
