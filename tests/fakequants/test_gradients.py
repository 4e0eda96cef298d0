"""Gradients of every learned method against finite differences in float64.

Rounding has no slope, so what is differentiated is the method with its roundings frozen: each
``round(a)`` becomes ``a + c`` with the ``c`` of the point where the gradient is taken, and a value
that is clipped there stays clipped. That is what "straight through" means.
"""

import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from qcore import (
    INT4,
    INT8,
    UINT4,
    UINT8,
    LearnedFakeQuantize,
    PerChannel,
    PerGroup,
    PerTensor,
    QDtype,
    QParams,
    QScheme,
    expand,
)
from qcore_fakequants.lsq import LSQFakeQuantize
from qcore_fakequants.lsq_plus import LSQPlusFakeQuantize
from qcore_fakequants.pact import PACTFakeQuantize
from qcore_fakequants.tqt import TQTFakeQuantize
from qcore_observers.minmax import MinMaxObserver

INT2 = QDtype.custom(bits=2, signed=True, name="int2")
UINT3 = QDtype.custom(bits=3, signed=False, name="uint3")

Values = dict[str, Tensor]
Frozen = Callable[[Values], tuple[Tensor, Tensor]]


def of_lsq(scheme: QScheme, at: Values, zero_point: Tensor) -> Frozen:
    return lambda p: (p["step"], zero_point)


def of_lsq_plus(scheme: QScheme, at: Values, zero_point: Tensor) -> Frozen:
    exact = -at["offset"] / at["step"]
    rest = exact.round().clamp(scheme.dtype.quant_min, scheme.dtype.quant_max) - exact
    return lambda p: (p["step"], -p["offset"] / p["step"] + rest)


def of_tqt(scheme: QScheme, at: Values, zero_point: Tensor) -> Frozen:
    shift = scheme.dtype.bits - (1 if scheme.dtype.signed else 0)
    t = at["log2_threshold"]
    rest = t.ceil() - t if scheme.power_of_two else torch.zeros_like(t)
    return lambda p: (2.0 ** (p["log2_threshold"] - shift + rest), zero_point)


def of_pact(scheme: QScheme, at: Values, zero_point: Tensor) -> Frozen:
    dtype = scheme.dtype
    levels = torch.maximum(dtype.quant_max - zero_point, zero_point - dtype.quant_min)
    return lambda p: (p["alpha"] / levels, zero_point)


@attrs.frozen
class Method:
    cls: type[LearnedFakeQuantize]
    frozen: Callable[[QScheme, Values, Tensor], Frozen]
    rounded: bool = False
    through: bool = True


METHODS = {
    "lsq": Method(LSQFakeQuantize, of_lsq),
    "lsq_plus": Method(LSQPlusFakeQuantize, of_lsq_plus),
    "tqt": Method(TQTFakeQuantize, of_tqt, rounded=True),
    "pact": Method(PACTFakeQuantize, of_pact, through=False),
}

SCHEMES = {
    "int8": (QScheme(dtype=INT8), 0),
    "int4_channel": (QScheme(dtype=INT4, granularity=PerChannel(0)), 0),
    "int4_group": (QScheme(dtype=INT4, granularity=PerGroup(5)), 0),
    "int2_channel": (QScheme(dtype=INT2, granularity=PerChannel(0)), 0),
    "uint8_relu": (QScheme(dtype=UINT8, symmetric=False), 0),
    "uint4_both_signs": (QScheme(dtype=UINT4, symmetric=False), 5),
    "uint3_channel": (QScheme(dtype=UINT3, granularity=PerChannel(1), symmetric=False), 3),
    "int4_power_of_two": (QScheme(dtype=INT4, power_of_two=True), 0),
}

CASES = [
    (method, scheme)
    for method in METHODS
    for scheme in SCHEMES
    if (method != "lsq_plus" or not SCHEMES[scheme][0].symmetric)
    and (method == "tqt" or not SCHEMES[scheme][0].power_of_two)
]


def started(method: str, scheme: QScheme, zero_point: int) -> LearnedFakeQuantize:
    """One on random scales, in training."""
    fake = METHODS[method].cls(scheme=scheme, observer=MinMaxObserver(scheme=scheme), where="x")
    fake.observer_enabled = False
    shape = scheme.granularity.scale_shape((6, 10))
    spread = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    scale = spread * 4 / (scheme.dtype.quant_max - scheme.dtype.quant_min)
    if scheme.power_of_two:
        scale = torch.exp2(scale.log2().round())
    fake.set_qparams(
        QParams(
            scale=scale,
            zero_point=torch.full(shape, zero_point, dtype=torch.int32),
            scheme=scheme,
        )
    )
    if method == "lsq_plus":
        # Off the integer that it starts on, so that rounding has a rest.
        with torch.no_grad():
            fake.offset += 0.3 * fake.step
    return fake.train()


