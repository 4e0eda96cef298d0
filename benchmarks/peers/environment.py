"""The environment of the harness: made by the first run, used by the later ones.

Where packages come from is pip's configuration. Imports only the standard library, because it runs
before the environment is there.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["enter"]

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_VENV = _HERE / ".venv"
_MARK = _VENV / "requirements.sha256"
_SOURCES = (_HERE / "requirements.txt", _ROOT / "constraints.txt", _ROOT / "pyproject.toml")


def enter() -> None:
    """Returns in the interpreter of the environment; makes it if it is not there or is outdated.

    Raises:
        SystemExit: it can't be made; pip has said why.
    """
    if Path(sys.prefix).resolve() == _VENV:
        return
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()
    if not _MARK.is_file() or _MARK.read_text() != wanted:
        _make(wanted)
    python = str(_python())
    os.execv(python, [python, *sys.argv])


def _make(mark: str) -> None:
    if not _python().exists():
        print(f"making the environment {_VENV} (about 1.5 GB)", file=sys.stderr)
        venv.create(_VENV, clear=True, with_pip=True)
    else:
        print(f"updating the environment {_VENV}", file=sys.stderr)
    install = [
        *(_python(), "-m", "pip", "install", "-qq", "--disable-pip-version-check"),
        *("-c", _ROOT / "constraints.txt", "-r", _HERE / "requirements.txt", "-e", _ROOT),
    ]
    if subprocess.run(install).returncode:
        raise SystemExit("run.py: the environment can't be made; pip's messages say why")
    _MARK.write_text(mark)


def _python() -> Path:
    return _VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
