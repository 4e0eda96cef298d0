"""What is kept of a large batch in order to tally it: a sample, and the tails in full.

What decides where a range is best clipped are the few largest values, each of them, and the shape
of the rest, for which a sample will do. An excerpt has both: every ``stride``-th value of a row,
and, for each end, the blocks of values with the 64 outermost extremes. Each value beyond the last
of these extremes lies in one of these blocks, so that tail is counted value by value, and the
sample stands for the rest.

Taking an excerpt reads the batch twice, for the smallest and the largest value of each block, which
are needed anyway for the extremes of the batch. That is a tenth of the time for counting it.
"""

from collections.abc import Sequence
from math import gcd

import attrs
import torch
from torch import Tensor

from .compiled import kernel, worthwhile
from .dyadic import count, fit_bins
from .tally import Tally

__all__ = [
    "Excerpt",
    "Tail",
    "as_blocks",
    "extremes_of_blocks",
    "sample_stride",
    "stack_excerpts",
    "take_excerpt",
    "tally_of_excerpts",
]

_BLOCK = 128
"""Largest number of values in a block."""

_AT_ONCE = 1 << 18
"""How many values are searched for their extremes at a time."""

_OUTERMOST = 64
"""How many blocks are kept at each end of a row."""


@attrs.frozen(kw_only=True, eq=False)
class Tail:
    """One end of a batch of ``R`` rows.

    Args:
        values: float32 ``[R, k]``, every value of the tail and others; None if the tail is empty.
        bound: float32 ``[R, 1]``; the tail is what lies beyond it, on the far side of 0.
    """

    values: Tensor | None
    bound: Tensor


@attrs.frozen(kw_only=True, eq=False)
class Excerpt:
    """The excerpt of one batch of ``R`` rows.

    Args:
        stride: how many values each sampled one stands for.
        sample: float32 ``[R, m]``.
        low, high: the two ends.
    """

    stride: int
    sample: Tensor
    low: Tail
    high: Tail

    @property
    def layout(self) -> tuple[int, ...]:
        """Excerpts that agree in it can be counted together."""
        return (self.stride, *self.sample.shape)

    @property
    def columns(self) -> tuple[int | None, ...]:
        """Excerpts that agree in it can be stacked."""
        tails = [None if t.values is None else t.values.shape[1] for t in (self.low, self.high)]
        return (self.stride, self.sample.shape[1], *tails)