def surrogate(
    method: Method, scheme: QScheme, params: Values, zero_point: Tensor, x: Tensor
) -> Callable[[Values, Tensor], Tensor]:
    """The quantizer with its roundings frozen at a point."""
    lattice = method.frozen(scheme, params, zero_point)

    def at(p: Values) -> tuple[Tensor, Tensor]:
        scale, zero = lattice(p)
        return tuple(expand(t, scheme.granularity, x.shape) for t in (scale, zero))  # type: ignore[return-value]

    scale, zero = at(params)
    u = x / scale
    low, high = scheme.dtype.quant_min - zero, scheme.dtype.quant_max - zero
    r = u.round()
    # The tests are about slopes: no value may lie on a corner.
    for corner in (low, high):
        assert ((u - corner).abs() > 1e-3).all()
    assert ((u - u.floor() - 0.5).abs() > 1e-4).all()
    below, above = (r < low, r > high) if method.rounded else (u <= low, u >= high)
    rest = r - u

    def function(p: Values, x: Tensor) -> Tensor:
        s, z = at(p)
        inside = (x / s + rest) * s if method.through else x + rest * scale
        y = torch.where(below, (scheme.dtype.quant_min - z) * s, inside)
        return torch.where(above, (scheme.dtype.quant_max - z) * s, y)

    return function


def slopes(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Central differences of a scalar function, element by element."""
    result = torch.zeros_like(at)
    for i in range(at.numel()):
        width = 1e-5 * max(abs(at.flatten()[i].item()), 1e-2)
        ends = []
        for sign in (1, -1):
            moved = at.clone()
            moved.view(-1)[i] += sign * width
            ends.append(function(moved))
        result.view(-1)[i] = (ends[0] - ends[1]) / (2 * width)
    return result


@pytest.mark.parametrize(("method", "name"), CASES, ids=lambda v: str(v))
def test_against_finite_differences(method: str, name: str) -> None:
    """By every parameter and by the input, for every width, sign and granularity."""
    scheme, zero_point = SCHEMES[name]
    fake = started(method, scheme, zero_point)
    generator = torch.Generator().manual_seed(3)
    low = -1.0 if zero_point == 0 and not scheme.dtype.signed else -4.0
    x = low + (4.0 - low) * torch.rand(6, 10, generator=generator)
    incoming = torch.randn(x.shape, generator=generator)
    x.requires_grad_()
    y = fake(x)
    y.backward(incoming)

    params = {n: p.detach().double() for n, p in fake.named_parameters(recurse=False)}
    assert set(params) == set(fake.learned)
    _, zero = fake.current()
    x64 = x.detach().double()
    function = surrogate(METHODS[method], scheme, params, zero.detach().double(), x64)
    torch.testing.assert_close(y.detach().double(), function(params, x64), rtol=1e-5, atol=1e-6)
    weight = incoming.double()
    expected = slopes(lambda v: (function(params, v) * weight).sum(), x64)
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-4, atol=1e-6)
    for parameter in params:

        def moved(value: Tensor, parameter: str = parameter) -> Tensor:
            return (function({**params, parameter: value}, x64) * weight).sum()

        expected = slopes(moved, params[parameter])
        if method.startswith("lsq"):
            expected = expected * _factor(scheme, fake.qparams().zero_point, x64)
        found = fake.get_parameter(parameter).grad
        torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=1e-5)


def _factor(scheme: QScheme, zero_point: Tensor, x: Tensor) -> Tensor:
    """``1 / sqrt(N * Q_P)``; x is a batch of 6 examples."""
    dtype = scheme.dtype
    number = x.numel() // max(1, math.prod(scheme.granularity.scale_shape(x.shape))) // 6
    above = (dtype.quant_max - zero_point).double()
    below = (zero_point - dtype.quant_min - 1).double()
    levels = torch.maximum(above, below).clamp(min=1)
    return 1 / (max(number, 1) * levels).sqrt()


def test_the_surrogate_can_fail() -> None:
    """The slope of another method is not taken for that of this one."""
    scheme, zero_point = SCHEMES["uint4_both_signs"]
    fake = started("lsq", scheme, zero_point)
    x = torch.linspace(-4, 4, 60).reshape(6, 10) + 0.0137
    fake(x).sum().backward()
    params: dict[str, Any] = {"step": fake.step.detach().double()}
    wrong = attrs.evolve(METHODS["lsq"], through=False)
    function = surrogate(wrong, scheme, params, torch.tensor(5.0).double(), x.double())
    slope = slopes(lambda v: function({"step": v}, x.double()).sum(), params["step"])
    factor = _factor(scheme, fake.qparams().zero_point, x)
    assert abs(fake.step.grad.item() - (slope * factor).item()) > 1e-3


def test_per_tensor_granularity_is_the_sum_over_channels() -> None:
    """One step for all gets what separate equal steps get together."""
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for granularity in (PerTensor(), PerChannel(0)):
        scheme = QScheme(dtype=INT4, granularity=granularity)
        fake = TQTFakeQuantize(scheme=scheme, observer=MinMaxObserver(scheme=scheme))
        fake.observer_enabled = False
        shape = granularity.scale_shape(x.shape)
        fake.set_qparams(
            QParams(
                scale=torch.full(shape, 0.2),
                zero_point=torch.zeros(shape, dtype=torch.int32),
                scheme=scheme,
            )
        )
        fake.train()(x).square().sum().backward()
        found.append(fake.log2_threshold.grad.sum())
    torch.testing.assert_close(found[0], found[1])
