"""The public API is what the snapshot says."""

import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qcore

SNAPSHOTS = Path(__file__).resolve().parents[1] / "snapshots"
COMMAND = "python tests/snapshots/public_api.py"


@pytest.fixture(scope="module")
def rendered() -> str:
    """The API of the code, as its script writes it."""
    script = "import public_api; print(public_api.render(), end='')"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=SNAPSHOTS, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_snapshot(rendered):
    """Every public name, signature, member, hook and field of a record is as in the file."""
    before = (SNAPSHOTS / "public_api.txt").read_text(encoding="utf-8").splitlines()
    diff = list(difflib.unified_diff(before, rendered.splitlines(), "snapshot", "code", n=0))
    assert not diff, "\n".join(
        [
            "the public API changed. If docs/plugins/versioning.md allows it, and the change is "
            f"meant: {COMMAND}",
            *diff,
        ]
    )


def test_it_has_every_name(rendered):
    """The script leaves out no public name, and shows members as they are written."""
    for name in qcore.__all__:
        assert re.search(rf"^(@.* )?((class|def) )?{name}\b", rendered, re.MULTILINE), name
    for line in (
        "    @abstractmethod def combine(self, other: Self) -> None",
        "    @classmethod def why_not(cls, match: 'Match', qconfig: QConfig) -> str | None",
        "@attrs.frozen(kw_only=True) class Numerics",
        "    priority: int = 0",
        "    target: str",
        "    lsb_bound: ClassVar[int] = 0",
        "qcore_fake_quants() -> FakeQuantSpec | SchemeSpec | PresetSpec",
        "        check (optional)",
    ):
        assert f"\n{line}\n" in rendered, line
