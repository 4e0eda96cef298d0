"""C++ that a plug-in brings as sources, compiled on the machine where it runs, once.

The name of the compiled library is a hash of the sources, the flags, and what the compiler says of
itself and of its target. So another compiler, another machine or another version of a plug-in
never meets a library that is not its own. It is written beside its final place and renamed, so
processes that build at the same time do no harm.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from .cache import cache_folder
from .errors import CompilerError

__all__ = ["CppCompiler", "CppLibrary", "CppUnit", "find_cpp_compiler", "why_no_cpp_compiler"]

_COMPILERS = ("c++", "g++", "clang++")
_INCLUDE = Path(__file__).parent / "include"
_SOURCES = (".h", ".cpp")

# Products and sums round one by one, as in torch: no fused multiply-add.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off")


@attrs.frozen(kw_only=True)
class CppCompiler:
    """A C++ compiler.

    Args:
        command: the program and its first arguments.
        version: what it says of itself and of its target.
    """

    command: tuple[str, ...]
    version: str


@attrs.frozen(kw_only=True)
class CppUnit:
    """A file that is compiled, with flags of its own.

    Args:
        source: its name in the folder of the library.
        flags: further flags and definitions. One file may be compiled several times, with flags of
            several instruction sets for instance.
    """

    source: str
    flags: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class CppLibrary:
    """C++ sources, and the shared library that a compiler makes of them where it is first used.

    Compiled with ``-std=c++17 -O3 -ffp-contract=off``. Symbols are hidden unless the source makes
    them visible. ``#include <qcore/openmp.h>`` gives the threads that torch has already.

    Args:
        name: of the folder in the cache, and for messages.
        folder: where the sources are, ``.cpp`` and ``.h``; every one of them counts for the name
            of the library.
        units: what is compiled and linked.
        flags: further flags of every unit.

    A plug-in keeps one as a constant of a module, with its sources as package data, and calls the
    functions by :mod:`ctypes`:

    >>> source = '''
    ... extern "C" __attribute__((visibility("default"))) int add(int a, int b) { return a + b; }
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "add.cpp").write_text(source)
    ...     units = (CppUnit(source="add.cpp"),)
    ...     library = CppLibrary(name="example", folder=Path(folder), units=units)
    ...     library.load().add(2, 3) if why_no_cpp_compiler() is None else 5
    5
    """

    name: str
    folder: Path
    units: tuple[CppUnit, ...]
    flags: tuple[str, ...] = ()

    def path(self, compiler: CppCompiler) -> Path:
        """Where the library that this compiler makes is, or will be."""
        digest = hashlib.sha256()
        described = (self.flags, [(unit.source, unit.flags) for unit in self.units])
        for part in (compiler.version, *compiler.command, _FLAGS, described):
            digest.update(repr(part).encode() + b"\0")
        for folder in (self.folder, _INCLUDE):
            for source in sorted(folder.rglob("*")):
                if source.suffix in _SOURCES:
                    name = str(source.relative_to(folder))
                    digest.update(name.encode() + b"\0" + source.read_bytes() + b"\0")
        return cache_folder() / "compiled" / self.name / f"{digest.hexdigest()[:32]}.so"

    def build(self) -> Path:
        """The library, from the cache or compiled now.

        Raises:
            CompilerError: no compiler, one that fails, or a cache that can't be written.
        """
        compiler = find_cpp_compiler()
        if compiler is None:
            raise CompilerError(f"library {self.name!r} is not available: {why_no_cpp_compiler()}")
        path = self.path(compiler)
        if path.is_file():
            return path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
                os.replace(self._compile(compiler, Path(folder)), path)
        except OSError as error:
            raise CompilerError(
                f"library {self.name!r} can't be written to {path.parent}: {error}; set "
                "$QCORE_CACHE to a folder that can be written"
            ) from error
        return path

    def load(self) -> ctypes.CDLL:
        """The library, built if it is not yet, and loaded.

        Raises:
            CompilerError: it can't be built, or the file in the cache is broken.
        """
        path = self.build()
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise CompilerError(
                f"library {self.name!r}: {path} can't be loaded ({error}); delete the file, and it "
                "is built again"
            ) from error

    def load_if_possible(self, *, otherwise: str) -> ctypes.CDLL | None:
        """The library, for a part that does without it where it has to.

        Args:
            otherwise: what happens without it, for the warning.

        Returns:
            None where there is no compiler, which ``qcore doctor`` shows; and where it fails, which
            is a RuntimeWarning that quotes it.
        """
        if why_no_cpp_compiler() is not None:
            return None
        try:
            return self.load()
        except CompilerError as error:
            warnings.warn(f"{otherwise}: {error}", RuntimeWarning, stacklevel=2)
            return None

    def _compile(self, compiler: CppCompiler, folder: Path) -> Path:
        """Compiles all units in ``folder``, at the same time, and links them."""
        objects = [f"{number}.o" for number in range(len(self.units))]

        def compile_one(unit: CppUnit, target: str) -> None:
            flags = (*_FLAGS, f"-I{_INCLUDE}", *self.flags, *unit.flags)
            self._run(
                compiler, [*flags, "-c", str(self.folder / unit.source), "-o", target], folder
            )

        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(compile_one, self.units, objects))
        made = folder / "library.so"
        self._run(compiler, ["-shared", "-pthread", *objects, "-ldl", "-o", str(made)], folder)
        return made

    def _run(self, compiler: CppCompiler, arguments: list[str], folder: Path) -> None:
        command = [*compiler.command, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).splitlines()[:20])
            raise CompilerError(
                f"library {self.name!r}: {compiler.command[0]} could not compile it. Its version "
                f"is {compiler.version.splitlines()[0]!r}; install a newer g++ or clang++, or set "
                f"$CXX to one. {' '.join(command)} said:\n{said}"
            )


def find_cpp_compiler() -> CppCompiler | None:
    """``$CXX`` if it is set, else the first of c++, g++ and clang++ that runs."""
    given = os.environ.get("CXX", "").split()
    for command in [given] if given else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        target = subprocess.run(
            [*command, "-dumpmachine"], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return CppCompiler(command=tuple(command), version=done.stdout + target.stdout)
    return None


def why_no_cpp_compiler() -> str | None:
    """Why no :class:`CppLibrary` can be built here, and the cure; None if they can.

    It compiles nothing: a compiler that runs counts.
    """
    if os.name != "posix":
        return "it needs POSIX threads; use Linux or macOS"
    if find_cpp_compiler() is None:
        given = os.environ.get("CXX")
        tried = f"$CXX ({given!r})" if given else ", ".join(_COMPILERS)
        return f"no C++ compiler runs (tried {tried}); install g++ or clang++, or set $CXX"
    return None
