"""Search of the range whose quantizer loses least information, by Kullback-Leibler divergence.

For a range, ``P`` is the histogram with everything outside of the range moved into the outermost
bins inside, which is what clipping does. ``Q`` is what the quantizer leaves of the values inside:
the bins that become one integer share their counts evenly, over those of them that held any. The
divergence ``sum(P * log(P / Q))`` weighs both losses: a wide range merges many bins into one, a
narrow one piles up at its ends a mass that ``Q`` knows nothing of.

References:
    Migacz, 2017, "8-bit inference with TensorRT", GPU Technology Conference
    <https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf>
"""

import torch
from torch import Tensor

from qcore import QScheme, choose_qparams

__all__ = ["divergence", "range_of_least_divergence"]

_NUMBERS_AT_ONCE = (1 << 15) - 1
"""Size of the largest intermediate tensor: it stays in the cache of one core. From one number more
torch shares an operation among threads, which takes longer than the operation."""

_BINS_A_STEP = 2
"""A step must span this many bins: one that spans a single bin loses nothing that could be
measured."""

_OCTAVES = 5
"""How many times a range may be halved."""


def divergence(
    counts: Tensor, edges: Tensor, low: Tensor, high: Tensor, *, scheme: QScheme
) -> Tensor:
    """``KL(P || Q)`` of every range of a list, see the module's docstring.

    Args:
        counts: int64 ``[R, bins]``, at least one count a row.
        edges: float64 ``[R, bins + 1]``, ascending.
        low, high: float64 ``[C, R]``, ``C`` ranges a row. A bin is inside if its centre is.
        scheme: what to quantize to.

    Returns:
        float64 ``[C, R]``, in nats; infinite where nothing is inside.

    >>> from qcore import UINT2
    >>> counts = torch.tensor([[8, 8, 4, 4, 2, 2, 1, 1]])
    >>> zero = torch.zeros(1, 1).double()
    >>> divergence(counts, torch.arange(9).double()[None], zero, zero + 8,
    ...            scheme=QScheme(dtype=UINT2, symmetric=False)).item() > 0
    True
    """
    qparams = choose_qparams(low.float(), high.float(), scheme=scheme)
    scale, zero_point = qparams.scale.double()[..., None], qparams.zero_point.double()[..., None]
    dtype = scheme.dtype
    centres = (edges[:, :-1] + edges[:, 1:]) / 2
    integers = torch.round(centres / scale) + zero_point
    integers = (integers.clamp(dtype.quant_min, dtype.quant_max) - dtype.quant_min).long()
    inside = (centres >= low[..., None]) & (centres <= high[..., None])
    kept = torch.where(inside, counts, 0).double()

    n_integers = dtype.quant_max - dtype.quant_min + 1
    shape = (*kept.shape[:2], n_integers)
    mass = kept.new_zeros(shape).scatter_add_(2, integers, kept)
    holders = kept.new_zeros(shape).scatter_add_(2, integers, (kept > 0).double())
    share = (mass / holders.clamp(min=1)).gather(2, integers)

    # What is outside goes to the first and the last bin inside.
    below = torch.where(centres < low[..., None], counts, 0).sum(2, keepdim=True).double()
    above = torch.where(centres > high[..., None], counts, 0).sum(2, keepdim=True).double()
    first = inside.int().argmax(2, keepdim=True)
    last = inside.shape[2] - 1 - inside.flip(2).int().argmax(2, keepdim=True)
    p = kept.scatter_add(2, first, below).scatter_add_(2, last, above)
    # A bin that Q left empty and clipping did not: it counts as one value.
    q = torch.where(kept > 0, share, 1.0)

    total, total_kept = counts.sum(1).double(), kept.sum(2)
    result = torch.special.xlogy(p, p / q).sum(2) / total + torch.log(total_kept / total)
    return torch.where(total_kept > 0, result, torch.inf)


def range_of_least_divergence(
    counts: Tensor, edges: Tensor, low: Tensor, high: Tensor, *, width: Tensor, scheme: QScheme
) -> tuple[Tensor, Tensor]:
    """The range ``[max(low, -t), min(high, t)]`` with the least divergence, over a grid of ``t``.

    Args:
        counts: int64 ``[R, bins]``; a row of zeros keeps its whole range.
        edges: float64 ``[R, bins + 1]``, ascending.
        low, high: float64 ``[R]``, the extremes with 0 inside.
        width: float64 ``[R]``, the width of a bin.
        scheme: what to quantize to.

    Returns:
        ``low`` and ``high``, float32 ``[R]``.
    """
    empty = counts.sum(1, keepdim=True) == 0
    counts = torch.where(empty, 1, counts)
    rows_at_once = max(1, _NUMBERS_AT_ONCE // edges.shape[1])
    parts = (torch.split(t, rows_at_once) for t in (counts, edges, low, high, width))
    limit = torch.cat([_best_limit(*part, scheme=scheme) for part in zip(*parts, strict=True)])
    limit = torch.where(empty[:, 0], torch.maximum(-low, high), limit)
    return torch.maximum(low, -limit).float(), torch.minimum(high, limit).float()


def _best_limit(
    counts: Tensor, edges: Tensor, low: Tensor, high: Tensor, width: Tensor, *, scheme: QScheme
) -> Tensor:
    """The best ``t``, float64 ``[R]``; the largest of equals."""
    largest = torch.maximum(-low, high)
    at_once = max(1, _NUMBERS_AT_ONCE // edges.numel())

    def consider(best: Tensor, least: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        limits = torch.minimum(torch.ceil(limits / width) * width, largest)
        lows, highs = torch.maximum(low, -limits), torch.minimum(high, limits)
        parts = (torch.split(t, at_once) for t in (lows, highs))
        found = torch.cat(
            [divergence(counts, edges, a, b, scheme=scheme) for a, b in zip(*parts, strict=True)]
        )
        scale = choose_qparams(lows.float(), highs.float(), scheme=scheme).scale
        found = torch.where(scale >= _BINS_A_STEP * width, found, torch.inf)
        found, index = found.min(0, keepdim=True)
        better = found[0] < least
        best = torch.where(better, limits.gather(0, index)[0], best)
        return best, torch.where(better, found[0], least)

    best, least = largest, torch.full_like(largest, torch.inf)
    # Wide steps over all, then narrow ones around the best.
    for octaves, an_octave in (((-_OCTAVES, 0), 16), ((-1 / 16, 1 / 16), 128)):
        first, last = octaves
        exponents = torch.linspace(
            last, first, round((last - first) * an_octave) + 1, dtype=low.dtype, device=low.device
        )
        best, least = consider(best, least, best * torch.exp2(exponents)[:, None])
    return best
