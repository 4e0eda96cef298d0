"""Fake quantizers, qparams, values and comparisons, for the contracts of fake quantizers."""

from collections.abc import Iterator
from typing import Self

import attrs
import torch
from torch import Tensor

from ..config import QScheme
from ..fake_quantize import FakeQuantize
from ..numerics import dequantize_tensor, quantize_tensor
from ..observer import Observer
from ..qparams import QParams, expand
from .contract import Subject, require
from .values import SHAPE, accepted, one_of_each_granularity

__all__ = [
    "WHERE",
    "Case",
    "Extremes",
    "cases_of",
    "few_cases",
    "fresh",
    "gradient_of",
    "mode",
    "require_all",
    "require_equal",
    "schemes_of",
    "settings_of",
    "short",
    "started",
    "values_of",
]


WHERE = "block.fc"


class Extremes(Observer):
    """The smallest and the largest value: an observer of no plug-in, for whatever is tried."""

    def __init__(self, *, scheme: QScheme, where: str = "") -> None:
        super().__init__(scheme=scheme, where=where)
        self.low: Tensor | None
        self.high: Tensor | None
        self.register_buffer("low", None)
        self.register_buffer("high", None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        self.low = min_val if self.low is None else torch.minimum(self.low, min_val)
        self.high = max_val if self.high is None else torch.maximum(self.high, max_val)

    def combine(self, other: Self) -> None:
        assert other.low is not None
        assert other.high is not None
        self.update(other.low, other.low, other.high)

    def range(self) -> tuple[Tensor, Tensor]:
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


@attrs.frozen(kw_only=True)
class Case:
    """A fake quantizer in training, its qparams, and values to try it on.

    Args:
        given: the case in words.
        fake: does not observe.
        qparams: what it says that its qparams are.
        x: float32 ``SHAPE``.
    """

    given: str
    fake: FakeQuantize
    qparams: QParams
    x: Tensor

    def due(self, x: Tensor) -> Tensor:
        """The value of the formula."""
        return dequantize_tensor(quantize_tensor(x, self.qparams), self.qparams).to(x.dtype)

    @property
    def scale(self) -> Tensor:
        """Of each value of ``x``."""
        scale = expand(self.qparams.scale, self.qparams.scheme.granularity, self.x.shape)
        return scale.expand_as(self.x)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest ``q - zero_point`` of each value of ``x``, float32."""
        scheme = self.qparams.scheme
        zero_point = expand(self.qparams.zero_point, scheme.granularity, self.x.shape)
        zero_point = zero_point.expand_as(self.x)
        return (
            (scheme.dtype.quant_min - zero_point).float(),
            (scheme.dtype.quant_max - zero_point).float(),
        )


def fresh(subject: Subject, scheme: QScheme) -> FakeQuantize:
    observer = Extremes(scheme=scheme, where=WHERE)
    fake: FakeQuantize = subject.make(scheme=scheme, observer=observer, where=WHERE)
    return fake


def schemes_of(subject: Subject) -> list[QScheme]:
    return accepted(lambda scheme: fresh(subject, scheme), f"fake_quant {subject.name}")


def settings_of(scheme: QScheme) -> Iterator[QParams]:
    """Qparams of a scheme: with a power of two, at which ties are exact, and without; with odd
    zero points and with those at the ends."""
    shape = torch.Size(scheme.granularity.scale_shape(SHAPE))
    dtype, count = scheme.dtype, shape.numel()
    middle = (dtype.quant_min + dtype.quant_max) // 2 | 1
    points = [middle, dtype.quant_min, dtype.quant_max] if not scheme.symmetric else [0]
    factors = torch.rand(count, generator=torch.Generator().manual_seed(5)) + 0.5
    for first, scales in enumerate((torch.full((count,), 0.125), 0.1 * factors)):
        zero_points = [points[(first + i) % len(points)] for i in range(count)]
        yield QParams(
            scale=scales.reshape(shape),
            zero_point=torch.tensor(zero_points, dtype=torch.int32).reshape(shape),
            scheme=scheme,
        )


def started(subject: Subject, qparams: QParams) -> FakeQuantize:
    fake = fresh(subject, qparams.scheme)
    fake.observer_enabled = False
    fake.set_qparams(qparams)
    return fake.train()


def cases_of(subject: Subject, schemes: list[QScheme] | None = None) -> Iterator[Case]:
    for scheme in schemes_of(subject) if schemes is None else schemes:
        for setting in settings_of(scheme):
            fake = started(subject, setting)
            qparams = fake.qparams()
            case = Case(given="", fake=fake, qparams=qparams, x=torch.zeros(SHAPE))
            low, high = case.ends
            place = torch.rand(SHAPE, generator=torch.Generator().manual_seed(6)) * 1.4 - 0.2
            steps = low + place * (high - low)
            # Every other value is half-way between two integers.
            steps[:, ::2] = steps[:, ::2].floor() + 0.5
            steps[:, 1] = 0
            given = f"{scheme.describe()}, scale {short(qparams.scale)}, zero point "
            given += short(qparams.zero_point)
            yield attrs.evolve(case, given=given, x=steps * case.scale)


def few_cases(subject: Subject) -> Iterator[Case]:
    """Cases of one scheme of each granularity."""
    return cases_of(subject, one_of_each_granularity(schemes_of(subject)))


def values_of(fake: FakeQuantize, x: Tensor, *, training: bool) -> Tensor:
    """Values in a mode; those that are drawn at random are drawn alike each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        y: Tensor = fake.train(training)(x.clone())
    return y


def gradient_of(fake: FakeQuantize, x: Tensor, incoming: Tensor, *, training: bool) -> Tensor:
    torch.manual_seed(3)
    x = x.detach().clone().requires_grad_()
    fake.train(training)(x).backward(incoming)
    require(x.grad is not None, "an input that requires a gradient got none")
    assert x.grad is not None
    return x.grad


def mode(training: bool) -> str:
    return "in training" if training else "in eval mode"


def short(value: Tensor) -> str:
    if value.numel() > 4:
        return f"{value.flatten()[:4].tolist()}... {list(value.shape)}"
    return str(value.tolist())


def require_equal(given: str, x: Tensor, y: Tensor, due: Tensor) -> None:
    require(
        y.shape == due.shape and y.dtype == due.dtype,
        f"{given}: {y.dtype} {list(y.shape)} came; due is {due.dtype} {list(due.shape)}",
    )
    require_all(given, x, y, due, y == due)


def require_all(given: str, x: Tensor, y: Tensor, due: Tensor, good: Tensor) -> None:
    if bool(good.all()):
        return
    at = (~good).nonzero()[0].tolist()
    require(
        False,
        f"{given}: {x[tuple(at)].item()} becomes {y[tuple(at)].item()}; due is "
        f"{due[tuple(at)].item()} ({int((~good).sum())} of {good.numel()} values are wrong, the "
        f"first at {at})",
    )
