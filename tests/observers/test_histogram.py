"""The histogram observer on values as networks have them."""

import pytest
import torch
from torch import Tensor

from qcore import (
    INT4,
    INT8,
    INT16,
    UINT8,
    PerChannel,
    QScheme,
    QuantizationError,
    dequantize_tensor,
    quantize_tensor,
)
from qcore.observer import calculate_together
from qcore_observers.histogram import HistogramObserver
from qcore_observers.minmax import MinMaxObserver

AFFINE = QScheme(dtype=UINT8, symmetric=False)


def batches(kind: str, n: int = 3, size: int = 60_000) -> list[Tensor]:
    """Batches that are large enough to be sampled."""
    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(size, generator=generator) for _ in range(n)]
    match kind:
        case "normal":
            return normal
        case "relu":
            return [x.relu() for x in normal]
        case "long tail":
            return [torch.exp(2 * x) for x in normal]
        case _:
            return [x.sign() * x.abs() ** 3 for x in normal]


def error(observer: HistogramObserver | MinMaxObserver, values: list[Tensor]) -> float:
    """Squared error of the observer's answer on what it has seen."""
    for x in values:
        observer(x)
    qparams = observer.calculate_qparams()
    return sum(
        (dequantize_tensor(quantize_tensor(x, qparams), qparams) - x).double().square().sum().item()
        for x in values
    )


@pytest.mark.parametrize("kind", ["normal", "relu", "long tail", "cubed"])
@pytest.mark.parametrize(
    "scheme", [AFFINE, QScheme(dtype=INT8), QScheme(dtype=INT4)], ids=QScheme.describe
)
def test_sampling_costs_next_to_nothing(kind: str, scheme: QScheme) -> None:
    """The error is within 3 % of that of counting every value, and below min-max."""
    values = batches(kind)
    sampled = error(HistogramObserver(scheme=scheme), values)
    assert sampled <= 1.03 * error(HistogramObserver(scheme=scheme, sample=None), values)
    assert sampled <= 1.001 * error(MinMaxObserver(scheme=scheme), values)


def test_few_outliers_are_clipped_in_four_bits() -> None:
    """A value ten times beyond the rest of a hundred thousand does not coarsen them all."""
    values = batches("normal")
    values[1][777] = 45.0
    observer = HistogramObserver(scheme=QScheme(dtype=INT4))
    smaller = error(observer, values)
    assert smaller < 0.5 * error(MinMaxObserver(scheme=QScheme(dtype=INT4)), values)
    assert observer.range()[1] < 10.0
    assert observer.tally().max_val.item() == 45.0


def test_a_range_that_keeps_growing_is_followed() -> None:
    """Batches a thousand times larger each; the small ones are still counted, in wide bins."""
    observer = HistogramObserver(scheme=AFFINE)
    for factor in (1e-3, 1.0, 1e3):
        observer(torch.linspace(0, factor, 1000))
    seen = observer.tally()
    assert seen.counts.sum().item() == 3000
    assert observer.range()[1].item() == pytest.approx(1e3, rel=0.01)


def test_more_levels_than_bins() -> None:
    """16 bits are searched with 2048 bins; the answer is near min-max, where it belongs."""
    x = torch.linspace(-1, 1, 5000)
    observer = HistogramObserver(scheme=QScheme(dtype=INT16))
    observer(x)
    assert observer.range()[1].item() == pytest.approx(1.0, rel=0.01)


def test_channels_are_sampled_and_searched_each_by_itself() -> None:
    """Activations of an image batch, a range a channel."""
    generator = torch.Generator().manual_seed(0)
    size = torch.tensor([0.01, 1.0, 100.0])[None, :, None, None]
    x = torch.randn(8, 3, 64, 64, generator=generator) * size
    observer = HistogramObserver(scheme=QScheme(dtype=INT4, granularity=PerChannel(1)))
    observer(x)
    scale = observer.calculate_qparams().scale
    assert scale.shape == (3,)
    torch.testing.assert_close(scale[1:] / scale[:-1], torch.full((2,), 100.0), rtol=0.1, atol=0)


def test_excerpts_wait_and_are_counted_in_time() -> None:
    """At most as many as there is room for; before anybody looks; and when their size changes."""
    observer = HistogramObserver(scheme=AFFINE)
    x = torch.rand(10_000)
    for _ in range(40):
        observer(x)
        assert observer.seen
        assert sum(excerpt.sample.numel() for excerpt, _, _ in observer._pending) < 2**17
    observer(torch.rand(20_000))
    assert len(observer._pending) == 1
    counts = observer.state_dict()["counts"]
    assert counts.sum().item() == pytest.approx(420_000, rel=0.01)
    assert not observer._pending


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 8}, "bins=8; use 16 to 1048576"),
        ({"bins": 2**21}, "bins=2097152"),
        ({"sample": 0}, "sample=0; use a positive number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    """The error names the layer, the option and what is allowed."""
    with pytest.raises(QuantizationError, match=f"layer 'fc', HistogramObserver: {message}"):
        HistogramObserver(scheme=AFFINE, where="fc", **options)


def test_histograms_of_different_bins_can_not_be_merged() -> None:
    """The error names the option."""
    a, b = (HistogramObserver(scheme=AFFINE, bins=bins) for bins in (64, 128))
    a(torch.rand(10))
    b(torch.rand(10))
    with pytest.raises(QuantizationError, match="same option bins"):
        a.merge(b)


def test_a_loaded_state_keeps_its_bins() -> None:
    """What was saved by an observer of other options can be gone on with."""
    a, b = (HistogramObserver(scheme=AFFINE, bins=bins) for bins in (64, 128))
    a(torch.rand(10))
    b.load_state_dict(a.state_dict())
    b(torch.rand(10))
    assert b.tally().counts.shape == (1, 64)
    assert b.tally().counts.sum().item() == 20


def test_several_are_searched_together_as_if_alone() -> None:
    """One-sided, two-sided, per channel and with other bins: each gets its own answer."""
    tensor = QScheme(dtype=INT8, symmetric=False)
    channel = QScheme(dtype=INT8, symmetric=False, granularity=PerChannel(1))
    torch.manual_seed(0)
    x = torch.randn(64, 5)
    observers = []
    for scheme, bins, values in (
        (tensor, 2048, x),
        (channel, 2048, x * torch.arange(1.0, 6.0)),
        (tensor, 512, x.exp()),
        (tensor, 2048, x.relu()),
        (tensor, 2048, -x.square()),
        (channel, 512, x + 3),
    ):
        observers.append(HistogramObserver(scheme=scheme, bins=bins))
        observers[-1](values)
    together = calculate_together(observers)
    for observer, found in zip(observers, together, strict=True):
        alone = observer.calculate_qparams()
        assert found.scale.shape == alone.scale.shape
        torch.testing.assert_close(found.scale, alone.scale, rtol=1e-6, atol=0)
        assert torch.equal(found.zero_point, alone.zero_point)
