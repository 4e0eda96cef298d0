"""Where the values of a plan lie: buffers in one arena, placed by their lifetimes."""

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

__all__ = ["Buffer", "Value", "place"]

_ALIGNMENT = 64


@attrs.define(eq=False, kw_only=True)
class Buffer:
    """A piece of memory that some operation writes and others read.

    Args:
        size: bytes.
        first, last: the operations between which its content counts.
        slot: 0 for the arena; a buffer of its own slot needs no place.
        offset: where it starts in its slot.
        is_read: whether any operation reads it.
    """

    size: int
    first: int = 0
    last: int = 0
    slot: int = 0
    offset: int = 0
    is_read: bool = False


@attrs.frozen(eq=False, kw_only=True)
class Value:
    """A tensor of a plan.

    Args:
        layout: on the device ``meta``: shape, strides and storage offset in ``buffer``.
        buffer: what it lies in.
        dtype: int8, uint8 or float32. An int8 value v is stored as v + 128.
    """

    layout: Tensor
    buffer: Buffer
    dtype: torch.dtype

    @property
    def element_size(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        return self.layout.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index to the next, by dimension."""
        return self.layout.stride()

    def like(self, layout: Tensor) -> "Value":
        """The same memory, seen in another way."""
        return attrs.evolve(self, layout=layout)

    def is_dense(self) -> bool:
        """Whether it is the whole of its buffer, each element once, in some order."""
        dense = torch.ops.aten.is_non_overlapping_and_dense(self.layout)
        size = self.layout.numel() * self.element_size
        return bool(dense) and self.layout.storage_offset() == 0 and size == self.buffer.size


def place(buffers: Sequence[Buffer]) -> int:
    """Gives each buffer its offset in the arena, and returns the size of the arena in bytes.

    The largest come first; each takes the lowest place that is free as long as it lives.
    """
    placed: list[Buffer] = []
    total = 0
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        together = [p for p in placed if p.first <= buffer.last and buffer.first <= p.last]
        offset = 0
        for other in sorted(together, key=lambda b: b.offset):
            if offset + buffer.size <= other.offset:
                break
            offset = max(offset, _aligned(other.offset + other.size))
        buffer.offset = offset
        placed.append(buffer)
        total = max(total, offset + buffer.size)
    return _aligned(total)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
