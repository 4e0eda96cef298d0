"""Measuring: processes that take turns, statistics, memory, profiles, whole benchmarks."""

import math
import os

import pytest
import torch
from torch import nn

import qcore
from qcore.artifact.reading import read_artifact
from qcore.benchmarking.engines import golden_batch
from qcore.benchmarking.memory import MemoryWatch
from qcore.benchmarking.processes import EngineProcess
from qcore.benchmarking.profiling import profile_operations
from qcore.benchmarking.rounds import Timing, take_turns

ENGINE = """
import os, sys, time
from qcore.benchmarking.serving import Engine, serve

print("a library's greeting")
os.write(1, b"and one from C")
runs = []

def run():
    runs.append(None)
    print("a library's chatter")
    if len(runs) == {fails_after}:
        raise ValueError("it broke")
    if len(runs) == {dies_after}:
        os._exit(7)
    time.sleep({seconds})

def setup(order):
    return Engine(run=run, facts={{"got": order}}, memory=lambda: 12)

serve(setup)
"""


def engine(*, fails_after=0, dies_after=0, seconds=0.0) -> EngineProcess:
    """A process that measures a sleep."""
    code = ENGINE.format(fails_after=fails_after, dies_after=dies_after, seconds=seconds)
    return EngineProcess("fake", ["-c", code])


