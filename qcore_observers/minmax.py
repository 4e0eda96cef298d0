"""The observer of the smallest and the largest value."""

from typing import Self

import torch
from torch import Tensor

from qcore import Observer, QScheme

__all__ = ["MinMaxObserver"]


class MinMaxObserver(Observer):
    """Smallest and largest value of everything seen; nothing is clipped.

    State: ``min_val`` and ``max_val``, float32 ``[R]``. The order of batches does not matter, and
    ``merge(a, b)`` equals having seen both, bit for bit. Every granularity.

    >>> from qcore import INT8_NARROW
    >>> observer = MinMaxObserver(scheme=QScheme(dtype=INT8_NARROW))
    >>> _ = observer(torch.tensor([-0.5, 0.25])), observer(torch.tensor([1.27]))
    >>> round(observer.calculate_qparams().scale.item(), 6)
    0.01
    """

    min_val: Tensor | None
    max_val: Tensor | None

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__(scheme=scheme, where=where)
        self.register_buffer("min_val", None)
        self.register_buffer("max_val", None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        self._include(min_val, max_val)

    def combine(self, other: Self) -> None:
        assert other.min_val is not None
        assert other.max_val is not None
        self._include(other.min_val, other.max_val)

    def _include(self, min_val: Tensor, max_val: Tensor) -> None:
        if self.min_val is not None and self.max_val is not None:
            min_val = torch.minimum(self.min_val, min_val)
            max_val = torch.maximum(self.max_val, max_val)
        self.min_val, self.max_val = min_val, max_val

    def range(self) -> tuple[Tensor, Tensor]:
        assert self.min_val is not None
        assert self.max_val is not None
        return self.min_val, self.max_val
