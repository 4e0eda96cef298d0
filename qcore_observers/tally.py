"""The statistic of the histogram observers: extremes, zeros and a histogram, which add up exactly.

The tally of a batch depends on that batch alone, and :func:`add` is exact, commutative and
associative. So the tally of many batches depends neither on their order nor on how they were shared
out among observers.
"""

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from .dyadic import bin_edges, bin_index, count, fit_bins, power_of_two, regrid

__all__ = ["Tally", "add", "split", "stack", "tally"]

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


def tally(rows: Tensor, min_val: Tensor, max_val: Tensor, *, bins: int) -> Tally:
    """The tally of all values of one batch.

    Args:
        rows: float32 ``[R, n]``, finite.
        min_val, max_val: float32 ``[R]``, the extremes of ``rows``.
        bins: how many bins a row has.

    >>> x = torch.tensor([[0.0, 0.5, 0.5, 7.0]])
    >>> tally(x, x.amin(1), x.amax(1), bins=8).counts
    tensor([[3, 0, 0, 0, 0, 0, 0, 1]])
    """
    exponent, first = fit_bins(min_val, max_val, bins)
    return Tally(
        min_val=min_val,
        max_val=max_val,
        exponent=exponent,
        first=first,
        counts=count(rows, exponent, first, bins),
        zeros=rows.shape[1] - rows.count_nonzero(dim=1),
    )


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


def stack(tallies: Sequence[Tally]) -> Tally:
    """The rows of several tallies of equally many bins, one after the other."""
    fields = [field.name for field in attrs.fields(Tally)]
    return Tally(**{name: torch.cat([getattr(t, name) for t in tallies]) for name in fields})


def split(tallies: Tally, rows: Sequence[int]) -> list[Tally]:
    """The tallies of so many rows each; what :func:`stack` puts together."""
    fields = [field.name for field in attrs.fields(Tally)]
    parts = zip(*(torch.split(getattr(tallies, name), list(rows)) for name in fields), strict=True)
    return [Tally(**dict(zip(fields, part, strict=True))) for part in parts]
