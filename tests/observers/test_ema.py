"""The observer of the moving average of extremes."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore import UINT8, PerChannel, QScheme, QuantizationError
from qcore_observers.ema import EmaObserver

SCHEME = QScheme(dtype=UINT8, symmetric=False)
# Half of the smallest float32 is 0, so the smallest of these is well above.
TOP = st.just(0.0) | st.floats(2.0**-100, 1000, width=32)
TOPS = st.lists(TOP, min_size=1, max_size=30)


def average(values: list[float], momentum: Fraction) -> Fraction:
    """The recursion in exact numbers; the first value whole."""
    result = Fraction(values[0])
    for value in values[1:]:
        result = momentum * result + (1 - momentum) * Fraction(value)
    return result


def after(tops: list[float], momentum: float = 0.9) -> EmaObserver:
    """An observer that has seen a batch ``[-top / 2, top]`` for each."""
    observer = EmaObserver(scheme=SCHEME, momentum=momentum)
    for top in tops:
        observer(torch.tensor([-top / 2, top]))
    return observer


@settings(max_examples=50, deadline=None)
@given(TOPS, st.sampled_from([0.0, 0.5, 0.75, 0.9]))
def test_it_is_the_recursion(tops: list[float], momentum: float) -> None:
    """momentum times the past plus the rest times the batch, for both ends."""
    low, high = after(tops, momentum).range()
    exact = average(tops, Fraction(momentum))
    assert abs(Fraction(high.item()) - exact) <= exact / 2**23
    assert abs(Fraction(low.item()) + exact / 2) <= exact / 2**23


@settings(max_examples=50, deadline=None)
@given(TOPS, TOPS, TOPS)
def test_merging_goes_on_where_the_first_stopped(
    a: list[float], b: list[float], c: list[float]
) -> None:
    """merge(a, b) is the average of a's batches and then b's, to rounding, in any grouping."""
    exact = average(a + b + c, Fraction(0.9))
    for merged in (
        after(a).merge(after(b)).merge(after(c)),
        after(a).merge(after(b).merge(after(c))),
    ):
        assert abs(Fraction(merged.range()[1].item()) - exact) <= Fraction(1, 2**12)
        merged(torch.tensor([0.0, 500.0]))
        going_on = average([*a, *b, *c, 500.0], Fraction(0.9))
        assert abs(Fraction(merged.range()[1].item()) - going_on) <= Fraction(1, 2**12)


def test_the_first_batch_counts_whole() -> None:
    """It does not start from 0."""
    assert after([5.0]).range()[1].item() == 5.0


def test_averages_are_kept_for_each_channel() -> None:
    """Two numbers a channel are the whole state."""
    observer = EmaObserver(scheme=QScheme(dtype=UINT8, granularity=PerChannel(0), symmetric=False))
    for top in (1.0, 2.0):
        observer(torch.tensor([[0.0, top], [0.0, 10 * top]]))
    torch.testing.assert_close(observer.range()[1], torch.tensor([1.1, 11.0]))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0, float("nan")])
def test_a_momentum_out_of_range_is_refused(momentum: float) -> None:
    """With 1 nothing would ever be learned."""
    with pytest.raises(QuantizationError, match="at least 0 and less than 1"):
        EmaObserver(scheme=SCHEME, momentum=momentum)


def test_averages_of_different_momentum_can_not_be_merged() -> None:
    """They weigh the past differently."""
    with pytest.raises(QuantizationError, match=r"momentum 0\.9 and 0\.5"):
        after([1.0]).merge(after([2.0], 0.5))
