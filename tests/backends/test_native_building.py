"""The kernels are compiled for this machine, and what goes wrong is said."""

import ctypes
import os
from pathlib import Path

import pytest
import torch
from torch import fx

import qcore
from qcore_backends.native import building, library

NATIVE = qcore.default_host().get("backend", "native")
pytestmark = pytest.mark.skipif(NATIVE.unavailable() is not None, reason=str(NATIVE.unavailable()))


def program() -> fx.GraphModule:
    """A program that quantizes."""
    graph = fx.Graph()
    args = (graph.placeholder("x"), 0.5, 0, -128, 127, torch.int8, "half_even")
    graph.output(graph.call_function(torch.ops.qcore.quantize.default, args))
    return fx.GraphModule({}, graph)


def test_every_instruction_set_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of this architecture; another one has the generic kernels."""
    monkeypatch.setattr(building.platform, "machine", lambda: "x86_64")
    units = building.kernel_library().units
    assert [unit.source for unit in units] == ["kernels.cpp"] * 5 + ["executor.cpp"]
    assert len({unit.flags for unit in units}) == 6
    monkeypatch.setattr(building.platform, "machine", lambda: "aarch64")
    assert list(building.instruction_sets()) == ["generic"]
    assert len(building.kernel_library().units) == 2


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the cure, and lowering says the same."""
    monkeypatch.setenv("CXX", "/nowhere/c++")
    reason = NATIVE.unavailable()
    assert "no C++ compiler runs" in reason
    assert "install g++" in reason
    with pytest.raises(qcore.BackendError, match="install g\\+\\+"):
        qcore.lower(program(), "native")


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it said, and which compilers are known to do."""
    script = tmp_path / "old-c++"
    script.write_text(
        '#!/bin/sh\ncase "$1" in -*version|-dumpmachine) echo old 4.2; exit;; esac\n'
        "echo 'what is -mamx-int8?' >&2; exit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(qcore.BackendError, match=r"(?s)g\+\+ 11.*old 4\.2.*what is -mamx-int8"):
        library.library()


def test_another_library_is_named() -> None:
    """One that has none of the functions."""
    with pytest.raises(qcore.BackendError, match=r"is no library of its kernels.*delete the file"):
        library.Library(ctypes.CDLL(None))


def test_the_sources_are_in_the_package() -> None:
    """A wheel has what is compiled."""
    names = {path.suffix for path in (Path(building.__file__).parent / "csrc").iterdir()}
    assert names == {".cpp", ".h"}
    assert os.path.getsize(Path(building.__file__).parent / "csrc" / "kernels.cpp") > 0
