"""The last step of the default contract, as Triton functions that every kernel calls.

    y = clamp(round_half_even(t) + zero_point, y_min, y_max)

A kernel clamps before it rounds: rounding keeps order and leaves integers as they are, so the two
commute, and what is rounded then lies within ``2**22``. There adding and taking away
``1.5 * 2**23`` rounds half to even by the addition of float32 itself, on every device and in the
interpreter. Kernels are compiled without fused multiply-adds, so each step is rounded by itself.
"""

import triton
import triton.language as tl

__all__ = ["placed", "requantized", "signed"]


@triton.jit
def requantized(t, low, high, zero_point):
    """Integers of real values, int32 shaped like ``t``.

    Args:
        t: float32, in steps of the output, without its zero point.
        low, high: float32, the clamp less the zero point; integers within ``2**22``.
        zero_point: int32.
    """
    t = tl.minimum(tl.maximum(t, low), high)
    t = (t + 12582912.0) - 12582912.0
    return t.to(tl.int32) + zero_point


@triton.jit
def signed(x, UNSIGNED: tl.constexpr):
    """8-bit operands as int8: uint8 less 128, which is its sign bit flipped."""
    if UNSIGNED:
        x = (x ^ 128).to(tl.int8, bitcast=True)
    return x


@triton.jit
def placed(blocks_m, blocks_n):
    """Which tile of the output a program computes: bands of 8 rows of tiles, column by column.

    Neighbouring programs then share rows and columns of the operands, which stay in the L2 cache.
    """
    pid = tl.program_id(0)
    band = pid // (8 * blocks_n)
    inside = pid % (8 * blocks_n)
    height = tl.minimum(blocks_m - band * 8, 8)
    return band * 8 + inside % height, inside // height
