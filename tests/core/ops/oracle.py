"""What the operations of Q must give, by the slow obvious formula.

Independent of the package: accumulators are int64 loops over the definition, every step in float32
is one NumPy float32 operation, and rounding to integers is done on exact fractions.
"""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import attrs
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@attrs.frozen(kw_only=True)
class Contract:
    """Where an accumulator goes: qparams, clamp and arithmetic of the output."""

    scale: float
    zero_point: int = 0
    low: int = -128
    high: int = 127
    rounding: str = "half_even"
    requantization: str = "multiplier"
    before: bool = False
    as_float: bool = False


def round_fraction(value: Fraction, rounding: str) -> int:
    """The nearest integer; a tie goes to the even one, or away from zero."""
    if rounding == "half_even":
        return round(value)
    magnitude = math.floor(abs(value) + Fraction(1, 2))
    return magnitude if value >= 0 else -magnitude


def round_float32(value: Fraction) -> np.float32:
    """The float32 number nearest to a fraction, ties to the even one."""
    guess = np.float32(float(value))
    if not np.isfinite(guess):
        return guess
    near = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    return min(
        (n for n in near if np.isfinite(n)),
        key=lambda n: (abs(Fraction(float(n)) - value), int(n.view(np.int32)) & 1),
    )


def finish(
    acc: Ints,
    scale: Floats | np.float32,
    contract: Contract,
    *,
    bias: NDArray[np.generic] | None = None,
    other: Ints | None = None,
    other_scale: float = 1.0,
) -> NDArray[np.generic]:
    """The output of an accumulator with the step ``scale``; everything broadcasts."""
    step, s_other, s_out = np.float32(scale), np.float32(other_scale), np.float32(contract.scale)
    if bias is not None and bias.dtype != np.float32:
        acc, bias = acc + bias.astype(np.int64), None
    a = acc.astype(np.float32)
    o = None if other is None else other.astype(np.float32)
    if contract.as_float:
        t = a * step
        t = t if bias is None else t + bias
        return t if o is None else t + o * s_other
    if contract.requantization == "fixed_point":
        whole = _exact_products(acc, step / s_out, contract.rounding)
        if other is not None:
            whole = whole + _exact_products(other, s_other / s_out, contract.rounding)
        return np.clip(whole + contract.zero_point, contract.low, contract.high)
    if contract.requantization == "multiplier":
        t = a * (step / s_out)
        t = t if bias is None else t + bias / s_out
        t = t if o is None else t + o * (s_other / s_out)
    else:
        t = a * step
        t = t if bias is None else t + bias
        t = t if o is None else _fused(o, s_other, t)
        t = t * (np.float32(1) / s_out)
    assert t.dtype == np.float32
    if contract.before:
        t = t + np.float32(contract.zero_point)
    added = 0 if contract.before else contract.zero_point
    return np.clip(round_all(t, contract.rounding) + added, contract.low, contract.high)


def round_all(t: Floats, rounding: str) -> Ints:
    """Nearest integers of finite numbers."""
    flat = [round_fraction(Fraction(float(v)), rounding) for v in t.ravel()]
    return np.array(flat, dtype=np.int64).reshape(t.shape)


