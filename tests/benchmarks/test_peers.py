"""The harness of the peers: its command line, its table, and what it feeds the engines."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import attrs
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers"
PAGE = "before\n<!-- figures:begin peers -->\n<!-- figures:end -->\nafter\n"
NETWORKS = ("Net-A", "Net-B")
ENGINES = ("base", "fast", "faster")


@pytest.fixture
def peers(monkeypatch) -> Iterator[object]:
    """Imports a module of the harness by its name; forgets it afterwards."""
    monkeypatch.syspath_prepend(PEERS)
    names = {path.stem for path in PEERS.glob("*.py")}

    def get(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield get
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def merged(peers):
    """Merges cells into a page."""

    def merge(page, *cells, machine="2 cores."):
        made = [peers("table").Cell(**cell) for cell in cells]
        return peers("table").merge(page, made, machine=machine, networks=NETWORKS, engines=ENGINES)

    return merge


def cell(network="Net-A", engine="fast", batch=1, threads=1, **values):
    """One cell."""
    values = values or {"ratio": 2.0, "sqnr_db": 20.4}
    return {"network": network, "engine": engine, "batch": batch, "threads": threads, **values}


def rows(page: str) -> list[list[str]]:
    """The rows of all tables, without the lines below their heads."""
    lines = [line for line in page.splitlines() if line.startswith("|") and "---" not in line]
    return [[value.strip() for value in line.strip("|").split("|")] for line in lines]


def test_help_needs_no_environment(tmp_path):
    """The help is printed by any Python, and makes nothing."""
    before = set(PEERS.iterdir())
    done = subprocess.run(
        [sys.executable, "-B", "-E", "-S", str(PEERS / "run.py"), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "openvino-bf16" in done.stdout
    assert set(PEERS.iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [["--threads", "0"], ["--batches", "-1"], ["--engines", "tensorflow"], ["--networks", "x"]],
)
def test_wrong_arguments(peers, capsys, arguments):
    """What can't be measured is wrong usage, before the environment is made."""
    with pytest.raises(SystemExit) as stop:
        peers("run").main(arguments)
    assert stop.value.code == 2
    assert arguments[1] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--bits", "w1a1"], ["--tools", "tensorflow"]])
def test_wrong_arguments_of_the_training(peers, capsys, arguments):
    """What can't be trained is wrong usage, before the environment is made."""
    with pytest.raises(SystemExit) as stop:
        peers("qat").main(arguments)
    assert stop.value.code == 2
    assert arguments[1] in capsys.readouterr().err


def test_the_table_of_the_training_has_both_sides(peers, monkeypatch, tmp_path):
    """Finished runs of each tool beside those of qcore, with the seconds of the epoch."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ours, theirs = importlib.import_module("qat_accuracy"), peers("qat")
    monkeypatch.setattr(ours, "RESULTS", tmp_path / "ours")
    monkeypatch.setattr(theirs, "_RESULTS", tmp_path / "theirs")
    head = theirs.rows()
    assert len(head) == 2
    (tmp_path / "theirs").mkdir()
    store = ours.Store(ours.RESULTS)
    runs = ("ptq_histogram", 0, 90), ("lsq", 0, 92), ("ptq_histogram", 1, 90), ("lsq", 1, 93)
    for method, seed, accuracy in (*runs, ("ptq_corrected", 0, 91)):
        scores = {"float": 91.0, "qfloat": float(accuracy), "q": accuracy + 0.5}
        cell = ours.Cell(bits="w4a4", method=method, residual="float")
        seconds = {"calibrate": 1.0} if "ptq" in method else {"qat": 80 + seed}
        store.write(cell, seed, {"accuracy": scores, "seconds": seconds})
    figures = {
        "float": 91.0,
        "untrained": 80.0,
        "simulated": 90.5,
        "deployed": None,
        "seconds": 190,
    }
    theirs._path("brevitas", "w4a4", 0).write_text(json.dumps(figures))
    untrained = {**figures, "untrained": 85.0, "simulated": None, "seconds": None}
    theirs._path("brevitas_corrected", "w4a4", 0).write_text(json.dumps(untrained))
    row = "| W4A4 | qcore, LSQ | 91.00 | {} | {} | {} | {} | 80 | 2 |"
    assert theirs.rows() == [
        *head,
        "| W4A4 | qcore, bias correction | 91.00 | 91.00 |  |  | 91.50 |  | 1 |",
        row.format("90.00 ± 0.00", "92.50 ± 0.71", "+1.50 ± 0.71", "93.00 ± 0.71"),
        "| W4A4 | brevitas, bias correction | 91.00 | 85.00 |  |  |  |  | 1 |",
        "| W4A4 | brevitas, learned scales | 91.00 | 80.00 | 90.50 | -0.50 |  | 190 | 1 |",
    ]


def test_requirements_win_over_constraints(peers):
    """A package that the requirements pin is left out of the constraints, however it is spelt."""
    constraints = "# pins\nnumpy==2.0\nSet_up.tools==84.0\ntorch==2.13.0\n"
    kept = peers("environment")._without(
        constraints, "# of the tools\nset-up-tools==80.1\nbrevitas\n"
    )
    assert kept == "# pins\nnumpy==2.0\ntorch==2.13.0\n"


def test_engines_have_their_files(peers):
    """Each engine's file says how to build for it and how to load what was built."""
    for name, entry in peers("engines").ENGINES.items():
        tree = ast.parse((PEERS / f"{entry.module}.py").read_text())
        functions = {
            node.name: [a.arg for a in node.args.args]
            for node in tree.body
            if isinstance(node, ast.FunctionDef)
        }
        assert functions["build"] == ["network", "folder"], name
        assert functions["load"] == ["network", "folder", "variant", "inputs", "threads"], name


