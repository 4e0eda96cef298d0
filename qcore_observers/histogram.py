"""The observer that minimizes squared error over a histogram of the values."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from .counting import CountingObserver
from .range_search import range_of_counts
from .tally import stack

__all__ = ["HistogramObserver"]


class HistogramObserver(CountingObserver):
    """Range with the least squared quantization error, searched once over a histogram.

    Clipping few large values costs them an error and spares the many others a coarser scale; the
    best range balances the two. Low and high end are searched together and each by itself, with the
    very scale and zero point that the range leads to. See :mod:`qcore_observers.range_search`.

    Bounded state, exact merge: see :class:`~qcore_observers.counting.CountingObserver`, which also
    explains the options ``bins`` and ``sample``.

    References:
        Banner et al., 2019, "Post training 4-bit quantization of convolutional networks for rapid
        deployment" (clipping by mean squared error) <https://arxiv.org/abs/1810.05723>

    >>> import torch
    >>> from qcore import QScheme, UINT2
    >>> observer = HistogramObserver(scheme=QScheme(dtype=UINT2, symmetric=False))
    >>> _ = observer(torch.cat([torch.linspace(0, 1, 1000), torch.tensor([3.0])]))
    >>> round(observer.calculate_qparams().scale.item(), 2)  # min-max: 1.0
    0.29
    """

    def range(self) -> tuple[Tensor, Tensor]:
        # Of this class: one derived from it may answer for several by asking each for its range.
        return HistogramObserver.ranges([self])[0]

    @classmethod
    def ranges(cls, observers: Sequence[Self]) -> Sequence[tuple[Tensor, Tensor]]:
        # Searched together: for one tensor the many small steps of the search take longer than
        # their arithmetic.
        tallies = [observer.tally() for observer in observers]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        layouts = {(t.bins, t.counts.device) for t in tallies}
        for layout in layouts:
            members = [i for i, t in enumerate(tallies) if (t.bins, t.counts.device) == layout]
            # Zeros have the error 0 whatever the range is.
            seen = stack([tallies[i] for i in members]).without_zeros()
            ends = range_of_counts(
                seen.counts, seen.edges(), *seen.ends, scheme=observers[0].scheme
            )
            rows = [len(tallies[i].counts) for i in members]
            parts = zip(*(torch.split(end, rows) for end in ends), strict=True)
            found.update(zip(members, parts, strict=True))
        return [found[i] for i in range(len(observers))]
