"""Tiles are measured once for each size, and the choice outlives the process."""

import json
import types
from contextlib import nullcontext

import pytest
import torch

import qcore

pytest.importorskip("triton")

from qcore_backends.cuda import launch, tuning
from qcore_backends.cuda.device import Gpu
from qcore_backends.cuda.launch import Tile

TILES = (Tile(64, 64, 64), Tile(128, 64, 64), Tile(128, 128, 64))
DEVICE = torch.device("cuda", 0)
GPU = Gpu(name="NVIDIA Test 80GB", capability=(9, 0), multiprocessors=100, shared_memory=99 * 1024)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A GPU on which the second tile is the fastest; what was measured on it."""
    calls = []

    def milliseconds(call, device):
        tile = call.args[0]
        calls.append(tile)
        return 1.0 if tile == TILES[1] else 2.0

    monkeypatch.setenv("QCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "gpu", lambda index: GPU)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return calls


def kernel(digest="0" * 64):
    return types.SimpleNamespace(__name__="product", cache_key=digest)


def best(tunings, bucket=(64, 32), tiles=TILES, run=lambda tile: None, **options):
    return tunings.best(kernel(**options), bucket, DEVICE, tiles, run)


def file(folder):
    (path,) = (folder / "cuda-tuning").iterdir()
    return path


def test_the_fastest_is_kept(measured, tmp_path):
    """In the process and on disk, by kernel, source and sizes."""
    tunings = tuning.Tunings()
    assert best(tunings) == TILES[1]
    assert measured == list(TILES)
    assert best(tunings) == TILES[1]
    assert best(tuning.Tunings()) == TILES[1]
    assert len(measured) == 3
    assert file(tmp_path).name.startswith("nvidia-test-80gb-triton-")
    best(tunings, bucket=(128, 32))
    best(tuning.Tunings(), digest="1" * 64)
    assert len(measured) == 9
    assert len(json.loads(file(tmp_path).read_text())) == 3


def test_a_choice_that_there_is_no_more_is_made_again(measured):
    """Candidates of another version of qcore are not started blindly."""
    best(tuning.Tunings())
    found = best(tuning.Tunings(), tiles=(TILES[0], TILES[2]))
    assert found in TILES
    assert len(measured) == 5


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"a": 1}', "[" * 100_000, "\0", '{"product": {"rows": []}}']
)
def test_a_damaged_file_is_replaced(measured, tmp_path, text):
    """It holds nothing that could not be measured again."""
    best(tuning.Tunings())
    path = file(tmp_path)
    path.write_text(text)
    assert best(tuning.Tunings()) == TILES[1]
    assert len(json.loads(path.read_text())) in (1, 2)


def test_a_folder_that_can_not_be_written_is_left_alone(measured, monkeypatch, tmp_path):
    """Then the choice is one of this process."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("QCORE_CACHE", str(blocked))
    tunings = tuning.Tunings()
    assert best(tunings) == TILES[1] == best(tunings)
    assert len(measured) == 3


def test_what_is_no_file_is_left_alone(measured, tmp_path):
    """A folder of that name can't be replaced, and nothing is left beside it."""
    best(tuning.Tunings())
    path = file(tmp_path)
    path.unlink()
    path.mkdir()
    assert best(tuning.Tunings()) == TILES[1]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_choice_of_another_machine_that_says_nonsense_is_made_again(measured, tmp_path):
    """What is written must be one of the candidates."""
    best(tuning.Tunings())
    path = file(tmp_path)
    (key,) = json.loads(path.read_text())
    for nonsense in ({"rows": 64}, {"rows": -1, "columns": "x"}, None, [64, 64, 64], 7):
        path.write_text(json.dumps({key: nonsense}))
        assert best(tuning.Tunings()) == TILES[1]
        assert json.loads(path.read_text())[key]["rows"] == 128


def test_each_call_is_timed_behind_one_that_fills_the_caches(monkeypatch):
    """The median of calls, each between two events and after the write; also without memory."""
    events, log = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            events.append(self)
            log.append("event")

        def elapsed_time(self, end):
            return float(events.index(end) - events.index(self) + (self is events[0]) * 99)

    class Memory(torch.Tensor):
        def zero_(self):
            log.append("write")
            return self

    def empty(size, **options):
        if size and log == ["full"]:
            raise torch.cuda.OutOfMemoryError
        return torch.zeros(0).as_subclass(Memory)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch, "empty", empty)
    for memory in ("free", "full"):
        log[:] = [memory]
        assert tuning.milliseconds(lambda: log.append("call"), DEVICE) == 1.0
        assert log[1:] == ["write", "event", "call", "event"] * tuning._REPEATS + ["wait"]


def test_nothing_is_measured_while_a_graph_is_captured(measured, monkeypatch):
    """The first tile counts for that call, and is not remembered."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tunings = tuning.Tunings()
    assert best(tunings) == TILES[0]
    assert not measured
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert best(tunings) == TILES[1]


def test_tiles_that_do_not_run_are_passed_over(measured):
    """And if none runs, the error names the kernel, the GPU and the cure."""
    from triton.runtime.errors import OutOfResources

    def run(tile):
        if tile.columns == 64:
            raise OutOfResources(200_000, 100_000, "shared memory")

    assert best(tuning.Tunings(), run=run) == TILES[2]
    words = r"no tile of kernel 'product' runs on NVIDIA Test 80GB .*backend 'reference'"
    with pytest.raises(qcore.BackendError, match=words):
        best(tuning.Tunings(), bucket=(1, 1), tiles=TILES[:2], run=run)
    with pytest.raises(qcore.BackendError, match="all need more shared memory"):
        best(tuning.Tunings(), bucket=(1, 1), tiles=())


def test_tiles_that_do_not_fit_are_no_candidates(monkeypatch):
    """Rows count by powers of two, and only tiles within the shared memory are measured."""
    seen = {}

    class Recorder:
        def best(self, kernel, bucket, device, candidates, run):
            seen.update(bucket=bucket, candidates=candidates)
            return candidates[0]

    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch, "gpu", lambda index: GPU)
    monkeypatch.setattr(launch, "launch", lambda kernel, grid, *args, **options: None)
    monkeypatch.setattr(launch, "_TUNINGS", Recorder())
    tiles = (Tile(128, 256, 128, 8, 3), Tile(64, 64, 128, 4, 4))
    on = types.SimpleNamespace(device=DEVICE)
    launch.launch_tuned(None, 1000, 64, on=on, key=(7, True), tiles=tiles, others=5)
    assert seen == {"bucket": (1024, 64, 8, 7, True), "candidates": [tiles[1]]}
