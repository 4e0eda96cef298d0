"""Writes the program of a segment for one set of input shapes: operations, and where values lie."""

import math
from typing import Any

import attrs
import torch
from torch import Tensor

from qcore import BackendError

from .memory import Buffer, Value, place
from .records import DIMS, Kind, Move, Op, Ref

__all__ = ["OutputSlot", "Plan", "Planner"]

_SLACK = 1 << 12
"""Bytes behind the arena that kernels may read, and never use: they take whole vectors."""

_TILE_ROWS = 32
_MOVE_TASKS = 64
_MOVE_SIZE = 2048


@attrs.frozen(kw_only=True)
class OutputSlot:
    """A result of a plan.

    Args:
        shape, strides, dtype: of the tensor that receives it.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


@attrs.frozen(eq=False, kw_only=True)
class Plan:
    """A program, ready to run.

    Slot 0 is the arena; then come the inputs, the outputs, and the constants.

    Args:
        ops: the operations.
        outputs: the results.
        constants: what the layers own.
        arena_bytes: memory for everything else.
    """

    ops: Any
    outputs: tuple[OutputSlot, ...]
    constants: tuple[Tensor, ...]
    arena_bytes: int


class Planner:
    """Collects the operations of a plan.

    Args:
        inputs: number of input slots.
        outputs: number of output slots.
        threads: that will run it.
        tiles: whether the instruction set has matrix tiles.
    """

    def __init__(self, *, inputs: int, outputs: int, threads: int, tiles: bool) -> None:
        self.threads = threads
        self.tiles = tiles
        self._first_output = 1 + inputs
        self._first_constant = 1 + inputs + outputs
        self._ops: list[tuple[Kind, Any, dict[str, tuple[Buffer, int]]]] = []
        self._buffers: list[Buffer] = []
        self._constants: list[Tensor] = []
        self._outputs: list[OutputSlot] = []
        self._overread = 0

    def input(self, index: int, layout: Tensor, dtype: torch.dtype) -> Value:
        """The value in an input slot, exactly as large as the tensor is."""
        buffer = Buffer(size=layout.untyped_storage().nbytes(), slot=1 + index)
        return Value(layout=layout, buffer=buffer, dtype=dtype)

    def new(self, layout: Tensor, dtype: torch.dtype) -> Value:
        """A value in the arena, dense in the order of ``layout``'s strides."""
        buffer = Buffer(size=layout.numel() * dtype.itemsize, first=len(self._ops))
        self._buffers.append(buffer)
        return Value(layout=layout, buffer=buffer, dtype=dtype)

    def new_bytes(self, size: int) -> Buffer:
        """Memory in the arena."""
        buffer = Buffer(size=size, first=len(self._ops))
        self._buffers.append(buffer)
        return buffer

    def constant(self, tensor: Tensor) -> Buffer:
        """A tensor that a layer owns, dense and padded as its kernel reads it."""
        slot = self._first_constant + len(self._constants)
        self._constants.append(tensor)
        return Buffer(size=tensor.numel() * tensor.element_size(), slot=slot)

    def add(self, kind: Kind, record: Any, **tensors: Value | Buffer | None) -> None:
        """Appends an operation.

        Args:
            record: without its references.
            tensors: by the name of the reference; ``output_y`` is ``y`` of ``output``.
        """
        references = {}
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            buffer = tensor.buffer if isinstance(tensor, Value) else tensor
            offset = 0
            if isinstance(tensor, Value):
                offset = int(tensor.layout.storage_offset()) * tensor.element_size
            buffer.last = len(self._ops)
            buffer.is_read |= not name.endswith("y")
            references[name] = (buffer, offset)
        self._ops.append((kind, record, references))

    def reads_rows(self, stride: int) -> None:
        """Notes that a kernel may read a whole block of rows where there are fewer."""
        self._overread = max(self._overread, _TILE_ROWS * stride)

    def copy(self, x: Value, layout: Tensor, *, flip: bool = False) -> Value:
        """``x`` in another layout of the same shape."""
        y = self.new(layout, x.dtype)
        self.move(Kind.COPY, x, y, flip=flip)
        return y

    def move(self, kind: Kind, x: Value, y: Value, *, flip: bool = False, **options: Any) -> None:
        """A copy or quantization of ``x`` to ``y``, which have the same shape."""
        sizes, x_strides, y_strides = _collapsed(x.layout, y.layout)
        record = Move(element_bytes=x.element_size, flip=128 if flip else 0, **options)
        for dim in range(DIMS):
            record.size[dim] = sizes[dim]
            record.x_stride[dim] = x_strides[dim]
            record.y_stride[dim] = y_strides[dim]
        self.add(kind, record, x=x, y=y)

    def output(self, value: Value, wanted: Tensor) -> None:
        """Makes ``value`` the next output, in the layout of ``wanted``.

        It is written there at once if it lies so, and no kernel reads it: some read behind the end.
        """
        slot = self._first_output + len(self._outputs)
        strides = tuple(wanted.stride())
        self._outputs.append(
            OutputSlot(shape=tuple(wanted.shape), strides=strides, dtype=value.dtype)
        )
        own = value.buffer.slot == 0 and value.is_dense()
        same = tuple(value.strides) == strides and value.dtype != torch.int8
        if own and same and not value.buffer.is_read:
            value.buffer.slot = slot
            return
        buffer = Buffer(size=wanted.numel() * value.element_size, slot=slot)
        target = Value(layout=wanted, buffer=buffer, dtype=value.dtype)
        self.move(Kind.COPY, value, target, flip=value.dtype == torch.int8)

    def plan(self) -> Plan:
        """The finished program."""
        arena = [buffer for buffer in self._buffers if buffer.slot == 0]
        size = place(arena) + _SLACK + self._overread
        ops = (Op * len(self._ops))()
        for op, (kind, record, references) in zip(ops, self._ops, strict=True):
            op.kind = kind
            for name, (buffer, offset) in references.items():
                reference = Ref(slot=buffer.slot, offset=buffer.offset + offset)
                owner, _, field = name.rpartition("_")
                setattr(getattr(record, owner) if owner else record, field, reference)
            setattr(op, type(record).__name__.lower(), record)
        return Plan(
            ops=ops,
            outputs=tuple(self._outputs),
            constants=tuple(self._constants),
            arena_bytes=size,
        )


