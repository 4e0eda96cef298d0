"""The base of the histogram observers: it keeps a tally of the values in buffers."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from qcore import Observer, PerChannel, PerTensor, QScheme, QuantizationError

from .excerpt import (
    Excerpt,
    as_blocks,
    extremes_of_blocks,
    stack_excerpts,
    take_excerpt,
    tally_of_excerpts,
)
from .tally import Tally, add, split, tally

__all__ = ["CountingObserver"]

_PENDING = 1 << 17
"""How many sampled values wait at most to be counted."""


class CountingObserver(Observer):
    """Base of the observers that judge a range by a histogram of the values.

    The state is the :class:`~qcore_observers.tally.Tally` of all batches: for each row the exact
    extremes, the number of zeros, and ``bins`` counts. It is bounded, does not depend on the order
    of the batches, and ``merge(a, b)`` equals having seen both, count for count.

    A batch with more than ``sample`` values a row is not counted whole, but by an excerpt: its
    extremes and tails in full, and a sample of the rest; see :mod:`qcore_observers.excerpt`.
    Excerpts wait to be counted together, until they have 2**17 sampled values.

    Args:
        scheme: what :meth:`calculate_qparams` answers for; per tensor or per channel.
        where: the place it observes, for error messages.
        bins: number of bins of a row, more than half of which are used.
        sample: how many values of a row are sampled in a batch; None counts all.

    Raises:
        QuantizationError: an option is out of range, or the granularity has too many rows for a
            histogram each.
    """

    min_val: Tensor | None
    max_val: Tensor | None
    exponent: Tensor | None
    first: Tensor | None
    counts: Tensor | None
    zeros: Tensor | None

    def __init__(
        self, *, scheme: QScheme, where: str = "", bins: int = 2048, sample: int | None = 8192
    ) -> None:
        super().__init__(scheme=scheme, where=where)
        if not 16 <= bins <= 2**20:
            raise QuantizationError(f"{self._place()}: bins={bins}; use 16 to {2**20}")
        if sample is not None and sample < 1:
            raise QuantizationError(
                f"{self._place()}: sample={sample}; use a positive number of values, or None "
                "for all"
            )
        self.bins = bins
        self.sample = sample
        self._blocks: tuple[Tensor, Tensor] | None = None
        self._pending: list[tuple[Excerpt, Tensor, Tensor]] = []
        self._require_granularity()
        for name in ("min_val", "max_val", "exponent", "first", "counts", "zeros"):
            self.register_buffer(name, None)

    def _require_granularity(self) -> None:
        if not isinstance(self.scheme.granularity, PerTensor | PerChannel):
            raise QuantizationError(
                f"{self._place()}: {self.scheme.describe()} has too many rows for {self.bins} bins "
                "each; use per_tensor or per_channel, or the observer minmax, ema or mse (which "
                f"must be reset before it has seen more than {self.bins} values of a row)"
            )

    @property
    def seen(self) -> bool:
        return super().seen or bool(self._pending)

    def extremes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        self._blocks = None
        if self.sample is None or rows.shape[1] <= self.sample:
            return super().extremes(rows)
        # One pass over the values finds their extremes and those of the blocks of an excerpt.
        self._blocks = low, high = extremes_of_blocks(as_blocks(rows))
        return low.amin(1), high.amax(1)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        blocks, self._blocks = self._blocks, None
        if self.sample is None or blocks is None:
            self._take(tally(rows, min_val, max_val, bins=self._bins))
            return
        excerpt = take_excerpt(rows, *blocks, min_val, max_val, limit=self.sample)
        if self._pending:
            last, low, high = self._pending[-1]
            if last.layout != excerpt.layout:
                self.settle()
            else:
                min_val, max_val = torch.minimum(low, min_val), torch.maximum(high, max_val)
        self._pending.append((excerpt, min_val, max_val))
        if len(self._pending) * excerpt.sample.numel() >= _PENDING:
            self.settle()

    @property
    def _bins(self) -> int:
        # A loaded state may have come from an observer with another option.
        return self.bins if self.counts is None else self.counts.shape[1]

    def settle(self) -> None:
        self.settle_together([self])

    @classmethod
    def settle_together(cls, observers: Sequence[Self]) -> None:
        alike: dict[tuple[int, tuple[object, ...]], list[Self]] = {}
        for observer in observers:
            if observer._pending:
                columns = tuple(excerpt.columns for excerpt, _, _ in observer._pending)
                alike.setdefault((observer._bins, columns), []).append(observer)
        for (bins, _), group in alike.items():
            excerpts = [
                stack_excerpts([excerpt for excerpt, _, _ in batch])
                for batch in zip(*(observer._pending for observer in group), strict=True)
            ]
            ends = zip(*(observer._pending[-1][1:] for observer in group), strict=True)
            found = tally_of_excerpts(excerpts, *map(torch.cat, ends), bins=bins)
            rows = [len(observer._pending[-1][1]) for observer in group]
            for observer, tally_ in zip(group, split(found, rows), strict=True):
                observer._pending = []
                observer._take(tally_)

    def combine(self, other: Self) -> None:
        self._take(other.tally())

    def _take(self, new: Tally) -> None:
        if self.counts is not None:
            if self.counts.shape != new.counts.shape:
                raise QuantizationError(
                    f"{self._place()}: can't add a histogram of {list(new.counts.shape)} bins to "
                    f"one of {list(self.counts.shape)}; give all observers the same option bins"
                )
            new = add(self._counted(), new)
        self.min_val, self.max_val = new.min_val, new.max_val
        self.exponent, self.first = new.exponent, new.first
        self.counts, self.zeros = new.counts, new.zeros

    def tally(self) -> Tally:
        """What was seen so far.

        Raises:
            QuantizationError: nothing was seen.
        """
        self.require_seen()
        self.settle()
        return self._counted()

    def _counted(self) -> Tally:
        assert self.min_val is not None
        assert self.max_val is not None
        assert self.exponent is not None
        assert self.first is not None
        assert self.counts is not None
        assert self.zeros is not None
        return Tally(
            min_val=self.min_val,
            max_val=self.max_val,
            exponent=self.exponent,
            first=self.first,
            counts=self.counts,
            zeros=self.zeros,
        )

    def reset(self) -> None:
        self._pending = []
        super().reset()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bins={self.bins}, sample={self.sample}"
