"""Exact integer products by floating-point kernels, with the proof that they are exact.

A float32 sum of integers is exact in every order as long as no partial sum can reach ``2**24``. The
largest possible partial sum is bounded by ``max|x| * sum|w| + |bias|`` over the reduction, so the
weights decide:

1. the bound is below ``2**24``: one float32 product;
2. it is not: the reduction is split into slices that each satisfy it, added in float64;
3. no slice does (grouped layers, wide operands): float64, exact below ``2**53``.

Operands of at most 8 bits, also less a zero point, are integers of magnitude up to 256, which
bfloat16 and TF32 hold: settings that let matrix kernels round their operands do no harm. Wider
operands would be rounded, so they are multiplied in float64.

Convolutions that transform their operands (Winograd, FFT) are not exact. The one of the CPU is
switched off; on other devices convolutions run in float64, where such an error stays far below a
half, and are rounded.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FLOAT32_EXACT", "convolver", "exact_conv", "exact_matmul", "multiplier"]

FLOAT32_EXACT = 2**24
"""Every integer of magnitude up to this one is a float32 number."""
"""Every integer of magnitude up to this one is a float32 number."""

_BFLOAT16_EXACT = 2**8

_Slices = list[tuple[int, int]]


def _plan(w: Tensor, x_max: int, bias: Tensor | None) -> tuple[_Slices | None, bool]:
    """How sums over the last dimension of ``w`` stay exact.

    Args:
        w: float32 or float64 ``[..., N, K]``, weights or their absolute sums; the sums of one
            output n run along K.
        x_max: largest absolute value of the other operand.
        bias: int32 ``[N]`` or None.

    Returns:
        Ranges of K whose partial sums stay below ``2**24`` in float32, or None where only float64
        is exact; and whether the only range has room for the bias too.
    """
    size = w.shape[-1]
    if w.numel() == 0:
        return [(0, size)], bias is None
    largest = _largest(w)
    limit = (FLOAT32_EXACT - 1) / max(x_max, 1)
    room = 0.0 if bias is None else _largest(bias)
    # Most layers are so small that the largest weight decides; then no sum is needed.
    if largest * size * x_max + room < FLOAT32_EXACT:
        return [(0, size)], True
    magnitude = w.abs()
    sums = magnitude.sum(-1, dtype=torch.float64)
    most = float(sums.max())
    if most * x_max + room < FLOAT32_EXACT:
        return [(0, size)], True
    if most <= limit:
        return [(0, size)], False
    if largest > limit:
        return None, False
    for parts in itertools.count(int(most // limit) + 1):
        width = -(-size // parts)
        cuts = [*range(0, size, width), size]
        ranges = list(itertools.pairwise(cuts))
        if all(
            float(magnitude[..., a:b].sum(-1, dtype=torch.float64).max()) <= limit
            for a, b in ranges
        ):
            return ranges, False
    raise AssertionError("one index at a time satisfies the limit")


def _add_up(parts: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """The sum of the parts and a bias that broadcasts, in float64, which holds it."""
    total = parts[0].to(torch.float64, copy=True)
    for part in parts[1:]:
        total.add_(part)
    return total if bias is None else total.add_(bias)


class _NnpackOff:
    """Switches NNPACK off while any thread is inside: the switch is one for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._flags = torch.backends.nnpack.flags()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._flags = torch.backends.nnpack.flags(enabled=False)
                self._flags.__enter__()
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._flags.__exit__(kind, error, trace)


_NNPACK_OFF = _NnpackOff()


def _largest(values: Tensor) -> float:
    """Largest absolute value; 0 if there is none."""
    if values.numel() == 0:
        return 0.0
    low, high = torch.aminmax(values)
    return max(-float(low), float(high))


def _wide(w: Tensor, x_max: int) -> bool:
    """Whether a reduced-precision matrix kernel could round an operand."""
    return max(x_max, _largest(w)) > _BFLOAT16_EXACT


