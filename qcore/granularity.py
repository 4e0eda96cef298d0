"""How many values share one scale: the whole tensor, a channel, a group, a token or a block.

Every granularity answers one question, :meth:`Granularity.block_shape`: the shape of the block of
values that shares one scale and zero point. The shape of ``scale`` follows from it:

=================== ============== =======================
granularity         tensor         scale
=================== ============== =======================
``PerTensor()``     ``[N, K]``     ``[]``
``PerChannel(0)``   ``[N, K]``     ``[N]``
``PerGroup(32)``    ``[N, 128]``   ``[N, 4]``
``PerToken()``      ``[B, T, K]``  ``[B, T, 1]``
``PerBlock((8,8))`` ``[64, 32]``   ``[8, 4]``
=================== ============== =======================
"""

from collections.abc import Iterable, Sequence

import attrs

from .errors import QuantizationError

__all__ = ["Granularity", "PerBlock", "PerChannel", "PerGroup", "PerTensor", "PerToken"]


@attrs.frozen
class Granularity:
    """Base of the granularities; compare and hash by value."""

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of one block of a tensor of ``shape``; as many dimensions as ``shape``."""
        raise NotImplementedError

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the scale of a tensor of ``shape``.

        >>> PerGroup(32).scale_shape((8, 128))
        (8, 4)
        """
        block = self.block_shape(shape)
        return tuple(n // b if b else 0 for n, b in zip(shape, block, strict=True))


@attrs.frozen
class PerTensor(Granularity):
    """One scale for the whole tensor; shape ``[]``."""

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(shape)

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return ()


@attrs.frozen
class PerChannel(Granularity):
    """One scale for each index of dimension ``ch_axis``; shape ``[C]``."""

    ch_axis: int = 0

    def axis(self, ndim: int) -> int:
        """``ch_axis`` as a non-negative index of a tensor of ``ndim`` dimensions."""
        if not -ndim <= self.ch_axis < ndim:
            raise QuantizationError(f"{self}: a tensor of {ndim} dimensions has no such axis")
        return self.ch_axis % ndim

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        axis = self.axis(len(shape))
        return tuple(1 if i == axis else n for i, n in enumerate(shape))

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[self.axis(len(shape))],)


@attrs.frozen
class PerGroup(Granularity):
    """One scale for each ``group_size`` neighbours along the last dimension."""

    group_size: int = attrs.field()

    @group_size.validator
    def _positive(self, attribute: object, value: int) -> None:
        if value < 1:
            raise QuantizationError(f"group_size={value}; use a positive number of values")

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if not shape:
            raise QuantizationError(f"{self}: a tensor without dimensions has no groups")
        columns = shape[-1]
        if columns % self.group_size:
            fitting = [g for g in range(1, columns + 1) if columns % g == 0]
            raise QuantizationError(
                f"group_size={self.group_size} does not divide {columns} columns; use one of "
                f"{', '.join(map(str, fitting))} or granularity per_channel"
            )
        return (1,) * (len(shape) - 1) + (self.group_size,)


@attrs.frozen
class PerToken(Granularity):
    """One scale for each row along the last dimension; shape ``[..., 1]``."""

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if not shape:
            raise QuantizationError(f"{self}: a tensor without dimensions has no tokens")
        return (1,) * (len(shape) - 1) + (shape[-1],)


def _sizes(shape: Iterable[int]) -> tuple[int, ...]:
    # A function of its own, because mypy can't tell what the class tuple would convert to.
    return tuple(shape)


@attrs.frozen
class PerBlock(Granularity):
    """One scale for each block of ``shape``; dimensions must be multiples of the block's."""

    shape: tuple[int, ...] = attrs.field(converter=_sizes)

    @shape.validator
    def _positive(self, attribute: object, value: tuple[int, ...]) -> None:
        if not value or min(value) < 1:
            raise QuantizationError(f"block shape {value}; use one or more positive sizes")

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) != len(self.shape) or any(
            n % b for n, b in zip(shape, self.shape, strict=True)
        ):
            raise QuantizationError(
                f"block {self.shape} does not tile a tensor of shape {tuple(shape)}; use as many "
                "dimensions as the tensor has, each dividing it"
            )
        return self.shape
