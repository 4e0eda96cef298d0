"""The statistic of the histogram observers: extremes, zeros and a histogram, which add up exactly.

A :class:`Tally` of a batch depends on that batch alone, and :func:`add` is exact, commutative and
associative. So the statistic of many batches depends neither on their order nor on how they were
shared out among observers.

A large batch need not be counted whole. What decides where to clip are its few largest values, each
of them, and the shape of the rest, for which a sample will do. :func:`tally` therefore samples a
row, takes from the sample where the outermost 0.1 percent begin at each end, finds every value of
the row that lies there, by way of the largest and smallest value of blocks of 16, and counts these
one by one. This takes about as long as finding the extremes twice, a tenth of the time for counting
all.
"""

from math import gcd

import attrs
import torch
from torch import Tensor

from .dyadic import bin_edges, bin_index, count, first_bin, fit_exponent, power_of_two, regrid

__all__ = ["Tally", "add", "sample_stride", "tally"]

_TAIL = 2.0**-10
"""Share of the sample beyond which values are counted one by one, at each end."""

_BLOCK = 16
"""Number of values that share one maximum when the tails are looked for."""

_NARROWEST = 2.0**-10
"""Least width of the outermost bins, in bins, after they are cut at the extremes."""


@attrs.frozen(kw_only=True, eq=False)
class Tally:
    """What was counted in each of ``R`` rows.

    Args:
        min_val, max_val: float32 ``[R]``, the extremes of all values.
        exponent: int64 ``[R]``, bins are ``2**exponent`` wide.
        counts: int64 ``[R, bins]``; the first bin is the one of the smaller of ``min_val`` and 0.
        zeros: int64 ``[R]``, how many of the counted values are exactly 0.
    """

    min_val: Tensor
    max_val: Tensor
    exponent: Tensor
    counts: Tensor
    zeros: Tensor

    @property
    def low(self) -> Tensor:
        """Smaller of ``min_val`` and 0, float64 ``[R]``."""
        return self.min_val.double().clamp(max=0.0)

    @property
    def high(self) -> Tensor:
        """Larger of ``max_val`` and 0, float64 ``[R]``."""
        return self.max_val.double().clamp(min=0.0)

    @property
    def first(self) -> Tensor:
        """Index of the first bin, counted from the one that starts at 0; int64 ``[R]``, at most
        0."""
        return first_bin(self.low, self.exponent)

    @property
    def bins(self) -> int:
        """Number of bins of a row."""
        return self.counts.shape[1]

    def edges(self) -> Tensor:
        """Ascending edges of the bins, the outermost cut at ``low`` and ``high``.

        Returns:
            float64 ``[R, bins + 1]``.
        """
        first = self.first
        edges = bin_edges(self.exponent, first, self.bins)
        narrowest = power_of_two(self.exponent) * _NARROWEST
        last = (first_bin(self.high, self.exponent) - first)[:, None]
        bottom = torch.minimum(self.low, edges[:, 1] - narrowest)
        top = torch.maximum(self.high, edges.gather(1, last)[:, 0] + narrowest)
        edges[:, 0] = bottom
        return edges.scatter_(1, last + 1, top[:, None])

    def without_zeros(self) -> "Tally":
        """The same without the values that are exactly 0."""
        counts = self.counts.scatter_add(1, -self.first[:, None], -self.zeros[:, None])
        return attrs.evolve(self, counts=counts, zeros=torch.zeros_like(self.zeros))

    def magnitudes(self) -> "Tally":
        """The tally of the absolute values."""
        index = self.first[:, None] + torch.arange(self.bins, device=self.counts.device)
        index = torch.where(index < 0, -1 - index, index)
        return attrs.evolve(
            self,
            min_val=torch.zeros_like(self.min_val),
            max_val=torch.maximum(-self.min_val, self.max_val).clamp(min=0.0),
            counts=torch.zeros_like(self.counts).scatter_add_(1, index, self.counts),
        )


