"""Compiles the kernels with the system's C++ compiler, once, and keeps the library in the cache.

The name of the library in the cache is a hash of the sources, the flags, and what the compiler says
of itself and of its target. So another compiler, another machine or another version of qcore never
meets a library that is not its own. It is written beside its final place and renamed, so two
processes that build at the same time do no harm.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from qcore import BackendError, cache_folder

__all__ = ["Compiler", "build", "find_compiler", "why_unavailable"]

_SOURCES = Path(__file__).parent / "csrc"
_COMPILERS = ("c++", "g++", "clang++")

# Products and sums must round one by one, so no fused multiply-add.
_FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wno-psabi"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
]

_VNNI = [
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "-mprefer-vector-width=512",
]

_X86_FLAGS: dict[str, list[str]] = {
    "avx2": ["-mavx2"],
    "avx512vnni": _VNNI,
    "avx512vbmi": [*_VNNI, "-mavx512vbmi"],
    "amx": [*_VNNI, "-mavx512vbmi", "-mamx-tile", "-mamx-int8"],
}
"""What each instruction set adds, in the order of the tables in ``csrc/executor.cpp``."""


@attrs.frozen(kw_only=True)
class Compiler:
    """A C++ compiler.

    Args:
        command: the program and its first arguments.
        version: what it says of itself.
    """

    command: tuple[str, ...]
    version: str


def machine() -> str:
    """The processor's architecture."""
    return platform.machine().lower()


def instruction_sets() -> dict[str, list[str]]:
    """Flags of each instruction set that is compiled on this architecture, weakest first."""
    x86 = _X86_FLAGS if machine() in ("x86_64", "amd64") else {}
    return {"generic": [], **x86}


def find_compiler() -> Compiler | None:
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
            return Compiler(command=tuple(command), version=done.stdout + target.stdout)
    return None


def why_unavailable() -> str | None:
    """Why the kernels can't be had here, and the cure; None if they can.

    It compiles nothing: a compiler that runs counts.
    """
    if os.name != "posix":
        return "it needs POSIX threads; use Linux or macOS"
    if find_compiler() is None:
        given = os.environ.get("CXX")
        tried = f"$CXX ({given!r})" if given else ", ".join(_COMPILERS)
        return f"no C++ compiler runs (tried {tried}); install g++ or clang++, or set $CXX"
    return None


def library_path(compiler: Compiler) -> Path:
    """Where the library of this compiler, these sources and flags is, or will be."""
    digest = hashlib.sha256()
    for part in (compiler.version, *compiler.command, machine(), repr(_FLAGS)):
        digest.update(part.encode() + b"\0")
    digest.update(repr(instruction_sets()).encode())
    for source in sorted(_SOURCES.iterdir()):
        if source.suffix in (".h", ".cpp"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return cache_folder() / "native" / f"{digest.hexdigest()[:32]}.so"


def build() -> Path:
    """The compiled library, from the cache or built now.

    Raises:
        BackendError: no compiler, a compiler that fails, or a cache that can't be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BackendError(f"backend 'native' is not available: {why_unavailable()}")
    path = library_path(compiler)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            made = _compile(compiler, Path(folder))
            os.replace(made, path)
    except OSError as error:
        raise BackendError(
            f"backend 'native' can't write its library to {path.parent}: {error}; set $QCORE_CACHE "
            "to a folder that can be written"
        ) from error
    return path


def _compile(compiler: Compiler, folder: Path) -> Path:
    """Compiles all sources in ``folder`` and links them."""
    jobs = [
        (["-DQCORE_ISA=" + name, *flags], "kernels.cpp", f"{name}.o")
        for name, flags in instruction_sets().items()
    ]
    jobs.append(([], "executor.cpp", "executor.o"))

    def compile_one(job: tuple[list[str], str, str]) -> None:
        flags, source, target = job
        _run(compiler, [*_FLAGS, *flags, "-c", str(_SOURCES / source), "-o", target], folder)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))
    made = folder / "library.so"
    objects = [target for _, _, target in jobs]
    _run(compiler, ["-shared", "-pthread", *objects, "-ldl", "-o", str(made)], folder)
    return made


def _run(compiler: Compiler, arguments: list[str], folder: Path) -> None:
    command = [*compiler.command, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).splitlines()[:20])
        raise BackendError(
            f"backend 'native': {compiler.command[0]} could not compile the kernels. Its version "
            f"is {compiler.version.splitlines()[0]!r}; g++ 11 or clang++ 14 and later can. "
            f"{' '.join(command)} said:\n{said}"
        )
