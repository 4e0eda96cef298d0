"""The observer of the smallest and the largest value."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore import INT8, INT8_NARROW, UINT8, PerChannel, PerGroup, QScheme
from qcore_observers.minmax import MinMaxObserver

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(FLOATS, min_size=1), min_size=1, max_size=5))
def test_the_range_is_that_of_all_values(batches: list[list[float]]) -> None:
    """Bit for bit, in any number of batches."""
    observer = MinMaxObserver(scheme=QScheme(dtype=UINT8, symmetric=False))
    for batch in batches:
        observer(torch.tensor(batch))
    values = [value for batch in batches for value in batch]
    low, high = observer.range()
    assert (low.item(), high.item()) == (min(values), max(values))


def test_the_scales_are_the_formulas_of_the_field() -> None:
    """Symmetric: absmax over half of the steps; affine: the range over the steps."""
    x = torch.tensor([-1.0, 3.0])
    for dtype, symmetric, scale, zero_point in (
        (INT8, True, 3 / 127.5, 0),
        (INT8_NARROW, True, 3 / 127, 0),
        (UINT8, True, 3 / 127.5, 128),
        (UINT8, False, 4 / 255, 64),
        (INT8, False, 4 / 255, -64),
    ):
        observer = MinMaxObserver(scheme=QScheme(dtype=dtype, symmetric=symmetric))
        observer(x)
        qparams = observer.calculate_qparams()
        torch.testing.assert_close(qparams.scale, torch.tensor(scale))
        assert qparams.zero_point.item() == zero_point


def test_channels_and_groups() -> None:
    """Each row has its own range, in the shape of the scale."""
    x = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.1, 0.2, 0.3, 0.4]])
    channel = MinMaxObserver(scheme=QScheme(dtype=INT8_NARROW, granularity=PerChannel(0)))
    channel(x)
    expected = torch.tensor([4.0, 0.4]) / 127
    torch.testing.assert_close(channel.calculate_qparams().scale, expected)
    group = MinMaxObserver(scheme=QScheme(dtype=INT8_NARROW, granularity=PerGroup(2)))
    group(x)
    expected = torch.tensor([[2.0, 4.0], [0.2, 0.4]]) / 127
    torch.testing.assert_close(group.calculate_qparams().scale, expected)
