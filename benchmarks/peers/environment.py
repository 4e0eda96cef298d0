"""The environments of the harness: made by the first run, used by the later ones.

Where packages come from is pip's configuration. Imports only the standard library, because it runs
before an environment is there.
"""

import hashlib
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["enter"]

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_CONSTRAINTS = _ROOT / "constraints.txt"


def enter(name: str = "") -> None:
    """Returns in the interpreter of an environment; makes it if it is not there or is outdated.

    Args:
        name: of the environment: ``.venv-NAME``, from ``requirements-NAME.txt``; without one
            ``.venv`` from ``requirements.txt``. A version that the requirements pin replaces that
            of the project's constraints.

    Raises:
        SystemExit: it can't be made; pip has said why.
    """
    suffix = f"-{name}" if name else ""
    folder = _HERE / f".venv{suffix}"
    requirements = _HERE / f"requirements{suffix}.txt"
    if Path(sys.prefix).resolve() == folder:
        return
    sources = (requirements, _CONSTRAINTS, _ROOT / "pyproject.toml")
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    mark = folder / "requirements.sha256"
    if not mark.is_file() or mark.read_text() != wanted:
        _make(folder, requirements)
        mark.write_text(wanted)
    python = str(_python(folder))
    os.execv(python, [python, *sys.argv])


def _make(folder: Path, requirements: Path) -> None:
    if not _python(folder).exists():
        print(f"making the environment {folder} (about 1.5 GB)", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
    else:
        print(f"updating the environment {folder}", file=sys.stderr)
    constraints = folder / "constraints.txt"
    constraints.write_text(_without(_CONSTRAINTS.read_text(), requirements.read_text()))
    install = [
        *(_python(folder), "-m", "pip", "install", "-qq", "--disable-pip-version-check"),
        *("-c", constraints, "-r", requirements, "-e", _ROOT),
    ]
    if subprocess.run(install).returncode:
        raise SystemExit(
            f"{Path(sys.argv[0]).name}: the environment can't be made; pip's messages say why"
        )


def _without(constraints: str, requirements: str) -> str:
    """The constraints but for those of packages that the requirements pin."""
    pinned = {_package(line) for line in requirements.splitlines()}
    lines = constraints.splitlines(keepends=True)
    return "".join(line for line in lines if not _package(line) or _package(line) not in pinned)


def _package(line: str) -> str:
    """Normalized name of the package that a line of requirements is about; empty for none."""
    name = re.match(r"[\w.-]+", line.strip())
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
