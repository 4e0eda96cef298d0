"""The base of the histogram observers: it keeps a tally of the values in buffers."""

from typing import Self

from torch import Tensor

from qcore import Observer, PerChannel, PerTensor, QScheme, QuantizationError

from .tally import Tally, add, as_blocks, tally

__all__ = ["CountingObserver"]


class CountingObserver(Observer):
    """Base of the observers that judge a range by a histogram of the values.

    The state is the :class:`~qcore_observers.tally.Tally` of all batches: for each row the exact
    extremes, the number of zeros, and ``bins`` counts. It is bounded, does not depend on the order
    of the batches, and ``merge(a, b)`` equals having seen both, count for count.

    Of a batch with more than ``sample`` values a row, the extremes and the outermost 0.05 percent
    are always counted in full; the rest is sampled evenly, each value counting for those it stands
    for.

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
        self._block_extremes: tuple[Tensor, Tensor] | None = None
        self._require_granularity()
        for name in ("min_val", "max_val", "exponent", "first", "counts", "zeros"):
            self.register_buffer(name, None)

    def _require_granularity(self) -> None:
        if not isinstance(self.scheme.granularity, PerTensor | PerChannel):
            raise QuantizationError(
                f"{self._place()}: {self.scheme.describe()} has too many rows for {self.bins} bins "
                "each; use per_tensor or per_channel, or the observer minmax, ema or mse"
            )

    def extremes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.sample is None or rows.shape[1] <= self.sample:
            return super().extremes(rows)
        # Those of blocks tell where the tails are: one pass serves both.
        blocks = as_blocks(rows)
        self._block_extremes = low, high = blocks.amin(1), blocks.amax(1)
        return low.amin(1), high.amax(1)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        block_extremes, self._block_extremes = self._block_extremes, None
        new = tally(
            rows,
            min_val,
            max_val,
            bins=self.bins if self.counts is None else self.counts.shape[1],
            sample=self.sample,
            block_extremes=block_extremes,
        )
        self._take(new)

    def combine(self, other: Self) -> None:
        self._take(other.tally())

    def _take(self, new: Tally) -> None:
        if self.counts is not None:
            if self.counts.shape != new.counts.shape:
                raise QuantizationError(
                    f"{self._place()}: can't merge a histogram of {list(new.counts.shape)} bins "
                    f"into one of {list(self.counts.shape)}; give both observers the same bins"
                )
            new = add(self.tally(), new)
        self.min_val, self.max_val = new.min_val, new.max_val
        self.exponent, self.first = new.exponent, new.first
        self.counts, self.zeros = new.counts, new.zeros

    def tally(self) -> Tally:
        """What was counted so far.

        Raises:
            QuantizationError: nothing was seen.
        """
        self.require_seen()
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

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bins={self.bins}, sample={self.sample}"
