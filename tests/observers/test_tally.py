"""The tally: a statistic that adds up."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore_observers.tally import Tally, add, tally

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=1, max_size=10)


def of(rows: torch.Tensor, bins: int = 32) -> Tally:
    return tally(rows, rows.amin(1), rows.amax(1), bins=bins)


def state(t: Tally) -> list[object]:
    return [
        value.tolist() for value in (t.min_val, t.max_val, t.exponent, t.first, t.counts, t.zeros)
    ]


@settings(max_examples=100, deadline=None)
@given(VALUES, VALUES, VALUES)
def test_adding_equals_counting_together(
    a: list[list[float]], b: list[list[float]], c: list[list[float]]
) -> None:
    """For two rows of any values, in any order and grouping."""
    x, y, z = (torch.tensor(values).t() for values in (a, b, c))
    together = state(of(torch.cat([x, y, z], dim=1)))
    assert state(add(add(of(x), of(y)), of(z))) == together
    assert state(add(of(x), add(of(y), of(z)))) == together
    assert state(add(of(z), add(of(y), of(x)))) == together


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_edges_enclose_what_was_counted(values: list[list[float]]) -> None:
    """They ascend, begin at the smallest value and end, where something was counted, at the
    largest."""
    x = torch.tensor(values).t()
    t = of(x)
    edges = t.edges()
    assert (edges[:, 1:] > edges[:, :-1]).all()
    for row in range(2):
        used = t.counts[row].nonzero()[:, 0]
        assert edges[row, used[0]] <= x[row].min()
        assert edges[row, used[-1] + 1] >= x[row].max()


def test_the_outermost_edges_are_the_extremes() -> None:
    """So a histogram clips nothing that was not seen; 0 belongs to the range."""
    edges = of(torch.tensor([[-1.3, 0.2, 2.7], [1.0, 2.0, 3.3]])).edges()
    counts = of(torch.tensor([[-1.3, 0.2, 2.7], [1.0, 2.0, 3.3]])).counts
    last = [int(row.nonzero()[-1]) for row in counts]
    torch.testing.assert_close(edges[:, 0], torch.tensor([-1.3, 0.0]).double())
    torch.testing.assert_close(
        torch.stack([edges[0, last[0] + 1], edges[1, last[1] + 1]]),
        torch.tensor([2.7, 3.3]).double(),
    )


def test_zeros_can_be_left_out() -> None:
    """Exact zeros, of either sign, but not what shares their bin."""
    t = of(torch.tensor([[0.0, -0.0, 1e-6, -1e-6, 5.0]]))
    assert t.zeros.tolist() == [2]
    assert t.without_zeros().counts.sum().item() == 3
    assert (t.without_zeros().counts >= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20))
def test_magnitudes_count_both_sides(values: list[float]) -> None:
    """The histogram of the absolute values; a bin below 0 falls onto its mirror image."""
    x = torch.tensor([values])
    folded = of(x).magnitudes()
    assert folded.first.item() == 0
    assert folded.max_val.item() == x.abs().max().item()
    index = torch.floor(x[0].double() / 2.0 ** folded.exponent.item())
    index = torch.maximum(index, -1 - index).long()
    assert torch.equal(torch.bincount(index, minlength=32), folded.counts[0])
