"""A plug-in outside the tree: installed with pip, used by name, broken on purpose."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "acme-plugin"
OBSERVER = "acme_percentile_of_batches"
BUILTINS = {"algorithms", "backends", "converters", "fakequants", "fusions", "observers", "zoo"}

QUANTIZE = """
import sys
import torch
import qcore

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
batches = [torch.randn(32, 16) for _ in range(4)]
config = qcore.QConfig(
    weight=qcore.QuantizerConfig(scheme="int8_channel"),
    activation=qcore.QuantizerConfig(scheme="int8_affine", observer=sys.argv[1]),
)
qfloat = qcore.calibrate(qcore.prepare(model, batches[0], config), batches)
q = qcore.convert(qfloat)
assert qcore.count_differences(qfloat, q, batches).differing == 0
for origin in q.meta["qcore"].origins:
    if origin.kind == "observer":
        print(origin.name, origin.plugin, origin.distribution, origin.version)
"""


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


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The environment with the example installed by pip, without a network."""
    made = Environment(tmp_path_factory.mktemp("outside"))
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", made.python, "install"),
            *("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"),
            *("--no-build-isolation", EXAMPLE),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    return made


@pytest.fixture
def broken(environment: Environment) -> Iterator[Path]:
    """The installed plug-in with a module that raises; whole again afterwards."""
    module = environment.packages / "qcore_acme" / "plugin.py"
    source = module.read_text()
    module.write_text(f"{source}\nimport acme_engine_that_is_gone\n")
    yield module
    module.write_text(source)


def test_list_shows_the_plugin(environment):
    """The list has it beside the built-in ones, with its distribution, version and contribution."""
    code, rows = environment.plugins()
    assert code == 0
    assert set(rows) == BUILTINS | {"acme"}
    assert rows["acme"] == {
        "plugin": "acme",
        "distribution": "qcore-acme",
        "version": "0.1.0",
        "entry_point": "qcore_acme.plugin",
        "status": "ok",
        "failure": None,
        "contributions": [
            {
                "kind": "observer",
                "name": OBSERVER,
                "target": "qcore_acme.percentile_of_batches:PercentileOfBatchesObserver",
                "summary": "mean over the batches of each batch's percentile",
            }
        ],
    }


def test_its_own_tests_pass(environment):
    """The example's tests run against the installed plug-in."""
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLE)
    result = environment.run("-m", "pytest", *options, EXAMPLE / "tests")
    assert result.returncode == 0, result.stdout


def test_a_recipe_names_the_observer(environment):
    """``qcore plan`` accepts the example's recipe, which requires the distribution."""
    result = environment.qcore("plan", EXAMPLE / "recipe.toml", "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert [row["status"] for row in plan["rows"]].count("quantized") > 20


def test_quantizing_with_the_observer(environment):
    """A model is quantized with it, and the program records where the observer came from."""
    result = environment.run("-c", QUANTIZE, OBSERVER)
    assert result.returncode == 0, result.stderr
    assert f"{OBSERVER} acme qcore-acme 0.1.0" in result.stdout.splitlines()


def test_list_says_what_broke(environment, broken):
    """A plug-in whose import fails is listed with the cause and the place; the exit code is 3."""
    code, rows = environment.plugins()
    assert code == 3
    assert rows["acme"]["status"] == "failed"
    assert rows["acme"]["contributions"] == []
    assert "No module named 'acme_engine_that_is_gone'" in rows["acme"]["failure"]
    assert str(broken) in rows["acme"]["failure"]
    assert {name: rows[name]["status"] for name in BUILTINS} == dict.fromkeys(BUILTINS, "ok")


def test_everything_else_works_while_it_is_broken(environment, broken):
    """Quantizing without the broken plug-in goes on."""
    result = environment.run("-c", QUANTIZE, "minmax")
    assert result.returncode == 0, result.stderr
    assert "minmax observers qcore-quant" in result.stdout


def test_using_the_broken_plugin_is_an_error(environment, broken):
    """A recipe that requires it fails in one line with the cause, before anything runs."""
    result = environment.qcore("plan", EXAMPLE / "recipe.toml")
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert "acme (qcore-acme 0.1.0) is not in use (failed)" in line
    assert "acme_engine_that_is_gone" in line


def test_a_blocked_plugin_is_not_imported(environment, broken):
    """``-p no:acme`` leaves the broken module alone, so nothing is degraded."""
    result = environment.qcore("plugins", "list", "-p", "no:acme")
    assert result.returncode == 0, result.stderr
    assert "(blocked: never imported)" in result.stdout
