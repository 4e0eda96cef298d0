"""Runs of a script in a process of its own, on a forced instruction set."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping

import pytest
import torch

import qcore

__all__ = ["run_forced"]


def run_forced(script: str, *arguments: str, backend: str, forced: Mapping[str, str]) -> str:
    """What the script prints; skips the test where the machine lacks backend or instruction set.

    Args:
        script: Python; a failing assertion in it fails the test.
        arguments: its ``sys.argv[1:]``.
        backend: what it lowers for.
        forced: the environment variable that forces the instruction set.
    """
    why = qcore.default_host().get("backend", backend).unavailable()
    if why is not None:
        pytest.skip(why)
    if forced.get("ONEDNN_MAX_CPU_ISA", "AVX2") != "AVX2" and not torch.cpu._is_vnni_supported():
        pytest.skip("this processor has no VNNI")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, **forced, "QCORE_PROGRESS": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    if "this machine has" in done.stderr:
        pytest.skip(f"this machine lacks {forced}")
    assert done.returncode == 0, done.stderr
    return done.stdout
