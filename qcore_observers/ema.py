"""The observer of the moving average of each batch's extremes."""

from typing import Self

import torch
from torch import Tensor

from qcore import Observer, QScheme, QuantizationError

__all__ = ["EmaObserver"]


class EmaObserver(Observer):
    """Exponential moving average of the smallest and the largest value of each batch.

    ``average = momentum * average + (1 - momentum) * batch``; the first batch is taken whole.

    The average depends on the order of the batches, so ``merge(a, b)`` must say which order it
    means: it equals an observer that has seen the batches of ``a`` and then those of ``b``. With
    ``f_b`` the first batch of ``b`` and ``n_b`` the number of its batches,

        average_ab = average_b + momentum**n_b * (average_a - f_b)

    exactly, because ``f_b``, which ``b`` took whole, weighs ``momentum**(n_b - 1)`` in
    ``average_b``. It is associative, so any number of observers may be merged in any grouping. To
    keep it true to rounding, averages are float64.

    State: ``average`` and ``first``, float64 ``[2, R]`` (smallest, largest), and ``batches``, int64
    ``[]``. Every granularity.

    Args:
        scheme: what :meth:`calculate_qparams` answers for.
        where: the place it observes, for error messages.
        momentum: weight of the past, at least 0 and below 1.

    Raises:
        QuantizationError: ``momentum`` is out of range.

    References:
        Jacob et al., 2018, section 3.1 <https://arxiv.org/abs/1712.05877>

    >>> from qcore import UINT8
    >>> observer = EmaObserver(scheme=QScheme(dtype=UINT8, symmetric=False))
    >>> for top in (1.0, 2.0):
    ...     _ = observer(torch.tensor([0.0, top]))
    >>> [round(end.item(), 6) for end in observer.range()]
    [0.0, 1.1]
    """

    average: Tensor | None
    first: Tensor | None
    batches: Tensor | None

    def __init__(self, *, scheme: QScheme, where: str = "", momentum: float = 0.9) -> None:
        super().__init__(scheme=scheme, where=where)
        if not 0 <= momentum < 1:
            raise QuantizationError(
                f"{self._place()}: momentum={momentum}; use at least 0 and less than 1"
            )
        self.momentum = momentum
        for name in ("average", "first", "batches"):
            self.register_buffer(name, None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        batch = torch.stack([min_val, max_val]).double()
        if self.average is None or self.batches is None:
            self.average = self.first = batch
            self.batches = torch.ones((), dtype=torch.int64, device=batch.device)
        else:
            self.average = self.momentum * self.average + (1 - self.momentum) * batch
            self.batches = self.batches + 1

    def combine(self, other: Self) -> None:
        if self.momentum != other.momentum:
            raise QuantizationError(
                f"{self._place()}: can't merge averages of momentum {self.momentum} and "
                f"{other.momentum}; give both observers the same momentum"
            )
        assert self.average is not None
        assert self.batches is not None
        assert other.average is not None
        assert other.first is not None
        assert other.batches is not None
        kept = self.momentum ** other.batches.double()
        self.average = other.average + kept * (self.average - other.first)
        self.batches = self.batches + other.batches

    def range(self) -> tuple[Tensor, Tensor]:
        assert self.average is not None
        low, high = self.average.float()
        return low, high

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, momentum={self.momentum}"
