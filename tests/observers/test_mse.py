"""The observer of least squared error over every value."""

import pytest
import torch

from qcore import (
    INT4,
    INT8_NARROW,
    PerChannel,
    PerGroup,
    QScheme,
    QuantizationError,
    dequantize_tensor,
    quantize_tensor,
)
from qcore_observers.minmax import MinMaxObserver
from qcore_observers.mse import MseObserver


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def error(observer: MseObserver | MinMaxObserver, x: torch.Tensor) -> torch.Tensor:
    """Squared error of each row."""
    observer(x)
    qparams = observer.calculate_qparams()
    back = dequantize_tensor(quantize_tensor(x, qparams), qparams)
    return (back - x).double().square().flatten(1).sum(1)


@pytest.mark.parametrize(
    "scheme",
    [
        QScheme(dtype=INT4, granularity=PerChannel(0)),
        QScheme(dtype=INT4, granularity=PerChannel(0), symmetric=False),
        QScheme(dtype=INT4, granularity=PerGroup(32)),
        QScheme(dtype=INT8_NARROW, granularity=PerChannel(0)),
    ],
    ids=QScheme.describe,
)
@pytest.mark.parametrize("columns", [64, 4096], ids=["kept", "binned"])
def test_no_row_is_worse_than_min_max(scheme: QScheme, columns: int) -> None:
    """Whether values are kept or counted, and much better in four bits."""
    x = weight(6, columns)
    found, plain = error(MseObserver(scheme=scheme), x), error(MinMaxObserver(scheme=scheme), x)
    assert (found <= plain * 1.0001).all()
    if scheme.dtype.bits == 4 and columns > 64:
        assert found.sum() < 0.85 * plain.sum()


def test_values_are_kept_until_a_histogram_is_smaller() -> None:
    """The last batch that fits is searched exactly, the next one turns all into counts."""
    observer = MseObserver(scheme=QScheme(dtype=INT4), bins=100)
    x = weight(120)
    observer(x[:60])
    observer(x[60:100])
    assert observer.values is not None
    assert torch.equal(observer.values[0], x[:100].sort().values)
    observer(x[100:])
    assert observer.values is None
    assert observer.tally().counts.sum().item() == 120


def test_kept_and_counted_values_merge() -> None:
    """Either way round, exactly."""
    scheme = QScheme(dtype=INT4)
    x = weight(150)
    both = MseObserver(scheme=scheme, bins=100)
    both(x)
    parts = []
    for part in (x[:110], x[110:]):
        parts.append(MseObserver(scheme=scheme, bins=100))
        parts[-1](part)
    assert parts[0].values is None
    assert parts[1].values is not None
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        assert torch.equal(merged.tally().counts, both.tally().counts)
        assert torch.equal(merged.range()[1], both.range()[1])


def test_no_value_is_sampled_away() -> None:
    """A single large weight among a million is there."""
    x = torch.zeros(10**6)
    x[123_457] = 5.0
    observer = MseObserver(scheme=QScheme(dtype=INT4))
    observer(x)
    assert observer.tally().counts.sum().item() == 10**6
    assert observer.range()[1].item() == pytest.approx(5.0, rel=0.1)


def test_groups_that_outgrow_what_is_kept_are_an_error() -> None:
    """Histograms of thousands of groups would be larger than the model; reset is the cure."""
    observer = MseObserver(
        scheme=QScheme(dtype=INT4, granularity=PerGroup(32)), where="fc", bins=64
    )
    x = weight(4, 64)
    observer(x)
    observer(x)
    with pytest.raises(QuantizationError, match="layer 'fc'.*must be reset before it has seen"):
        observer(x)
    observer.reset()
    observer(x)
    assert observer.calculate_qparams().scale.shape == (4, 2)
