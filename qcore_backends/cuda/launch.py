"""Starting kernels: on the device of their operands, with the tile that is fastest there."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
import triton
from torch import Tensor

from qcore import BackendError

from .device import gpu, interpreted
from .tuning import Tunings

__all__ = ["Tile", "launch", "launch_tuned", "warps"]

_EXACT = {"enable_fp_fusion": False}
"""A fused multiply-add rounds once where the contract rounds twice."""

_TUNINGS = Tunings()


@attrs.frozen
class Tile:
    """A piece of the output that one program computes, and how.

    Args:
        rows, columns, depth: rows and columns of the output; how far along the sum at a time.
        warps: of 32 threads.
        stages: pieces of the operands that are loaded ahead into shared memory.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 3

    @property
    def shared_memory(self) -> int:
        """Bytes of operands of 8 bits that are held at once."""
        return self.stages * (self.rows + self.columns) * self.depth

    @property
    def meta(self) -> dict[str, int]:
        """The sizes, by the names that kernels have for them."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": self.depth}


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, on: Tensor, warps: int = 4, **meta: Any
) -> None:
    """Starts ``kernel`` over ``grid`` on the device of ``on``, in its current stream.

    A grid of no programs starts nothing.

    Raises:
        BackendError: ``on`` is on no GPU.
    """
    if 0 in grid:
        return
    options = {**_EXACT, "num_warps": warps, **meta}
    if interpreted():
        # A GPU says nothing of infinities, either.
        with np.errstate(all="ignore"):
            kernel[grid](*args, **options)
    elif on.device.type != "cuda":
        raise BackendError(
            f"a kernel of backend 'cuda' was given a tensor on {on.device}; move the lowered model "
            "and its inputs to one GPU: model.to('cuda'), x.to('cuda')"
        )
    elif on.device.index == torch.cuda.current_device():
        kernel[grid](*args, **options)
    else:
        # Triton starts kernels on the current device, wherever their operands are.
        with torch.cuda.device(on.device):
            kernel[grid](*args, **options)


def launch_tuned(
    kernel: Any,
    rows: int,
    columns: int,
    *args: Any,
    on: Tensor,
    key: tuple[int | bool, ...],
    tiles: Sequence[Tile],
    others: int = 1,
    **meta: Any,
) -> None:
    """Starts a kernel that computes an output tile by tile, with the fastest of some tiles.

    Args:
        rows, columns: of the output.
        key: what else the speed depends on: sizes and variants. Rows and others count by the
            next power of two.
        tiles: candidates; the first is used where nothing can be measured.
        others: further programs a tile, along the second axis of the grid.
    """

    def start(tile: Tile) -> None:
        grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns), others)
        sizes = {**tile.meta, "num_stages": tile.stages, **meta}
        launch(kernel, grid, *args, on=on, warps=tile.warps, **sizes)

    if rows == 0 or columns == 0 or others == 0:
        return
    if interpreted():
        # The interpreter has no speed: the smallest tile makes the fewest values beyond the edges.
        start(Tile(tiles[0].rows if tiles[0].rows < 16 else 32, 32, 32))
        return
    device = gpu(on.device.index)
    fitting = [tile for tile in tiles if tile.shared_memory <= device.shared_memory]
    power = triton.next_power_of_2
    bucket = (power(rows), columns, power(others), *key)
    start(_TUNINGS.best(kernel, bucket, on.device, fitting, start))


def warps(size: int) -> int:
    """Warps for a block of ``size`` values: four values a thread or more."""
    return max(1, min(8, size // 128))
