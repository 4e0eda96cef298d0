"""The lines on the page of costs are those of the code."""

import importlib.util
from pathlib import Path

import pytest

from qcore.scaffold import KINDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def kit():
    """The script that counts."""
    file = ROOT / "benchmarks" / "plugin_kit.py"
    spec = importlib.util.spec_from_file_location("plugin_kit", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lines_of_each_kind(page_named, kit):
    """Each kind has a row with its lines on the page, in the template and in the example."""
    rows = {}
    for line in page_named("docs/plugins/cost.md").section("Lines and seconds"):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in KINDS:
            rows[cells[0]] = cells[1:]
    assert list(rows) == [*KINDS] == [*kit.KINDS]
    for kind, (page, template, example, files, seconds) in rows.items():
        counted = (kit.page_lines(kind), kit.template_lines(kind)["part"], kit.example_lines(kind))
        assert (int(page), int(template), int(example)) == counted, kind
        assert files == "0"
        assert float(seconds) > 0


def test_an_observer_is_a_dozen_lines(kit):
    """The smallest observer, imports included."""
    assert kit.page_lines("observer") <= 13


def test_what_counts_as_a_line(kit):
    """Docstrings, comments, blank lines and texts below constants are no code."""
    source = '''"""Module."""

# Comment.
X = 1
"""What X is."""


def f(
    a,
):
    """Doc.

    More.
    """
    text = """two
    lines"""
    return a, text
'''
    assert kit.code_lines(source) == 7
