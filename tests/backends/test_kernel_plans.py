"""Plans name the kernel by which a backend will run each layer, and why it is not the backend's."""

import json

import pytest
import torch
from torch import nn

import qcore
from qcore.cli import main

RECIPE = """
name = "digits"
model = {{ name = "resnet20", in_channels = 1 }}
data = {{ name = "digits" }}
backend = "{backend}"
"""


class Small(nn.Module):
    """A convolution, a sum, a linear layer, and another whose input comes out of float."""

    def __init__(self):
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.fc, self.last = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        x = nn.functional.adaptive_avg_pool2d(x + self.point(x), 1).flatten(1)
        return self.last(torch.softmax(self.fc(x), -1))


def program(backend="reference", preset="int8"):
    """A calibrated program for the contract of a backend."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    return qcore.quantize(Small().eval(), x, [x], qcore.Recipe(preset=preset, backend=backend))


def kernels(plan):
    """By layer, of those that have one."""
    return {row.name: row.kernel for row in plan.rows if row.kernel}


def needs(backend):
    """Skips where a backend is not available."""
    why = qcore.default_host().get("backend", backend).unavailable()
    if why is not None:
        pytest.skip(why)


def test_the_reference_runs_all():
    """Each layer by the definition of its operation."""
    plan = qcore.kernel_plan(program())
    assert set(kernels(plan).values()) == {"reference"}
    assert kernels(program().meta["qcore"].plan)["fc"] == "qlinear"


def test_kernels_of_the_cpu_backend():
    """oneDNN's where it has one; the plan of the program itself stays as it is."""
    needs("cpu")
    q = program("cpu")
    before = q.meta["qcore"].plan
    plan = qcore.kernel_plan(q)
    assert plan.backend == "cpu"
    assert kernels(plan)["conv"] == kernels(plan)["point"] == "onednn.qconv"
    assert kernels(plan)["fc"] == "onednn.qlinear"
    assert q.meta["qcore"].plan == before


@pytest.mark.parametrize(
    ("preset", "kernel"),
    [("int4_weight_only", "dequantized once + torch"), ("int8_dynamic", "onednn.qlinear_dynamic")],
)
def test_layers_of_several_operations(preset, kernel):
    """The weight's kernel comes first, then the layer's."""
    needs("cpu")
    assert kernels(qcore.kernel_plan(program("cpu", preset)))["last"] == kernel


def test_kernels_of_the_native_backend(monkeypatch):
    """With the instruction set; what it has no kernel for says so."""
    needs("native")
    monkeypatch.setenv("QCORE_NATIVE_ISA", "generic")
    named = kernels(qcore.kernel_plan(program(), "native"))
    assert named["conv"] == "matrix product of windows, generic"
    assert named["fc"] == "matrix product, generic"
    row = qcore.kernel_plan(program(preset="int8_dynamic"), "native").row("fc")
    assert row.kernel == "reference"
    assert row.reason == "native: it has no kernel of its own for this operation"


def test_another_contract_is_said():
    """Of a program for the CPU backend, layers whose integers could differ on another."""
    needs("native")
    rows = qcore.kernel_plan(program("cpu"), "native").rows
    assert any("it computes another contract than the program's" in row.reason for row in rows)
    with pytest.raises(qcore.BackendError, match="integers could differ"):
        qcore.lower(program("cpu"), "native")


def test_a_model_in_parts():
    """Every program of it has its layers in the plan."""

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 4)

        def forward(self, x):
            x = self.a(x)
            # What depends on values can't be captured.
            return self.b(x) if float(x.sum()) > 0 else self.b(-x)

    x = torch.randn(4, 8)
    q = qcore.quantize(Apart().eval(), x, [x], "int8")
    assert set(qcore.programs(q)) == {"a", "b"}
    assert kernels(qcore.kernel_plan(q)) == {"a.0": "reference + torch", "b": "reference"}


def test_a_backend_that_is_not_here(monkeypatch):
    """The reason, and no plan."""
    q = program()
    monkeypatch.setattr("qcore_backends.cpu.CpuBackend.unavailable", lambda: "no oneDNN")
    with pytest.raises(qcore.BackendError, match="not available on this machine: no oneDNN"):
        qcore.kernel_plan(q, "cpu")


def test_the_plan_of_a_recipe_names_kernels(tmp_path, capsys):
    """Before anything is trained, by the backend that the recipe names."""
    needs("cpu")
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(backend="cpu"))
    assert main(["plan", str(file), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["kernel"] for row in rows if row["op"] == "conv2d"} == {"onednn.qconv"}


def test_the_plan_of_a_recipe_for_a_backend_that_is_not_here(tmp_path, capsys, monkeypatch):
    """Operations of Q stand in the place of kernels, and a note says why."""
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE.format(backend="cpu"))
    monkeypatch.setattr("qcore_backends.cpu.CpuBackend.unavailable", lambda: "no oneDNN")
    assert main(["plan", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "qconv " in out
    assert "onednn" not in out
    assert "operations of Q, not kernels of backend 'cpu': " in err
    assert err.endswith("not available on this machine: no oneDNN\n")
    monkeypatch.setattr("qcore.running.prepare", lambda *_, **__: pytest.fail("it has begun"))
    assert main(["run", str(file), "--out", str(tmp_path / "run")]) == 1
    assert "not available on this machine: no oneDNN" in capsys.readouterr().err


def test_inspect_names_kernels(tmp_path, capsys):
    """By layer and by operation, for people and for programs."""
    needs("cpu")
    folder = str(qcore.save(program("cpu"), tmp_path / "a", golden_inputs=torch.ones(1, 3, 8, 8)))
    assert main(["inspect", folder, "--backend", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "KERNEL ON cpu" in out
    assert "aten.softmax.int" in out
    assert main(["inspect", folder, "--backend", "cpu", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    layers = {layer["name"]: layer["kernel"] for layer in data["layers"]}
    assert layers["conv"] == "onednn.qconv"
    calls = {row["operation"]: (row["kernel"], row["calls"]) for row in data["kernels"]}
    assert calls["qcore.qconv"] == ("onednn.qconv", 2)
    assert calls["aten.softmax.int"] == ("torch", 1)
    assert main(["inspect", folder, "--backend", "cpuu"]) == 1
    assert "did you mean 'cpu'" in capsys.readouterr().err
