"""Scales and integers of tokens."""

import triton
import triton.language as tl

from .arithmetic import requantized

__all__ = ["quantize_tokens"]


@triton.jit
def quantize_tokens(
    x,
    q,
    scale,
    depth,
    half_steps,
    least,
    most,
    low,
    high,
    BLOCK: tl.constexpr,
):
    """A token of ``x``, float32 ``[rows, depth]``: its integers and its scale.

    Args:
        half_steps: ``(quant_max - quant_min) / 2``.
        least, most: bounds of the scale and of the largest magnitude.
    """
    row = tl.program_id(0)
    begin = row.to(tl.int64) * depth
    magnitude = tl.zeros((BLOCK,), dtype=tl.float32)
    finite = tl.full((BLOCK,), 1, dtype=tl.int32)
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.abs(tl.load(x + begin + k, mask=k < depth, other=0.0))
        finite = finite & (value <= 3.4028234663852886e38).to(tl.int32)
        magnitude = tl.maximum(magnitude, value)
    # A quotient of float32 numbers that is rounded to float64 and then to float32 is the one that
    # is rounded once: 53 bits are more than twice 24 and two.
    largest_of_all = tl.minimum(tl.max(magnitude, axis=0), most)
    step = tl.maximum(tl.div_rn(largest_of_all, half_steps), least)
    usable = tl.min(finite, axis=0) == 1
    tl.store(scale + row, tl.where(usable, step, float("nan")))
    for start in range(0, depth, BLOCK):
        k = start + tl.arange(0, BLOCK)
        value = tl.load(x + begin + k, mask=k < depth, other=0.0)
        # The integers of a token without a scale are of no account: NaN times anything is NaN.
        ratio = tl.where(usable, tl.div_rn(value, step), 0.0)
        tl.store(q + begin + k, requantized(ratio, low, high, 0).to(tl.int8), mask=k < depth)
