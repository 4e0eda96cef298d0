"""PACT: the learned clip, behind a relu and where values have both signs."""

import pytest
import torch

from qcore import INT8, UINT4, QDtype, QParams, QScheme
from qcore_fakequants.pact import PACTFakeQuantize
from qcore_observers.minmax import MinMaxObserver


def at(
    scale: float, zero_point: int, dtype: QDtype = UINT4, *, symmetric: bool = False
) -> PACTFakeQuantize:
    scheme = QScheme(dtype=dtype, symmetric=symmetric)
    fake = PACTFakeQuantize(scheme=scheme, observer=MinMaxObserver(scheme=scheme)).train()
    fake.observer_enabled = False
    fake.set_qparams(
        QParams(
            scale=torch.tensor(scale),
            zero_point=torch.tensor(zero_point, dtype=torch.int32),
            scheme=scheme,
        )
    )
    return fake


@pytest.mark.parametrize(("dtype", "zero_point"), [(UINT4, 0), (INT8, -128)], ids=str)
def test_behind_a_relu_it_is_the_paper(dtype: QDtype, zero_point: int) -> None:
    """alpha is the largest value; its gradient is 1 where x is clipped there and 0 elsewhere."""
    steps = dtype.quant_max - dtype.quant_min
    fake = at(3.0 / steps, zero_point, dtype)
    assert fake.alpha.item() == pytest.approx(3.0)
    for value, expected in ((-1.0, 0.0), (0.01, 0.0), (1.234, 0.0), (2.99, 0.0), (3.01, 1.0)):
        x = torch.tensor([value], requires_grad=True)
        fake.alpha.grad = None
        y = fake(x)
        y.backward()
        assert fake.alpha.grad.item() == pytest.approx(expected)
        assert x.grad is not None
        assert x.grad.item() == float(0 < value < 3)
        assert abs(y.item() - min(max(value, 0.0), 3.0)) <= 1.5 / steps + 1e-6


def test_both_signs_keep_their_proportion() -> None:
    """With the zero point inside, alpha is the longer side and the other clip follows."""
    fake = at(0.2, 5)
    assert fake.alpha.item() == pytest.approx(2.0)
    for value, expected in ((-3.0, -0.5), (-0.9, 0.0), (1.9, 0.0), (5.0, 1.0)):
        fake.alpha.grad = None
        fake(torch.tensor([value])).backward()
        assert fake.alpha.grad.item() == pytest.approx(expected), value
    with torch.no_grad():
        fake.alpha.mul_(2)
    assert fake(torch.tensor([-99.0, 99.0])).tolist() == pytest.approx([-2.0, 4.0])


def test_values_below_zero_only() -> None:
    """The longer side is then the lower one."""
    fake = at(0.2, 15)
    assert fake.alpha.item() == pytest.approx(3.0)
    fake(torch.tensor([-9.0])).backward()
    assert fake.alpha.grad.item() == pytest.approx(-1.0)


def test_a_symmetric_scheme() -> None:
    """Signed and symmetric it clips both sides alike, but for the last integer."""
    fake = at(0.01, 0, INT8, symmetric=True)
    assert fake.alpha.item() == pytest.approx(1.28)
    fake(torch.tensor([9.0])).backward()
    assert fake.alpha.grad.item() == pytest.approx(127 / 128)


def test_weight_decay_narrows_an_unused_range() -> None:
    """The paper's regularizer: without clipping only it moves alpha."""
    fake = at(1.0, 0)
    optimizer = torch.optim.SGD(fake.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        fake(torch.rand(100)).sum().backward()
        optimizer.step()
    assert fake.alpha.item() == pytest.approx(15.0 * 0.99**10, rel=1e-4)
