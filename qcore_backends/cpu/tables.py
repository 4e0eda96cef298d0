"""Operations on 8-bit integers as lookups: every result there can be, computed once by the
definition.

A function of one byte has 256 results. They are looked up for two neighbouring values at a time, in
a table of all pairs. A function of two bytes has 65,536 results, which fit the cache just as well.
So any addition, with any scales and any activation behind it, is one lookup a value, whatever the
contract.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..values import constant, storage_of
from .kernel import Kernel

__all__ = ["AddTable", "MulTable", "RequantizeTable", "SubTable", "Table"]

_BYTES = (torch.int8, torch.uint8)
_AT_ONCE = 1 << 17
"""How many lookups are made at a time, so that the indices stay in the cache."""


def every(dtype: torch.dtype) -> Tensor:
    """All 256 values of an 8-bit dtype, in the order of their bytes."""
    return torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)


class _Unary(Kernel):
    """A function of one byte.

    Args:
        results: int8 or uint8 ``[256]``, by byte.
    """

    label: ClassVar[str] = "lookup"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    def __init__(self, results: Tensor) -> None:
        super().__init__({})
        self.dtype = results.dtype
        self.results = results
        byte = results.view(torch.uint8).to(torch.int32)
        # Little endian: the first of two neighbours is the lower byte. An int16 index is signed.
        pairs = byte[None, :] + 256 * byte[:, None]
        self.pairs = pairs.flatten().roll(32768).to(torch.int16)

    def forward(self, x: Tensor) -> Tensor:
        if not _dense(x):
            x = x.contiguous()
        elif x.storage_offset() % 2:
            # Pairs start at an even place of the memory.
            x = x.clone()
        out = torch.empty_like(x, dtype=self.dtype)
        source, target = (_in_memory(t) for t in (x, out))
        even = source.numel() // 2 * 2
        if even:
            pairs, found = source[:even].view(torch.int16), target[:even].view(torch.int16)
            for begin in range(0, len(pairs), _AT_ONCE):
                part = slice(begin, begin + _AT_ONCE)
                index = pairs[part].to(torch.int32).add_(32768)
                torch.index_select(self.pairs, 0, index, out=found[part])
        if even < source.numel():
            last = source[even:].view(torch.uint8).to(torch.int32)
            target[even:] = self.results.index_select(0, last)
        return out


class Table(_Unary):
    """``qtable``."""

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        table = constant(given["table"])
        if table is None:
            return "the table is computed at run time"
        if table.dtype not in _BYTES or storage_of(given["x"]) not in _BYTES:
            return "the table is not of 8-bit integers"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        table, dtype = constant(given["table"]), storage_of(given["x"])
        assert table is not None
        assert dtype is not None
        # Bytes beyond a narrower range never come, but need a place.
        place = every(dtype).to(torch.int64).sub_(given["offset"]).clamp_(0, len(table) - 1)
        super().__init__(table[place])


class RequantizeTable(_Unary):
    """``qrequantize`` of 8-bit integers to 8-bit integers."""

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if storage_of(given["x"]) not in _BYTES or given["y_dtype"] not in _BYTES:
            return "it is not between 8-bit integers"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        dtype = storage_of(given["x"])
        assert dtype is not None
        super().__init__(torch.ops.qcore.qrequantize.default(**{**given, "x": every(dtype)}))


class _Binary(Kernel):
    """A function of two bytes."""

    label: ClassVar[str] = "lookup of pairs"
    inputs: ClassVar[tuple[str, ...]] = ("a", "b")
    op: ClassVar[Callable[..., Tensor]]

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        stored = (storage_of(given["a"]), storage_of(given["b"]), given["y_dtype"])
        if any(dtype not in _BYTES for dtype in stored):
            return "it is not between 8-bit integers"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        dtypes = storage_of(given["a"]), storage_of(given["b"])
        a, b = (every(dtype) for dtype in dtypes if dtype is not None)
        self.results = type(self).op(**{**given, "a": a[:, None], "b": b[None, :]}).flatten()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        index = a.view(torch.uint8).to(torch.int32).mul_(256)
        right = b.view(torch.uint8)
        index = index.add_(right) if _covers(index, right) else index + right
        out = torch.empty_like(index, dtype=self.results.dtype)
        if _dense(index):
            torch.index_select(self.results, 0, _in_memory(index), out=_in_memory(out))
            return out
        return self.results.index_select(0, index.flatten()).view(index.shape)


class AddTable(_Binary):
    """``qadd``."""

    op = torch.ops.qcore.qadd.default


class SubTable(_Binary):
    """``qsub``."""

    op = torch.ops.qcore.qsub.default


class MulTable(_Binary):
    """``qmul``."""

    op = torch.ops.qcore.qmul.default


def _covers(index: Tensor, other: Tensor) -> bool:
    common: torch.Size = torch.broadcast_shapes(index.shape, other.shape)  # type: ignore[no-untyped-call]
    return common == index.shape


def _dense(x: Tensor) -> bool:
    """Whether the values fill a piece of memory, each once, as those of any memory format do."""
    return bool(torch.ops.aten.is_non_overlapping_and_dense(x))


def _in_memory(x: Tensor) -> Tensor:
    """The values of a dense tensor in the order of the memory, ``[n]``."""
    return x.as_strided((x.numel(),), (1,))
