"""The benchmarks of the CUDA backend run to the end, on any machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


def run(script: str) -> str:
    environment = {**os.environ, "QCORE_PROGRESS": "off"}
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, "--dry-run"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_linear_layers():
    """A row a size and number of tokens, a column an engine, beside what was measured on."""
    lines = run("cuda_linear.py").splitlines()
    assert lines[0].startswith("a dry run without a GPU; torch ")
    (head,) = (line for line in lines if line.startswith("| layer"))
    for name in ("W8A8 static", "W8A8 dynamic", "W8", "W4 g32", "float16"):
        assert f"| {name} |" in head
    assert sum(line.startswith("| 64x32 |") for line in lines) == 2


@pytest.mark.slow
def test_networks():
    """A row a network, whose integers are compared."""
    lines = run("cuda_networks.py").splitlines()
    rows = [line for line in lines if line.startswith(("| ResNet", "| ViT", "| BERT"))]
    assert len(rows) == 3
    assert all(row.endswith("| 0 |") for row in rows)