def exact_matmul(x: Tensor, w: Tensor, *, x_max: int, bias: Tensor | None = None) -> Tensor:
    """``x @ w.T + bias`` over integers, exactly.

    Args:
        x: integers in float32 ``[..., M, K]``.
        w: integers in float32 ``[N, K]``, or ``[..., N, K]`` to multiply batch by batch.
        x_max: largest absolute value that ``x`` can hold.
        bias: int32 ``[N]`` or None.

    Returns:
        Integers ``[..., M, N]`` in float32 or float64.

    >>> x, w = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, -6.0]])
    >>> exact_matmul(x, w, x_max=127, bias=torch.tensor([2**30], dtype=torch.int32)).item()
    1073741815.0
    """
    return multiplier(w, x_max=x_max, bias=bias)(x)


def multiplier(w: Tensor, *, x_max: int, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """:func:`exact_matmul` by the same weights again and again: what to prove is proven once."""
    slices, inside = (None, False) if _wide(w, x_max) else _plan(w, x_max, bias)
    wt = w.transpose(-1, -2)
    if slices is None:
        wide = wt.double()
        return lambda x: _add_up([x.double() @ wide], bias)
    ranges = slices

    def product(x: Tensor) -> Tensor:
        parts = [x[..., a:b] @ wt[..., a:b, :] for a, b in ranges]
        if len(parts) == 1 and (inside or bias is None):
            return parts[0] if bias is None else parts[0].add_(bias)
        return _add_up(parts, bias)

    return product


def convolver(
    w: Tensor,
    *,
    x_max: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool = False,
    output_padding: Sequence[int] = (),
    bias: Tensor | None = None,
) -> Callable[[Tensor], Tensor]:
    """A convolution over integers, proved exact once, to be applied to any number of inputs.

    Args:
        w: integers in float32 ``[N, C / groups, *kernel]``, transposed ``[C, N / groups,
            *kernel]``; 1 to 3 spatial dimensions.
        x_max: largest absolute value that an input can hold.
        bias: int32 ``[N]`` or None.

    Returns:
        The function from integers in float32 ``[B, C, *spatial]`` to integers ``[B, N, *out]`` in
        float32 or float64.
    """
    spatial = w.ndim - 2
    conv: Any
    options: tuple[Any, ...]
    if transposed:
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        options = (list(stride), list(padding), list(output_padding), groups, list(dilation))
    else:
        conv = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        options = (list(stride), list(padding), list(dilation), groups)
    # An output meets a weight at most once, in a transposed convolution too.
    columns = w.abs().sum(list(range(2, w.ndim)), dtype=torch.float64)
    if transposed:
        # [C, N / groups] to the sums of one output: [N, C / groups].
        columns = columns.reshape(groups, -1, w.shape[1]).transpose(1, 2).flatten(0, 1)
    slices, inside = (None, False) if _wide(w, x_max) else _plan(columns, x_max, bias)
    split_groups = groups > 1 and slices is not None and len(slices) > 1
    if split_groups or w.device.type != "cpu":
        slices = None

    def apply(x: Tensor) -> Tensor:
        if slices is None:
            start = None if bias is None else bias.double()
            total: Tensor = conv(x.double(), w.double(), start, *options)
            return total if x.device.type == "cpu" else total.round_()
        with _NNPACK_OFF:
            if len(slices) == 1 and (inside or bias is None):
                total = conv(x, w, None if bias is None else bias.float(), *options)
                return total
            if len(slices) == 1:
                parts = [conv(x, w, None, *options)]
            else:
                along = 0 if transposed else 1
                parts = [
                    conv(x[:, a:b], w.narrow(along, a, b - a), None, *options) for a, b in slices
                ]
        return _add_up(parts, None if bias is None else bias.reshape(-1, *[1] * spatial))

    return apply


def exact_conv(
    x: Tensor,
    w: Tensor,
    *,
    x_max: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool = False,
    output_padding: Sequence[int] = (),
    bias: Tensor | None = None,
) -> Tensor:
    """:func:`convolver` of ``w``, applied to ``x``.

    Args:
        x: integers in float32 ``[B, C, *spatial]``.

    Returns:
        Integers ``[B, N, *out]`` in float32 or float64.
    """
    return convolver(
        w,
        x_max=x_max,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
        output_padding=output_padding,
        bias=bias,
    )(x)
