"""The observer that leaves a fixed share of the values outside of the range."""

from typing import Self

import torch
from torch import Tensor

from qcore import QScheme, QuantizationError

from .counting import CountingObserver

__all__ = ["PercentileObserver", "quantile_of_counts"]


def quantile_of_counts(counts: Tensor, edges: Tensor, share: float) -> Tensor:
    """The value below which ``share`` of a histogram lies.

    Values are taken as spread evenly over their bin.

    Args:
        counts: int64 ``[R, bins]``, at least one count a row.
        edges: float64 ``[R, bins + 1]``, ascending.
        share: 0 to 1.

    Returns:
        float64 ``[R]``.

    >>> edges = torch.tensor([[0.0, 1.0, 2.0]]).double()
    >>> quantile_of_counts(torch.tensor([[1, 3]]), edges, 0.5).item()
    1.3333333333333333
    """
    below = counts.cumsum(1)
    wanted = below[:, -1:].double() * share
    # The first bin in which the count is reached; an empty one can't be it, but for share 0.
    index = torch.searchsorted(below.double(), wanted).clamp(max=counts.shape[1] - 1)
    inside = counts.gather(1, index).double()
    before = below.gather(1, index).double() - inside
    part = ((wanted - before) / inside.clamp(min=1)).clamp(0, 1)
    start, end = edges.gather(1, index), edges.gather(1, index + 1)
    return (start + part * (end - start))[:, 0]


class PercentileObserver(CountingObserver):
    """Range that leaves out ``100 - percentile`` percent of the values at each end.

    For affine schemes the range is from the ``100 - percentile`` th to the ``percentile`` th
    percentile of the values; for symmetric ones it is the ``percentile`` th percentile of their
    magnitudes, to both sides. 100 is min-max.

    Bounded state, exact merge: see :class:`~qcore_observers.counting.CountingObserver`, which also
    explains the options ``bins`` and ``sample``. The result is within a bin of the exact percentile
    of the values counted.

    Args:
        scheme: what :meth:`calculate_qparams` answers for; per tensor or per channel.
        where: the place it observes, for error messages.
        percentile: above 50, at most 100.

    Raises:
        QuantizationError: ``percentile`` is out of range.

    References:
        Li et al., 2019, "Fully quantized network for object detection" (percentile clipping)
        <https://openaccess.thecvf.com/content_CVPR_2019/html/Li_Fully_Quantized_Network_for_Object_Detection_CVPR_2019_paper.html>

    >>> from qcore import UINT8
    >>> scheme = QScheme(dtype=UINT8, symmetric=False)
    >>> observer = PercentileObserver(scheme=scheme, percentile=99.0)
    >>> _ = observer(torch.arange(1000.0))
    >>> [round(end.item()) for end in observer.range()]
    [10, 990]
    """

    def __init__(
        self,
        *,
        scheme: QScheme,
        where: str = "",
        percentile: float = 99.99,
        bins: int = 2048,
        sample: int | None = 8192,
    ) -> None:
        super().__init__(scheme=scheme, where=where, bins=bins, sample=sample)
        if not 50 < percentile <= 100:
            raise QuantizationError(
                f"{self._place()}: percentile={percentile}; use a number above 50, at most 100"
            )
        self.percentile = percentile

    def combine(self, other: Self) -> None:
        if self.percentile != other.percentile:
            raise QuantizationError(
                f"{self._place()}: can't merge observers of percentile {self.percentile:g} and "
                f"{other.percentile:g}; give both the same percentile"
            )
        super().combine(other)

    def range(self) -> tuple[Tensor, Tensor]:
        seen = self.tally()
        if self.percentile == 100:
            # Not from the histogram, in which the extremes are known to a bin.
            return seen.min_val, seen.max_val
        share = self.percentile / 100
        # A bin may be a little wider than what it holds, so the result is cut at the extremes.
        if self.scheme.symmetric:
            seen = seen.magnitudes()
            limit = quantile_of_counts(seen.counts, seen.edges(), share).float()
            limit = torch.minimum(limit, seen.max_val)
            return -limit, limit
        edges = seen.edges()
        low, high = (quantile_of_counts(seen.counts, edges, s).float() for s in (1 - share, share))
        return (
            torch.clamp(low, seen.min_val, seen.max_val),
            torch.clamp(high, seen.min_val, seen.max_val),
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, percentile={self.percentile:g}"
