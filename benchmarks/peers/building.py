"""What engines need of a network: made once, and again when what it is made from has changed."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from importlib import metadata
from pathlib import Path

from engines import ENGINES
from worker import DATA

__all__ = ["BUILD", "build_all", "folder_of", "version_of"]

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
BUILD = _HERE / "build"

_ZOO = _ROOT / "plugins" / "qcore_zoo"
_SHARED = (
    _HERE / "networks.py",
    *(_ZOO / f"{name}.py" for name in ("bert", "mobilenet", "resnet", "vit")),
)
"""What the networks and their data are made by."""

_QCORE = ("qcore", "plugins", "qcore_observers")
"""What decides how qcore quantizes; its backends only come in later."""


def folder_of(network: str, engine: str) -> Path:
    """Where the files of an engine for a network lie."""
    return BUILD / network / ENGINES[engine].module


def version_of(distribution: str) -> str | None:
    """Of what is installed here; None if it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def build_all(
    networks: Sequence[str],
    engines: Sequence[str],
    *,
    anew: Collection[str] = (),
    keep: bool = False,
) -> dict[tuple[str, str], str]:
    """Builds what is missing or outdated.

    Args:
        networks, engines: names.
        anew: engines to build in any case.
        keep: leave what is outdated as it is.

    Returns:
        Why it failed, by network and engine.
    """
    failures: dict[tuple[str, str], str] = {}
    for network in networks:
        shared = _digest(_SHARED, [network, f"torch {version_of('torch')}"])
        failure = _build(network, DATA, BUILD / network, shared, keep)
        if failure is not None:
            failures.update({(network, engine): failure for engine in engines})
            continue
        for engine in engines:
            entry = ENGINES[engine]
            versions = {d: version_of(d) for d in entry.distributions}
            absent = [d for d, version in versions.items() if version is None]
            if absent:
                failures[network, engine] = f"not installed: {', '.join(absent)}"
                continue
            sources = [_HERE / f"{entry.module}.py"]
            if entry.module == "engine_qcore":
                sources += [path for part in _QCORE for path in (_ROOT / part).rglob("*.py")]
            words = [shared, *(f"{d} {version}" for d, version in versions.items())]
            if engine in anew:
                words.append(str(time.time()))
            folder, key = folder_of(network, engine), _digest(sources, words)
            failure = _build(network, entry.module, folder, key, keep and engine not in anew)
            if failure is not None:
                failures[network, engine] = failure
    return failures


def _build(network: str, module: str, folder: Path, key: str, keep: bool) -> str | None:
    """Runs the builder in a process of its own, unless its files are there already."""
    mark = folder / "key.txt"
    if mark.is_file() and (keep or mark.read_text() == key):
        return None
    start = time.perf_counter()
    command = [sys.executable, _HERE / "worker.py", "build", network, module, folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        (BUILD / f"{network}-{module}.log").write_text(done.stdout)
        last = done.stdout.strip().rpartition("\n")[2]
        print(f"building {network} {module}: failed: {last}", file=sys.stderr, flush=True)
        return f"it could not be built: {last}"
    mark.write_text(key)
    print(f"building {network} {module}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return None


def _digest(sources: Iterable[Path], words: Iterable[str]) -> str:
    digest = hashlib.sha256("\n".join(words).encode())
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()
