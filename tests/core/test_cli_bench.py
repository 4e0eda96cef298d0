"""``qcore bench`` on the command line."""

import json

import pytest
import torch
from torch import nn

import qcore
from qcore.benchmarking.profiling import OperationShare
from qcore.benchmarking.rounds import Ratio, Timing
from qcore.benchmarking.suite import BenchmarkResult, Machine, Measurement
from qcore.cli import main


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs the verb with a benchmark that gives what it is told; its exit code and output."""
    calls = []

    def run(result, *arguments):
        def benchmark(*targets, **options):
            calls.append((targets, options))
            return result

        monkeypatch.setattr("qcore.benchmarking.suite.benchmark", benchmark)
        code = main(["bench", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    run.calls = calls
    return run


GOOD = Measurement(
    target="net.toml",
    engine="cpu",
    batch=4,
    threads=2,
    timing=Timing(rounds=((0.002, 0.002), (0.002,))),
    speedup=Ratio(median=3.25, low=3.0, high=3.5),
    memory_bytes=3 << 20,
    operations=(
        OperationShare(layer="fc", operation="PackedLinear", kernel="k", seconds=0.0015, share=0.5),
        OperationShare(layer="a", operation="PackedLinear", kernel="k", seconds=0.0009, share=0.3),
        OperationShare(layer="", operation="", kernel="other", seconds=0.0006, share=0.2),
    ),
)
BAD = Measurement(target="net.toml", engine="far", batch=4, threads=2, failure="it is not here")


def result(*measurements: Measurement) -> BenchmarkResult:
    """A result of these measurements."""
    machine = Machine(torch="2.x", instruction_set="AVX9", cores=1, device="cpu")
    return BenchmarkResult(
        machine=machine, base={"net.toml": "net.toml: float32"}, measurements=measurements
    )


def test_table(bench):
    """Machine and base come first, then a row for each engine, then the operations."""
    code, out, err = bench(result(GOOD), "net.toml", "--threads", "2", "--batch", "4")
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["processor", "AVX9,", "1", "cores"] in lines
    assert ["base", "of", "net.toml", "net.toml:", "float32"] in lines
    figures = ["2.000", "2.000", "2000.0", "3.25", "3.00", "to", "3.50", "3.0"]
    assert ["net.toml", "cpu", "4", "2", *figures] in lines
    assert ["80.0%", "2.400", "2", "k"] in lines
    assert ["50.0%", "1.500", "fc", "PackedLinear", "k"] in lines
    assert "warning: 2 threads on 1 cores" in err


def test_failure_of_an_engine(bench):
    """An engine that failed is a row, its reason is on stderr, and the verb fails."""
    code, out, err = bench(result(GOOD, BAD), "net.toml")
    assert code == 1
    assert "far" in out
    assert "failed" in out
    assert "net.toml, batch 4, threads 2: it is not here" in err


def test_arguments(bench):
    """Arguments reach the function; left out, they are its defaults."""
    given = ["--backends", "cpu", "--turn", "0.5", "--profile", "--rounds", "9"]
    bench(result(GOOD), "a", "b", *given)
    ((targets, options),) = bench.calls
    assert targets == ("a", "b")
    assert isinstance(options.pop("host"), qcore.PluginHost)
    assert options == {
        "backends": ["cpu"],
        "batches": [1, 32],
        "threads": [1],
        "device": "cpu",
        "rounds": 9,
        "turn_s": 0.5,
        "profile": True,
    }


@pytest.mark.parametrize("argument", ["--batch", "--threads", "--rounds"])
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "two", "²"])
def test_numbers_below_one(bench, argument, number):
    """A count that is none is wrong usage, and the message says what to give."""
    code, _, err = bench(result(GOOD), "net.toml", argument, number)
    assert code == 2
    assert f"argument {argument}" in err
    assert not bench.calls


@pytest.mark.parametrize("seconds", ["0", "nan", "inf", "soon"])
def test_turn_without_length(bench, seconds):
    """A turn has a length above 0."""
    code, _, err = bench(result(GOOD), "net.toml", "--turn", seconds)
    assert code == 2
    assert "give a number of seconds above 0" in err


def test_json_of_a_real_run(tmp_path, capsys):
    """The whole way from the arguments to JSON on stdout, with nothing else there."""
    torch.manual_seed(0)
    q = qcore.quantize(nn.Linear(6, 5), torch.randn(2, 6), [torch.randn(8, 6)])
    artifact = qcore.save(q, tmp_path / "artifact", golden_inputs=torch.randn(3, 6))
    quick = ["--batch", "2", "--rounds", "2", "--turn", "0.01"]
    assert main(["bench", str(artifact), "--json", *quick]) == 0
    data = json.loads(capsys.readouterr().out)
    (measurement,) = data["measurements"]
    assert data["machine"]["torch"] == torch.__version__
    assert (measurement["engine"], measurement["batch"]) == ("reference", 2)
    assert measurement["speedup"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert 0 < measurement["median_s"] <= measurement["p99_s"]
    assert measurement["items_per_s"] > 0
    assert measurement["failure"] is None
