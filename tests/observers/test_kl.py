"""The observer of least divergence, against the definition written with loops."""

import math
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from qcore import (
    INT4,
    INT8,
    INT16,
    UINT2,
    UINT8,
    PerChannel,
    QScheme,
    QuantizationError,
    choose_qparams,
)
from qcore_observers.divergence import divergence, range_of_least_divergence
from qcore_observers.kl import KlObserver

AFFINE, SYMMETRIC = QScheme(dtype=UINT8, symmetric=False), QScheme(dtype=INT8)


def by_loops(
    counts: list[int], edges: list[float], low: float, high: float, scheme: QScheme
) -> float:
    """KL(P || Q) of one range, bin by bin."""
    qparams = choose_qparams(torch.tensor(low), torch.tensor(high), scheme=scheme)
    scale, zero_point = qparams.scale.item(), int(qparams.zero_point)
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    inside = [i for i, x in enumerate(centres) if low <= x <= high]
    p = {i: counts[i] for i in inside}
    p[inside[0]] += sum(n for n, x in zip(counts, centres, strict=True) if x < low)
    p[inside[-1]] += sum(n for n, x in zip(counts, centres, strict=True) if x > high)
    merged = defaultdict(list)
    for i in inside:
        q = round(centres[i] / scale) + zero_point
        merged[min(max(q, scheme.dtype.quant_min), scheme.dtype.quant_max)].append(i)
    q_share = {}
    for members in merged.values():
        holders = [i for i in members if counts[i]]
        for i in members:
            mass = sum(counts[j] for j in members)
            q_share[i] = mass / len(holders) if counts[i] else 1.0
    kept, total = sum(counts[i] for i in inside), sum(counts)
    return sum(
        p[i] / total * math.log((p[i] / total) / (q_share[i] / kept)) for i in inside if p[i]
    )


@pytest.mark.parametrize(
    "scheme",
    [
        QScheme(dtype=UINT2, symmetric=False),
        QScheme(dtype=INT4),
        QScheme(dtype=INT4, symmetric=False),
    ],
    ids=QScheme.describe,
)
def test_it_is_the_definition(scheme: QScheme) -> None:
    """For several ranges of two rows at once, with empty bins inside and outside."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 50, (2, 96), generator=generator)
    counts[:, ::7] = 0
    counts[1, -10:] = 0
    edges = (torch.arange(97.0).double()[None] - torch.tensor([[40.0], [48.0]])) * 0.3
    factors = torch.tensor([1.0, 0.8, 0.5, 0.33])[:, None].double()
    low, high = edges[:, 0] * factors, edges[:, -1] * factors
    found = divergence(counts, edges, low, high, scheme=scheme)
    for c in range(4):
        for r in range(2):
            ends = low[c, r].item(), high[c, r].item()
            wanted = by_loops(counts[r].tolist(), edges[r].tolist(), *ends, scheme)
            assert found[c, r].item() == pytest.approx(wanted, rel=1e-9)


def test_nothing_is_lost_where_every_bin_is_its_own_integer() -> None:
    """As many integers as bins, none outside: P equals Q."""
    counts = torch.tensor([[5, 1, 0, 7]])
    edges = torch.tensor([[-0.5, 0.5, 1.5, 2.5, 3.5]]).double()
    zero = torch.zeros(1, 1).double()
    found = divergence(counts, edges, zero, zero + 3, scheme=QScheme(dtype=UINT2, symmetric=False))
    assert found.item() == pytest.approx(0.0, abs=1e-12)


def after(x: Tensor, scheme: QScheme, **options: int) -> KlObserver:
    observer = KlObserver(scheme=scheme, **options)
    observer(x)
    return observer


def exponential(n: int = 50_000) -> Tensor:
    return -torch.log1p(-torch.linspace(0, 1 - 1 / n, n))


def test_the_answer_is_the_best_of_a_fine_grid() -> None:
    """The steps of the search do not miss the minimum."""
    x = exponential()
    observer = after(x, AFFINE, bins=4096, sample=100_000)
    seen = observer.tally().without_zeros()
    limits = torch.linspace(0.15, 1.0, 300).double()[:, None] * seen.ends[1]
    width = 2.0 ** seen.exponent.item()
    limits = torch.minimum(torch.ceil(limits / width) * width, seen.ends[1])
    edges, zeros = seen.edges(), torch.zeros_like(limits)
    grid = divergence(seen.counts, edges, zeros, limits, scheme=AFFINE)
    low, high = (end.double()[None] for end in observer.range())
    reached = divergence(seen.counts, edges, low, high, scheme=AFFINE).item()
    assert reached <= grid.min().item() * 1.01


def test_a_long_tail_is_clipped_and_an_even_spread_is_not() -> None:
    """The two ends of what entropy calibration is for."""
    x = exponential()
    assert after(x, SYMMETRIC).range()[1].item() < 0.95 * x.max().item()
    even = torch.linspace(0, 1, 50_000)
    assert after(even, AFFINE).range()[1].item() > 0.99
    far = torch.cat([torch.rand(50_000), torch.tensor([100.0])])
    assert after(far, AFFINE).range()[1].item() < 20.0


def test_both_ends_are_clipped_at_one_magnitude() -> None:
    """An end that is nearer than that stays."""
    x = torch.cat([exponential(), -0.1 * torch.rand(50_000)])
    low, high = (end.item() for end in after(x, AFFINE).range())
    assert low == pytest.approx(x.min().item(), rel=1e-6)
    assert high < 0.95 * x.max().item()


def test_zeros_do_not_count() -> None:
    """Half of a relu's output is exact in every range; it must not make the range narrow."""
    x = exponential() + 0.01
    alone = after(x, AFFINE, sample=10**6).range()[1]
    with_zeros = after(torch.cat([x, torch.zeros(len(x))]), AFFINE, sample=10**6).range()[1]
    assert torch.equal(alone, with_zeros)


def test_channels_are_searched_each_by_itself() -> None:
    """One row among others gets the answer that it would get alone."""
    x = exponential(5000)
    rows = torch.stack([x, -100 * x, torch.zeros_like(x)])
    scheme = QScheme(dtype=INT8, granularity=PerChannel(0))
    low, high = after(rows, scheme).range()
    alone = after(x, SYMMETRIC).range()[1]
    torch.testing.assert_close(high[0], alone[0])
    assert low[2] == high[2] == 0


def test_an_empty_row_keeps_its_range() -> None:
    """Nothing but zeros was counted."""
    counts, edges = torch.zeros(1, 16, dtype=torch.int64), torch.arange(17.0).double()[None]
    ends = torch.zeros(1).double(), torch.full((1,), 16.0).double()
    low, high = range_of_least_divergence(
        counts, edges, *ends, width=torch.ones(1).double(), scheme=QScheme(dtype=UINT2)
    )
    assert (low.item(), high.item()) == (0.0, 16.0)


def test_too_few_bins_for_the_dtype_are_refused() -> None:
    """What a step loses is seen only with several bins in it."""
    with pytest.raises(QuantizationError, match="bins=1024 for the 256 integers of int8; use at"):
        KlObserver(scheme=SYMMETRIC, bins=1024)
    with pytest.raises(QuantizationError, match="bins=2097152; use 16 to 1048576"):
        KlObserver(scheme=QScheme(dtype=INT16))
    assert KlObserver(scheme=SYMMETRIC).bins == 8192
    assert KlObserver(scheme=QScheme(dtype=INT4)).bins == 2048
