"""C++ of a plug-in is compiled once, for this machine, and what goes wrong is said."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import qcore
from qcore import CompilerError, CppLibrary, CppUnit, find_cpp_compiler, why_no_cpp_compiler

needs_compiler = pytest.mark.skipif(
    why_no_cpp_compiler() is not None, reason=str(why_no_cpp_compiler())
)

ADDITION = """
#include <qcore/openmp.h>

#pragma GCC visibility push(default)
extern "C" int add(int a, int b) { return a + b + EXTRA; }

// How many threads of torch's OpenMP ran; -1 if there is none.
extern "C" int run(int threads) {
  const qcore::OpenMP* openmp = qcore::OpenMP::of_process();
  if (!openmp) return -1;
  std::atomic<int> ran{0};
  openmp->run(threads, [&](int, const auto& barrier) {
    ++ran;
    barrier();
  });
  return ran;
}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def library(tmp_path: Path) -> CppLibrary:
    """A small one."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "add.cpp").write_text(ADDITION)
    unit = CppUnit(source="add.cpp", flags=("-DEXTRA=0",))
    return CppLibrary(name="small", folder=folder, units=(unit,))


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that takes no time and makes empty files, and keeps a log of its calls."""
    script = tmp_path / "fast-c++"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/log\n'
        'case "$1" in --version|-dumpmachine) echo fast 1.0; exit;; esac\n'
        "for last; do :; done\n"
        'case "$*" in *-shared*) sleep 0.2;; esac; echo made > "$last"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return script


def calls(compiler: Path) -> list[str]:
    """Its calls to compile or link."""
    log = (compiler.parent / "log").read_text().splitlines()
    return [line for line in log if not line.startswith(("--version", "-dumpmachine"))]


@needs_compiler
def test_it_is_compiled_and_loaded(library: CppLibrary) -> None:
    """Its functions can be called, and use the threads of torch."""
    loaded = library.load()
    assert loaded.add(2, 3) == 5
    assert loaded.run(2) in ((2,) if torch.backends.openmp.is_available() else (-1, 2))
    assert library.load().add(2, 3) == 5
    possible = library.load_if_possible(otherwise="slower")
    assert possible is not None
    assert possible.add(2, 3) == 5


@needs_compiler
def test_flags_of_a_unit(library: CppLibrary) -> None:
    """A definition counts."""
    unit = CppUnit(source="add.cpp", flags=("-DEXTRA=10",))
    other = CppLibrary(name="small", folder=library.folder, units=(unit,))
    assert (library.load().add(2, 3), other.load().add(2, 3)) == (5, 15)


def test_it_is_built_once(library: CppLibrary, cache: Path, compiler: Path) -> None:
    """Each unit is compiled, then all are linked; the next time nothing is."""
    twice = CppLibrary(name="twice", folder=library.folder, units=library.units * 2)
    path = twice.build()
    assert path.parent == cache / "compiled" / "twice"
    assert len(calls(compiler)) == 3
    assert twice.build() == path
    assert len(calls(compiler)) == 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_two_processes_build_at_the_same_time(
    library: CppLibrary, cache: Path, compiler: Path
) -> None:
    """Both get the library, and nothing else stays."""
    code = (
        "from pathlib import Path; from qcore import CppLibrary, CppUnit;"
        f"library = CppLibrary(name='small', folder=Path({str(library.folder)!r}),"
        " units=(CppUnit(source='add.cpp'),));"
        "print(library.build().read_text())"
    )
    command = [sys.executable, "-c", code]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["made", "made"]
    assert len(list((cache / "compiled" / "small").iterdir())) == 1


def test_the_compiler_flags_and_every_source_count(library: CppLibrary, compiler: Path) -> None:
    """What differs in any of them never meets."""
    found = find_cpp_compiler()
    assert found is not None
    paths = {library.path(found)}
    paths.add(library.path(qcore.CppCompiler(command=found.command, version="fast 2.0")))
    other = CppLibrary(name="small", folder=library.folder, units=library.units, flags=("-g",))
    paths.add(other.path(found))
    (library.folder / "inner").mkdir()
    (library.folder / "inner" / "new.h").write_text("// new")
    paths.add(library.path(found))
    assert len(paths) == 4
    assert library.path(found) in paths


def test_without_a_compiler(library: CppLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the cure."""
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert "no C++ compiler runs (tried $CXX ('/nowhere/c++'))" in str(why_no_cpp_compiler())
    with pytest.raises(CompilerError, match=r"library 'small' is not available.*install g\+\+"):
        library.build()
    assert library.load_if_possible(otherwise="slower") is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert "tried c++, g++, clang++" in str(why_no_cpp_compiler())


@needs_compiler
def test_a_source_that_is_wrong_is_quoted(library: CppLibrary, cache: Path) -> None:
    """With the command and what the compiler said."""
    (library.folder / "add.cpp").write_text("int f() { return misspelt; }")
    with pytest.raises(CompilerError, match=r"(?s)library 'small'.*could not compile.*misspelt"):
        library.build()
    assert not list((cache / "compiled" / "small").iterdir())


def test_a_broken_file_in_the_cache_is_named(library: CppLibrary, compiler: Path) -> None:
    """It is deleted to be built again."""
    with pytest.raises(CompilerError, match=r"\.so can't be loaded.*delete the file"):
        library.load()
    with pytest.warns(RuntimeWarning, match=r"^it goes slower: library 'small'.*delete the file"):
        assert library.load_if_possible(otherwise="it goes slower") is None


def test_a_cache_that_can_not_be_written_is_named(
    library: CppLibrary, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how to choose another."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CompilerError, match=r"can't be written.*set \$QCORE_CACHE"):
        library.build()


def test_the_headers_are_in_the_package() -> None:
    """A wheel has what sources include."""
    assert (Path(qcore.__file__).parent / "include" / "qcore" / "openmp.h").is_file()
