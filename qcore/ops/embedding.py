"""Rows of an integer table, looked up and made float: ``qembedding`` and ``qembedding_bag``.

    y[i, k] = (w[index[i], k] - w_zero_point[...]) * w_scale[...]             float32

Only the rows that are asked for are unpacked and scaled.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import QuantizationError
from .library import define
from .storage import unpack

__all__ = ["qembedding", "qembedding_bag"]

_TABLE = "Tensor w, Tensor w_scale, Tensor? w_zero_point, int bits, bool signed, int columns"
_INDICES = (torch.int32, torch.int64)


def _embedding_meta(
    index: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bits: int,
    signed: bool,
    columns: int,
) -> Tensor:
    width = columns if bits == 8 else -(-columns * bits // 8)
    if index.dtype not in _INDICES or w.ndim != 2 or w.shape[1] != width:
        raise QuantizationError(
            f"qembedding: index is {index.dtype}, w of shape {list(w.shape)}; they must be int32 "
            f"or int64, and [N, {width}] for {columns} columns of {bits} bits"
        )
    groups = w_scale.shape[1] if w_scale.ndim == 2 else 1
    rows = (w.shape[0],)
    if tuple(w_scale.shape[:1]) not in ((), rows) or not groups or columns % groups:
        raise QuantizationError(
            f"qembedding: w_scale of shape {list(w_scale.shape)} for {w.shape[0]} rows of "
            f"{columns} columns; use [], [N] or [N, G] with G groups that divide the columns"
        )
    return torch.empty((*index.shape, columns), dtype=torch.float32, device=w.device)


@define(f"qembedding(Tensor index, {_TABLE}) -> Tensor", meta=_embedding_meta)
def qembedding(
    index: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bits: int,
    signed: bool,
    columns: int,
) -> Tensor:
    """Rows of a table of integers as float32.

    Args:
        index: int32 or int64, any shape.
        w: integers ``[N, columns]``; packed ``[N, bytes]`` if ``bits`` is 1, 2 or 4.
        w_scale: float32 ``[]``, ``[N]`` or ``[N, G]``: a scale for all, a row, or a group of a row.
        w_zero_point: int32 like ``w_scale``, or None for 0.
        bits: width of a stored value; 8 is a value of its own.
        signed: of packed values.
        columns: values a row.

    Returns:
        float32 ``[*index.shape, columns]``, contiguous.

    Raises:
        QuantizationError: shapes or dtypes that do not belong together.
        IndexError: there is no such row.
    """
    out = _embedding_meta(index, w, w_scale, w_zero_point, bits, signed, columns)
    flat = index.reshape(-1)

    def of_rows(values: Tensor) -> Tensor:
        """Scales or zero points of the rows, ``[n, G, 1]``."""
        chosen = values if values.ndim == 0 else values.index_select(0, flat)
        groups = chosen.shape[1] if chosen.ndim == 2 else 1
        return chosen.reshape(-1, groups, 1)

    rows = w.index_select(0, flat)
    if bits < 8:
        rows = unpack(rows, bits, signed, columns)
    scale = of_rows(w_scale)
    # Written with sizes, for a table without rows to look up.
    d = rows.reshape(flat.shape[0], scale.shape[1], columns // scale.shape[1]).float()
    if w_zero_point is not None:
        d -= of_rows(w_zero_point)
    return out.copy_(d.mul_(scale).reshape(out.shape))


def _bag_meta(
    index: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bits: int,
    signed: bool,
    columns: int,
    mode: str,
    include_last_offset: bool,
    padding_idx: int | None,
) -> Tensor:
    _embedding_meta(index, w, w_scale, w_zero_point, bits, signed, columns)
    if mode not in ("sum", "mean", "max"):
        raise QuantizationError(f"qembedding_bag: mode={mode!r}; use 'sum', 'mean' or 'max'")
    if (index.ndim == 1) != (offsets is not None) or index.ndim > 2:
        raise QuantizationError(
            f"qembedding_bag: index of shape {list(index.shape)}, offsets "
            f"{None if offsets is None else list(offsets.shape)}; give [bags, n] without offsets, "
            "or [n] with them"
        )
    bags = index.shape[0] if offsets is None else offsets.shape[0] - int(include_last_offset)
    return torch.empty((bags, columns), dtype=torch.float32, device=w.device)


@define(
    f"qembedding_bag(Tensor index, Tensor? offsets, Tensor? weights, {_TABLE}, str mode, "
    "bool include_last_offset, int? padding_idx) -> Tensor",
    meta=_bag_meta,
)
def qembedding_bag(
    index: Tensor,
    offsets: Tensor | None,
    weights: Tensor | None,
    *table: Any,
) -> Tensor:
    """Sums, means or maxima of bags of rows, in float32.

    Args:
        index: ``[bags, n]``, or ``[n]`` with offsets; int32 or int64.
        offsets: ``[bags]`` of the same dtype: where each bag begins.
        weights: float32 like ``index``, for sums only; None is 1.
        table: as of :func:`qembedding`; then ``mode``, ``include_last_offset`` and ``padding_idx``:
            rows of this number are left out.

    Returns:
        float32 ``[bags, columns]``.

    Raises:
        QuantizationError: shapes, dtypes or a mode that do not belong together.
    """
    _bag_meta(index, offsets, weights, *table)
    *stored, mode, include_last_offset, padding_idx = table
    rows = qembedding(index.reshape(-1), *stored)
    # Each row that was looked up is a row of a small float table of its own. One of zeros is for
    # what is left out.
    count = index.numel()
    place = torch.arange(count, dtype=index.dtype, device=index.device).reshape(index.shape)
    if padding_idx is not None:
        place = place.masked_fill(index == padding_idx, count)
    return F.embedding_bag(
        place,
        F.pad(rows, (0, 0, 0, 1)),
        offsets,
        mode=mode,
        per_sample_weights=weights,
        include_last_offset=include_last_offset,
        padding_idx=None if padding_idx is None else count,
    )
