"""Search of the range whose quantizer makes the least squared error.

The error of a range is that of the very qparams that :func:`qcore.choose_qparams` gives for it,
with their rounded zero point and scale, so what is minimized is what will run. It is measured on
the values themselves (:func:`error_of_values`) or on a histogram (:func:`error_of_counts`).

The search starts from the whole range and only ever moves to a smaller error: it shrinks both ends
together, then each by itself, first over a wide geometric grid and then in finer and finer steps
around the best. All rows are searched at once.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qcore import QScheme, choose_qparams

__all__ = [
    "error_of_counts",
    "error_of_values",
    "range_of_counts",
    "range_of_values",
    "search_range",
]

Error = Callable[[Tensor, Tensor, Tensor | float], Tensor]
"""From ``low`` and ``high``, float64 ``[C, R]`` (``C`` ranges a row), to errors, float64
``[C, R]``. A range that can't have an error below the third argument, float64 ``[R]``, may be given
infinity without a closer look."""

_NUMBERS_AT_ONCE = (1 << 15) - 1
"""Size of the largest intermediate tensor: it stays in the cache of one core. From one number more
torch shares an operation among threads, which takes longer than the operation."""

_ROWS_NUMBERS = 1 << 21
"""Size of the largest histogram of several rows that are searched together."""

_OCTAVES = 10.0
"""How many times a range may be halved."""

_AN_OCTAVE = 8
"""Smallest number of ranges tried in an octave, before the steps get finer."""

_AT_LEAST = 48
"""Smallest number of ranges tried in all, before the steps get finer."""

_ZOOMS = (4, 16)
"""How much finer the steps get, one time after the other."""


def error_of_values(values: Tensor, *, scheme: QScheme) -> Error:
    """Squared error of quantizing ``values``, as a function of the range.

    Args:
        values: float32 ``[R, n]``.
        scheme: what to quantize to.

    Returns:
        The sum over the values of the squared error, in units of the row's largest magnitude
        squared.

    >>> from qcore import INT2
    >>> one = torch.ones(1, 1).double()
    >>> error = error_of_values(torch.tensor([[-1.0, 0.5, 1.0]]), scheme=QScheme(dtype=INT2))
    >>> round(error(-one, one, math.inf).item(), 6)  # scale 2/3: -4/3 or -2/3, 2/3 and 2/3
    0.25
    """
    unit = _unit(values.abs().amax(1).double())
    values = (values.double() / unit[:, None]).float()

    def error(low: Tensor, high: Tensor, least: Tensor | float) -> Tensor:
        errors = []
        for s, bottom, top in zip(*_lattice(unit, low, high, scheme), strict=True):
            scale = s.float()[:, None]
            q = (values / scale).round_()
            torch.maximum(q, bottom.float()[:, None], out=q)
            torch.minimum(q, top.float()[:, None], out=q)
            errors.append(q.mul_(scale).sub_(values).square_().sum(1))
        return torch.stack(errors).double()

    return error


def error_of_counts(counts: Tensor, edges: Tensor, *, scheme: QScheme) -> Error:
    """Squared error of quantizing what a histogram counted, as a function of the range.

    Values are taken as spread evenly over their bin, and the error is integrated, not sampled. With
    ``u = x / scale``, ``r = clamp(round(u), quant_min - zero_point, quant_max - zero_point)`` and
    the antiderivative ``G(u) = r / 12 + (u - r)**3 / 3`` of ``(u - r)**2``, the error of a bin
    ``[a, b]`` is ``count / (b - a) * scale**3 * (G(b / scale) - G(a / scale))``. That holds for
    bins narrower than a step and for bins that span many.

    What the values beyond the ends of the range add to the error is known at once, from sums over
    the bins from the outermost inwards. A range for which that alone is too much is not looked at.

    Args:
        counts: int64 ``[R, bins]``.
        edges: float64 ``[R, bins + 1]``, ascending.
        scheme: what to quantize to.

    Returns:
        The sum of the squared error, in units of the squared magnitude of the row's largest edge.

    >>> from qcore import UINT2
    >>> zero = torch.zeros(1, 1).double()
    >>> error = error_of_counts(torch.tensor([[12]]), torch.tensor([[0.0, 3.0]]).double(),
    ...                         scheme=QScheme(dtype=UINT2, symmetric=False))
    >>> round(error(zero, zero + 3, math.inf).item() * 3**2, 6)  # 12 values, scale 1: 1 / 12 each
    1.0
    """
    unit = _unit(edges.abs().amax(1))
    edges = edges / unit[:, None]
    density = counts.double() / (edges[:, 1:] - edges[:, :-1])
    clipped = _clipping(density, edges)
    # Summation by parts: the sum of density times differences of G is that of G times this.
    pad = torch.nn.functional.pad
    weights = pad(density, (1, 0)) - pad(density, (0, 1))
    rows_at_once = max(1, _NUMBERS_AT_ONCE // edges.shape[1])

    def error(low: Tensor, high: Tensor, least: Tensor | float) -> Tensor:
        lattice = _lattice(unit, low, high, scheme)
        open_ = clipped(*lattice) < least
        found = torch.full_like(low, math.inf)
        row = open_.nonzero()[:, 1]
        parts = (torch.split(t[open_], rows_at_once) for t in lattice)
        errors = [
            integrated(r, *part)
            for r, *part in zip(torch.split(row, rows_at_once), *parts, strict=True)
        ]
        return found.masked_scatter_(open_, torch.cat(errors)) if errors else found

    def integrated(row: Tensor, scale: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
        u = edges.index_select(0, row).mul_((1 / scale)[:, None])
        # Not torch.clamp, which is not vectorized for bounds that are tensors.
        r = u.round()
        torch.maximum(r, bottom[:, None], out=r)
        torch.minimum(r, top[:, None], out=r)
        u -= r
        antiderivative = r.mul_(1 / 12).addcmul_(u, u.square(), value=1 / 3)
        return antiderivative.mul_(weights.index_select(0, row)).sum(1).mul_(scale.pow(3))

    return error


def _clipping(density: Tensor, edges: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The squared error of the bins that lie beyond the ends of a lattice, as a function of it.

    With ``S_k`` the integral of ``density * x**k`` over the bins beyond an end ``e``, it is
    ``S_2 - 2 e S_1 + e**2 S_0``.

    Args:
        density: float64 ``[R, bins]``; edges: float64 ``[R, bins + 1]``.
    """
    moments = torch.stack([(edges[:, 1:] ** k - edges[:, :-1] ** k) / k for k in (1, 2, 3)])
    below = torch.nn.functional.pad((density * moments).cumsum(-1), (1, 0))
    above = below[..., -1:] - below
    edges_ = edges.contiguous()

    def beyond(end: Tensor, sums: Tensor, *, right: bool) -> Tensor:
        e = end.t().contiguous()
        index = torch.searchsorted(edges_, e, right=right) - int(right)
        index.clamp_(0, edges_.shape[1] - 1)
        s0, s1, s2 = sums.gather(2, index.expand(3, -1, -1))
        result: Tensor = s2 - 2 * e * s1 + e * e * s0
        return result.t()

    def clipped(scale: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
        low = beyond(bottom * scale, below, right=True)
        return low + beyond(top * scale, above, right=False)

    return clipped


def _unit(magnitude: Tensor) -> Tensor:
    """What a row is measured in, so that squares and cubes of huge and tiny values are normal."""
    return torch.where(magnitude > 0, magnitude, 1.0)


def _lattice(
    unit: Tensor, low: Tensor, high: Tensor, scheme: QScheme
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale in that unit, and the smallest and the largest ``q - zero_point``; each ``[C, R]``."""
    qparams = choose_qparams(low.float(), high.float(), scheme=scheme)
    zero_point = qparams.zero_point.double()
    dtype = scheme.dtype
    scale = qparams.scale.double() / unit
    return scale, dtype.quant_min - zero_point, dtype.quant_max - zero_point


def search_range(
    error: Error, low: Tensor, high: Tensor, *, scheme: QScheme, octaves: float = _OCTAVES
) -> tuple[Tensor, Tensor]:
    """The range with the least error around what was seen; see the module's docstring.

    It may reach beyond ``[low, high]`` by half a step at each end, which can put the largest value
    on an integer: of int4, -8..7 about zero, 7 stands for 14/15 of the range.

    Args:
        error: what to minimize.
        low, high: float64 ``[R]``, what was seen, with 0 inside.
        scheme: what to quantize to.
        octaves: how many times the range may be halved.

    Returns:
        ``low`` and ``high``, float64 ``[R]``. The error is at most that of the range that was
        given.

    >>> from qcore import INT8
    >>> def error(low, high, least):
    ...     return (low + 0.3).square() + (high - 0.1).square()
    >>> ends = torch.tensor([-1.0]).double(), torch.tensor([1.0]).double()
    >>> scheme = QScheme(dtype=INT8, symmetric=False)
    >>> [round(end.item(), 2) for end in search_range(error, *ends, scheme=scheme)]
    [-0.3, 0.1]
    """
    steps = scheme.dtype.quant_max - scheme.dtype.quant_min
    room = 1 + 1 / max(steps - 1, 1)
    huge = torch.finfo(torch.float32).max
    lowest, highest = (low * room).clamp(min=-huge), (high * room).clamp(max=huge)
    best_low, best_high, least = low, high, error(low[None], high[None], math.inf)[0]

    def consider(lows: Tensor, highs: Tensor) -> None:
        nonlocal best_low, best_high, least
        lows, highs = torch.maximum(lows, lowest), torch.minimum(highs, highest)
        candidates = max(len(lows), len(highs))
        lows, highs = lows.expand(candidates, -1), highs.expand(candidates, -1)
        errors, index = error(lows, highs, least).min(0, keepdim=True)
        better = errors[0] < least
        best_low = torch.where(better, lows.gather(0, index)[0], best_low)
        best_high = torch.where(better, highs.gather(0, index)[0], best_high)
        least = torch.where(better, errors[0], least)

    # With one end at 0, or a zero point that can't move, the two ends are one parameter.
    two_sided = not scheme.symmetric and bool(((low < 0) & (high > 0)).any())
    density = max(_AN_OCTAVE, round(_AT_LEAST / octaves))
    wide = _factors(low, -octaves, math.log2(room), density)
    limit = torch.maximum(-low, high) * wide
    consider(-limit, limit)
    if two_sided:
        for _ in range(2):
            consider(best_low[None], high * wide)
            consider(low * wide, best_high[None])
    for zoom in _ZOOMS:
        near = _factors(low, -4 / (zoom * density), 4 / (zoom * density), zoom * density)
        if two_sided:
            consider(best_low[None], best_high * near)
            consider(best_low * near, best_high[None])
        consider(best_low * near, best_high * near)
    return best_low, best_high


def _factors(like: Tensor, first: float, last: float, an_octave: int) -> Tensor:
    """Powers of two from ``2**first`` to ``2**last``, ``an_octave`` to an octave; ``[C, 1]``."""
    count = math.ceil((last - first) * an_octave) + 1
    exponents = torch.linspace(first, last, count, dtype=like.dtype, device=like.device)
    return torch.exp2(exponents)[:, None]


def range_of_values(values: Tensor, *, scheme: QScheme) -> tuple[Tensor, Tensor]:
    """The range with the least error on ``values``, float32 ``[R, n]``; two float32 ``[R]``."""
    # The whole range makes an error of at most half a step a value. Clipping the largest one must
    # not make more alone, which bounds how far a symmetric range can shrink: to 0.56 of it for 32
    # values in int4.
    octaves = _OCTAVES
    if scheme.symmetric:
        steps = scheme.dtype.quant_max - scheme.dtype.quant_min
        smallest = 1 - (values.shape[1] ** 0.5 + 1) / steps
        octaves = -math.log2(max(smallest, 2.0**-_OCTAVES))
    found = []
    for rows in torch.split(values, max(1, _NUMBERS_AT_ONCE // values.shape[1])):
        low, high = rows.amin(1).clamp(max=0.0).double(), rows.amax(1).clamp(min=0.0).double()
        error = error_of_values(rows, scheme=scheme)
        found.append(search_range(error, low, high, scheme=scheme, octaves=octaves))
    lows, highs = zip(*found, strict=True)
    return torch.cat(lows).float(), torch.cat(highs).float()


def range_of_counts(
    counts: Tensor, edges: Tensor, low: Tensor, high: Tensor, *, scheme: QScheme
) -> tuple[Tensor, Tensor]:
    """The range with the least error on a histogram.

    Args:
        counts: int64 ``[R, bins]``.
        edges: float64 ``[R, bins + 1]``, ascending.
        low, high: float64 ``[R]``, the extremes with 0 inside.
        scheme: what to quantize to.

    Returns:
        ``low`` and ``high``, float32 ``[R]``.
    """
    found = low.float(), high.float()
    # Apart from each other, so that rows with one end at 0 need no search of each end by itself.
    two_sided = (low < 0) & (high > 0)
    for rows in (two_sided.nonzero()[:, 0], (~two_sided).nonzero()[:, 0]):
        for part in torch.split(rows, max(1, _ROWS_NUMBERS // edges.shape[1])) if len(rows) else ():
            error = error_of_counts(counts[part], edges[part], scheme=scheme)
            ends = search_range(error, low[part], high[part], scheme=scheme)
            for result, end in zip(found, ends, strict=True):
                result[part] = end.float()
    return found