def _collapsed(x: Tensor, y: Tensor) -> list[tuple[int, ...]]:
    """Sizes, strides of ``x`` and strides of ``y``, which have one shape, in the order of the
    memory of ``y``; as few dimensions as there can be, then filled up to :data:`~.records.DIMS`."""
    lines = list(zip(y.shape, list(x.stride()), list(y.stride()), strict=True))
    dims: list[list[int]] = []
    for size, from_, to in sorted(lines, key=lambda line: -line[2]):
        if size == 1:
            continue
        if dims and dims[-1][1] == from_ * size and dims[-1][2] == to * size:
            dims[-1] = [dims[-1][0] * size, from_, to]
        else:
            dims.append([size, from_, to])
    if len(dims) > DIMS:
        raise BackendError(
            f"backend 'native': a tensor of shape {list(x.shape)} and strides {list(x.stride())} "
            f"is stored with more than {DIMS} dimensions in no order; make it contiguous"
        )
    if not dims:
        dims = [[1, 1, 1]]
    if len(dims) == 1:
        # A line, in pieces that are worth a task.
        outer, inner = _cut(dims[0])
        dims = [outer, [1, 0, 0], inner]
    elif len(dims) < DIMS and math.prod(size for size, _, _ in dims[:-2]) < _MOVE_TASKS:
        dims[-2:-1] = _cut(dims[-2], dims[-1][0])
    filled = [[1, 0, 0]] * (DIMS - len(dims)) + dims
    return list(zip(*filled, strict=True))


def _cut(line: list[int], width: int = 1) -> list[list[int]]:
    """A dimension as two: several tasks, each of some thousand elements."""
    size, from_, to = line
    parts = range(_MOVE_TASKS, 1, -1)
    count = next((p for p in parts if size % p == 0 and size // p * width >= _MOVE_SIZE), 1)
    inner = size // count
    return [[count, inner * from_, inner * to], [inner, from_, to]]