def test_networks_are_in_the_zoo(peers):
    """Each network can be built, and one that attends is marked as a transformer."""
    made = {name: peers("networks").network_named(name) for name in peers("engines").NETWORKS}
    assert {name for name, network in made.items() if network.transformer} == {
        "vit_small",
        "bert6",
    }


def test_files_of_a_network(peers, tmp_path):
    """The model that an engine loads gives the outputs that were stored for the inputs."""
    import torch
    from torch import nn

    networks = peers("networks")
    network = networks.Network(
        name="tiny",
        build=lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten()),
        draw=lambda count, generator: 5 + torch.randn(count, 1, 4, 4, generator=generator),
    )
    network.make_files(tmp_path)
    data = network.data(tmp_path)
    with torch.no_grad():
        outputs = network.model(tmp_path)(torch.from_numpy(data.inputs)).numpy()
    assert data.sqnr_db(outputs) > 100
    assert abs(outputs.mean()) < 0.5  # the statistics of the batch norm are those of the inputs
    assert not np.array_equal(data.inputs, data.calibration)
    assert [len(batch) for batch in data.calibration_batches()] == [8, 8, 8, 8]


def test_signal_to_noise(peers):
    """Batches repeat the inputs, and the noise is measured against the outputs repeated alike."""
    outputs = np.array([[3.0, 4.0], [0.0, 5.0]], dtype=np.float32)
    inputs = np.arange(2, dtype=np.float32)
    data = peers("networks").Data(inputs=inputs, outputs=outputs, calibration=inputs)
    assert data.batch(5).tolist() == [0, 1, 0, 1, 0]
    noisy = outputs[[0, 1, 0]] + np.array([[0.0, 0.5]] * 3, dtype=np.float32)
    assert data.sqnr_db(noisy) == pytest.approx(20.0)


def test_first_table(merged):
    """Rows and columns stand in the order of networks and engines, whatever came first."""
    page = merged(
        PAGE,
        cell("Net-B", "faster", batch=32, ratio=4.0, sqnr_db=30.0),
        cell("Net-A", "fast", batch=32, ratio=3.0, sqnr_db=20.4),
        cell("Net-A", "fast", batch=4, ratio=2.345, sqnr_db=20.4),
    )
    assert rows(page) == [
        ["network", "batch", "threads", "fast", "faster"],
        ["Net-A", "4", "1", "2.35", ""],
        ["Net-A", "32", "1", "3.00", ""],
        ["Net-B", "32", "1", "", "4.00"],
        ["network", "fast", "faster"],
        ["Net-A", "20", ""],
        ["Net-B", "", "30"],
    ]
    assert page.startswith("before\n")
    assert page.endswith("-->\nafter\n")