def is_tie(t: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Where a number lies exactly between two integers."""
    return np.abs(t - np.trunc(t)) == 0.5


def _exact_products(acc: Ints, factor: Floats | np.float32, rounding: str) -> Ints:
    pairs = np.broadcast(acc, factor)
    flat = [round_fraction(int(a) * Fraction(float(f)), rounding) for a, f in pairs]
    return np.array(flat, dtype=object).reshape(pairs.shape)


def _fused(o: Floats, scale: np.float32, t: Floats) -> Floats:
    pairs = np.broadcast(o, t)
    flat = [
        round_float32(Fraction(float(a)) * Fraction(float(scale)) + Fraction(float(b)))
        for a, b in pairs
    ]
    return np.array(flat, dtype=np.float32).reshape(pairs.shape)


def linear(x: Ints, w: Ints) -> Ints:
    """``sum_k x[..., k] w[n, k]``."""
    return np.einsum("...k,nk->...n", x, w)


def conv(
    x: Ints,
    w: Ints,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Ints:
    """Convolution of centred integers ``[B, C, *spatial]`` and ``[N, C / groups, *kernel]``."""
    around = [(0, 0), (0, 0), *((p, p) for p in padding)]
    padded = np.pad(x, around)
    kernel = w.shape[2:]
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    acc = np.zeros((x.shape[0], w.shape[0], *out), dtype=np.int64)
    per_group = w.shape[0] // groups
    for at in itertools.product(*map(range, out)):
        for tap in itertools.product(*map(range, kernel)):
            place = tuple(
                a * s + t * d for a, s, t, d in zip(at, stride, tap, dilation, strict=True)
            )
            values = padded[(slice(None), slice(None), *place)]
            for g in range(groups):
                channels = values[:, g * w.shape[1] : (g + 1) * w.shape[1]]
                outputs = slice(g * per_group, (g + 1) * per_group)
                acc[(slice(None), outputs, *at)] += channels @ w[(outputs, slice(None), *tap)].T
    return acc


def conv_transpose(
    x: Ints,
    w: Ints,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Ints:
    """Transposed convolution of ``[B, C, *spatial]`` and ``[C, N / groups, *kernel]``."""
    kernel = w.shape[2:]
    sizes = zip(x.shape[2:], kernel, stride, padding, dilation, output_padding, strict=True)
    out = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, d, o in sizes]
    acc = np.zeros((x.shape[0], w.shape[1] * groups, *out), dtype=np.int64)
    per_group = x.shape[1] // groups
    for at in itertools.product(*map(range, x.shape[2:])):
        for tap in itertools.product(*map(range, kernel)):
            steps = zip(at, stride, tap, dilation, padding, strict=True)
            place = [a * s + t * d - p for a, s, t, d, p in steps]
            if not all(0 <= i < n for i, n in zip(place, out, strict=True)):
                continue
            for g in range(groups):
                channels = slice(g * per_group, (g + 1) * per_group)
                outputs = slice(g * w.shape[1], (g + 1) * w.shape[1])
                values = x[(slice(None), channels, *at)]
                acc[(slice(None), outputs, *place)] += values @ w[(channels, slice(None), *tap)]
    return acc


def saturating_linear(x: Ints, w: Ints) -> Ints:
    """Sums over pairs of neighbours whose sum of two products is cut to 16 bits; raw ``x``."""
    rows = x.reshape(-1, x.shape[-1])
    acc = np.zeros((rows.shape[0], w.shape[0]), dtype=np.int64)
    for m, n in itertools.product(range(rows.shape[0]), range(w.shape[0])):
        products = [int(a) * int(b) for a, b in zip(rows[m], w[n], strict=True)]
        for k in range(0, len(products), 2):
            acc[m, n] += min(max(sum(products[k : k + 2]), -(2**15)), 2**15 - 1)
    return acc.reshape(*x.shape[:-1], w.shape[0])


def saturating_conv(
    x: Ints,
    zero_point: int,
    w: Ints,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Ints:
    """Convolution of raw ``x`` whose pairs run over taps, then over the channels of a tap."""
    around = [(0, 0), (0, 0), *((p, p) for p in padding)]
    padded = np.pad(x, around, constant_values=zero_point)
    kernel, width, per_group = w.shape[2:], w.shape[1], w.shape[0] // groups
    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    acc = np.zeros((x.shape[0], w.shape[0], *out), dtype=np.int64)
    for b, n in itertools.product(range(x.shape[0]), range(w.shape[0])):
        first = n // per_group * width
        for at in itertools.product(*map(range, out)):
            values, weights = [], []
            for tap in itertools.product(*map(range, kernel)):
                steps = zip(at, stride, tap, dilation, strict=True)
                place = tuple(a * s + t * d for a, s, t, d in steps)
                for c in range(width):
                    values.append(padded[(b, first + c, *place)])
                    weights.append(w[(n, c, *tap)])
            row, column = np.array([values]), np.array([weights])
            acc[(b, n, *at)] = saturating_linear(row, column)[0, 0] - zero_point * column.sum()
    return acc


def pool_windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    ceil_mode: bool = False,
    dilation: Sequence[int] | None = None,
) -> list[list[list[int]]]:
    """For each dimension and output index, the positions of its window, padding included.

    A last window that would start in the padding on the right is left out.
    """
    result = []
    spread = dilation or [1] * len(sizes)
    for n, k, s, p, d in zip(sizes, kernel, stride, padding, spread, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        windows = [[o * s - p + i * d for i in range(k)] for o in range(count)]
        result.append([[i for i in window if i < n + p] for window in windows])
    return result


def adaptive_windows(sizes: Sequence[int], output: Sequence[int]) -> list[list[list[int]]]:
    """Windows of an adaptive pool."""
    return [
        [list(range(i * n // m, -(-(i + 1) * n // m))) for i in range(m)]
        for n, m in zip(sizes, output, strict=True)
    ]


def pool(
    x: Ints, windows: list[list[list[int]]], *, include_pad: bool = True
) -> tuple[Ints, Ints, Ints]:
    """Sum, maximum and number of the values in each window of ``[..., *spatial]``."""
    dims = len(windows)
    out = [len(w) for w in windows]
    total = np.zeros((*x.shape[:-dims], *out), dtype=np.int64)
    largest, count = total.copy(), np.zeros(out, dtype=np.int64)
    for at in itertools.product(*map(range, out)):
        chosen = [w[i] for w, i in zip(windows, at, strict=True)]
        inside = [
            [i for i in c if 0 <= i < n] for c, n in zip(chosen, x.shape[-dims:], strict=True)
        ]
        values = [x[(..., *place)] for place in itertools.product(*inside)]
        total[(..., *at)] = sum(values)
        largest[(..., *at)] = np.max(values, axis=0)
        count[at] = math.prod(len(c) for c in (chosen if include_pad else inside))
    return total, largest, count


def quantize(x: Floats, scale: float, zero_point: int, low: int, high: int, rounding: str) -> Ints:
    """``clamp(round(x / scale) + zero_point)``; NaN is the zero point, infinities saturate."""
    flat = []
    with np.errstate(over="ignore"):
        divided = x.astype(np.float32) / np.float32(scale)
    for v in divided.ravel():
        if np.isnan(v):
            whole = zero_point
        elif np.isinf(v):
            whole = high if v > 0 else low
        else:
            whole = round_fraction(Fraction(float(v)), rounding) + zero_point
        flat.append(min(max(whole, low), high))
    return np.array(flat, dtype=np.int64).reshape(x.shape)


def pack(q: Ints, bits: int) -> NDArray[np.uint8]:
    """Rows of small integers as bytes: two's complement, the first value in the lowest bits."""
    rows = []
    for row in q.reshape(math.prod(q.shape[:-1]), q.shape[-1]):
        text = "".join(format(int(v) % 2**bits, f"0{bits}b")[::-1] for v in row)
        text += "0" * (-len(text) % 8)
        rows.append([int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)])
    width = -(-q.shape[-1] * bits // 8)
    return np.array(rows, dtype=np.uint8).reshape(*q.shape[:-1], width)
