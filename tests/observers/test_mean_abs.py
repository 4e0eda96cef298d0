"""The mean magnitude: the first step of LSQ, for signed, unsigned and affine ranges."""

import math

import pytest
import torch

from qcore import INT4, INT8, UINT4, Granularity, PerBlock, PerChannel, PerGroup, QDtype, QScheme
from qcore_observers.mean_abs import MeanAbsObserver


@pytest.mark.parametrize(("dtype", "levels"), [(INT4, 7), (INT8, 127)], ids=str)
def test_the_step_is_that_of_the_paper(dtype: QDtype, levels: int) -> None:
    """2 * mean|x| / sqrt(Q_P) over all batches, for each channel by itself."""
    observer = MeanAbsObserver(scheme=QScheme(dtype=dtype, granularity=PerChannel(0)))
    batches = torch.randn(3, 4, 20, generator=torch.Generator().manual_seed(0))
    for batch in batches:
        observer(batch)
    expected = 2 * batches.double().abs().mean((0, 2)) / math.sqrt(levels)
    qparams = observer.calculate_qparams()
    torch.testing.assert_close(qparams.scale.double(), expected, rtol=1e-6, atol=0)
    assert not qparams.zero_point.any()


def test_values_of_one_sign_use_all_integers() -> None:
    """After relu the zero point is the smallest integer, and Q_P all the others."""
    observer = MeanAbsObserver(scheme=QScheme(dtype=UINT4, symmetric=False))
    observer(torch.tensor([0.0, 1.0, 2.0, 1.0]))
    qparams = observer.calculate_qparams()
    assert qparams.scale.item() == pytest.approx(2 / math.sqrt(15))
    assert qparams.zero_point.item() == 0


def test_a_range_of_both_signs_keeps_the_zero_point_of_its_extremes() -> None:
    """The zero point divides the integers as it divides the range."""
    observer = MeanAbsObserver(scheme=QScheme(dtype=UINT4, symmetric=False))
    observer(torch.tensor([-1.0, 2.0]))
    qparams = observer.calculate_qparams()
    assert qparams.zero_point.item() == 5
    assert qparams.scale.item() == pytest.approx(2 * 1.5 / math.sqrt(10))


def test_merge_equals_having_seen_both() -> None:
    """Sums and counts add up, to the rounding of a float64 sum."""
    scheme = QScheme(dtype=INT4, granularity=PerChannel(0))
    a, b, both = (MeanAbsObserver(scheme=scheme) for _ in range(3))
    for i, size in enumerate((3, 100, 7)):
        x = torch.randn(4, size, generator=torch.Generator().manual_seed(i)) * 5**i
        (a if i < 2 else b)(x)
        both(x)
    merged = a.merge(b)
    assert merged.count == both.count == 110
    torch.testing.assert_close(merged.total, both.total, rtol=1e-14, atol=0)
    fresh = MeanAbsObserver(scheme=scheme)
    fresh.load_state_dict(merged.state_dict())
    p, q = fresh.calculate_qparams(), merged.calculate_qparams()
    assert torch.equal(p.scale, q.scale)


@pytest.mark.parametrize("granularity", [PerGroup(8), PerBlock((2, 4))], ids=str)
def test_every_granularity(granularity: Granularity) -> None:
    """The mean is that of the values that share a step."""
    observer = MeanAbsObserver(scheme=QScheme(dtype=INT4, granularity=granularity))
    observer(torch.arange(64.0).reshape(4, 16))
    scale = observer.calculate_qparams().scale
    assert scale.shape == granularity.scale_shape((4, 16))
    first = torch.arange(64.0).reshape(4, 16)
    rows, columns = granularity.block_shape((4, 16))
    mean = first[:rows, :columns].mean()
    assert scale[0, 0].item() == pytest.approx(2 * mean.item() / math.sqrt(7))


def test_extreme_values_give_a_finite_step() -> None:
    """At the ends of float32, and at 0."""
    for value in (3e38, 0.0):
        observer = MeanAbsObserver(scheme=QScheme(dtype=INT8))
        observer(torch.full((3,), value))
        scale = observer.calculate_qparams().scale
        assert 0 < scale.item() < math.inf
