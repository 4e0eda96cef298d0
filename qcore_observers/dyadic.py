"""Histograms whose bins are a power of two wide and are counted from zero, so that they merge
exactly.

Bin ``j`` of a histogram of exponent ``k`` holds the values with ``floor(x / 2**k) == j``. Because
``floor(floor(x / 2**k) / 2) == floor(x / 2**(k + 1))``, adding neighbouring bins gives exactly the
histogram that bins of twice the width would have counted. A histogram that outgrows its bins is
therefore widened without loss, and the counts depend on the values alone: not on the order of the
batches, nor on which of several observers saw which. Histograms whose bins are stretched with the
range have to be resampled when it grows, which spreads counts and makes them depend on the order.

A row of values has one exponent, the smallest whose bins hold the row's range together with 0; this
uses more than half of the bins. All functions are pure, and work on ``R`` rows at once.
"""

import math

import torch
from torch import Tensor

from .compiled import kernel, worthwhile

__all__ = [
    "bin_edges",
    "bin_index",
    "count",
    "fit_bins",
    "power_of_two",
    "regrid",
]

EXPONENT_MIN = -64
"""Finest bins: far below the smallest scale of a quantizer, so an empty range has a width too."""

_SHIFT_MAX = 62
_VALUES_AT_ONCE = 1 << 17
"""How many values are counted at a time, so that the intermediate tensors stay in the cache."""


def power_of_two(exponent: Tensor) -> Tensor:
    """``2**exponent`` in float64, exact on every device, for int64 exponents of -1022 to 1023.

    >>> power_of_two(torch.tensor([-2, 0, 10])).tolist()
    [0.25, 1.0, 1024.0]
    """
    return ((exponent + 1023) << 52).view(torch.float64)


def fit_bins(min_val: Tensor, max_val: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The narrowest bins that hold ``[min_val, max_val]`` together with 0.

    Args:
        min_val, max_val: float32 ``[R]``, finite.
        bins: how many bins a row has, at least 4.

    Returns:
        The exponent, the smallest with which ``bins`` bins hold the range, and the index of the bin
        of the lower end, counted from the one that starts at 0; both int64 ``[R]``.

    >>> fit_bins(torch.tensor([-1.0, 1.0]), torch.tensor([3.0, 3.99]), 8)
    (tensor([ 0, -1]), tensor([-1,  0]))
    """
    # In Python: there is one row as a rule, and a dozen operations on tensors of one number would
    # take longer than counting the batch.
    fitted = [_fit(*ends, bins) for ends in zip(min_val.tolist(), max_val.tolist(), strict=True)]
    exponent, first = torch.tensor(fitted, dtype=torch.int64).to(min_val.device).unbind(1)
    return exponent, first


def _fit(min_val: float, max_val: float, bins: int) -> tuple[int, int]:
    low, high = min(min_val, 0.0), max(max_val, 0.0)
    # 2**exponent is above range / bins, and half of it is not; what is left to look at is whether
    # the two ends lie so that one bin more is needed.
    exponent = max(math.frexp((high - low) / bins)[1], EXPONENT_MIN) if low < high else EXPONENT_MIN
    first, last = (math.floor(math.ldexp(end, -exponent)) for end in (low, high))
    return (exponent + 1, first >> 1) if last - first >= bins else (exponent, first)


def bin_index(values: Tensor, exponent: Tensor, first: Tensor) -> Tensor:
    """Position of each value's bin, the first bin being 0.

    Args:
        values: float32, any shape, within the bins.
        exponent, first: int64, broadcast against ``values``.

    Returns:
        int64, shaped like ``values``.

    >>> bin_index(torch.tensor([-1e-45, 0.0, 0.9]), torch.tensor(-1), torch.tensor(-1)).tolist()
    [0, 1, 2]
    """
    # In float32 the product of a tiny negative value and a factor below 1 could become 0, the bin
    # above its own; and not every power of two is a float32.
    wide = bool(((exponent > 0) | (exponent < -126) | (first < -(2**23))).any())
    dtype = torch.float64 if wide else torch.float32
    index = (values.to(dtype) * power_of_two(-exponent).to(dtype)).floor_()
    return index.sub_(first.to(dtype)).to(torch.int64)


def count(
    rows: Tensor, exponent: Tensor, first: Tensor, bins: int, *, where: Tensor | None = None
) -> Tensor:
    """How many values of each row fall into each bin.

    Args:
        rows: float32 ``[R, n]``, every value within the bins.
        exponent, first: int64 ``[R]``.
        bins: how many bins a row has.
        where: bool ``[R, n]``, which values to count; None counts all.

    Returns:
        int64 ``[R, bins]``.

    >>> count(torch.tensor([[0.0, 0.9, 1.0, -0.1]]), torch.tensor([0]), torch.tensor([-1]), 4)
    tensor([[1, 2, 1, 0]])
    """
    if worthwhile(rows) and (compiled := kernel()) is not None:
        return compiled.count(rows, exponent, first, bins, where)
    n_rows = len(rows)
    # Rows lie one after the other: the first bin of a row comes after the last of the one before.
    # What does not count goes to one bin behind all.
    size = n_rows * bins
    start = first - torch.arange(0, size, bins, device=rows.device)
    counts = torch.zeros(size, dtype=torch.int64, device=rows.device)
    columns = max(bins, _VALUES_AT_ONCE // n_rows)
    for begin in range(0, rows.shape[1], columns):
        part = slice(begin, begin + columns)
        index = bin_index(rows[:, part], exponent[:, None], start[:, None])
        if where is not None:
            index = torch.where(where[:, part], index, size)
        counts += torch.bincount(index.flatten(), minlength=size + 1)[:size]
    return counts.view(n_rows, bins)


def regrid(
    counts: Tensor, exponent: Tensor, first: Tensor, new_exponent: Tensor, new_first: Tensor
) -> Tensor:
    """The same counts in bins that are as wide or wider, and that hold every counted value.

    Args:
        counts: int64 ``[R, bins]``.
        exponent, first: int64 ``[R]``; how ``counts`` is laid out.
        new_exponent, new_first: int64 ``[R]``; how the result is, ``new_exponent >= exponent``.

    Returns:
        int64 ``[R, bins]``.

    >>> one, zero = torch.tensor([1]), torch.tensor([0])
    >>> regrid(torch.tensor([[1, 2, 3, 4]]), zero, zero - 2, one, zero - 1)
    tensor([[3, 7, 0, 0]])
    """
    if torch.equal(exponent, new_exponent) and torch.equal(first, new_first):
        return counts
    bins = counts.shape[1]
    index = first[:, None] + torch.arange(bins, device=counts.device)
    shift = (new_exponent - exponent).clamp(max=_SHIFT_MAX)[:, None]
    # Bins that fall outside of the new ones hold nothing.
    index = ((index >> shift) - new_first[:, None]).clamp(0, bins - 1)
    return torch.zeros_like(counts).scatter_add_(1, index, counts)


def bin_edges(exponent: Tensor, first: Tensor, bins: int) -> Tensor:
    """Where the bins begin and end.

    Returns:
        float64 ``[R, bins + 1]``.

    >>> bin_edges(torch.tensor([-1]), torch.tensor([-2]), 4)
    tensor([[-1.0000, -0.5000,  0.0000,  0.5000,  1.0000]], dtype=torch.float64)
    """
    index = first[:, None] + torch.arange(bins + 1, device=first.device)
    return index.to(torch.float64) * power_of_two(exponent)[:, None]
