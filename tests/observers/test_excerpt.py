"""Excerpts of large batches: a sample, and the tails in full."""

from math import gcd

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcore_observers.excerpt import as_blocks, sample_stride, take_excerpt, tally_of_excerpts
from qcore_observers.tally import Tally, tally


def estimate(*batches: Tensor, limit: int = 512, bins: int = 256) -> Tally:
    """The tally of batches from their excerpts."""
    excerpts = [
        take_excerpt(
            x, as_blocks(x).amin(1), as_blocks(x).amax(1), x.amin(1), x.amax(1), limit=limit
        )
        for x in batches
    ]
    together = torch.cat(batches, dim=1)
    return tally_of_excerpts(excerpts, together.amin(1), together.amax(1), bins=bins)


def exact(*batches: Tensor, bins: int = 256) -> Tally:
    x = torch.cat(batches, dim=1)
    return tally(x, x.amin(1), x.amax(1), bins=bins)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_the_stride_is_prime_to_the_size(n: int, limit: int) -> None:
    """So it visits every column of every dimension alike, and leaves no more than the limit."""
    stride = sample_stride(n, limit)
    assert gcd(stride, n) == 1
    assert -(-n // stride) <= limit
    assert stride == 1 or n > limit


def test_a_sample_of_images_visits_all_columns() -> None:
    """A stride of 16 would see two columns of 32 only."""
    images = torch.arange(32.0).expand(64, 16, 32, 32).reshape(1, -1)
    sample = images[0, :: sample_stride(images.numel(), 65536)]
    assert torch.bincount(sample.long()).float().std() < 2


@pytest.mark.parametrize("n", [1, 7, 64, 1000, 4099, 65536])
def test_blocks_hold_every_value_once(n: int) -> None:
    """Also of a row whose size has no small divisor."""
    rows = torch.arange(2.0 * n).reshape(2, n)
    blocks = as_blocks(rows)
    assert blocks.shape[1] <= 128
    assert torch.equal(blocks.flatten(1).sort(1).values, rows)


@pytest.mark.parametrize("n", [16384, 16380, 16381], ids=["power", "even", "prime"])
def test_the_tails_are_counted_in_full(n: int) -> None:
    """Beyond the 64th block from the end, at both ends, every count is exact."""
    x = normal(0, 2, n) ** 3
    estimated, wanted = estimate(x), exact(x)
    for row in range(2):
        extremes = as_blocks(x)[row].amax(0), as_blocks(x)[row].amin(0)
        high, low = extremes[0].topk(64).values[-1], extremes[1].topk(64, largest=False).values[-1]
        edges = wanted.edges()[row]
        tails = (edges[:-1] >= high) | (edges[1:] <= low)
        assert wanted.counts[row][tails].sum() > 20
        assert torch.equal(estimated.counts[row][tails], wanted.counts[row][tails])


def test_the_rest_is_estimated_without_bias() -> None:
    """The total is that of all values, and every large bin is near its count."""
    batches = [normal(i, 1, 2**16) for i in range(4)]
    estimated, wanted = estimate(*batches, limit=4096, bins=32), exact(*batches, bins=32)
    assert estimated.counts.sum() == pytest.approx(4 * 2**16, rel=0.02)
    large = wanted.counts > 2000
    ratio = estimated.counts[large] / wanted.counts[large]
    assert (ratio - 1).abs().max() < 0.15


def test_a_rare_channel_is_not_overlooked() -> None:
    """A few large values that no stride happens to hit are all there, extremes included."""
    x = normal(0, 1, 2**16)
    x[0, 5::4096] = 50.0
    estimated = estimate(x)
    assert estimated.max_val.item() == 50.0
    assert estimated.counts[0][estimated.edges()[0, 1:] > 40].sum().item() == 16


def test_values_piled_up_at_the_end_are_no_tail() -> None:
    """What relu6 clips to 6 is not gathered value by value, but sampled like the rest."""
    x = (normal(0, 1, 2**16) * 6).clamp(0, 6)
    estimated, wanted = estimate(x, limit=4096), exact(x)
    assert estimated.counts[0].argmax() == wanted.counts[0].argmax()
    share = estimated.counts[0].double() / wanted.counts[0].clamp(min=1)
    assert share[wanted.counts[0] > 2000].min() > 0.9
    assert share[wanted.counts[0] > 2000].max() < 1.1


def test_one_sided_values_have_one_tail() -> None:
    """After a relu nothing is kept of the side that has no values."""
    x = normal(0, 1, 2**14).relu()
    excerpt = take_excerpt(
        x, as_blocks(x).amin(1), as_blocks(x).amax(1), x.amin(1), x.amax(1), limit=512
    )
    assert excerpt.low.values is None
    assert excerpt.high.values is not None
    mirrored = take_excerpt(
        -x, as_blocks(-x).amin(1), as_blocks(-x).amax(1), -x.amax(1), -x.amin(1), limit=512
    )
    assert mirrored.high.values is None
    assert torch.equal(estimate(x, -x).counts.sum(), estimate(-x, x).counts.sum())


def test_zeros_are_estimated() -> None:
    """Half of a relu's output."""
    x = normal(0, 1, 2**16).relu()
    assert estimate(x, limit=4096).zeros.item() == pytest.approx(2**15, rel=0.1)


def test_counting_together_equals_counting_one_by_one() -> None:
    """Excerpts that wait give the counts that they would have given at once."""
    batches = [normal(i, 2, 4096) * (i + 1) for i in range(3)]
    together = estimate(*batches)
    x = torch.cat(batches, dim=1)
    ones = [
        tally_of_excerpts(
            [
                take_excerpt(
                    b, as_blocks(b).amin(1), as_blocks(b).amax(1), b.amin(1), b.amax(1), limit=512
                )
            ],
            x.amin(1),
            x.amax(1),
            bins=256,
        )
        for b in batches
    ]
    assert torch.equal(together.counts, sum(one.counts for one in ones))
    assert torch.equal(together.zeros, sum(one.zeros for one in ones))


def test_an_excerpt_is_a_copy() -> None:
    """The batch may be overwritten while it waits."""
    x = normal(0, 1, 4096)
    excerpt = take_excerpt(
        x, as_blocks(x).amin(1), as_blocks(x).amax(1), x.amin(1), x.amax(1), limit=512
    )
    sample, high = excerpt.sample.clone(), excerpt.high.values
    assert high is not None
    kept = high.clone()
    x.zero_()
    assert torch.equal(excerpt.sample, sample)
    assert torch.equal(high, kept)
