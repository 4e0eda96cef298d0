"""The observer that observes nothing and answers with the qparams it was given."""

from typing import Self

import torch
from torch import Tensor

from qcore import Observer, QParams, QScheme, QuantizationError

__all__ = ["PassiveObserver"]


class PassiveObserver(Observer):
    """Qparams from outside: from another tool, a paper, or an edge whose range is known.

    What passes through it is neither looked at nor checked. Until :meth:`set_qparams` was called it
    counts as an observer that has seen nothing. Two that were merged must agree.

    :meth:`reset` keeps the qparams.

    State: ``scale`` and ``zero_point``, shaped by the scheme's granularity. Every granularity.

    >>> from qcore import UINT8
    >>> scheme = QScheme(dtype=UINT8, symmetric=False)
    >>> observer = PassiveObserver(scheme=scheme)
    >>> observer.seen
    False
    >>> observer.set_qparams(QParams(
    ...     scale=torch.tensor(0.5), zero_point=torch.tensor(3, dtype=torch.int32), scheme=scheme))
    >>> observer.calculate_qparams().scale
    tensor(0.5000)
    """

    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__(scheme=scheme, where=where)
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)

    def set_qparams(self, qparams: QParams) -> None:
        """What to answer from now on.

        Raises:
            QuantizationError: they are of another scheme.
        """
        if qparams.scheme != self.scheme:
            raise QuantizationError(
                f"{self._place()}: qparams of {qparams.scheme.describe()} given to an observer of "
                f"{self.scheme.describe()}"
            )
        self.scale = qparams.scale.detach().clone()
        self.zero_point = qparams.zero_point.detach().clone()
        self.scale_shape = self.scale.shape

    def forward(self, x: Tensor) -> Tensor:
        return x

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        """Nothing: values don't matter here."""

    def combine(self, other: Self) -> None:
        mine, others = self.calculate_qparams(), other.calculate_qparams()
        if not (
            torch.equal(mine.scale, others.scale)
            and torch.equal(mine.zero_point, others.zero_point)
        ):
            raise QuantizationError(
                f"{self._place()}: can't merge two observers that were given different qparams; "
                "give both the same"
            )

    def calculate_qparams(self) -> QParams:
        self.require_seen()
        assert self.scale is not None
        assert self.zero_point is not None
        return QParams(scale=self.scale, zero_point=self.zero_point, scheme=self.scheme)

    def reset(self) -> None:
        """Nothing: qparams were given, not seen, and stay."""

    def require_seen(self) -> None:
        if not self.seen:
            raise QuantizationError(
                f"{self._place()}: no qparams were given; call set_qparams, or use an observer "
                "that finds them from data"
            )
