"""The page of hooks is what the hook specifications and the records say."""

import subprocess
import sys
from pathlib import Path

from qcore.hookspecs import HOOKS

ROOT = Path(__file__).resolve().parents[2]


def test_page_is_written_from_the_code():
    """The page in the repository is what its script writes now."""
    code = "import write_hooks; print(write_hooks.render(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "plugins" / "hooks.md").read_text(encoding="utf-8")
    assert page == done.stdout, "python docs/write_hooks.py renews it"


def test_page_has_every_hook_and_record():
    """Each hook is a section, with each record that it may return below it, in their order."""
    page = (ROOT / "docs" / "plugins" / "hooks.md").read_text(encoding="utf-8")
    headings = [line for line in page.splitlines() if line.startswith(("## qcore_", "### "))]
    expected = []
    for hook, records in HOOKS.items():
        expected += [f"## {hook}", *(f"### {record.__name__}" for record in records)]
    assert headings == expected
