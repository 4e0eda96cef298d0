"""Every kernel compiles for real GPUs, by Triton and its assembler, where there is none."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compiling.py")
FUSED = {"one_row", "few_rows"}
"""Kernels of float sums, which may fuse multiply-adds."""
MULTIPLIES = {"product", "convolution", "matmul"}


def compiled(capability: int, folder: Path, *options: str) -> list[dict]:
    """What the script prints."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, SCRIPT, str(capability), *options],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(lines: list[dict], shared_kib: int) -> None:
    """Exactness and fit, as far as the compiled code shows them."""
    names = {line["kernel"] for line in lines}
    assert names >= MULTIPLIES | FUSED | {"quantize", "quantize_tokens", "depthwise", "pool"}
    for line in lines:
        has = set(line["has"])
        assert "approximate division" not in has, line
        assert line["kernel"] in FUSED or "fma" not in has, line
        assert line["kernel"] not in MULTIPLIES or "int8 tensor core" in has, line
        assert "quantize" not in line["kernel"] or "exact division" in has, line
        assert line["shared"] <= shared_kib * 1024, line


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("capability", "shared_kib"), [(80, 163), (89, 99), (90, 227)])
def test_every_tile(tmp_path, capability, shared_kib):
    """Each tile that the backend may choose fits the GPU, and each step is rounded by itself."""
    check(compiled(capability, tmp_path, "--all"), shared_kib)


@needs_triton
@pytest.mark.parametrize(
    ("capability", "shared_kib"), [(90, 227), pytest.param(100, 227, marks=pytest.mark.slow)]
)
def test_first_tiles(tmp_path, capability, shared_kib):
    """The interpreter checks no types; the compiler does."""
    check(compiled(capability, tmp_path), shared_kib)
