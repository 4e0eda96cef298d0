"""Pages that are written from the code are what their script writes now."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qcore.hookspecs import HOOKS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "plugins"
CODE = """
import json
import write_reference as script

print(json.dumps({name: page() for name, page in script.PAGES.items()}))
"""


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """Each page as the script would write it."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT / "docs", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages: dict[str, str] = json.loads(done.stdout)
    return pages


@pytest.mark.parametrize("name", ["hooks.md", "conformance.md"])
def test_page_is_written_from_the_code(written, name):
    """The page in the repository is what its script writes now."""
    page = (FOLDER / name).read_text(encoding="utf-8")
    assert page == written[name], "python docs/write_reference.py renews it"


def test_every_hook_and_record(page_named):
    """Each hook is a section, with each record that it may return below it, in their order."""
    headings = [text for _, text, _ in page_named("docs/plugins/hooks.md").headings]
    expected = []
    for hook, records in HOOKS.items():
        expected += [hook, *(record.__name__ for record in records)]
    assert headings == ["Hooks and records", "Every record", *expected]
