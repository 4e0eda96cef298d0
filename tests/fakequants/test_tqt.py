"""TQT: the threshold's logarithm, with powers of two and without."""

import math

import pytest
import torch

from qcore import INT4, INT8, SCALE_MIN, UINT8, QDtype, QParams, QScheme
from qcore_fakequants.tqt import TQTFakeQuantize, scale_of
from qcore_observers.minmax import MinMaxObserver


def at(scale: float, dtype: QDtype = INT4, *, power_of_two: bool = False) -> TQTFakeQuantize:
    scheme = QScheme(dtype=dtype, power_of_two=power_of_two)
    fake = TQTFakeQuantize(scheme=scheme, observer=MinMaxObserver(scheme=scheme)).train()
    fake.observer_enabled = False
    fake.set_qparams(
        QParams(
            scale=torch.tensor(scale),
            zero_point=torch.tensor(0, dtype=torch.int32),
            scheme=scheme,
        )
    )
    return fake


@pytest.mark.parametrize(("dtype", "shift"), [(INT8, 7), (INT4, 3), (UINT8, 8)], ids=str)
def test_the_parameter_is_the_threshold(dtype: QDtype, shift: int) -> None:
    """The end of the range, 2^(b-1) steps if signed and 2^b if not."""
    fake = at(0.3, dtype)
    assert 2.0 ** fake.log2_threshold.item() == pytest.approx(0.3 * 2**shift)


@pytest.mark.parametrize("exponent", range(-40, 60))
def test_powers_of_two_are_exact_and_stay_what_the_observer_found(exponent: int) -> None:
    """No bit is set in the mantissa, and small moves of the parameter change nothing."""
    fake = at(2.0**exponent, power_of_two=True)
    assert fake.qparams().scale.item() == 2.0**exponent
    with torch.no_grad():
        fake.log2_threshold.add_(0.4)
    assert fake.qparams().scale.item() == 2.0**exponent
    with torch.no_grad():
        fake.log2_threshold.add_(0.2)
    assert fake.qparams().scale.item() == 2.0 ** (exponent + 1)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("value", [-9.0, -4.4, 0.3, 3.6, 3.74, 3.76, 100.0])
def test_equation_7(value: float, power_of_two: bool) -> None:
    """s * ln 2 times the rounding error inside, n below and p above; inside is after rounding."""
    s = 0.5
    fake = at(s, power_of_two=power_of_two)
    x = torch.tensor([value], requires_grad=True)
    fake(x).backward()
    r = round(value / s)
    inside = -8 <= r <= 7
    slope = r - value / s if inside else (-8 if r < 0 else 7)
    expected = s * math.log(2) * slope
    assert fake.log2_threshold.grad.item() == pytest.approx(expected, abs=1e-5)
    assert x.grad is not None
    assert x.grad.item() == float(inside)


def test_the_ceiling_lets_the_gradient_pass() -> None:
    """Straight through, as if the scale were not rounded up."""
    t = torch.tensor(0.3, requires_grad=True)
    scale_of(t, dtype=INT8, power_of_two=True).backward()
    assert t.grad is not None
    assert t.grad.item() == pytest.approx(2.0 / 128 * math.log(2))


def test_the_scale_has_bounds() -> None:
    """Any parameter gives a scale that arithmetic can use."""
    ends = scale_of(torch.tensor([-1e30, 1e30]), dtype=INT8, power_of_two=False)
    assert ends.tolist() == [SCALE_MIN, 2.0**64]


def test_it_finds_the_range_over_orders_of_magnitude() -> None:
    """A threshold that starts a thousand times too large comes down at the paper's rate."""
    fake = at(1000.0)
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(fake.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (fake(x) - x).square().sum().backward()
        optimizer.step()
    assert 0.2 < fake.qparams().scale.item() < 0.6
