"""Recorded programs: which calls are replayed, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

import qcore
from qcore_backends.cuda import GraphReplay, replay


class Doubled(nn.Module):
    """Gives twice its input, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, factor=2):
        self.calls += 1
        return {"y": x * float(factor)}


@pytest.fixture
def recorded(monkeypatch):
    """Records are functions that say which they are."""
    monkeypatch.setattr(replay, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        replay, "_recorded", lambda model, args, tensors: lambda inputs: ("record", inputs)
    )


def test_calls_of_recorded_sizes_are_replayed(recorded, monkeypatch):
    """Only those of one size, dtype, layout and plain values; others run as they did."""
    model = Doubled()
    x = torch.randn(4, 6)
    monkeypatch.setattr(Tensor, "device", torch.device("cuda", 0))
    fast = GraphReplay(model, x, (x[:2], 3))
    for args in ((x + 1,), (x[:2].clone(), 3)):
        name, inputs = fast(*args)
        assert name == "record"
        assert inputs[0] is args[0]
    assert model.calls == 0
    others = [(x[:3],), (x.double(),), (x.t().contiguous().t(),), (x, 3), (x[:2], 4)]
    others += [(x[:2], 3.0)]
    for args in others:
        assert torch.equal(fast(*args)["y"], args[0] * (args[1] if len(args) > 1 else 2))
    assert model.calls == len(others)


def test_examples_on_the_cpu_are_refused(recorded):
    """Copies from the CPU can't be recorded."""
    with pytest.raises(qcore.BackendError, match=r"lies on cpu; .*q\.to\('cuda'\)"):
        GraphReplay(Doubled(), torch.zeros(1))


def test_without_a_gpu_it_is_refused(monkeypatch):
    """There is nothing to record; the model itself gives the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(qcore.BackendError, match="need a GPU; without one call the lowered model"):
        GraphReplay(Doubled(), torch.zeros(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_record_gives_what_the_program_gives(device):
    """Also for other values, twice, and what was given before stays as it is."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)).eval()
    x = torch.randn(4, 3, 8, 8)
    lowered = qcore.lower(qcore.quantize(model, x, [x], "int8_minmax").to(device), "cuda")
    fast = GraphReplay(lowered, x.to(device))
    inputs = [torch.randn(4, 3, 8, 8, device=device) for _ in range(2)]
    results = [fast(value) for value in inputs]
    for value, result in zip(inputs, results, strict=True):
        assert torch.equal(result, lowered(value))
    assert torch.equal(fast(inputs[0][:2]), lowered(inputs[0][:2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_streams_take_turns(device):
    """Calls from several streams share the memory of the record, one after the other."""
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).eval()
    x = torch.randn(256, 512)
    lowered = qcore.lower(qcore.quantize(model, x, [x], "int8_minmax").to(device), "cuda")
    fast = GraphReplay(lowered, x.to(device))
    inputs = [torch.randn(256, 512, device=device) for _ in range(8)]
    wanted = [lowered(value) for value in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    for _ in range(20):
        results = []
        for stream, value in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                results.append(fast(value))
        torch.cuda.synchronize()
        for result, value in zip(results, wanted, strict=True):
            assert torch.equal(result, value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_results_that_share_memory_are_copies(device):
    """Also an input that the model gives back, and views of one tensor."""

    class Shares(nn.Module):
        def forward(self, x):
            y = x + 1
            return x, y, y[:2], y.t()

    x = torch.randn(4, 6, device=device)
    fast = GraphReplay(Shares(), x)
    first = fast(x)
    kept = [t.clone() for t in first]
    fast(x * 2)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    assert torch.equal(first[0], x)
    assert torch.equal(first[3], (x + 1).t())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_what_reads_values_back_can_not_be_recorded(device):
    """The error says what to do instead."""

    class Reads(nn.Module):
        def forward(self, x):
            return x * float(x.sum())

    with pytest.raises(qcore.BackendError, match="can't be recorded"):
        GraphReplay(Reads(), torch.ones(3, device=device))
