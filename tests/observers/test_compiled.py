"""The compiled passes of histogram observers equal those of torch operations."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import qcore
from qcore import UINT8, QScheme
from qcore_observers import compiled, dyadic, excerpt
from qcore_observers.dyadic import count, fit_bins
from qcore_observers.excerpt import extremes_of_blocks
from qcore_observers.histogram import HistogramObserver

needs_compiler = pytest.mark.skipif(compiled.kernel() is None, reason="no C++ compiler")


def kernel() -> compiled.Kernel:
    found = compiled.kernel()
    assert found is not None
    return found


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No kernel, whatever is there."""
    for module in (dyadic, excerpt):
        monkeypatch.setattr(module, "kernel", lambda: None)
    return monkeypatch


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 128, 3), (3, 7, 1024), (2, 8, 1025), (1, 100, 4099), (5, 17, 2050)]
)
def test_extremes_of_blocks(
    plain: pytest.MonkeyPatch, shape: tuple[int, ...], threads: int
) -> None:
    """For any size of blocks and pieces, and infinities among the values."""
    torch.set_num_threads(threads)
    blocks = normal(*shape)
    blocks.view(-1)[:: max(1, blocks.numel() // 3)] = float("inf")
    found, expected = kernel().extremes(blocks), extremes_of_blocks(blocks)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@needs_compiler
@pytest.mark.parametrize("place", [0, 5, 4099 * 8 - 1, 4099 * 9 + 2050])
def test_what_is_no_number_is_kept(place: int) -> None:
    """In the block that it lies in, and in no other."""
    blocks = normal(1, 10, 4099)
    blocks.view(-1)[place] = float("nan")
    for found in kernel().extremes(blocks):
        assert found.isnan().nonzero().tolist() == [[0, place % 4099]]


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bins", [16, 2048])
@pytest.mark.parametrize("scale", [1e-45, 1e-12, 1.0, 1e30])
@pytest.mark.parametrize("rows", [1, 3])
def test_counts(
    plain: pytest.MonkeyPatch, rows: int, scale: float, bins: int, masked: bool, threads: int
) -> None:
    """Of huge and of the tiniest values, of both signs, at the very edges of the bins."""
    torch.set_num_threads(threads)
    x = normal(rows, 5000)
    x[:, ::2] = (x[:, ::2] * 16).round() / 16
    x = x * scale
    where = normal(rows, 5000) > 0 if masked else None
    layout = fit_bins(x.amin(1), x.amax(1), bins)
    expected = count(x, *layout, bins, where=where)
    assert torch.equal(kernel().count(x, *layout, bins, where), expected)
    assert expected.sum() == (x.numel() if where is None else where.sum())


@needs_compiler
def test_a_calibration_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are large enough for the kernel, one of them in another memory format."""
    scheme = QScheme(dtype=UINT8, symmetric=False)
    batches = [normal(16, 16, 40, 40), normal(8, 32, 40, 40).relu()]
    batches.append(batches[0].to(memory_format=torch.channels_last) * 2)
    asked = []

    def state() -> dict[str, Tensor]:
        observer = HistogramObserver(scheme=scheme)
        for batch in batches:
            observer(batch)
        return observer.state_dict()

    for module in (dyadic, excerpt):
        monkeypatch.setattr(module, "kernel", lambda: asked.append(1) or kernel())
    ours = state()
    assert len(asked) >= len(batches)
    for module in (dyadic, excerpt):
        monkeypatch.setattr(module, "kernel", lambda: None)
    theirs = state()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@needs_compiler
def test_nan_in_a_large_batch_is_an_error() -> None:
    """The pass that loses NaN in its comparisons still tells of it."""
    x = normal(1 << 19)
    x[12345] = float("nan")
    observer = HistogramObserver(scheme=QScheme(dtype=UINT8), where="conv1")
    with pytest.raises(qcore.QuantizationError, match=r"'conv1'.*1 of 524288 values are NaN"):
        observer(x)


def test_nothing_is_compiled_for_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small calibration doesn't wait for a compiler."""

    def fail() -> None:
        raise AssertionError("asked for")

    for module in (dyadic, excerpt):
        monkeypatch.setattr(module, "kernel", fail)
    observer = HistogramObserver(scheme=QScheme(dtype=UINT8))
    observer(normal(1 << 16))
    observer.calculate_qparams()
    with pytest.raises(AssertionError, match="asked for"):
        observer(normal(1 << 19))


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said: `qcore doctor` does."""
    monkeypatch.setenv("CXX", "none")
    assert compiled.kernel.__wrapped__() is None


def test_the_sources_are_in_the_package() -> None:
    """A wheel has what is compiled."""
    assert (Path(compiled.__file__).parent / "csrc" / "histogram.cpp").is_file()
