"""From pairs of values to numbers: lattices, histograms, signal to noise."""

import math

import attrs
import torch
from torch import Tensor

from ..numerics import integers, scalar
from .records import TAIL, Difference

__all__ = ["Lattice", "Meter"]


@attrs.frozen(kw_only=True)
class Lattice:
    """What the integers of a value stand for: ``(q - zero_point) * scale``.

    Two are equal if their integers mean the same, whatever the range that is in use.

    Args:
        scale: a float32 number.
        zero_point: the integer that stands for 0.
        low, high: smallest and largest integer.
    """

    scale: float
    zero_point: int
    low: int = attrs.field(eq=False)
    high: int = attrs.field(eq=False)

    def real(self, q: Tensor) -> Tensor:
        """The real values of integers, in float32."""
        return (q.double() - self.zero_point).float() * scalar(self.scale, q)

    def nearest(self, x: Tensor) -> Tensor:
        """The integers nearest to real values, in float32 or float64."""
        return integers(
            x,
            scale=scalar(self.scale, x),
            zero_point=self.zero_point,
            quant_min=self.low,
            quant_max=self.high,
        )


class Meter:
    """Adds up how the values of one operation differ, batch by batch.

    Where both sides hold integers of one meaning, these are compared. Where the meanings differ, or
    one side is in float, A's values are put on B's lattice (B's on A's if only A has one), so a
    value differs if it is not the nearest one. SQNR is always that of the real values.
    """

    def __init__(self) -> None:
        self._compared = self._differing = 0
        self._largest = self._signal = self._noise = 0.0
        self._bins = torch.zeros(2 * TAIL + 1, dtype=torch.int64)

    def add(self, a: Tensor, on_a: Lattice | None, b: Tensor, on_b: Lattice | None) -> int:
        """One more pair of values of one shape; how many of them differ.

        Args:
            a, b: integers if there is a lattice, else real values.
        """
        self._add_noise(a if on_a is None else on_a.real(a), b if on_b is None else on_b.real(b))
        lattice = on_b or on_a
        left, right = on_lattice(a, on_a, lattice), on_lattice(b, on_b, lattice)
        different = left != right
        count = int(different.sum())
        self._compared += left.numel()
        self._differing += count
        if count:
            steps = right.double()[different] - left.double()[different]
            largest = float(steps.abs().max())
            # A difference that is NaN is larger than any.
            self._largest = max(self._largest, largest) if largest == largest else math.inf
            if lattice is not None:
                bins = steps.clamp(-TAIL, TAIL).to(torch.int64) + TAIL
                self._bins += torch.bincount(bins.cpu(), minlength=2 * TAIL + 1)
        return count

    def _add_noise(self, a: Tensor, b: Tensor) -> None:
        signal, noise = a.double(), b.double()
        self._signal += float(signal.square().sum())
        self._noise += float((noise - signal).square().sum())

    def result(self) -> Difference:
        """All of it."""
        ratio = self._signal / self._noise if self._noise else math.inf
        return Difference(
            compared=self._compared,
            differing=self._differing,
            histogram={
                step: int(n)
                for step, n in zip(range(-TAIL, TAIL + 1), self._bins, strict=True)
                if n
            },
            largest=self._largest if self._largest < math.inf else None,
            sqnr=10 * math.log10(ratio) if 0 < ratio < math.inf else None,
        )


def on_lattice(x: Tensor, own: Lattice | None, wanted: Lattice | None) -> Tensor:
    """A value as integers of another lattice; as it is if it lies there already."""
    if own == wanted:
        return x
    real = x if own is None else own.real(x)
    return real if wanted is None else wanted.nearest(real)
