"""The statistic of the histogram observers: extremes, zeros and a histogram, which add up exactly.

A :class:`Tally` of a batch depends on that batch alone, and :func:`add` is exact, commutative and
associative. So the statistic of many batches depends neither on their order nor on how they were
shared out among observers.

A large batch need not be counted whole. What decides where to clip are its few largest values, each
of them, and the shape of the rest, for which a sample will do. :func:`tally` therefore samples a
row, takes from the sample where the outermost 0.05 percent begin at each end, finds every value of
the row that lies there, by way of the largest and smallest value of blocks of 32, and counts these
one by one. This takes about as long as finding the extremes twice, a tenth of the time for counting
all.
"""

from math import gcd

import attrs
import torch
from torch import Tensor

from .dyadic import bin_edges, bin_index, count, fit_bins, power_of_two, regrid

__all__ = ["Tally", "add", "as_blocks", "sample_stride", "tally"]

_TAIL = 2.0**-11
"""Share of the sample beyond which values are counted one by one, at each end."""

_BLOCK = 32
"""Number of values that share one maximum when the tails are looked for."""

_NARROWEST = 2.0**-10
"""Least width of the outermost bins, in bins, after they are cut at the extremes."""


@attrs.frozen(kw_only=True, eq=False)
class Tally:
    """What was counted in each of ``R`` rows.

    Args:
        min_val, max_val: float32 ``[R]``, the extremes of all values.
        exponent: int64 ``[R]``, bins are ``2**exponent`` wide.
        first: int64 ``[R]``, at most 0; index of the first bin, which holds the smaller of
            ``min_val`` and 0, counted from the bin that starts at 0.
        counts: int64 ``[R, bins]``.
        zeros: int64 ``[R]``, how many of the counted values are exactly 0.
    """

    min_val: Tensor
    max_val: Tensor
    exponent: Tensor
    first: Tensor
    counts: Tensor
    zeros: Tensor

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Smaller of ``min_val`` and 0 and larger of ``max_val`` and 0, float64 ``[R]``."""
        return self.min_val.double().clamp(max=0.0), self.max_val.double().clamp(min=0.0)

    @property
    def bins(self) -> int:
        """Number of bins of a row."""
        return self.counts.shape[1]

    def edges(self) -> Tensor:
        """Ascending edges of the bins, the outermost cut at the ends.

        Returns:
            float64 ``[R, bins + 1]``.
        """
        low, high = self.ends
        edges = bin_edges(self.exponent, self.first, self.bins)
        narrowest = power_of_two(self.exponent) * _NARROWEST
        last = bin_index(high, self.exponent, self.first)[:, None]
        bottom = torch.minimum(low, edges[:, 1] - narrowest)
        top = torch.maximum(high, edges.gather(1, last)[:, 0] + narrowest)
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
            first=torch.zeros_like(self.first),
            counts=torch.zeros_like(self.counts).scatter_add_(1, index, self.counts),
        )


def sample_stride(n: int, limit: int) -> int:
    """Distance between the sampled values, so that at most ``limit`` of ``n`` are.

    It has no divisor in common with ``n``, so none with a dimension of the tensor whose values
    these are: a plain ``n // limit`` of an image would see the same few columns in every row.

    >>> sample_stride(64 * 16 * 32 * 32, 8192), sample_stride(1000, 8192)
    (129, 1)
    """
    stride = max(1, -(-n // limit))
    while gcd(stride, n) != 1:
        stride += 1
    return stride


def as_blocks(rows: Tensor) -> Tensor:
    """Each row cut into blocks of up to 32 values: ``[R, n]`` as ``[R, size, n / size]``.

    A block is spread out over its row, so that the extremes of all blocks, over dimension 1, are
    found at vector speed.
    """
    n_rows, n = rows.shape
    size = next(size for size in range(_BLOCK, 0, -1) if n % size == 0)
    return rows.reshape(n_rows, size, n // size)


def tally(
    rows: Tensor,
    min_val: Tensor,
    max_val: Tensor,
    *,
    bins: int,
    sample: int | None = None,
    block_extremes: tuple[Tensor, Tensor] | None = None,
) -> Tally:
    """The tally of one batch; see the module's docstring for how a large one is sampled.

    Args:
        rows: float32 ``[R, n]``, finite.
        min_val, max_val: float32 ``[R]``, the extremes of ``rows``.
        bins: how many bins a row has.
        sample: a row of more values than this is sampled; None counts all.
        block_extremes: smallest and largest value of each of the row's :func:`as_blocks`, if known.

    >>> x = torch.tensor([[0.0, 0.5, 0.5, 7.0]])
    >>> tally(x, x.amin(1), x.amax(1), bins=8).counts
    tensor([[3, 0, 0, 0, 0, 0, 0, 1]])
    """
    exponent, first = fit_bins(min_val, max_val, bins)
    stride = 1 if sample is None else sample_stride(rows.shape[1], sample)
    sampled = rows[:, ::stride].contiguous()
    counts = count(sampled, exponent, first, bins)
    zeros = sampled.shape[1] - sampled.count_nonzero(dim=1)
    if stride > 1:
        counts, zeros = counts * stride, zeros * stride
        blocks = as_blocks(rows)
        if block_extremes is None:
            block_extremes = blocks.amin(1), blocks.amax(1)
        for largest in (False, True):
            # Without negative values the range begins at 0, and nothing is clipped below.
            if largest or bool((min_val < 0).any()):
                extremes = block_extremes[largest]
                _count_tail(
                    counts, exponent, first, sampled, stride, blocks, extremes, largest=largest
                )
    return Tally(
        min_val=min_val,
        max_val=max_val,
        exponent=exponent,
        first=first,
        counts=counts,
        zeros=zeros,
    )


def _count_tail(
    counts: Tensor,
    exponent: Tensor,
    first: Tensor,
    sampled: Tensor,
    stride: int,
    blocks: Tensor,
    extremes: Tensor,
    *,
    largest: bool,
) -> None:
    """Replaces what the sample says of one tail by what there is; changes ``counts``.

    The tail is what lies beyond the last of the sample's outermost values, on the far side of 0: at
    most its share of the sample, however many values lie on one spot.
    """
    outermost = max(1, round(sampled.shape[1] * _TAIL))
    found = sampled.topk(outermost, dim=1, largest=largest).values
    bound = found[:, -1:].clamp(min=0.0) if largest else found[:, -1:].clamp(max=0.0)
    beyond = torch.gt if largest else torch.lt
    row, column = beyond(extremes, bound).nonzero(as_tuple=True)
    if not len(row):
        return
    values = blocks[row, :, column]
    row = row[:, None]
    n_rows, bins = counts.shape
    index = bin_index(values, exponent[row], first[row]) + row * bins
    # What is in such a block but not in the tail goes to a bin of its own.
    index = torch.where(beyond(values, bound[:, 0][row]), index, n_rows * bins)
    counts += torch.bincount(index.flatten(), minlength=n_rows * bins + 1)[:-1].view_as(counts)
    index = bin_index(found, exponent[:, None], first[:, None])
    counts.scatter_add_(1, index, beyond(found, bound).to(torch.int64).mul_(-stride))


def add(a: Tally, b: Tally) -> Tally:
    """The tally of the values of both.

    Args:
        a, b: of equally many rows and bins.

    >>> one = torch.ones(1)
    >>> a, b = (tally(x * one[None], x * one, x * one, bins=4) for x in (1, 6))
    >>> a.counts, add(a, b).counts
    (tensor([[0, 0, 1, 0]]), tensor([[1, 0, 0, 1]]))
    """
    min_val = torch.minimum(a.min_val, b.min_val)
    max_val = torch.maximum(a.max_val, b.max_val)
    if torch.equal(min_val, a.min_val) and torch.equal(max_val, a.max_val):
        exponent, first = a.exponent, a.first
    else:
        exponent, first = fit_bins(min_val, max_val, a.bins)
    counts = [regrid(part.counts, part.exponent, part.first, exponent, first) for part in (a, b)]
    return Tally(
        min_val=min_val,
        max_val=max_val,
        exponent=exponent,
        first=first,
        counts=counts[0] + counts[1],
        zeros=a.zeros + b.zeros,
    )
