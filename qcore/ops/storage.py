"""Between float and integers, and between packed and whole integers."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import QuantizationError
from ..numerics import integers, scalar
from .batches import fill
from .library import define
from .output import centred

__all__ = ["dequantize", "dequantize_block", "pack", "quantize", "unpack"]


def _quantize_meta(
    x: Tensor,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    rounding: str,
) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@define(
    "quantize(Tensor x, float scale, int zero_point, int quant_min, int quant_max, "
    "ScalarType dtype, str rounding) -> Tensor",
    meta=_quantize_meta,
)
def quantize(
    x: Tensor,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    rounding: str,
) -> Tensor:
    """``clamp(round(x / scale) + zero_point)``; infinities saturate, NaN becomes the zero point.

    Args:
        x: any shape, floating point.

    Returns:
        Shaped like ``x``, of ``dtype``.
    """
    step = scalar(scale, x)

    def kernel(x: Tensor) -> Tensor:
        return integers(
            x,
            scale=step,
            zero_point=zero_point,
            quant_min=quant_min,
            quant_max=quant_max,
            rounding=rounding,
        )

    return fill(torch.empty_like(x, dtype=dtype), kernel, x)


def _dequantize_meta(q: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@define("dequantize(Tensor q, float scale, int zero_point) -> Tensor", meta=_dequantize_meta)
def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """``(q - zero_point) * scale`` in float32."""
    step = scalar(scale, q)

    def kernel(q: Tensor) -> Tensor:
        # Wider integers than 16 bits are not float32 numbers before the zero point is off.
        d = centred(q, zero_point) if q.element_size() <= 2 else (q - zero_point).float()
        return d.mul_(step)

    return fill(torch.empty_like(q, dtype=torch.float32), kernel, q)


def _dequantize_block_meta(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, block: Sequence[int]
) -> Tensor:
    return torch.empty(q.shape, dtype=torch.float32, device=q.device)


@define(
    "dequantize_block(Tensor q, Tensor scale, Tensor? zero_point, int[] block) -> Tensor",
    meta=_dequantize_block_meta,
)
def dequantize_block(
    q: Tensor, scale: Tensor, zero_point: Tensor | None, block: Sequence[int]
) -> Tensor:
    """``(q - zero_point) * scale`` where each block of shape ``block`` has its own.

    Args:
        q: integers, any shape.
        scale: float32; as many values as ``q`` has blocks, in row-major order of the blocks.
        zero_point: int32 like ``scale``, or None for 0.
        block: shape of a block; divides the shape of ``q``.

    Returns:
        float32 shaped like ``q``, contiguous.

    Raises:
        QuantizationError: the block does not tile ``q``, or there are not as many scales as blocks.
    """
    tiled = len(block) == q.ndim and all(
        b > 0 and n % b == 0 for n, b in zip(q.shape, block, strict=True)
    )
    grid = [n // b for n, b in zip(q.shape, block, strict=True)] if tiled else []
    if not tiled or scale.numel() != math.prod(grid):
        raise QuantizationError(
            f"dequantize_block: block {list(block)} and {scale.numel()} scales for integers of "
            f"shape {list(q.shape)}; the block must divide each dimension, with one scale a block"
        )
    # Each dimension n as [n / b, b], so that the scales broadcast over the values of their block.
    inner = [size for pair in zip(grid, block, strict=True) for size in pair]
    outer = [size for n in grid for size in (n, 1)]
    d = q.reshape(inner).to(torch.int32 if q.element_size() > 2 else torch.float32, copy=True)
    if zero_point is not None:
        d -= zero_point.reshape(outer)
    return d.float().mul_(scale.reshape(outer)).reshape(q.shape).contiguous()


def _per_byte(bits: int) -> int:
    """How many values of ``bits`` bits a byte holds."""
    if bits not in (1, 2, 4):
        raise QuantizationError(f"bits={bits} can't be packed; use 1, 2 or 4")
    return 8 // bits


def pack(q: Tensor, bits: int) -> Tensor:
    """Integers of 1, 2 or 4 bits, several to a byte, lowest bits first.

    Args:
        q: integers of shape ``[..., K]``, any integer dtype.
        bits: width of one value.

    Returns:
        uint8 ``[..., ceil(K * bits / 8)]``; the last byte of a row is filled with zeros.

    Raises:
        QuantizationError: another width.

    >>> pack(torch.tensor([[1, -1, 7]], dtype=torch.int8), 4)
    tensor([[241,   7]], dtype=torch.uint8)
    """
    per_byte = _per_byte(bits)
    values = q.to(torch.int32) & ((1 << bits) - 1)
    columns = -(-values.shape[-1] // per_byte)
    values = F.pad(values, (0, columns * per_byte - values.shape[-1]))
    values = values.reshape(*values.shape[:-1], columns, per_byte)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=q.device)
    return (values << shifts).sum(-1).to(torch.uint8)


def _unpack_meta(packed: Tensor, bits: int, signed: bool, columns: int) -> Tensor:
    most = packed.shape[-1] * _per_byte(bits)
    if not 0 <= columns <= most:
        raise QuantizationError(
            f"unpack: {columns} columns of {bits} bits from {packed.shape[-1]} bytes a row, which "
            f"hold {most}"
        )
    dtype = torch.int8 if signed else torch.uint8
    return packed.new_empty((*packed.shape[:-1], columns), dtype=dtype)


@define("unpack(Tensor packed, int bits, bool signed, int columns) -> Tensor", meta=_unpack_meta)
def unpack(packed: Tensor, bits: int, signed: bool, columns: int) -> Tensor:
    """Inverse of :func:`pack`: int8 or uint8 ``[..., columns]``, contiguous.

    Raises:
        QuantizationError: a width other than 1, 2 or 4, or more columns than there are.
    """
    out = _unpack_meta(packed, bits, signed, columns)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=packed.device)
    values = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    values = values.flatten(-2)[..., :columns]
    if signed:
        sign = 1 << (bits - 1)
        values = (values ^ sign) - sign
    return out.copy_(values)
