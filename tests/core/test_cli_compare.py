"""``qcore compare``: what it is given, what it prints, how it exits."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import qcore
from qcore.cli import main

X = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two artifacts: one as made, one with a damaged weight."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X]))
    damaged = copy.deepcopy(q)
    damaged.get_buffer("2.weight")[1, 2, 0, 1] -= 60
    base = tmp_path_factory.mktemp("artifacts")
    qcore.save(q, base / "good", golden_inputs=X)
    qcore.save(damaged, base / "bad", golden_inputs=X)
    return base


@pytest.fixture
def run(folders, monkeypatch, capsys):
    """Runs the verb in the folder of the artifacts: exit code, stdout, stderr."""
    monkeypatch.chdir(folders)

    def call(*arguments):
        code = main(["compare", *map(str, arguments)])
        return int(code), *capsys.readouterr()

    return call


def test_equal_artifacts(run):
    """One line on stdout, and exit code 0."""
    for b in ("good", "good@q", "good@reference"):
        code, out, _ = run("good", b)
        assert code == 0
        assert out.startswith("equal: ")
        assert len(out.splitlines()) == 1


def test_artifacts_that_part(run):
    """The verdict, then a table of what differs with the cause; exit code 1."""
    code, out, _ = run("good", "bad")
    assert code == 1
    first, empty, header, *rows = out.splitlines()
    assert "they part at '2' (qconv): weight: weight [1, 2, 0, 1] is" in first
    assert empty == ""
    assert header.split() == [
        "OPERATION", "KIND", "VALUES", "DIFFER", "LSB", "MAX", "SQNR", "ALONE", "CAUSE",
    ]  # fmt: skip
    assert [row.split()[0] for row in rows] == ["2", "4", "(output)"]
    assert rows[0].split()[1] == "qconv"
    assert "weight: weight [1, 2, 0, 1]" in rows[0]
    assert rows[1].endswith("inherited")


def test_all_operations(run):
    """``--all`` lists the equal ones, too, also where all are equal."""
    _, out, _ = run("good", "bad", "--all")
    assert len(out.splitlines()) == 3 + 5
    code, out, _ = run("good", "good", "--all")
    assert code == 0
    assert len(out.splitlines()) == 3 + 5


def test_json(run):
    """The object of ``Comparison.to_data``, alone on stdout."""
    code, out, _ = run("good", "bad", "--json")
    data = json.loads(out)
    assert code == 1
    assert (data["a"], data["b"], data["equal"], data["first"]) == ("good", "bad", False, "2")
    assert data["batches"] == 1
    assert data["operations"][0]["free"]["compared"] == X.numel()


def test_inputs_from_files(run, folders):
    """An array, or tensors by the name of the input, instead of the golden inputs."""
    np.save(folders / "x.npy", torch.cat([X] * 8).numpy())
    save_file({"x": X[:2].contiguous()}, folders / "one.safetensors")
    for file, samples, batches in [
        ("x.npy", None, 2), ("x.npy", 3, 1), ("one.safetensors", None, 1),
    ]:  # fmt: skip
        limit = () if samples is None else ("--samples", samples)
        code, out, _ = run("good", "good", "--json", "--inputs", file, *limit)
        assert code == 0
        assert json.loads(out)["batches"] == batches


def test_a_tolerance(run):
    """``--min-sqnr`` asks for nearness instead of equality."""
    assert run("good", "bad", "--min-sqnr", "-50")[0] == 0
    assert run("good", "bad", "--min-sqnr", "90")[0] == 1


RECIPE = """
name = "small"
preset = "int8_minmax"
[model]
name = "resnet20"
in_channels = 1
[data]
name = "digits"
[calibration]
samples = 32
"""


def test_phases_of_a_recipe(run, folders, monkeypatch):
    """QFloat equals Q; Float is near, which is no failure unless more is asked for."""
    monkeypatch.setenv("QCORE_CACHE", str(folders / "cache"))
    (folders / "r.toml").write_text(RECIPE)
    code, out, _ = run("r.toml@qfloat", "r.toml", "--samples", "4")
    assert code == 0
    assert out.startswith("equal: ")
    code, out, _ = run("r.toml@float", "r.toml@q", "--samples", "4")
    assert code == 0
    assert "SQNR" in out.splitlines()[0]
    assert len(out.splitlines()) > 20
    assert run("r.toml@float", "r.toml@q", "--samples", "4", "--min-sqnr", "60")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("good", "nothing"), 1, "'nothing': there is no such file or folder"),
        (("good@qflot", "good"), 2, "'qflot' is neither a phase .* did you mean 'qfloat'"),
        (("good@float", "good"), 2, "an artifact holds Q alone"),
        (("good", "good", "--samples", "4"), 2, "--samples is for"),
        (("good", "good", "--inputs", "x.txt"), 2, r"give a \.npy or a \.safetensors file"),
        (("good", "good", "--inputs", "missing.npy"), 2, "missing.npy': FileNotFoundError"),
        (("good", "good", "--inputs", "other.npy"), 1, "captured for"),
        (("good", "good", "--inputs", "empty.npy"), 2, "one batch, not empty"),
        (
            ("good", "good", "--inputs", "pickled.npy"),
            2,
            "pickled.npy': ValueError: it is no array of numbers",
        ),
        (("good", "good", "--inputs", "broken.safetensors"), 2, "SafetensorError"),
        (("good",), 2, "the following arguments are required: B"),
        (("good", "good", "--samples", "0"), 2, "give a whole number"),
        (("good", "broken.toml"), 2, "broken.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input(run, folders, arguments, code, said):
    """Each has an error of its own, and nothing on stdout."""
    (folders / "x.txt").write_text("1")
    (folders / "broken.safetensors").write_bytes(b"no")
    (folders / "broken.toml").write_text("preset = ")
    np.save(folders / "other.npy", np.zeros((2, 3, 9, 9), np.float32))
    np.save(folders / "empty.npy", np.zeros((0, 3, 6, 6), np.float32))
    np.save(folders / "pickled.npy", np.array([{}]), allow_pickle=True)
    got, out, err = run(*arguments)
    assert got == code
    assert out == ""
    assert re.search(said, " ".join(err.split())), err
