"""The observer that minimizes squared error over a histogram of the values."""

from torch import Tensor

from .counting import CountingObserver
from .range_search import range_of_counts

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
        # Zeros have the error 0 whatever the range is.
        seen = self.tally().without_zeros()
        return range_of_counts(seen.counts, seen.edges(), *seen.ends, scheme=self.scheme)
