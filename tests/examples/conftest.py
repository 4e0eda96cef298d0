"""Fresh environments, in which plug-ins are installed as their users install them."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


class Environment:
    """A fresh virtual environment that sees the packages of the one that runs the tests."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False)
        # Commands run here: a folder without sources, so that only what is installed counts.
        self.work = folder / "work"
        self.work.mkdir()
        scheme = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
        self.packages = Path(sysconfig.get_path("purelib", "venv", scheme))
        scripts = Path(sysconfig.get_path("scripts", "venv", scheme))
        self.python = scripts / Path(sys.executable).name
        # addsitedir, unlike a plain line, also reads the .pth files there: editable installs.
        outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = [f"import site; site.addsitedir({path!r})" for path in sorted(outer)]
        (self.packages / "outer.pth").write_text("\n".join(lines) + "\n")

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs Python with the arguments; stdout, stderr and exit code."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QCORE_"))}
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.work,
            env={**variables, "OMP_NUM_THREADS": "1", "QCORE_PROGRESS": "off"},
            capture_output=True,
            text=True,
            check=False,
        )

    def qcore(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs the command line."""
        return self.run("-m", "qcore", *arguments)

    def plugins(self) -> tuple[int, dict[str, dict]]:
        """Exit code and rows, by name, of ``qcore plugins list --json``."""
        result = self.qcore("plugins", "list", "--json")
        return result.returncode, {row["plugin"]: row for row in json.loads(result.stdout)}

    def install(self, folder: Path) -> None:
        """Installs a distribution from its folder by pip, without a network."""
        result = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--python", self.python, "install"),
                *("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"),
                *("--no-build-isolation", folder),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def fresh_environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with everything that this one has, to install more into."""
    return Environment(tmp_path_factory.mktemp("outside"))
