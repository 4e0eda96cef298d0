"""``qcore plugins new``: what it writes is whole, clean, light, and loads."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qcore import PluginError, PluginHost, default_host, testing
from qcore.cli import main
from qcore.scaffold import KINDS, new_plugin

ROOT = Path(__file__).resolve().parents[2]
KIND_OF_SPEC = {kind: kind.replace("-", "_") for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    """Each kind of plug-in."""
    return request.param


@pytest.fixture
def made(kind, tmp_path, monkeypatch):
    """A new plug-in ``my-part`` of the kind, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    new_plugin("my-part", kind)
    return tmp_path / "qcore-my-part"


def run(*arguments, cwd):
    """Output of a tool that must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_distribution_is_whole(made):
    """Metadata, one light module, one part, its test, a README; nothing is left to fill in."""
    files = sorted(p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file())
    package = "src/qcore_my_part"
    (part,) = set(files) - {
        *("README.md", "pyproject.toml", "tests/test_conformance.py"),
        *(f"{package}/{name}" for name in ("__init__.py", "plugin.py", "py.typed")),
    }
    assert part.startswith(f"{package}/")
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert project["name"] == "qcore-my-part"
    assert project["entry-points"] == {"qcore.v1": {"my-part": "qcore_my_part.plugin"}}
    (requirement,) = project["dependencies"]
    assert requirement.startswith("qcore-quant>=")
    for file in files:
        text = (made / file).read_text()
        assert "$" not in text or file == "README.md", file
        assert "_package_" not in text, file
    assert len((made / "tests/test_conformance.py").read_text().splitlines()) <= 10


def test_it_is_clean(made):
    """Linter and formatter have nothing to say, with the rules of this project."""
    config = ROOT / "pyproject.toml"
    run("ruff", "check", "--no-cache", "--config", config, ".", cwd=made)
    run("ruff", "format", "--no-cache", "--check", "--config", config, ".", cwd=made)


@pytest.mark.slow
def test_it_is_typed(tmp_path, monkeypatch):
    """Strict type checking has nothing to say about any kind."""
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        new_plugin(f"typed-{kind}", kind)
    sources = [str(path) for path in sorted(tmp_path.glob("*/src"))]
    packages = [f"-pqcore_typed_{kind.replace('-', '_')}" for kind in KINDS]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *packages],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": os.pathsep.join([*sources, str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_loads(kind, made, site):
    """Installed, the plug-in is listed and its part loads, as does a check of a fusion."""
    for file in (made / "src").rglob("*.py"):
        site.write(f"{file.relative_to(made / 'src')}", file.read_text())
    site.install("qcore-my-part", "0.1.0", plugins={"my-part": "qcore_my_part.plugin"})
    host = PluginHost(allow=["my-part"])
    (info,) = (info for info in host.plugins() if info.plugin == "my-part")
    assert info.status == "ok", info.failure
    (spec,) = info.contributions
    assert spec.kind == KIND_OF_SPEC[kind]
    assert spec.summary
    assert spec.name.startswith("my_part_")
    host.load(spec)
    if kind == "fusion":
        assert host.load_check(spec) is not None


def test_a_new_observer_conforms(tmp_path, site):
    """The quickest kind is checked here; all of them, installed by pip, in a slow test."""
    new_plugin("swift", "observer", tmp_path / "new")
    for file in (tmp_path / "new" / "src").rglob("*.py"):
        site.write(f"{file.relative_to(tmp_path / 'new' / 'src')}", file.read_text())
    site.install("qcore-swift", "0.1.0", plugins={"swift": "qcore_swift.plugin"})
    outcomes = testing.check_plugin(PluginHost(allow=["swift"]), "swift")
    assert len(outcomes) > 20
    assert {outcome.status for outcome in outcomes} == {"passed"}


def test_the_light_module_is_light(made):
    """Listing a new plug-in does not import torch."""
    code = "import sys, qcore_my_part.plugin; sys.exit('torch' in sys.modules)"
    path = os.pathsep.join([str(made / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0


def test_every_kind_with_contracts_has_a_template():
    """The kinds of templates are those that the conformance kit knows."""
    assert set(testing.KINDS) == set(KIND_OF_SPEC.values())


def test_command(tmp_path, monkeypatch, capsys):
    """The command prints what it wrote and what comes next, and imports no torch for that."""
    monkeypatch.chdir(tmp_path)
    assert main(["plugins", "new", "acme-tools", "--kind", "observer"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "wrote qcore-acme-tools/pyproject.toml" in lines
    assert lines[lines.index("next:") + 1 :] == [
        "  python -m pip install -e qcore-acme-tools",
        "  qcore plugins check acme-tools",
        "  python -m pytest qcore-acme-tools",
    ]
    for line in lines[: lines.index("next:")]:
        assert Path(line.removeprefix("wrote ")).is_file()

    code = (
        "import sys; from qcore.cli import main; "
        "main(['plugins', 'new', 'light', '--kind', 'backend', '--into', 'a b']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a b" / "pyproject.toml").is_file()
    assert "python -m pytest 'a b'" in done.stdout


@pytest.mark.parametrize(
    "name", ["", "Acme", "1acme", "acme_tools", "acme--tools", "-acme", "acme.tools", "a" * 41, "é"]
)
def test_bad_names(tmp_path, name):
    """The error has the name, what is allowed, and an example; nothing is written."""
    with pytest.raises(PluginError, match=f"can't be called '{name}'; write lower-case"):
        new_plugin(name, "observer", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_names_that_are_taken(tmp_path, site):
    """A name that another plug-in or package has would make both useless."""
    site.plugin("acme")
    with pytest.raises(PluginError, match=r"acme \(acme 1\.2\) has the name 'acme' already"):
        new_plugin("acme", "observer", tmp_path / "new", host=PluginHost())
    with pytest.raises(PluginError, match=r"'fakequants' already.*choose another"):
        new_plugin("fakequants", "observer", tmp_path / "new", host=default_host())
    site.write("qcore_tools.py", "")
    with pytest.raises(PluginError, match=r"package 'qcore_tools' can be imported already"):
        new_plugin("tools", "observer", tmp_path / "new")
    with pytest.raises(PluginError, match=r"'qcore-acme': its distribution.*leave out 'qcore-'"):
        new_plugin("qcore-acme", "observer", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_unknown_kind(tmp_path):
    """The error has the nearest kind and all of them."""
    with pytest.raises(PluginError, match=r"'observr'; did you mean 'observer'\?.*fake-quant"):
        new_plugin("acme", "observr", tmp_path)


def test_folders_in_use(tmp_path, capsys):
    """A folder that has something in it, or a file, is refused; an empty one is taken."""
    for taken in (tmp_path / "folder", tmp_path / "file"):
        if taken.name == "file":
            taken.write_text("mine")
        else:
            taken.mkdir()
            (taken / "mine").write_text("mine")
        code = main(["plugins", "new", "spare", "--kind", "fusion", "--into", str(taken)])
        assert code == 1
        assert "is not an empty folder; name a new one with --into" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "mine"]
    (tmp_path / "empty").mkdir()
    assert new_plugin("spare", "fusion", tmp_path / "empty")
