"""The benchmark of accuracy at low bits: its cells, its store and its table."""

import argparse
import importlib
import json
from pathlib import Path

import attrs
import pytest
import torch

import qcore

ROOT = Path(__file__).resolve().parents[2]
PAGE = "before\n<!-- figures:begin qat -->\nold\n<!-- figures:end -->\nafter\n"


@pytest.fixture
def bench(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("qat_accuracy")


def figures(qfloat: float, differing: int = 0) -> dict[str, object]:
    """What is kept of a cell."""
    return {
        "accuracy": {"float": 93.5, "qfloat": qfloat, "q": qfloat},
        "integers": {"compared": 1000, "differing": differing},
    }


def test_cells_are_chosen_by_the_beginning_of_their_names(bench):
    """A word stands for all cells that begin with it, part by part; an unknown one is an error."""
    assert len(bench.chosen("w4a4")) == len(bench.METHODS) * len(bench.RESIDUALS)
    names = [cell.name for cell in bench.chosen("w2a4:lsq,w4a4:tqt:fused")]
    assert names == ["w2a4:lsq:float", "w2a4:lsq:fused", "w4a4:tqt:fused"]
    with pytest.raises(argparse.ArgumentTypeError, match="'w4:lsq' is no cell"):
        bench.chosen("w4:lsq")


@pytest.mark.parametrize("name", ["w4a4:lsq:float", "w8a8:ptq_minmax:fused", "w2a4:pact:fused"])
def test_recipe_of_a_cell(bench, name):
    """The recipe quantizes each layer as the cell's name says, and can be written and read."""
    (cell,) = bench.chosen(name)
    recipe = cell.recipe(1)
    assert qcore.Recipe.from_table(json.loads(json.dumps(recipe.to_table()))) == recipe
    model = qcore.default_host().get("model", "resnet20")(in_channels=1, num_classes=10)
    plan = qcore.plan(model.eval(), torch.zeros(2, 1, 28, 28), recipe)
    bits = "int" + cell.bits[1]
    for row in plan.rows:
        if row.kind in ("Conv2d", "Linear"):
            assert row.weight.startswith("int8" if row.name in bench.ENDS else bits), row
    assert (
        plan.row("layer1.0.conv2").inputs[0].startswith("int8" if cell.bits == "w8a8" else "uint4")
    )
    assert any("add" in row.name for row in plan.rows) == (cell.residual == "float")


def test_a_seed_changes_the_quantization_and_not_the_float_model(bench):
    """All seeds start from one checkpoint."""
    one, two = (bench.Cell(bits="w4a4", method="lsq", residual="float").recipe(n) for n in (0, 1))
    assert one.seed == two.seed
    assert one.algorithms[0] == two.algorithms[0]
    assert one.algorithms[1] != two.algorithms[1]
    assert one.calibration != two.calibration


def test_a_finished_cell_does_not_run_again(bench, tmp_path, monkeypatch, capsys):
    """What is in the folder is taken from there; what differs makes the run fail."""
    ran = []

    def measure(cell, seed):
        ran.append((cell.name, seed))
        return figures(93.0, differing=seed)

    monkeypatch.setattr(bench, "measure", measure)
    arguments = ["--cells", "w4a4:lsq:float", "--results", str(tmp_path)]
    assert bench.main([*arguments, "--list"]) == 0
    assert "not finished" in capsys.readouterr().out
    assert bench.main([*arguments, "--seeds", "0"]) == 0
    assert bench.main([*arguments, "--seeds", "0,1"]) == 1
    assert ran == [("w4a4:lsq:float", 0), ("w4a4:lsq:float", 1)]


def test_cells_of_one_residual(bench, tmp_path, capsys):
    """The others are left out."""
    arguments = ["--results", str(tmp_path), "--cells", "w4a4:lsq", "--list"]
    assert bench.main([*arguments, "--residual", "float"]) == 0
    assert capsys.readouterr().out == "w4a4:lsq:float seed 0: not finished\n"


def test_another_recipe_is_another_cell(bench, tmp_path, monkeypatch):
    """Figures of other options are not taken for those of this one."""
    store, (cell,) = bench.Store(tmp_path), bench.chosen("w4a4:lsq:float")
    store.write(cell, 0, figures(93.0))
    assert store.read(cell, 0) is not None
    changed = attrs.evolve(bench.METHODS["lsq"], training={"epochs": 2})
    monkeypatch.setitem(bench.METHODS, "lsq", changed)
    assert store.read(cell, 0) is None


def test_table(bench, tmp_path):
    """One row a cell: a single seed as it is, several as mean and standard deviation."""
    store = bench.Store(tmp_path)
    lsq, minmax = bench.chosen("w4a4:lsq:float,w8a8:ptq_minmax:fused")
    for seed, value in enumerate((93.0, 94.0, 95.0)):
        store.write(lsq, seed, figures(value))
    store.write(minmax, 0, figures(93.25))
    rows = bench.table(store, range(10))[2:]
    assert rows == [
        "| W4A4 | LSQ | float | 93.50 | 94.00 ± 1.00 | 94.00 ± 1.00 | +0.50 ± 1.00 | 3 "
        "| 3,000 | 0 |",
        "| W8A8 | PTQ, min-max | fused | 93.50 | 93.25 | 93.25 | -0.25 | 1 | 1,000 | 0 |",
    ]


def test_page(bench):
    """Only what is between the markers changes; a page without them is an error."""
    assert bench.with_figures(PAGE, "qat", ["new"]) == PAGE.replace("old", "new")
    with pytest.raises(ValueError, match="figures:begin other"):
        bench.with_figures(PAGE, "other", ["new"])
