"""The table of what MegEngine has: every name in it is there, and so is every test."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import qcore

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/megengine.md"
SECTIONS = (
    "Flow and switches",
    "Observers and fake quantizers",
    "Configurations",
    "Modules",
    "Training",
    "Numbers and files",
)
KINDS = ("observer", "fake_quant", "preset", "scheme", "algorithm", "backend")


def rows(page):
    """Section and cells of each row."""
    for section in SECTIONS:
        for line in page.section(section):
            if line.startswith("|") and not re.match(r"\| (-|MegEngine)", line):
                yield section, [cell.strip() for cell in line.strip("|").split("|")]


def functions_of(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_test_is_there(page_named):
    """Each row ends with one test, by its file and name."""
    found = list(rows(page_named(PAGE)))
    assert len(found) > 50
    for _, (*_, shown) in found:
        match = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", shown)
        assert match is not None, shown
        assert match[2] in functions_of(match[1]), shown


def known_names():
    host = qcore.default_host()
    names = {spec.name for kind in KINDS for spec in host.specs(kind)}
    return names | {spec.op for spec in host.specs("converter")}


def resolves(name, names):
    """Whether a name is public, an attribute of what is public, or that of a contribution."""
    if name in names:
        return True
    module, *attributes = name.split(".")
    value = importlib.import_module(module) if attributes else None
    for attribute in attributes:
        if not hasattr(value, attribute):
            try:
                importlib.import_module(f"{value.__name__}.{attribute}")
            except ImportError:
                return False
        value = getattr(value, attribute)
    return value is not None


# What a row says beside names: an argument, a method, a key of a recipe.
WORDS = {"mapping", "forward", "get_submodule", "quantize = false"}


def test_every_name_resolves(page_named):
    """Functions, types, contributions and operations of the second column."""
    names = known_names()
    for _, (_, ours, _) in rows(page_named(PAGE)):
        for name in re.findall(r"`([^`]+)`", ours):
            assert name in WORDS or resolves(name, names), name


@pytest.mark.parametrize("name", ["qcore.prepared", "minmaxx", "qcore_algorithms.easyquant.search"])
def test_a_name_that_is_not_there_does_not_resolve(name):
    """So the test above can fail."""
    names = known_names()
    assert not resolves(name, names) if "." in name else name not in names


def test_all_presets_are_in_the_table(page_named):
    """The eight configurations, each in a row of its own."""
    lines = "\n".join(ours for _, (_, ours, _) in rows(page_named(PAGE)))
    for spec in qcore.default_host().specs("preset"):
        if spec.name.startswith("megengine_"):
            assert f"`{spec.name}`" in lines
