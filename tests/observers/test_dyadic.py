"""Histograms with bins that are powers of two wide."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcore_observers.dyadic import (
    EXPONENT_MIN,
    bin_edges,
    bin_index,
    count,
    fit_bins,
    power_of_two,
    regrid,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def bins_of(values: list[float], exponent: int, first: int, bins: int) -> list[int]:
    """The histogram in exact arithmetic."""
    counts = [0] * bins
    for value in values:
        counts[math.floor(Fraction(value) / Fraction(2) ** exponent) - first] += 1
    return counts


def fitted(values: list[float], bins: int) -> tuple[Tensor, Tensor]:
    return fit_bins(torch.tensor([min(values)]), torch.tensor([max(values)]), bins)


@pytest.mark.parametrize("exponent", [-1022, -126, -1, 0, 1, 100, 1023])
def test_powers_of_two_are_exact(exponent: int) -> None:
    """Every exponent of float64's normal numbers."""
    assert power_of_two(torch.tensor(exponent)).item() == 2.0**exponent


@settings(max_examples=300, deadline=None)
@given(FLOATS, FLOATS, st.sampled_from([4, 7, 64, 2048]))
def test_the_bins_are_the_narrowest_that_fit(a: float, b: float, bins: int) -> None:
    """The range with 0 fits, and would not fit bins of half the width."""
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    exponent, first = (int(t) for t in fitted([a, b], bins))

    def used(exponent: int) -> int:
        width = Fraction(2) ** exponent
        return math.floor(Fraction(high) / width) - math.floor(Fraction(low) / width) + 1

    assert first == math.floor(Fraction(low) / Fraction(2) ** exponent)
    assert used(exponent) <= bins
    assert exponent == EXPONENT_MIN or used(exponent - 1) > bins


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=30), st.sampled_from([4, 64, 2048]))
def test_counts_are_exact(values: list[float], bins: int) -> None:
    """Each value is in the bin that exact arithmetic says; denormals and -0.0 too."""
    exponent, first = fitted(values, bins)
    counts = count(torch.tensor([values]), exponent, first, bins)
    assert counts.tolist() == [bins_of(values, int(exponent), int(first), bins)]


def test_a_tiny_negative_value_is_below_zero_in_wide_bins() -> None:
    """Its product with the inverse width is below float32, but it is not 0."""
    index = bin_index(torch.tensor([-1e-45, -0.0, 1e-45]), torch.tensor(100), torch.tensor(-1))
    assert index.tolist() == [0, 1, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20), st.lists(FLOATS, max_size=20))
def test_widening_equals_counting_anew(values: list[float], others: list[float]) -> None:
    """Bins that grew to hold other values have the counts that they would have had at once."""
    bins = 16
    old, new = fitted(values, bins), fitted(values + others, bins)
    counts = count(torch.tensor([values]), *old, bins)
    assert regrid(counts, *old, *new).tolist() == count(torch.tensor([values]), *new, bins).tolist()


def test_rows_are_counted_each_by_itself() -> None:
    """Rows of very different size, more values than are counted at a time, with a mask."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 100_000, generator=generator) * torch.tensor([[1e-6], [1.0], [1e6]])
    where = torch.rand(rows.shape, generator=generator) < 0.5
    exponent, first = fit_bins(rows.amin(1), rows.amax(1), 64)
    counts = count(rows, exponent, first, 64)
    masked = count(rows, exponent, first, 64, where=where)
    assert counts.sum(1).tolist() == [100_000] * 3
    assert torch.equal(masked.sum(1), where.sum(1))
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(count(rows[one], exponent[one], first[one], 64)[0], counts[i])
        part = rows[one][where[one]][None]
        assert torch.equal(count(part, exponent[one], first[one], 64)[0], masked[i])


def test_edges_enclose_their_bin() -> None:
    """An edge belongs to the bin above it."""
    exponent, first = torch.tensor([-2, 3]), torch.tensor([-3, 0])
    edges = bin_edges(exponent, first, 8)
    assert edges.shape == (2, 9)
    index = bin_index(edges, exponent[:, None], first[:, None])
    assert torch.equal(index, torch.arange(9).expand(2, 9))
