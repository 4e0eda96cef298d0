"""The accumulator of 8-bit instructions that saturate: ``accumulator="int16_pairs"``.

u8 x s8 instructions without VNNI (``vpmaddubsw``) multiply two neighbours along the reduction, add
the two products into 16 bits with saturation, and only then widen:

    acc[m, n] = sum_k clamp(x[m, 2k] w[n, 2k] + x[m, 2k+1] w[n, 2k+1], -2**15, 2**15 - 1)

An odd reduction ends in a pair with one product. A convolution's reduction runs over its taps, and
within a tap over the channels of the group.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import BackendError
from .exact import exact_matmul

__all__ = ["saturating_matmul", "taps"]

_LOW, _HIGH = -(2**15), 2**15 - 1


def saturating_matmul(x: Tensor, w: Tensor, *, x_max: int = 255) -> Tensor:
    """``x @ w.T`` where sums of two neighbouring products along K saturate to int16.

    It is the exact product less what saturation cuts off, and only pairs of weights large enough to
    saturate are looked at one by one.

    Args:
        x: integers in float32 ``[..., M, K]``; raw values, zero point not subtracted.
        w: integers in float32 ``[N, K]``.
        x_max: largest absolute value that ``x`` can hold.

    Returns:
        Integers ``[..., M, N]`` in float64.

    Raises:
        BackendError: operands of more than 8 bits, which such instructions do not have.

    >>> x, w = torch.full((1, 3), 255.0), torch.full((1, 3), 127.0)
    >>> saturating_matmul(x, w).item() == 2**15 - 1 + 255 * 127
    True
    """
    if x_max > 2**8:
        raise BackendError(
            "accumulator 'int16_pairs' is that of 8-bit instructions, but the activations are "
            "wider; use 'int32' or activations of 8 bits"
        )
    if x.shape[-1] % 2:
        x, w = F.pad(x, (0, 1)), F.pad(w, (0, 1))
    total = exact_matmul(x, w, x_max=x_max).double()
    at_risk = (w[:, 0::2].abs() + w[:, 1::2].abs()) * x_max > _HIGH
    for pair in at_risk.any(0).nonzero().flatten().tolist():
        outputs = at_risk[:, pair].nonzero().flatten()
        columns = slice(2 * pair, 2 * pair + 2)
        products = exact_matmul(x[..., columns], w[outputs, columns], x_max=x_max)
        excess = products - products.clamp(_LOW, _HIGH)
        total.index_add_(-1, outputs, excess.double(), alpha=-1)
    return total


def taps(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Patches of a padded input ``[B, C, *spatial]`` as ``[B, *out, taps, C]``."""
    out = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    pieces = []
    for index in itertools.product(*map(range, kernel)):
        piece = x
        for dim, (i, d, s, n) in enumerate(zip(index, dilation, stride, out, strict=True), 2):
            piece = piece.narrow(dim, i * d, (n - 1) * s + 1)[
                (slice(None),) * dim + (slice(None, None, s),)
            ]
        pieces.append(piece.movedim(1, -1))
    return torch.stack(pieces, dim=-2)
