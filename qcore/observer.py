"""The contract of observers: they see values, keep bounded statistics, and answer with qparams.

An observer author writes three methods on tensors of shape ``[R, n]``, where a row holds the values
that share a scale: :meth:`Observer.update`, :meth:`Observer.combine` and :meth:`Observer.range` (or
:meth:`Observer.calculate_qparams` where the answer is not a range). The base class brings every
granularity, dtype and memory format into that shape, refuses NaN and Inf, and skips empty batches.
"""

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from ._state import LateBuffers
from .config import QScheme
from .errors import QuantizationError
from .granularity import PerChannel, PerTensor
from .qparams import QParams, choose_qparams
from .ranks import gather_tensors, world_size

__all__ = ["Observer", "as_rows", "calculate_together"]


def as_rows(x: Tensor, scheme: QScheme) -> Tensor:
    """``x`` as float32 ``[R, n]``: one row for each scale of the scheme, in the scale's order.

    The order within a row is not defined: it follows the memory where that spares a copy.

    >>> from qcore import INT8, PerGroup
    >>> as_rows(torch.zeros(4, 6), QScheme(dtype=INT8, granularity=PerGroup(3))).shape
    torch.Size([8, 3])
    """
    x = x.detach().to(torch.float32)
    granularity = scheme.granularity
    if isinstance(granularity, PerTensor):
        # In the order of the memory, a dense tensor of any memory format is a view of one row.
        order = sorted(range(x.ndim), key=x.stride, reverse=True)
        return x.permute(order).reshape(1, -1)
    if isinstance(granularity, PerChannel):
        axis = granularity.axis(x.ndim)
        return x.movedim(axis, 0).reshape(x.shape[axis], -1)
    block = granularity.block_shape(x.shape)
    split = [size for n, b in zip(x.shape, block, strict=True) for size in (n // b, b)]
    outer, inner = range(0, 2 * x.ndim, 2), range(1, 2 * x.ndim, 2)
    blocks = x.reshape(split).permute(*outer, *inner)
    return blocks.reshape(-1, torch.Size(block).numel())


class Observer(LateBuffers):
    """Base of all observers.

    Args:
        scheme: what :meth:`calculate_qparams` answers for.
        where: the place it observes, for error messages.

    Statistics are buffers registered as None, with bounded size. Calling the observer returns its
    input unchanged.

    Attributes:
        synchronized: each batch is taken in together with those that the other processes observe at
            the same time; see :func:`qcore.synchronize_observers`.
    """

    scale_shape: torch.Size | None

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__()
        self.scheme = scheme
        self.where = where
        self.scale_shape = None
        self.synchronized = False

    # What an author writes.

    @abstractmethod
    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        """Takes one batch into the statistics.

        Args:
            rows: float32 ``[R, n]`` with ``n > 0``, finite. May be a view of the observed tensor,
                so whoever keeps values copies them. The order within a row is not defined.
            min_val, max_val: float32 ``[R]``, the extremes of each row.
        """

    @abstractmethod
    def combine(self, other: Self) -> None:
        """Takes the statistics of ``other`` into this observer's; both have seen values."""

    def extremes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each row, NaN where it holds one; two float32 ``[R]``.

        Called before every :meth:`update`. An observer that wants more of the same pass over the
        values may override it.
        """
        if rows.shape[0] == 1:
            low, high = torch.aminmax(rows.reshape(-1))
            return low.reshape(1), high.reshape(1)
        # torch.aminmax(rows, dim=1) takes five times as long: it is not vectorized.
        return rows.amin(1), rows.amax(1)

    def range(self) -> tuple[Tensor, Tensor]:
        """Range ``(min_val, max_val)`` to be represented, each float32 ``[R]``."""
        raise NotImplementedError

    @classmethod
    def ranges(cls, observers: Sequence[Self]) -> Sequence[tuple[Tensor, Tensor]]:
        """:meth:`range` of several observers of one scheme that have seen values.

        By default one by one; overridden where it is faster together.
        """
        return [observer.range() for observer in observers]

    def settle(self) -> None:
        """Completes the statistics.

        An observer may put off part of :meth:`update`, to do it for several batches at once; it
        does that part here. Called before the buffers are read, saved, loaded, merged or moved.
        """

    @classmethod
    def settle_together(cls, observers: Sequence[Self]) -> None:
        """:meth:`settle` of several observers; overridden where it is faster together."""
        for observer in observers:
            observer.settle()

    # What the base class does with it.

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Observes ``x`` and returns it.

        Raises:
            QuantizationError: NaN or Inf in ``x``, or beyond float32; another shape of the scale
                than before.
        """
        if x.numel() == 0:
            return x
        rows = as_rows(x, self.scheme)
        low, high = self.extremes(rows)
        if not _finite(low, high):
            raise QuantizationError(
                f"{self._place()}: {_count_bad(rows)} of {rows.numel()} values are NaN or Inf "
                "(or beyond float32); a range can't be found. Look for the first layer that makes "
                "them, or clean the data"
            )
        shape = torch.Size(self.scheme.granularity.scale_shape(x.shape))
        if self.scale_shape is None:
            self.scale_shape = shape
        elif shape != self.scale_shape:
            raise QuantizationError(
                f"{self._place()}: a tensor of shape {list(x.shape)} has scales of shape "
                f"{list(shape)}, but they were {list(self.scale_shape)} before; "
                f"{self.scheme.describe()} needs the same each time"
            )
        if self.synchronized and world_size() > 1:
            self._update_together(rows, low, high)
        else:
            self.update(rows, low, high)
        return x

    def _update_together(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Takes in the batch of every process, in the order of the ranks."""
        share = copy.deepcopy(self)
        share.reset()
        share.scale_shape = self.scale_shape
        share.update(rows, low, high)
        self.settle()
        for state in gather_tensors(share.state_dict()):
            other = copy.deepcopy(share)
            other.load_state_dict(state)
            if self.seen:
                self.combine(other)
            else:
                self.load_state_dict(other.state_dict())
                self.to(rows.device)

    @property
    def seen(self) -> bool:
        """Whether any value was observed."""
        return any(buffer is not None for buffer in self._buffers.values())

    @torch.no_grad()
    def calculate_qparams(self) -> QParams:
        """Scale and zero point for what was seen, shaped by the scheme's granularity.

        Raises:
            QuantizationError: nothing was seen.
        """
        self.require_seen()
        self.settle()
        low, high = self.range()
        return choose_qparams(self.shaped(low), self.shaped(high), scheme=self.scheme)

    def merge(self, other: Self) -> Self:
        """A new observer that equals one that has seen what both have seen.

        Raises:
            QuantizationError: the two differ in kind, scheme or shape of the scale.
        """
        if type(self) is not type(other) or self.scheme != other.scheme:
            raise QuantizationError(
                f"{self._place()}: can't merge {type(other).__name__} "
                f"({other.scheme.describe()}) into {type(self).__name__} "
                f"({self.scheme.describe()}); both must be of one kind and scheme"
            )
        self.settle()
        other.settle()
        if not other.seen:
            return copy.deepcopy(self)
        if not self.seen:
            merged = copy.deepcopy(other)
            merged.where = self.where
            return merged
        if self.scale_shape != other.scale_shape:
            raise QuantizationError(
                f"{self._place()}: can't merge scales of shape {list(other.scale_shape or ())} "
                f"into {list(self.scale_shape or ())}; both must have seen tensors of one layout"
            )
        merged = copy.deepcopy(self)
        with torch.no_grad():
            merged.combine(copy.deepcopy(other).to(next(self.buffers()).device))
        return merged

    def reset(self) -> None:
        """Forgets everything seen."""
        self.scale_shape = None
        for name in self._buffers:
            self._buffers[name] = None

    def require_seen(self) -> None:
        """Raises QuantizationError that names the layer if nothing was seen."""
        if not self.seen:
            raise QuantizationError(
                f"{self._place()}: the observer has seen no values, so there is no scale; run "
                "qcore.calibrate with data that reaches this layer, or leave the layer in float"
            )

    def shaped(self, rows: Tensor) -> Tensor:
        """A result ``[R]`` in the shape of the scale."""
        return rows.reshape(self.scale_shape if self.scale_shape is not None else rows.shape)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.settle()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.settle()
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> Tensor:
        """Shape of the scale; part of ``state_dict`` as int64 ``[ndim]``, or ``[-1]`` if unseen."""
        return torch.tensor([-1] if self.scale_shape is None else list(self.scale_shape)).long()

    def set_extra_state(self, state: Tensor) -> None:
        """Counterpart of :meth:`get_extra_state`."""
        sizes = state.tolist()
        self.scale_shape = None if sizes == [-1] else torch.Size(sizes)

    def extra_repr(self) -> str:
        return self.scheme.describe()

    def _place(self) -> str:
        where = f"{self.where!r}" if self.where else "(unnamed)"
        return f"layer {where}, {type(self).__name__}"


@torch.no_grad()
def calculate_together(observers: Sequence[Observer]) -> list[QParams]:
    """What :meth:`Observer.calculate_qparams` gives for each, with :meth:`Observer.ranges`.

    Args:
        observers: of any kinds.

    Raises:
        QuantizationError: one of them has seen nothing.
    """
    answers: dict[int, QParams] = {}
    groups: dict[tuple[type[Observer], QScheme], list[Observer]] = {}
    for observer in observers:
        if type(observer).calculate_qparams is not Observer.calculate_qparams:
            answers[id(observer)] = observer.calculate_qparams()
            continue
        observer.require_seen()
        groups.setdefault((type(observer), observer.scheme), []).append(observer)
    for (cls, scheme), group in groups.items():
        cls.settle_together(group)
        lows, highs = zip(*cls.ranges(group), strict=True)
        # All at once: each alone would be some thirty operations on a few numbers.
        found = choose_qparams(torch.cat(lows), torch.cat(highs), scheme=scheme)
        rows = [len(low) for low in lows]
        parts = zip(
            torch.split(found.scale, rows), torch.split(found.zero_point, rows), strict=True
        )
        for observer, (scale, zero_point) in zip(group, parts, strict=True):
            answers[id(observer)] = QParams.unchecked(
                scale=observer.shaped(scale), zero_point=observer.shaped(zero_point), scheme=scheme
            )
    return [answers[id(observer)] for observer in observers]


def _finite(low: Tensor, high: Tensor) -> bool:
    if low.numel() == 1 and not low.is_cuda:
        # A tenth of the time of tensors.
        return math.isfinite(low.item()) and math.isfinite(high.item())
    # A number less itself is 0, but for NaN and infinities.
    return bool(((low - low) + (high - high) == 0).all())


def _count_bad(rows: Tensor) -> int:
    return int((~torch.isfinite(rows)).sum())
