"""Writes ``public_api.txt``: what qcore promises to keep, readable and easy to compare.

    python tests/snapshots/public_api.py

renews the file. A name that goes, a parameter that is renamed, a field that is added all show as a
line of the diff: whoever reviews it decides whether ``docs/plugins/versioning.md`` allows it.

Signatures are taken from the source, so that the file is the same for every Python and torch.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs

import qcore
import qcore.testing
from qcore.hookspecs import HOOKS

FILE = Path(__file__).with_name("public_api.txt")
_COMMAND = f"python tests/snapshots/{Path(__file__).name}"
_SHOWN = ("__init__", "__call__")


def render() -> str:
    """The text of the file."""
    sections = [
        ("qcore", _names(qcore, "qcore")),
        ("qcore.testing", _names(qcore.testing, "qcore.testing")),
        ("hooks", _hooks()),
    ]
    lines = [f"# The public API. Renew it with: {_COMMAND}"]
    for title, body in sections:
        lines += ["", f"[{title}]", *body]
    return "\n".join(lines) + "\n"


def _names(module: Any, where: str) -> Iterator[str]:
    for name in sorted(module.__all__):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from _class(value)
        elif inspect.isfunction(value):
            yield _function(_definition(value))
        else:
            # Of an object whose text is its address only the type is a promise.
            text = "" if " at 0x" in repr(value) else f" = {value!r}"
            yield f"{name}: {type(value).__name__}{text}"


def _class(cls: type) -> Iterator[str]:
    node = _definition(cls)
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield f"{_marks(node)}class {cls.__name__}" + (f"({bases})" if bases else "")
    shown: set[str] = set()
    # What comes from a base that has no public name is a promise of this class.
    for base in cls.__mro__:
        if base is not cls and (not base.__module__.startswith("qcore") or _is_public(base)):
            continue
        for member in _definition(base).body:
            for name, line in _member(member):
                if name not in shown:
                    shown.add(name)
                    yield f"    {line}"


def _member(node: ast.stmt) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.FunctionDef):
        if node.name in _SHOWN or not node.name.startswith("_"):
            yield node.name, _function(node)
    elif isinstance(node, ast.AnnAssign):
        name = ast.unparse(node.target)
        if not name.startswith("_"):
            yield name, _field(node)


def _function(node: Any) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{_marks(node)}def {node.name}({ast.unparse(node.args)}){returns}"


def _marks(node: Any) -> str:
    """The decorators: ``property``, ``abstractmethod``, ``experimental('0.2')``."""
    return "".join(f"@{ast.unparse(mark)} " for mark in node.decorator_list)


def _field(node: ast.AnnAssign) -> str:
    """``name: type = default``, without validators and converters, which are no promise."""
    default: ast.expr | None = node.value
    if isinstance(default, ast.Call) and ast.unparse(default.func) == "attrs.field":
        given = {keyword.arg: keyword.value for keyword in default.keywords}
        default = given.get("default", given.get("factory"))
    text = f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}"
    return text if default is None else f"{text} = {ast.unparse(default)}"


def _hooks() -> Iterator[str]:
    for hook, records in HOOKS.items():
        yield f"{hook}() -> {' | '.join(record.__name__ for record in records)}"
        for record in records:
            yield f"    {record.__name__}, kind {record.kind!r}"
            for field in attrs.fields(record):
                optional = "" if field.default is attrs.NOTHING else " (optional)"
                yield f"        {field.name}{optional}"


def _is_public(cls: type) -> bool:
    return any(getattr(m, cls.__name__, None) is cls for m in (qcore, qcore.testing))


def _definition(value: Any) -> Any:
    """The statement that defines a class or a function."""
    found: Any = _tree(inspect.getsourcefile(inspect.unwrap(value)))
    for name in value.__qualname__.split("."):
        found = next(
            node
            for node in found.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
        )
    return found


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text(encoding="utf-8"))


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
    print(f"{FILE}: written", file=sys.stderr)
