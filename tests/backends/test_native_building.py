"""The kernels are compiled once, for this machine, and what goes wrong is said."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx

import qcore
from qcore_backends.native import building, library

NATIVE = qcore.default_host().get("backend", "native")
pytestmark = pytest.mark.skipif(NATIVE.unavailable() is not None, reason=str(NATIVE.unavailable()))


@pytest.fixture(scope="module")
def real() -> Path:
    """The library of this machine."""
    return building.build()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path: Path, real: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that takes no time: it links by copying the library of this machine, and keeps a
    log of its calls beside itself."""
    script = tmp_path / "fast-c++"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/log\n'
        'case "$1" in --version|-dumpmachine) echo fast 1.0; exit;; esac\n'
        "for last; do :; done\n"
        f'case "$*" in *-shared*) sleep 0.2; cp {real} "$last";; *) : > "$last";; esac\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return script


def calls(compiler: Path) -> int:
    """How often the compiler was called to compile or link."""
    log = (compiler.parent / "log").read_text().splitlines()
    return sum(not line.startswith(("--version", "-dumpmachine")) for line in log)


def program() -> fx.GraphModule:
    """A program that quantizes."""
    graph = fx.Graph()
    args = (graph.placeholder("x"), 0.5, 0, -128, 127, torch.int8, "half_even")
    graph.output(graph.call_function(torch.ops.qcore.quantize.default, args))
    return fx.GraphModule({}, graph)


def test_it_is_built_once(cache: Path, compiler: Path) -> None:
    """Every instruction set is compiled, then linked; the next time nothing is."""
    path = building.build()
    assert path.parent == cache / "native"
    made = calls(compiler)
    assert made == len(building.instruction_sets()) + 2
    assert building.build() == path
    assert calls(compiler) == made
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_two_processes_build_at_the_same_time(cache: Path, compiler: Path) -> None:
    """Both get the library, and nothing else stays."""
    code = (
        "from qcore_backends.native.building import build;"
        "from qcore_backends.native.library import Library;"
        "print(Library(build()).isas()[0])"
    )
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["generic", "generic"]
    assert len(list((cache / "native").iterdir())) == 1


def test_another_compiler_machine_or_source_has_another_library(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their libraries never meet."""
    found = building.find_compiler()
    assert found is not None
    paths = {building.library_path(found)}
    other = building.Compiler(command=found.command, version="fast 2.0")
    paths.add(building.library_path(other))
    with monkeypatch.context() as patch:
        patch.setattr(building.platform, "machine", lambda: "aarch64")
        assert list(building.instruction_sets()) == ["generic"]
        paths.add(building.library_path(found))
    (tmp_path / "executor.cpp").write_text("// another")
    monkeypatch.setattr(building, "_SOURCES", tmp_path)
    paths.add(building.library_path(found))
    assert len(paths) == 4


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the cure, and lowering says the same."""
    monkeypatch.setenv("CXX", "/nowhere/c++")
    reason = NATIVE.unavailable()
    assert "no C++ compiler runs" in reason
    assert "install g++" in reason
    with pytest.raises(qcore.BackendError, match="install g\\+\\+"):
        qcore.lower(program(), "native")
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert "tried c++, g++, clang++" in NATIVE.unavailable()


def test_a_compiler_that_fails_is_quoted(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it said, and which compilers are known to do."""
    script = tmp_path / "old-c++"
    script.write_text(
        '#!/bin/sh\ncase "$1" in -*version|-dumpmachine) echo old 4.2; exit;; esac\n'
        "echo 'what is -mamx-int8?' >&2; exit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(qcore.BackendError, match=r"(?s)old 4\.2.*g\+\+ 11.*what is -mamx-int8"):
        building.build()
    assert not list((cache / "native").iterdir())


def test_a_broken_library_is_named(tmp_path: Path) -> None:
    """A file that is no library, and a library of something else."""
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    with pytest.raises(qcore.BackendError, match=r"broken\.so is no library.*delete the file"):
        library.Library(broken)


def test_a_cache_that_can_not_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to choose another."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(qcore.BackendError, match=r"can't write.*set \$QCORE_CACHE"):
        building.build()


def test_the_sources_are_in_the_package() -> None:
    """A wheel has what is compiled."""
    names = {path.suffix for path in (Path(building.__file__).parent / "csrc").iterdir()}
    assert names == {".cpp", ".h"}
    assert os.path.getsize(Path(building.__file__).parent / "csrc" / "kernels.cpp") > 0
