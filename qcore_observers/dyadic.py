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

import torch
from torch import Tensor

__all__ = [
    "bin_edges",
    "bin_index",
    "count",
    "first_bin",
    "fit_exponent",
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


def fit_exponent(low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Smallest exponent with which ``bins`` bins hold ``[low, high]``.

    Args:
        low: float64 ``[R]``, at most 0.
        high: float64 ``[R]``, at least 0.
        bins: how many bins a row has, at least 4.

    Returns:
        int64 ``[R]``.

    >>> fit_exponent(torch.tensor([-1.0, 0.0]).double(), torch.tensor([3.0, 3.99]).double(), 8)
    tensor([ 0, -1])
    """
    _, exponent = torch.frexp((high - low) / bins)
    exponent = exponent.to(torch.int64).clamp(min=EXPONENT_MIN)
    # 2**exponent is above range / bins, and half of it is not; what is left to look at is whether
    # the two ends lie so that one bin more is needed.
    used = first_bin(high, exponent) - first_bin(low, exponent) + 1
    return exponent + (used > bins).to(torch.int64)


def first_bin(low: Tensor, exponent: Tensor) -> Tensor:
    """Index of the bin that holds ``low``, counted from the one that starts at 0; int64 ``[R]``."""
    return torch.floor(low * power_of_two(-exponent)).to(torch.int64)


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
    # float64: in float32 the product of a tiny negative value could become 0, the bin above its
    # own.
    index = (values.to(torch.float64) * power_of_two(-exponent)).floor_()
    return index.sub_(first).to(torch.int64)


def count(rows: Tensor, exponent: Tensor, first: Tensor, bins: int) -> Tensor:
    """How many values of each row fall into each bin.

    Args:
        rows: float32 ``[R, n]``, every value within the bins.
        exponent, first: int64 ``[R]``.
        bins: how many bins a row has.

    Returns:
        int64 ``[R, bins]``.

    >>> count(torch.tensor([[0.0, 0.9, 1.0, -0.1]]), torch.tensor([0]), torch.tensor([-1]), 4)
    tensor([[1, 2, 1, 0]])
    """
    n_rows = rows.shape[0]
    # Rows lie one after the other: the first bin of a row comes after the last of the one before.
    start = (first - torch.arange(n_rows, device=rows.device) * bins)[:, None]
    total = rows.new_zeros(n_rows * bins, dtype=torch.int64)
    for part in torch.split(rows, max(bins, _VALUES_AT_ONCE // n_rows), dim=1):
        index = bin_index(part, exponent[:, None], start)
        total += torch.bincount(index.flatten(), minlength=n_rows * bins)
    return total.view(n_rows, bins)


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
