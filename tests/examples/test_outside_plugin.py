"""A plug-in outside the tree: installed with pip, used by name, broken on purpose."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "acme-plugin"
OBSERVER = "acme_percentile_of_batches"
CONTRIBUTIONS = {
    ("observer", OBSERVER),
    ("fake_quant", "acme_stochastic"),
    ("fusion", "acme_conv_silu"),
    ("fusion", "acme_conv_bn_silu"),
    ("converter", "acme_conv_silu"),
    ("converter", "acme_gated_linear"),
    ("backend", "acme_numpy"),
    ("algorithm", "acme_bias_correction"),
    ("model", "acme_gated_net"),
}
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


@pytest.fixture(scope="module")
def environment(fresh_environment):
    """The environment with the example installed."""
    fresh_environment.install(EXAMPLE)
    return fresh_environment


@pytest.fixture
def broken(environment) -> Iterator[Path]:
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
    described = {key: rows["acme"][key] for key in rows["acme"] if key != "contributions"}
    assert described == {
        "plugin": "acme",
        "distribution": "qcore-acme",
        "version": "0.1.0",
        "entry_point": "qcore_acme.plugin",
        "status": "ok",
        "failure": None,
    }
    assert {(c["kind"], c["name"]) for c in rows["acme"]["contributions"]} == CONTRIBUTIONS


def test_its_own_tests_pass(environment):
    """The example's tests run against the installed plug-in."""
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLE)
    ignored = ("--ignore", EXAMPLE / "tests" / "test_conformance.py")
    result = environment.run("-m", "pytest", *options, *ignored, EXAMPLE / "tests")
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_it_conforms(environment):
    """Each of its parts keeps the contracts of its kind; two deviations are declared."""
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLE)
    tests = EXAMPLE / "tests" / "test_conformance.py"
    result = environment.run("-m", "pytest", *options, "--qcore-conformance", "acme", tests)
    assert result.returncode == 0, result.stdout
    for name in ("percentile_of_batches", "stochastic", "gated_linear", "numpy", "bias_correction"):
        assert re.search(rf"acme:acme_{name}: \d+ contracts checked", result.stdout), name
    assert re.search(r"total: \d+ contracts .* 2 expected failure, .* 0 failed", result.stdout)


def test_everything_loads(environment):
    """``qcore plugins check`` finds every target and every check of a fusion."""
    result = environment.qcore("plugins", "check", "acme")
    assert result.returncode == 0, result.stdout
    assert f"{len(CONTRIBUTIONS)} of {len(CONTRIBUTIONS)} contributions load" in result.stdout


def test_the_recipe_uses_a_part_of_each_kind(environment, tmp_path):
    """The recipe trains on digits and runs; all six have a part, and no integer differs."""
    folder = tmp_path / "run"
    result = environment.qcore("run", EXAMPLE / "recipe.toml", "--no-cache", "--out", folder)
    assert result.returncode == 0, result.stderr
    measured = json.loads((folder / "result.json").read_text())
    assert measured["integers"]["differing"] == 0
    assert measured["integers"]["compared"] > 500_000
    assert measured["accuracy"]["q"] == measured["accuracy"]["qfloat"]
    assert measured["accuracy"]["q"] > measured["accuracy"]["float"] - 3
    assert "acme_bias_correction" in measured["seconds"]
    rows = {row["name"]: row for row in json.loads((folder / "plan.json").read_text())["rows"]}
    assert rows["features.0"]["fusion"] == "acme:acme_conv_bn_silu"
    assert rows["features.3"]["fusion"] == "acme:acme_conv_silu"
    assert rows["gated"]["converter"] == "acme:acme_gated_linear"
    manifest = json.loads((folder / "artifact" / "manifest.json").read_text())
    used = {(o["kind"], o["name"]) for o in manifest["origins"] if o["plugin"] == "acme"}
    assert used == CONTRIBUTIONS - {("model", "acme_gated_net")}


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
