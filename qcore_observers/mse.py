"""The observer that minimizes squared error over every value it has seen."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from qcore import QScheme

from .histogram import HistogramObserver
from .range_search import range_of_values

__all__ = ["MseObserver"]


class MseObserver(HistogramObserver):
    """Range with the least squared quantization error over all values; for weights.

    A row of at most ``bins`` values is kept as it is, and the range is the best one for exactly
    these values: so it is for the groups and most of the channels of a weight, where a histogram
    would take more memory than the values. A longer row, or more batches, become the histogram of
    :class:`~qcore_observers.histogram.HistogramObserver`, of which no value is left out. The state
    stays bounded by ``bins`` numbers a row and merges exactly in both forms.

    Every granularity; but rows that are neither the tensor nor a channel are too many to become
    histograms, so an observer of groups must be reset before it has seen ``bins`` values of each.

    Args:
        scheme: what :meth:`calculate_qparams` answers for.
        where: the place it observes, for error messages.
        bins: number of values a row that are kept, and of bins beyond.

    Raises:
        QuantizationError: ``bins`` is out of range; more than ``bins`` values of a group, a token
            or a block.

    >>> from qcore import INT2
    >>> observer = MseObserver(scheme=QScheme(dtype=INT2))
    >>> _ = observer(torch.tensor([-1.0, -0.5, 0.0, 0.5]))  # the integers -2, -1, 0 and 1
    >>> round(observer.calculate_qparams().scale.item(), 2)  # min-max: 0.67
    0.5
    """

    values: Tensor | None

    def __init__(self, *, scheme: QScheme, where: str = "", bins: int = 2048) -> None:
        super().__init__(scheme=scheme, where=where, bins=bins, sample=None)
        self.register_buffer("values", None)

    def _require_granularity(self) -> None:
        """Any will do as long as values are kept."""

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        if self.counts is None:
            if self.values is None:
                kept = rows
            else:
                # Sorted, so that neither the order of the batches nor of a merge matters.
                kept = torch.cat([self.values, rows], dim=1).sort(1).values
            if kept.shape[1] <= self.bins:
                self.values = kept.clone() if kept is rows else kept
                return
            super()._require_granularity()
            self._count_values()
        super().update(rows, min_val, max_val)

    def combine(self, other: Self) -> None:
        if other.values is not None:
            self.update(other.values, other.values.amin(1), other.values.amax(1))
            return
        self._count_values()
        super().combine(other)

    def _count_values(self) -> None:
        """From the values to their histogram."""
        if self.values is not None:
            values, self.values = self.values, None
            super().update(values, values.amin(1), values.amax(1))

    @classmethod
    def ranges(cls, observers: Sequence[Self]) -> Sequence[tuple[Tensor, Tensor]]:
        # Values are searched each by themselves.
        return [observer.range() for observer in observers]

    def range(self) -> tuple[Tensor, Tensor]:
        if self.values is not None:
            return range_of_values(self.values, scheme=self.scheme)
        return super().range()