def sample_stride(n: int, limit: int) -> int:
    """Distance between the sampled values, so that at most ``limit`` of ``n`` are.

    It has no divisor in common with ``n``, so none with a dimension of the tensor whose values
    these are: a plain ``n // limit`` of an image would see the same few columns in every row.

    >>> sample_stride(64 * 16 * 32 * 32, 8192), sample_stride(1000, 8192)
    (129, 1)
    """
    stride = max(1, -(-n // limit))
    while gcd(stride, n) != 1:
        stride += 1
    return stride


def as_blocks(rows: Tensor) -> Tensor:
    """Each row cut into blocks of up to 128 values: ``[R, n]`` as ``[R, size, n / size]``.

    A block is spread out over its row, so that the extremes of all blocks, over dimension 1, are
    found at vector speed.
    """
    n_rows, n = rows.shape
    size = next(size for size in range(_BLOCK, 0, -1) if n % size == 0)
    return rows.reshape(n_rows, size, n // size)


def extremes_of_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each block; ``[R, size, blocks]`` to two ``[R, blocks]``.

    In operations of torch it goes by pieces that fit a core's cache, so that the second of the two
    passes finds the values there.
    """
    if worthwhile(blocks) and (compiled := kernel()) is not None:
        return compiled.extremes(blocks)
    step = max(1, _AT_ONCE * blocks.shape[1] // blocks.numel())
    parts = torch.split(blocks, step, dim=1)
    low, high = parts[0].amin(1), parts[0].amax(1)
    for part in parts[1:]:
        torch.minimum(low, part.amin(1), out=low)
        torch.maximum(high, part.amax(1), out=high)
    return low, high


def take_excerpt(
    rows: Tensor, low: Tensor, high: Tensor, min_val: Tensor, max_val: Tensor, *, limit: int
) -> Excerpt:
    """The excerpt of one batch.

    Args:
        rows: float32 ``[R, n]``, finite.
        low, high: float32 ``[R, n / size]``, extremes of each of the row's :func:`as_blocks`.
        min_val, max_val: float32 ``[R]``, extremes of each row.
        limit: how many values of a row are sampled at most.
    """
    stride = sample_stride(rows.shape[1], limit)
    blocks = as_blocks(rows)
    return Excerpt(
        stride=stride,
        sample=rows[:, ::stride].clone(memory_format=torch.contiguous_format),
        low=_tail(blocks, low, min_val, largest=False),
        high=_tail(blocks, high, max_val, largest=True),
    )


def _tail(blocks: Tensor, extremes: Tensor, ends: Tensor, *, largest: bool) -> Tail:
    outermost = min(_OUTERMOST, extremes.shape[1])
    # Zero is in no tail: it is exact however the range is clipped.
    if not bool((ends > 0 if largest else ends < 0).any()):
        return Tail(values=None, bound=torch.zeros_like(ends)[:, None])
    found, index = extremes.topk(outermost, dim=1, largest=largest)
    bound = found[:, -1:].clamp(min=0.0) if largest else found[:, -1:].clamp(max=0.0)
    index = index[:, None, :].expand(-1, blocks.shape[1], -1)
    return Tail(values=blocks.gather(2, index).flatten(1), bound=bound)


def stack_excerpts(excerpts: Sequence[Excerpt]) -> Excerpt:
    """The rows of several excerpts of the same columns, one after the other."""

    def tail(tails: Sequence[Tail]) -> Tail:
        values = [tail.values for tail in tails if tail.values is not None]
        bound = torch.cat([tail.bound for tail in tails])
        return Tail(values=torch.cat(values) if values else None, bound=bound)

    return Excerpt(
        stride=excerpts[0].stride,
        sample=torch.cat([e.sample for e in excerpts]),
        low=tail([e.low for e in excerpts]),
        high=tail([e.high for e in excerpts]),
    )


def tally_of_excerpts(
    excerpts: Sequence[Excerpt], min_val: Tensor, max_val: Tensor, *, bins: int
) -> Tally:
    """The tally of several batches, estimated from their excerpts.

    Args:
        excerpts: one or more, of one layout.
        min_val, max_val: float32 ``[R]``, the extremes of all these batches.
        bins: how many bins a row has.

    Returns:
        Each sampled value counts for ``stride``, each of the tails for 1.
    """
    exponent, first = fit_bins(min_val, max_val, bins)
    sample = torch.stack([e.sample for e in excerpts], dim=1)
    low, high = ([getattr(e, end) for e in excerpts] for end in ("low", "high"))
    rest = (sample >= _bounds(low)) & (sample <= _bounds(high))
    sample = sample.flatten(1)
    stride = excerpts[0].stride
    counts = count(sample, exponent, first, bins, where=rest.flatten(1)) * stride
    for tails, beyond in ((low, torch.lt), (high, torch.gt)):
        present = [tail for tail in tails if tail.values is not None]
        if present:
            values = torch.stack([tail.values for tail in present], dim=1)
            there = beyond(values, _bounds(present))
            if len(values) == 1:
                # Few of them: the others of their blocks are in no tail.
                counts += count(values[there][None], exponent, first, bins)
            else:
                counts += count(values.flatten(1), exponent, first, bins, where=there.flatten(1))
    return Tally(
        min_val=min_val,
        max_val=max_val,
        exponent=exponent,
        first=first,
        counts=counts,
        zeros=(sample.shape[1] - sample.count_nonzero(dim=1)) * stride,
    )


def _bounds(tails: Sequence[Tail]) -> Tensor:
    return torch.stack([tail.bound for tail in tails], dim=1)
