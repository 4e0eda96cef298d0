"""The observer that leaves out a share of the values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore import INT8, UINT8, QScheme, QuantizationError
from qcore_observers.percentile import PercentileObserver, quantile_of_counts

AFFINE, SYMMETRIC = QScheme(dtype=UINT8, symmetric=False), QScheme(dtype=INT8)


def after(x: torch.Tensor, scheme: QScheme = AFFINE, **options: float | None) -> PercentileObserver:
    observer = PercentileObserver(scheme=scheme, **options)  # type: ignore[arg-type]
    observer(x)
    return observer


@pytest.mark.parametrize("percentile", [60.0, 90.0, 99.0, 99.9])
def test_it_is_the_percentile_to_a_bin(percentile: float) -> None:
    """Both ends of an affine range, as numpy computes them from all values."""
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) ** 3
    observer = after(x, percentile=percentile, sample=None)
    width = 2.0 ** observer.tally().exponent.item()
    low, high = (end.item() for end in observer.range())
    assert low == pytest.approx(np.percentile(x, 100 - percentile), abs=width)
    assert high == pytest.approx(np.percentile(x, percentile), abs=width)


def test_symmetric_is_the_percentile_of_magnitudes() -> None:
    """Not the larger of the percentiles of the two ends."""
    x = torch.cat([torch.linspace(0, 1, 900), torch.linspace(-10, 0, 100)])
    low, high = (end.item() for end in after(x, SYMMETRIC, percentile=95.0).range())
    assert high == pytest.approx(np.percentile(x.abs(), 95), abs=0.02)
    assert low == -high


def test_a_sample_estimates_the_default_percentile() -> None:
    """99.99 lies where values are counted in full, or nearly."""
    x = torch.randn(500_000, generator=torch.Generator().manual_seed(0))
    high = after(x).range()[1].item()
    assert high == pytest.approx(np.percentile(x, 99.99), rel=0.05)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_a_hundred_is_min_max(values: list[float]) -> None:
    """Exactly; nothing is estimated."""
    low, high = after(torch.tensor(values), percentile=100.0).range()
    assert (low.item(), high.item()) == (min(values), max(values))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=20).filter(any),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_quantiles_ascend_within_the_edges(counts: list[int], a: float, b: float) -> None:
    """A larger share is never a smaller value, and no value is outside of what was counted."""
    edges = torch.arange(len(counts) + 1).double()[None]
    small, large = sorted((a, b))
    histogram = torch.tensor([counts])
    low, high = (quantile_of_counts(histogram, edges, share).item() for share in (small, large))
    assert 0 <= low <= high
    assert high <= max(i for i, n in enumerate(counts) if n) + 1


@pytest.mark.parametrize("percentile", [50.0, 0.0, 100.1, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    """The ends would cross."""
    with pytest.raises(QuantizationError, match="use a number above 50, at most 100"):
        PercentileObserver(scheme=AFFINE, percentile=percentile)


def test_different_percentiles_can_not_be_merged() -> None:
    """There would be no telling which one answers."""
    with pytest.raises(QuantizationError, match="percentile 99 and 90"):
        after(torch.rand(5), percentile=99.0).merge(after(torch.rand(5), percentile=90.0))