def test_new_figures_replace_old_ones(merged):
    """A later run changes the cells that it measured, adds new ones, and keeps the others."""
    page = merged(PAGE, cell(ratio=2.0, sqnr_db=20.0), cell(threads=2, ratio=5.0, sqnr_db=20.0))
    page = merged(page, cell(ratio=2.5, sqnr_db=21.0), cell(engine="faster"))
    assert rows(page)[:3] == [
        ["network", "batch", "threads", "fast", "faster"],
        ["Net-A", "1", "1", "2.50", "2.00"],
        ["Net-A", "1", "2", "5.00", ""],
    ]
    assert rows(page)[4] == ["Net-A", "21", "20"]
    assert merged(page) == page


def test_other_machine_begins_anew(merged):
    """Figures of another machine or of other versions are not mixed with the new ones."""
    page = merged(PAGE, cell(threads=2))
    page = merged(page, cell(), machine="4 cores.")
    assert "2 cores." not in page
    assert [row[:3] for row in rows(page)[:2]] == [
        ["network", "batch", "threads"],
        ["Net-A", "1", "1"],
    ]


def test_reason_of_a_failure_stays_until_it_works(merged):
    """A failed cell has its reason below the table, on one line, until it is measured again."""
    page = merged(PAGE, cell(failure="it broke\n| badly"), cell(threads=2, failure="it broke, too"))
    assert "- fast on Net-A, batch 1, threads 1: it broke | badly\n" in page
    assert rows(page)[1] == ["Net-A", "1", "1", "-"]
    page = merged(page, cell(ratio=2.0))
    assert "badly" not in page
    assert "it broke, too" in page
    assert [row[3] for row in rows(page)[1:3]] == ["2.00", "-"]


def test_an_interrupted_run_goes_on_with_what_is_missing(merged, peers):
    """Rows with a figure of each engine that runs are there; failed and new ones are not."""
    page = merged(PAGE, cell(), cell(engine="faster"), cell(batch=32), cell(threads=2, failure="x"))

    def lacks(batch, threads, *engines, machine="2 cores."):
        row = ("Net-A", batch, threads)
        return peers("table").missing(page, row, machine=machine, engines=engines)

    assert not lacks(1, 1, "fast", "faster")
    assert not lacks(32, 1, "fast")
    assert lacks(32, 1, "fast", "faster")
    assert lacks(1, 2, "fast")
    assert lacks(32, 2, "fast")
    assert lacks(1, 1, "fast", machine="4 cores.")


def test_an_engine_that_is_not_installed(peers, monkeypatch):
    """It is not built, and the reason names what it lacks."""
    building = peers("building")
    monkeypatch.setattr(building, "_build", lambda *_: None)
    monkeypatch.setattr(building, "version_of", {"onnx": "1", "onnxscript": "1", "torch": "2"}.get)
    failures = building.build_all(["resnet18"], ["float32", "onnxruntime"])
    assert failures == {("resnet18", "onnxruntime"): "not installed: onnxruntime"}


@pytest.mark.parametrize("page", ["no markers", PAGE + PAGE], ids=["none", "two"])
def test_page_without_a_place(merged, page):
    """A page must have the markers once."""
    with pytest.raises(ValueError, match="figures:begin peers"):
        merged(page, cell())


def test_page_of_the_project_has_a_place(peers):
    """The table goes into the page of results, and writing it again changes nothing."""
    table, engines = peers("table"), peers("engines")
    page = (ROOT / "docs" / "results.md").read_text()
    options = {
        "networks": list(engines.NETWORKS.values()),
        "engines": [entry.title for entry in engines.ENGINES.values()],
        "machine": "a machine.",
    }
    one = table.Cell(network="ResNet-18", engine="OpenVINO int8", batch=1, threads=1, ratio=2.0)
    once = table.merge(page, [one], **options)
    assert "| ResNet-18 | 1 | 1 | 2.00 |" in once
    assert table.merge(once, [], **options) == once
    assert attrs.evolve(one, ratio=None).text == "-"
