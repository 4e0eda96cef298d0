"""Packaging: what the wheel holds, and that an install takes nothing that is not declared."""

import re
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from email import message_from_string
from email.message import Message
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = sorted(
    path.parent for folder in (ROOT, ROOT / "plugins") for path in folder.glob("qcore*/__init__.py")
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the declared build backend without any network."""
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def _read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (n for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def _metadata(wheel: Path) -> Message:
    return message_from_string(_read(wheel, "METADATA"))


def test_wheel_holds_exactly_the_packages(wheel: Path) -> None:
    """Every file of every package is in the wheel, plug-ins at the top level, and nothing else."""
    expected = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {f"{package.name}/py.typed" for package in PACKAGES} <= found


def test_entry_points_name_modules_of_the_wheel(wheel: Path) -> None:
    """The console script and each built-in plug-in point to a module that the wheel has."""
    parser = ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(_read(wheel, "entry_points.txt"))
    plugins = dict(parser["qcore.v1"])
    assert set(plugins.values()) == {
        f"{package.name}.plugin" for package in PACKAGES if package.name != "qcore"
    }
    assert dict(parser["console_scripts"]) == {"qcore": "qcore.cli:main"}
    assert dict(parser["pytest11"]) == {"qcore": "qcore.testing.pytest_plugin"}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for target in (*plugins.values(), "qcore.cli", "qcore.testing.pytest_plugin"):
        module = target.replace(".", "/")
        assert {f"{module}.py", f"{module}/__init__.py"} & names, target


def test_metadata_is_what_an_installer_reads(wheel: Path) -> None:
    """Name, Python, licence with its text, the five dependencies and the extras are stated."""
    metadata = _metadata(wheel)
    assert metadata["Name"] == "qcore-quant"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in _read(wheel, "licenses/LICENSE")
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    needed = {r.name for r in requirements if r.marker is None}
    assert needed == {"attrs", "numpy", "pluggy", "safetensors", "torch"}
    assert {"cli", "zoo", "dev"} <= set(metadata.get_all("Provides-Extra", []))


def test_unpacked_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    """From the wheel alone, the core and the light module of each plug-in import."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    modules = ["qcore", *(f"{p.name}.plugin" for p in PACKAGES if p.name != "qcore")]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"from importlib import import_module as load\n"
        f"print(*(load(name).__file__ for name in {modules!r}), sep='\\n')"
    )
    # -P: the folder that python starts in, this checkout, is not on the path.
    run = [sys.executable, "-P", "-c", code]
    output = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert len(output.splitlines()) == len(modules)
    assert all(line.startswith(str(tmp_path)) for line in output.splitlines())


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    assert all(version for _, _, version in pins)
    return {canonicalize_name(name): version for name, _, version in pins}


def test_constraints_pin_every_declared_dependency() -> None:
    """Each requirement of the project and its extras has one pin, which it allows."""
    pins = _constraints()
    declared = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, declared):
        if requirement.name != "qcore-quant":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_constraints_are_sorted_and_unique() -> None:
    """The pins stand in order and once, so that a change is easy to see."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [line.partition("==")[0] for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))


@pytest.mark.parametrize("name", ["Makefile", "constraints.txt", "pyproject.toml", ".ci/run"])
def test_no_package_index_is_named(name: str) -> None:
    """Where packages come from is the user's choice: no file of the set-up names an index."""
    text = (ROOT / name).read_text()
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)
    assert not re.search(r"https?://(?!www\.apache\.org)", text)
