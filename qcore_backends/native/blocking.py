"""How a matrix product is cut into tasks: rows that fit the cache, enough tasks for the threads."""

import attrs

from .planner import Planner
from .weights import LANES, padded

__all__ = ["Blocks", "blocks", "uses_tiles"]

_CACHE = 768 * 1024
"""Bytes of the rows of one task: less than a core's second cache."""

_ROWS = 32
_PANELS = 4
_TASKS_A_THREAD = 4
_FEWEST_TILE_ROWS = 8


@attrs.frozen(kw_only=True)
class Blocks:
    """Rows and panels of one task."""

    rows: int
    panels: int
    splits_columns: bool


def blocks(planner: Planner, *, products: int, rows: int, columns: int, depth: int) -> Blocks:
    """The tasks of ``products`` matrix products of ``[rows, depth]`` by ``[depth, columns]``.

    Weights are read once for each block of rows, so blocks are as large as the cache allows; with
    few rows the columns are split instead.
    """
    threads = planner.threads
    panels = padded(columns, LANES) // LANES
    fit = max(_ROWS, _CACHE // max(depth, 1) // _ROWS * _ROWS)
    if threads == 1:
        return Blocks(rows=min(fit, padded(rows, _ROWS)), panels=panels, splits_columns=False)
    wanted = threads * _TASKS_A_THREAD
    share = padded(-(-rows * products // wanted), _ROWS)
    block = min(fit, max(share, 2 * _ROWS), padded(rows, _ROWS))
    tasks = products * -(-rows // block)
    if tasks >= wanted or panels <= _PANELS:
        return Blocks(rows=block, panels=panels, splits_columns=False)
    # Few rows: all of them in a task, and a part of the columns.
    block = min(fit, padded(rows, _ROWS))
    parts = -(-wanted // (products * -(-rows // block)))
    part = padded(-(-panels // parts), _PANELS)
    return Blocks(rows=block, panels=min(part, panels), splits_columns=part < panels)


def uses_tiles(planner: Planner, rows: int) -> bool:
    """Whether tiles are faster than vectors: not for a few rows, which fill no tile."""
    return planner.tiles and rows >= _FEWEST_TILE_ROWS
