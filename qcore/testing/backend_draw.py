"""Cases of operations, and the numbers they are drawn with.

An *emphasis* says where most of the values lie: on ties, beyond the ends of the range, and so on.
"""

import random
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from ..numerics import Numerics
from ..ops.storage import pack

__all__ = ["BYTES", "Case", "Draw", "Emphasis", "Packed", "Place"]

Emphasis = Literal["any", "ties", "saturation", "zero points", "channel scales"]

BYTES = (torch.int8, torch.uint8)
"""Storage of most quantized values."""


@attrs.frozen
class Place:
    """Stands in the arguments of a case for the run-time tensor of that index."""

    index: int


@attrs.frozen(eq=False)
class Packed:
    """Stands in the arguments of a case for constant integers that lie packed in the program.

    Args:
        values: int8 ``[..., K]``.
        bits: 1, 2 or 4.
    """

    values: Tensor
    bits: int

    def packed(self) -> Tensor:
        """uint8, several values to a byte."""
        return pack(self.values, self.bits)


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """One operation with its arguments.

    Args:
        op: name of the operation.
        arguments: by position: literals, constant tensors, :class:`Place`, :class:`Packed`.
        inputs: the run-time tensors: floats, quantized values of at most 16 bits, or wider indices.
        batched: dimension 0 of all inputs is a batch whose examples don't touch each other.
    """

    op: str
    arguments: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    batched: bool = True

    def __str__(self) -> str:
        shown = []
        for value in self.arguments:
            if isinstance(value, Place):
                x = self.inputs[value.index]
                shown.append(f"<{_name(x.dtype)} {list(x.shape)}>")
            elif isinstance(value, Packed):
                shown.append(f"<{value.bits}-bit {list(value.values.shape)}>")
            elif isinstance(value, Tensor):
                shown.append(f"<constant {_name(value.dtype)} {list(value.shape)}>")
            else:
                shown.append(str(value))
        return f"{self.op}({', '.join(shown)})"


class Draw:
    """What the cases are drawn with; the same seed gives the same case.

    Args:
        seed: of all numbers.
        numerics: the contract that the operations carry.
        emphasis: where most of the values lie.
    """

    def __init__(self, seed: int, numerics: Numerics, emphasis: Emphasis = "any") -> None:
        self.numerics = numerics
        self.emphasis = emphasis
        self._random = random.Random(f"{seed} {emphasis}")
        self._generator = torch.Generator().manual_seed(self._random.getrandbits(48))

    def choice(self, *options: Any) -> Any:
        """One of the options."""
        return self._random.choice(options)

    def number(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``."""
        return self._random.randint(low, high)

    def coin(self) -> bool:
        """True or False."""
        return self._random.random() < 0.5

    def normal(self, *shape: int) -> Tensor:
        """float32 of a standard normal distribution."""
        return torch.randn(shape, generator=self._generator)

    def uniform(self, *shape: int) -> Tensor:
        """float32 from 0 up to 1."""
        return torch.rand(shape, generator=self._generator)

    def between(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 from ``low`` to ``high``."""
        return torch.randint(low, high + 1, shape, generator=self._generator)

    def storage(self, *, wide: bool = False) -> torch.dtype:
        """Storage of a quantized value; rarely int16 where ``wide``."""
        if wide and self.emphasis == "any" and self._random.random() < 0.15:
            return torch.int16
        return self.choice(*BYTES)  # type: ignore[no-any-return]

    def zero_point(self, dtype: torch.dtype) -> int:
        """Odd ones, the ends of the range, 0."""
        info = torch.iinfo(dtype)
        if dtype == torch.int16:
            return 0
        options = [3, info.min + 127, info.min, info.max, info.max - 54]
        return self.choice(*options, *[0] * (self.emphasis != "zero points"))  # type: ignore[no-any-return]

    def integers(self, dtype: torch.dtype, zero_point: int, *shape: int) -> Tensor:
        """A quantized value: the whole range, or close to the zero point for sums on ties."""
        info = torch.iinfo(dtype)
        if self.emphasis == "ties":
            low, high = max(info.min, zero_point - 5), min(info.max, zero_point + 5)
            return self.between(low, high, *shape).to(dtype)
        values = self.between(info.min, info.max, *shape)
        if self.emphasis == "saturation":
            ends = torch.where(self.uniform(*shape) < 0.5, info.min, info.max)
            values = torch.where(self.uniform(*shape) < 0.5, ends, values)
        return values.to(dtype)

    def scale(self) -> float:
        """Of an input. By powers of two sums lie on ties."""
        if self.emphasis == "ties":
            return self.choice(0.5, 1.0)  # type: ignore[no-any-return]
        return self.choice(0.5, 0.25, 0.0217, 1.0, 0.37)  # type: ignore[no-any-return]

    def weights(self, *shape: int) -> Tensor:
        """int8 without -128, so that it is a weight of any scheme."""
        bound = 2 if self.emphasis == "ties" else 127
        return self.between(-bound, bound, *shape).to(torch.int8)

    def weight_scale(self, channels: int) -> Tensor:
        """float32, for all channels or for each."""
        if self.emphasis == "ties":
            return self.choice(torch.tensor(1.0), torch.ones(channels))  # type: ignore[no-any-return]
        if self.emphasis == "channel scales":
            order = torch.randperm(channels, generator=self._generator)
            return 10 ** torch.linspace(-4, 0, channels)[order]
        spread = self.uniform(channels) * 0.01 + 0.001
        return self.choice(spread, spread[0])  # type: ignore[no-any-return]

    def bias(self, channels: int) -> Tensor | None:
        """As the contract has it: int32 in steps of the accumulator, or float32."""
        if self.emphasis == "any" and self._random.random() < 0.25:
            return None
        if self.emphasis == "ties":
            steps = self.between(-3, 3, channels)
            return steps.to(torch.int32) if self.numerics.bias == "int32" else steps * 0.5
        if self.numerics.bias == "int32":
            return self.between(-3000, 3000, channels).to(torch.int32)
        return self.normal(channels)

    def output(self, *, floats: bool = False, step: float = 1.0) -> tuple[Any, ...]:
        """The last six arguments of an operation.

        Args:
            floats: the result may also be float.
            step: about the largest value of the result over 100, so that a part of it saturates.
        """
        key = self.numerics.key
        if floats and self.emphasis in ("any", "channel scales") and self._random.random() < 0.3:
            return (1.0, 0, 0, 0, torch.float32, key)
        dtype = self.storage(wide=True)
        info = torch.iinfo(dtype)
        zero_point = self.zero_point(dtype)
        low = info.min
        if self.emphasis == "ties":
            scale = self.choice(1.0, 2.0)
        elif self.emphasis == "saturation":
            scale = step * self.choice(0.05, 0.2, 0.5)
        else:
            scale = step * self.choice(0.4, 1.0, 2.7)
            low = self.choice(low, zero_point)
        return (scale, zero_point, low, info.max, dtype, key)

    def operand(self, index: int, *shape: int) -> tuple[Tensor, tuple[Any, ...]]:
        """A run-time integer tensor, and its three arguments: value, scale, zero point."""
        dtype = self.storage()
        zero_point = self.zero_point(dtype)
        values = self.integers(dtype, zero_point, *shape)
        return values, (Place(index), self.scale(), zero_point)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
