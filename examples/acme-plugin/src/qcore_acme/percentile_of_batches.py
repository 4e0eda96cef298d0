"""The observer of the average batch: the mean over the batches of each batch's percentile.

A percentile over all values of a calibration set is decided by the few images with the largest
ones. The mean of each batch's own percentile gives every batch the same say, and needs no
histogram: its state is one sum and one count.
"""

from typing import Self

import torch
from torch import Tensor

from qcore import Observer, QScheme, QuantizationError

__all__ = ["PercentileOfBatchesObserver", "percentile_range"]


def percentile_range(rows: Tensor, percentile: float, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each row, less the outermost ones.

    By nearest rank: of ``n`` values ``k = ceil(percentile / 100 * n)`` are kept at each end, so the
    bounds are values of the row. 100 keeps all.

    Args:
        rows: float32 ``[R, n]``.
        percentile: above 50, at most 100.
        symmetric: the range is ``-bound..bound``, with the percentile of the magnitudes.

    Returns:
        ``(low, high)``, each float32 ``[R]``.

    >>> rows = torch.arange(-3.0, 98.0).reshape(1, -1)
    >>> [bound.item() for bound in percentile_range(rows, 99.0, symmetric=False)]
    [-2.0, 96.0]
    >>> [bound.item() for bound in percentile_range(rows, 99.0, symmetric=True)]
    [-96.0, 96.0]
    """
    size = rows.shape[1]
    # As a whole number of thousandths, because 99.9 / 100 * 1000 is a little more than 999.
    rank = -(-round(percentile * 1000) * size // 100_000)
    if symmetric:
        bound = rows.abs().kthvalue(rank, dim=1).values
        return -bound, bound
    low = rows.kthvalue(size + 1 - rank, dim=1).values
    high = rows.kthvalue(rank, dim=1).values
    return low, high


class PercentileOfBatchesObserver(Observer):
    """Mean over the batches of :func:`percentile_range` of each batch.

    State: ``total``, float64 ``[2, R]``, the sums of the lower and of the upper bounds, and
    ``batches``, int64 ``[]``. Every granularity.

    The order of the batches does not matter, and ``merge(a, b)`` equals having seen both, bit for
    bit, as long as the float64 sums are exact. Those of up to 512 batches are where the bounds of a
    row that are not 0 lie within a factor of ``2**20`` of each other.

    Args:
        scheme: what :meth:`calculate_qparams` answers for.
        where: the place it observes, for error messages.
        percentile: above 50, at most 100, in steps of 0.001.

    Raises:
        QuantizationError: ``percentile`` is out of range.

    >>> from qcore import UINT8
    >>> observer = PercentileOfBatchesObserver(
    ...     scheme=QScheme(dtype=UINT8, symmetric=False), percentile=99.0
    ... )
    >>> _ = observer(torch.arange(101.0)), observer(3 * torch.arange(101.0))
    >>> [bound.item() for bound in observer.range()]  # the mean of 1..99 and 3..297
    [2.0, 198.0]
    """

    total: Tensor | None
    batches: Tensor | None

    def __init__(self, *, scheme: QScheme, where: str = "", percentile: float = 99.9) -> None:
        super().__init__(scheme=scheme, where=where)
        if not 50 < percentile <= 100:
            raise QuantizationError(
                f"layer {where!r}: acme_percentile_of_batches got percentile={percentile}; use a "
                "number above 50, at most 100"
            )
        self.percentile = percentile
        self.register_buffer("total", None)
        self.register_buffer("batches", None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        bounds = percentile_range(rows, self.percentile, symmetric=self.scheme.symmetric)
        self._add(torch.stack(bounds).double(), torch.ones((), dtype=torch.int64))

    def combine(self, other: Self) -> None:
        if self.percentile != other.percentile:
            raise QuantizationError(
                f"layer {self.where!r}: can't merge observers of percentile {self.percentile:g} "
                f"and {other.percentile:g}; give both the same percentile"
            )
        assert other.total is not None
        assert other.batches is not None
        self._add(other.total, other.batches)

    def _add(self, total: Tensor, batches: Tensor) -> None:
        if self.total is not None and self.batches is not None:
            total, batches = self.total + total, self.batches + batches
        self.total, self.batches = total, batches.to(total.device)

    def range(self) -> tuple[Tensor, Tensor]:
        assert self.total is not None
        assert self.batches is not None
        low, high = (self.total / self.batches).float()
        return low, high

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, percentile={self.percentile:g}"