@pytest.fixture
def artifact(tmp_path):
    """A saved program of two layers for inputs ``[N, 6]``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.LogSoftmax(-1)).eval()
    q = qcore.quantize(model, torch.randn(2, 6), [torch.randn(8, 6)])
    return qcore.save(q, tmp_path / "artifact", golden_inputs=torch.randn(3, 6))


def test_process_answers_while_its_engine_prints():
    """Orders are answered in their order, and what the engine prints is no answer."""
    with engine() as process:
        assert process.ask("setup", batch=3) == {"facts": {"got": {"batch": 3}}}
        process.send("time", count=4)
        process.send("memory")
        seconds = process.answer()["seconds"]
        assert len(seconds) == 4
        assert all(0 <= s < 60 for s in seconds)
        assert process.answer() == {"bytes": 12}
        assert "greeting" in process.log()
        assert "chatter" in process.log()


def test_failure_of_an_engine_is_its_message():
    """An exception of an engine reaches the parent, and the process goes on."""
    with engine(fails_after=2) as process:
        process.ask("setup")
        with pytest.raises(qcore.BackendError, match="engine 'fake': ValueError: it broke"):
            process.ask("time", count=5)
        assert len(process.ask("time", count=1)["seconds"]) == 1


def test_death_of_a_process_is_said():
    """A process that is gone is an error at each order, with its exit code."""
    with engine(dies_after=1) as process:
        process.ask("setup")
        for _ in range(2):
            with pytest.raises(qcore.BackendError, match="ended with exit code 7: .*chatter"):
                process.ask("time", count=1)


def test_process_that_can_not_start_says_why():
    """The last line of what it wrote is the reason."""
    with (
        EngineProcess("fake", ["-c", "import not_there"]) as process,
        pytest.raises(qcore.BackendError, match="exit code 1: .*No module named 'not_there'"),
    ):
        process.ask("setup")


def test_silent_process_is_stopped():
    """An engine that does not answer in time is ended."""
    process = engine(seconds=60)
    process.ask("setup")
    process.send("time", count=1)
    with pytest.raises(qcore.BackendError, match="no answer within 0 s"):
        process.answer(timeout_s=0.05)
    process.close()


def test_process_does_not_import_from_the_working_folder(tmp_path, monkeypatch):
    """A file that lies in the working folder is not what a process imports."""
    (tmp_path / "attrs.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    with engine() as process:
        assert process.ask("setup") == {"facts": {"got": {}}}


def test_statistics_of_runs():
    """Median, nearest-rank p99 and throughput are over all runs of all rounds."""
    timing = Timing(rounds=(tuple(float(n) for n in range(1, 101)), (500.0,) * 100))
    assert timing.runs == 200
    assert timing.median_s == (100.0 + 500.0) / 2
    assert timing.p99_s == 500.0
    assert Timing(rounds=((1.0,) * 99, (9.0,))).p99_s == 1.0
    assert Timing(rounds=((1.0,) * 98, (9.0,))).p99_s == 9.0
    assert math.isclose(timing.runs_per_s, 200 / (5050 + 50_000))


def test_ratio_is_taken_by_round():
    """What slows one round down for both leaves the ratio as it is."""
    base = Timing(rounds=((2.0,), (20.0, 20.0), (2.0,)))
    fast = Timing(rounds=((1.0, 1.0), (10.0,), (0.5,)))
    ratio = fast.faster_than(base)
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 4.0)
    assert base.faster_than(base).median == 1.0


def test_engines_take_turns_and_a_failing_one_drops_out():
    """Each engine has a turn of at least one run a round; the reason of one that fails is kept."""
    with engine() as quick, engine(seconds=0.06) as slow, engine(fails_after=4) as broken:
        processes = {"quick": quick, "slow": slow, "broken": broken}
        for process in processes.values():
            process.ask("setup")
        timings, failures = take_turns(processes, rounds=3, turn_s=0.01)
    assert set(timings) == {"quick", "slow"}
    assert "it broke" in failures["broken"]
    assert [len(turn) for turn in timings["slow"].rounds] == [1, 1, 1]
    assert len({len(turn) for turn in timings["quick"].rounds}) == 1
    assert len(timings["quick"].rounds[0]) > 1
    assert timings["slow"].median_s >= 0.06
    assert timings["quick"].faster_than(timings["slow"]).low > 1


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak can't restart")
def test_memory_counts_what_is_kept_and_the_peak_of_running():
    """Memory that setting up needed and gave back does not count; what running needs does."""
    size = 96 << 20
    watch = MemoryWatch()
    passing = bytearray(size)
    del passing
    watch.restart()
    assert watch.growth() < size // 2
    passing = bytearray(size)
    del passing
    assert size * 0.9 <= watch.growth() < size * 1.5


def test_golden_rows_fill_any_batch(artifact):
    """The rows of the golden inputs, over and over, make a batch of another size."""
    read = read_artifact(artifact)
    (three,), _ = golden_batch(read, 3)
    (seven,), kwargs = golden_batch(read, 7)
    assert torch.equal(seven, three[[0, 1, 2, 0, 1, 2, 0]])
    assert kwargs == {}
    assert read.programs[""](seven).shape == (7, 4)


def test_profile_names_layers_and_kernels(artifact):
    """Each operation has its layer and its kernel; the shares add up to 1."""
    program = qcore.lower(qcore.load(artifact))
    x = torch.randn(5, 6)
    expected = program(x)
    rows = profile_operations(program, lambda: program(x))
    assert math.isclose(sum(row.share for row in rows), 1.0)
    assert [row.seconds for row in rows] == sorted((row.seconds for row in rows), reverse=True)
    operations = {row.layer: row.operation for row in rows}
    assert operations["0"] == operations["2"] == "qcore.qlinear"
    assert operations["log_softmax"] == "aten.log_softmax.int"
    assert all(row.kernel for row in rows)
    assert torch.equal(program(x), expected)
    assert "forward" not in vars(program)


def test_profile_of_other_modules_is_that_of_torch(net):
    """A float model has no program: the operations that torch ran are listed."""
    model = net(lambda m, x: m.a(x).relu(), a=nn.Linear(4, 4))
    x = torch.randn(2, 4)
    with torch.no_grad():
        rows = profile_operations(model, lambda: model(x))
    assert "aten::addmm" in [row.kernel for row in rows]
    assert all(row.layer == row.operation == "" for row in rows)


def test_benchmark_of_an_artifact(artifact):
    """Each backend has figures relative to the first, and one that fails its reason."""
    result = qcore.benchmark(
        artifact, backends=["reference", "cpu"], batches=[3], rounds=2, turn_s=0.01, profile=True
    )
    first, other = result.measurements
    assert result.base == {str(artifact): f"{artifact}: reference"}
    assert (first.engine, first.batch, first.threads) == ("reference", 3, 1)
    assert first.failure is None
    assert first.speedup is not None
    assert first.speedup.median == 1.0
    assert first.items_per_s is not None
    assert first.timing is not None
    assert math.isclose(first.items_per_s, 3 * first.timing.runs_per_s)
    assert first.memory_bytes is not None
    assert "qcore.qlinear" in [row.operation for row in first.operations]
    assert other.timing is None
    assert "Prepare with backend = 'cpu'" in str(other.failure)
    assert other.to_data()["median_s"] is None


PLUGIN = """
    from qcore import DatasetSpec, ModelSpec, hookimpl

    @hookimpl
    def qcore_models():
        return [ModelSpec(name="moody", target="acme_parts:moody")]

    @hookimpl
    def qcore_datasets():
        return [DatasetSpec(name="noise", target="acme_parts:noise")]
    """
PARTS = """
    import torch
    from torch import nn
    from qcore import Dataset

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
            self.second = nn.Linear(5, 4)

        def forward(self, x):
            y = self.first(x)
            if float(y.sum()) > 1e9:
                y = -y
            return self.second(y)

    def moody():
        return Moody()

    def noise():
        inputs, labels = torch.randn(8, 6), torch.arange(8) % 4
        return Dataset(
            name="noise", num_classes=4, train_inputs=inputs, train_labels=labels,
            test_inputs=inputs, test_labels=labels,
        )
    """


def test_benchmark_of_a_recipe(site):
    """The base is the recipe's float model, also where the program is in parts of the model."""
    site.install("acme", modules={"acme_plugin.py": PLUGIN, "acme_parts.py": PARTS})
    recipe = qcore.Recipe(name="moody", model={"name": "moody"}, data={"name": "noise"})
    host = qcore.PluginHost.from_environment()
    result = qcore.benchmark(recipe, batches=[20], rounds=1, turn_s=0.01, profile=True, host=host)
    base, program = result.measurements
    assert result.base == {"moody": "moody: float32"}
    assert [base.failure, program.failure] == [None, None]
    assert (base.engine, program.engine) == ("float32", "reference")
    assert base.speedup is not None
    assert program.speedup is not None
    layers = {row.layer for row in program.operations}
    assert layers >= {"first.0", "second", "(outside of the programs)"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": [0]}, "batches: got 0; use whole numbers, 1 or more"),
        ({"threads": [1, -2]}, "threads: got -2; use whole numbers, 1 or more"),
        ({"threads": ["1"]}, "threads: got '1'; use whole numbers, 1 or more"),
        ({"threads": []}, "threads: there is none; give at least one number"),
        ({"rounds": 0}, "rounds: got 0; use whole numbers, 1 or more"),
        ({"turn_s": 0}, "turn_s: got 0; use a time above 0 s"),
        ({"backends": ["cpus"]}, "did you mean 'cpu'"),
        ({"device": "tpu"}, "device: got 'tpu'; use 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not there: .* CUDA devices; use 'cpu'"),
    ],
)
def test_wrong_settings_are_refused(artifact, options, message):
    """A setting that can't be measured is an error before anything runs."""
    with pytest.raises(qcore.QcoreError, match=message):
        qcore.benchmark(artifact, **options)


def test_wrong_targets_are_refused(artifact, tmp_path):
    """What is neither a recipe nor an artifact, or is there twice, is an error that says so."""
    with pytest.raises(qcore.RecipeError, match="no target"):
        qcore.benchmark()
    with pytest.raises(qcore.RecipeError, match="given twice"):
        qcore.benchmark(artifact, artifact)
    with pytest.raises(qcore.ArtifactError, match=r"has no manifest\.json"):
        qcore.benchmark(tmp_path)
    with pytest.raises(qcore.RecipeError, match="can't be read"):
        qcore.benchmark(tmp_path / "none.toml")
