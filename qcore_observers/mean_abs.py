"""The observer of the mean magnitude: the first step of LSQ.

    step = 2 * mean|x| / sqrt(Q_P)

with ``Q_P`` the integers above the zero point (one less below it, where that is more).

References:
    Esser et al., 2020, Learned Step Size Quantization, section 2.1
    <https://arxiv.org/abs/1902.08153>
"""

from typing import Self

import torch
from torch import Tensor

from qcore import Observer, QScheme, choose_qparams

__all__ = ["MeanAbsObserver"]


class MeanAbsObserver(Observer):
    """Range of ``quant_max - quant_min`` steps of ``2 * mean|x| / sqrt(Q_P)``.

    A start for training, where the step then moves; without training it is a poor range. With an
    affine scheme the smallest and the largest value give the zero point.

    State: ``min_val``, ``max_val`` float32 ``[R]``, ``total`` float64 ``[R]`` (sum of magnitudes)
    and ``count`` int64 ``[]`` (values in a row). Every granularity.

    >>> from qcore import INT4
    >>> observer = MeanAbsObserver(scheme=QScheme(dtype=INT4))
    >>> _ = observer(torch.tensor([-1.0, 0.5, 1.5, 1.0]))
    >>> round(observer.calculate_qparams().scale.item() * 7**0.5, 6)
    2.0
    """

    min_val: Tensor | None
    max_val: Tensor | None
    total: Tensor | None
    count: Tensor | None

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__(scheme=scheme, where=where)
        for name in ("min_val", "max_val", "total", "count"):
            self.register_buffer(name, None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        total = torch.linalg.vector_norm(rows, 1, 1, dtype=torch.float64)
        count = torch.tensor(rows.shape[1], device=rows.device)
        self._include(min_val, max_val, total, count)

    def combine(self, other: Self) -> None:
        assert other.min_val is not None
        assert other.max_val is not None
        assert other.total is not None
        assert other.count is not None
        self._include(other.min_val, other.max_val, other.total, other.count)

    def _include(self, min_val: Tensor, max_val: Tensor, total: Tensor, count: Tensor) -> None:
        if self.total is not None:
            assert self.min_val is not None
            assert self.max_val is not None
            assert self.count is not None
            min_val = torch.minimum(self.min_val, min_val)
            max_val = torch.maximum(self.max_val, max_val)
            total, count = self.total + total, self.count + count
        self.min_val, self.max_val, self.total, self.count = min_val, max_val, total, count

    def range(self) -> tuple[Tensor, Tensor]:
        assert self.min_val is not None
        assert self.max_val is not None
        assert self.total is not None
        assert self.count is not None
        dtype = self.scheme.dtype
        extremes = choose_qparams(self.min_val, self.max_val, scheme=self.scheme)
        zero_point = extremes.zero_point.double()
        levels = torch.maximum(dtype.quant_max - zero_point, zero_point - dtype.quant_min - 1)
        step = 2 * self.total / self.count / levels.clamp(min=1).sqrt()
        if self.scheme.symmetric:
            high = step * ((dtype.quant_max - dtype.quant_min) / 2)
            low = -high
        else:
            low, high = step * (dtype.quant_min - zero_point), step * (dtype.quant_max - zero_point)
        largest = torch.finfo(torch.float32).max
        return low.clamp(min=-largest).float(), high.clamp(max=largest).float()