def sample_stride(n: int, limit: int) -> int:
    """Distance between the sampled values, so that at most ``limit`` of ``n`` are.

    It has no divisor in common with ``n``, so none with a dimension of the tensor whose values
    these are: a plain ``n // limit`` of an image would see the same few columns in every row.

    >>> sample_stride(64 * 16 * 32 * 32, 16384), sample_stride(1000, 16384)
    (65, 1)
    """
    stride = max(1, -(-n // limit))
    while gcd(stride, n) != 1:
        stride += 1
    return stride


def tally(
    rows: Tensor, min_val: Tensor, max_val: Tensor, *, bins: int, sample: int | None
) -> Tally:
    """The tally of one batch; see the module's docstring for how a large one is sampled.

    Args:
        rows: float32 ``[R, n]``, finite.
        min_val, max_val: float32 ``[R]``, the extremes of ``rows``.
        bins: how many bins a row has.
        sample: a row of more values than this is sampled; None counts all.

    >>> x = torch.tensor([[0.0, 0.5, 0.5, 7.0]])
    >>> tally(x, x.amin(1), x.amax(1), bins=8, sample=None).counts
    tensor([[3, 0, 0, 0, 0, 0, 0, 1]])
    """
    low, high = min_val.double().clamp(max=0.0), max_val.double().clamp(min=0.0)
    exponent = fit_exponent(low, high, bins)
    first = first_bin(low, exponent)
    n = rows.shape[1]
    stride = 1 if sample is None else sample_stride(n, sample)
    # Contiguous, because it is read more than once.
    sampled = rows[:, ::stride].contiguous()
    counts = count(sampled, exponent, first, bins)
    zeros = (sampled == 0).sum(1)
    if stride > 1:
        bottom, top = _tail_bins(counts, first)
        index = torch.arange(bins, device=rows.device)
        counts = torch.where((index > bottom) & (index < top), counts * stride, 0)
        zeros = zeros * stride
        counts = counts + _count_tails(rows, exponent, first, bottom, top, bins)
    return Tally(min_val=min_val, max_val=max_val, exponent=exponent, counts=counts, zeros=zeros)


def _tail_bins(counts: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The last bin of the lower tail and the first of the upper one; int64 ``[R, 1]``.

    A tail has less than its share, however many values lie on one spot, and is never the bin of 0.
    """
    below = counts.cumsum(1)
    total = below[:, -1:]
    tail = (total * _TAIL).long()
    bottom = torch.searchsorted(below, tail, right=True) - 1
    top = torch.searchsorted(below, total - tail) + 1
    zero = -first[:, None]
    return torch.minimum(bottom, zero - 1), torch.maximum(top, zero + 1)


def _count_tails(
    rows: Tensor, exponent: Tensor, first: Tensor, bottom: Tensor, top: Tensor, bins: int
) -> Tensor:
    """Counts of all values in the bins up to ``bottom`` and from ``top``; int64 ``[R, bins]``."""
    n_rows, n = rows.shape
    whole = n // _BLOCK * _BLOCK
    # A block is spread out over its row, so that all blocks' maxima are found at vector speed.
    blocks = rows[:, :whole].reshape(n_rows, _BLOCK, -1)
    # Few bits times a power of two: the bounds are exact in float32.
    bounds = (torch.cat([bottom + 1, top], dim=1) + first[:, None]) * power_of_two(exponent)[:, None]
    bounds = bounds.float()
    hit = blocks.amax(1) >= bounds[:, 1:]
    if bool((bottom >= 0).any()):
        hit |= blocks.amin(1) < bounds[:, :1]
    row, column = hit.nonzero(as_tuple=True)
    index = bin_index(blocks[row, :, column], exponent[row, None], first[row, None])
    index += (row * bins)[:, None]
    counts = torch.bincount(index.flatten(), minlength=n_rows * bins).view(n_rows, bins)
    if whole < n:
        counts += count(rows[:, whole:], exponent, first, bins)
    position = torch.arange(bins, device=rows.device)
    return torch.where((position <= bottom) | (position >= top), counts, 0)


def add(a: Tally, b: Tally) -> Tally:
    """The tally of the values of both.

    Args:
        a, b: of equally many rows and bins.

    >>> one = torch.ones(1)
    >>> a, b = (tally(x * one[None], x * one, x * one, bins=4, sample=None) for x in (1, 6))
    >>> a.counts, add(a, b).counts
    (tensor([[0, 0, 1, 0]]), tensor([[1, 0, 0, 1]]))
    """
    min_val = torch.minimum(a.min_val, b.min_val)
    max_val = torch.maximum(a.max_val, b.max_val)
    if torch.equal(min_val, a.min_val) and torch.equal(max_val, a.max_val):
        exponent, first, counts = a.exponent, a.first, a.counts
    else:
        low, high = min_val.double().clamp(max=0.0), max_val.double().clamp(min=0.0)
        exponent = fit_exponent(low, high, a.bins)
        first = first_bin(low, exponent)
        counts = regrid(a.counts, a.exponent, a.first, exponent, first)
    return Tally(
        min_val=min_val,
        max_val=max_val,
        exponent=exponent,
        counts=counts + regrid(b.counts, b.exponent, b.first, exponent, first),
        zeros=a.zeros + b.zeros,
    )
