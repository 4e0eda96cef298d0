"""Writes what ``docs/plugins`` takes from the code.

    python docs/write_reference.py

``hooks.md`` comes from the hook specifications and their records, and the tables of contracts at
the end of ``conformance.md`` from the conformance kit. A test compares pages and code.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import attrs

from qcore import Spec, hookspecs
from qcore.hookspecs import HOOKS
from qcore.testing import contracts

FOLDER = Path(__file__).with_name("plugins")

HOOKS_HEAD = """\
# Hooks and records

This page is written from the code by `python docs/write_reference.py`.

A hook is a function without arguments in the module that an entry point of the group `{group}`
names, marked by `@qcore.hookimpl`. It returns an iterable of records, which are frozen and take
keyword arguments only. All record classes are names of `qcore`.

## Every record

| field | type | default | meaning |
| --- | --- | --- | --- |
| `name` | `str` | required | what recipes and lists call the part: no spaces, commas and colons |
| `summary` | `str` | `""` | one line for lists |
| `origin` | `Origin \\| None` | `None` | plug-in, distribution, version, entry point; the host's |

What has a `target` names its code, `"package.module:Attribute"`, which is imported when it is used.
Records of the kinds that have contracts also take `deviations`: a dict from the name of each
[contract](conformance.md) that the part does not fulfil on purpose to the reason.
"""

_HEADINGS = {
    "observer": "an observer",
    "fake_quant": "a fake quantizer",
    "fusion": "a fusion",
    "converter": "a converter",
    "backend": "a backend",
    "algorithm": "an algorithm",
}

_COMMON = (*(field.name for field in attrs.fields(Spec)), "deviations")


def hooks_page() -> str:
    """The text of ``hooks.md``."""
    parts = [HOOKS_HEAD.format(group=hookspecs.ENTRY_POINT_GROUP)]
    for hook, records in HOOKS.items():
        parts.append(f"## {hook}\n\n{_sentences(getattr(hookspecs, hook))}\n")
        parts += [_record(record) for record in records]
    return "\n".join(parts)


def conformance_page() -> str:
    """The text of ``conformance.md``: what was written by hand, and the tables anew."""
    page = (FOLDER / "conformance.md").read_text(encoding="utf-8")
    parts = [page.partition("## Contracts of ")[0].rstrip("\n") + "\n"]
    for kind, words in _HEADINGS.items():
        lines = [f"## Contracts of {words}", ""]
        lines += ["| contract | what it protects |", "| --- | --- |"]
        lines += [f"| `{one.name}` | {one.protects} |" for one in contracts(kind)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


PAGES = {"hooks.md": hooks_page, "conformance.md": conformance_page}


def _record(record: type[Spec]) -> str:
    described = _arguments(record)
    lines = [f"### {record.__name__}", "", f"{_sentences(record)} Its kind is `{record.kind}`.", ""]
    if record.contract:
        bases = " or ".join(f"`qcore.{name}`" for name in record.contract)
        lines += [f"Its target must be a class that derives from {bases}.", ""]
    rows = [field for field in attrs.fields(record) if field.name not in _COMMON]
    lines += ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    for field in rows:
        # Of a target the docstring says what it is in its first sentence.
        meaning = described.get(field.name, "where it is" if field.name == "target" else None)
        assert meaning, f"{record.__name__}.{field.name} has no line in the docstring"
        meaning = meaning.removesuffix(".")
        lines.append(f"| `{field.name}` | `{_type(field)}` | {_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _sentences(documented: Any) -> str:
    """The first paragraph of a docstring, in Markdown."""
    return _markdown(inspect.getdoc(documented).partition("\n\n")[0])


def _arguments(record: type) -> dict[str, str]:
    """What the ``Args`` of a docstring say."""
    text = inspect.getdoc(record).partition("Args:\n")[2]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        entry = re.fullmatch(r"    (\w+): (.*)", line)
        if entry:
            lines = found[entry[1]] = [entry[2]]
        elif line.startswith("        "):
            lines.append(line.strip())
    return {name: _markdown(" ".join(lines)) for name, lines in found.items()}


def _markdown(text: str) -> str:
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|")


def _type(field: "attrs.Attribute[Any]") -> str:
    text = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("|", "\\|")


def _default(field: "attrs.Attribute[Any]") -> str:
    if field.default is attrs.NOTHING:
        return "required"
    if isinstance(field.default, attrs.Factory):
        return f"`{field.default.factory()!r}`"
    return f"`{field.default!r}`"


def main() -> None:
    """Writes the pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
        print(f"{FOLDER / name}: written", file=sys.stderr)


if __name__ == "__main__":
    main()
