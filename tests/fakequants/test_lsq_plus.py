"""LSQ+: the offset, and the integer that it becomes."""

import math

import pytest
import torch

from qcore import INT8, UINT4, QParams, QScheme, QuantizationError
from qcore_fakequants.lsq_plus import LSQPlusFakeQuantize, zero_point_of
from qcore_observers.minmax import MinMaxObserver

SCHEME = QScheme(dtype=UINT4, symmetric=False)


def at(step: float, offset: float) -> LSQPlusFakeQuantize:
    fake = LSQPlusFakeQuantize(scheme=SCHEME, observer=MinMaxObserver(scheme=SCHEME)).train()
    fake.observer_enabled = False
    fake.set_qparams(
        QParams(
            scale=torch.tensor(step), zero_point=torch.tensor(0, dtype=torch.int32), scheme=SCHEME
        )
    )
    with torch.no_grad():
        fake.offset.fill_(offset)
    return fake


@pytest.mark.parametrize(
    ("offset", "zero_point"),
    [(0.0, 0), (-0.5, 1), (-0.74, 1), (-0.76, 2), (-1.25, 2), (-7.5, 15), (-99.0, 15), (3.0, 0)],
)
def test_the_offset_becomes_an_integer(offset: float, zero_point: int) -> None:
    """z = clamp(round(-beta / s)), half to even; training rounds to it as the program does."""
    fake = at(0.5, offset)
    assert fake.qparams().zero_point.item() == zero_point
    x = torch.linspace(-10, 10, 81)
    assert torch.equal(fake.train()(x), fake.eval()(x))
    assert fake.train()(torch.zeros(1)).item() == 0


@pytest.mark.parametrize("x", [-5.0, -1.4, 0.1, 2.2, 6.4, 50.0])
def test_the_gradients_of_the_paper(x: float) -> None:
    """beta: 0 inside, 1 clipped. s: the rounding error inside, n = 0 or p = 15 clipped."""
    s, beta = 0.5, -1.5
    fake = at(s, beta)
    factor = 1 / math.sqrt(1 * 12)
    fake(torch.tensor([x])).backward()
    u = (x - beta) / s
    clipped = not 0 < u < 15
    assert fake.offset.grad.item() == pytest.approx(factor if clipped else 0.0)
    expected = min(max(u, 0), 15) if clipped else round(u) - u
    assert fake.step.grad.item() == pytest.approx(expected * factor, abs=1e-5)


def test_an_offset_outside_the_range_finds_back() -> None:
    """The gradient passes the clamp of the zero point, so it is not stuck there."""
    offset = torch.tensor(9.0, requires_grad=True)
    zero_point = zero_point_of(offset, torch.tensor(0.5), quant_min=0, quant_max=15)
    assert zero_point.item() == 0
    zero_point.backward()
    assert offset.grad is not None
    assert offset.grad.item() == -2.0


def test_it_learns_the_range_of_a_shifted_activation() -> None:
    """From a range that starts at 0 it finds one that holds values from -1 to 2."""
    fake = at(0.2, 0.0)
    x = torch.rand(4000, generator=torch.Generator().manual_seed(0)) * 3 - 1
    optimizer = torch.optim.Adam(fake.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (fake(x) - x).square().mean().backward()
        optimizer.step()
    assert fake.qparams().zero_point.item() in (4, 5, 6)
    assert (fake(x) - x).abs().max() < 0.25


def test_symmetric_schemes_are_refused() -> None:
    """They have no zero point to learn; the error says what to take."""
    scheme = QScheme(dtype=INT8)
    with pytest.raises(QuantizationError, match=r"layer 'conv1\.weight'.*use fake_quant 'lsq'"):
        LSQPlusFakeQuantize(
            scheme=scheme, observer=MinMaxObserver(scheme=scheme), where="conv1.weight"
        )
