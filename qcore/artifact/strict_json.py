"""JSON with exactly one way to write each document.

``parse(render(value)) == value``, and :func:`check_form` refuses a document that :func:`render`
writes otherwise: a byte that is changed, even in the white space, is an error. Objects have sorted
keys, none twice; text is ASCII; integers have 64 bits, floats are finite. What Python's own reader
would let through or choke on (``NaN``, ``1e999``, a key that comes twice, brackets nested without
end) is refused.

Tall values are written over several lines, so that people and ``diff`` can read a manifest.
"""

import json
from collections.abc import Sequence
from typing import Any

from ..errors import ArtifactError

__all__ = ["INT_MAX", "INT_MIN", "MAX_BYTES", "check_form", "parse", "render"]

MAX_BYTES = 64 * 2**20
"""A larger document is refused before it is read. Ten thousand operations take about 4 MiB."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
_MAX_DEPTH = 64
_OPEN_LEVELS = 4
_LONGEST_INTEGER = 20
_LINE = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def parse(data: bytes) -> Any:
    """The value of a document in any form; :func:`check_form` looks at that.

    Raises:
        ArtifactError: it is not JSON, or holds what :func:`render` never writes.

    >>> parse(b'[1, 2.5, "a"]')
    [1, 2.5, 'a']
    """
    try:
        value = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise ArtifactError(f"byte {error.start} is not ASCII text") from None
    except json.JSONDecodeError as error:
        raise ArtifactError(f"it is not JSON: {error}") from None
    except RecursionError:
        raise ArtifactError(f"its values are nested deeper than {_MAX_DEPTH} levels") from None
    _check(value)
    return value


def check_form(value: Any, data: bytes) -> None:
    """Refuses a document that is not the one way to write its value.

    Raises:
        ArtifactError: :func:`render` writes it otherwise.

    >>> check_form([1, 2], b"[1,2]\\n")
    >>> check_form([1, 2], b"[1, 2]\\n")
    Traceback (most recent call last):
    qcore.errors.ArtifactError: it is not in the one form that qcore writes, so it was changed ...
    """
    if _document(value) != data:
        raise ArtifactError(
            "it is not in the one form that qcore writes, so it was changed by other means; "
            "save the program again"
        )


def render(value: Any) -> bytes:
    """The document of a value: None, bool, int, float, str, lists, and dictionaries with text keys.

    Raises:
        ArtifactError: a float is not finite, or an integer has more than 64 bits.
    """
    _check(value)
    return _document(value)


def _document(value: Any) -> bytes:
    return (_text(value, 0) + "\n").encode("ascii")


def _text(value: Any, level: int) -> str:
    # What holds little, such as a record with a list of sizes in it, reads best on one line.
    if level < _OPEN_LEVELS and _height(value, 3) == 3:
        if isinstance(value, dict):
            parts = [f"{_LINE(k)}: {_text(v, level + 1)}" for k, v in sorted(value.items())]
            opening, closing = "{", "}"
        else:
            parts = [_text(v, level + 1) for v in value]
            opening, closing = "[", "]"
        indent = " " * (level + 1)
        inner = ",\n".join(indent + part for part in parts)
        return f"{opening}\n{inner}\n{' ' * level}{closing}"
    return _LINE(value)


def _height(value: Any, limit: int) -> int:
    """How many containers lie in each other at most, counted up to ``limit``."""
    if limit == 0 or not isinstance(value, dict | list):
        return 0
    children = value.values() if isinstance(value, dict) else value
    return 1 + max((_height(child, limit - 1) for child in children), default=0)


def _check(value: Any) -> None:
    """Refuses what the form has no place for; without recursion, which ``value`` could exhaust."""
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise ArtifactError(f"its values are nested deeper than {_MAX_DEPTH} levels")
        if isinstance(item, dict):
            pending.extend((key, depth + 1) for key in item)
            pending.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            pending.extend((child, depth + 1) for child in item)
        elif isinstance(item, str):
            if any("\ud800" <= c <= "\udfff" for c in item):
                raise ArtifactError(f"text {item[:40]!a} holds half a character")
        elif isinstance(item, float):
            if not abs(item) < float("inf"):
                raise ArtifactError(f"{item} is no number of JSON")
        elif isinstance(item, int):
            if not INT_MIN <= item <= INT_MAX:
                raise ArtifactError(f"{_shorten(str(item))} does not fit 64 bits")
        elif item is not None:
            raise ArtifactError(f"a value of type {type(item).__name__} has no form in JSON")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ArtifactError(f"key {_shorten(repr(twice))} comes twice in one object")
    return result


def _integer(text: str) -> int:
    # Before int(), which takes quadratic time for long ones.
    if len(text) > _LONGEST_INTEGER:
        raise ArtifactError(f"{_shorten(text)} does not fit 64 bits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not abs(value) < float("inf"):
        raise ArtifactError(f"{_shorten(text)} is beyond the range of a float")
    return value


def _constant(text: str) -> float:
    raise ArtifactError(f"{text} is no number of JSON")


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
