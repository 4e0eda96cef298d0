"""LSQ: the gradient scale of the paper, and its first step."""

import math

import pytest
import torch
from torch import nn

import qcore
from qcore import INT2, INT3, INT4, INT8, UINT4, PerChannel, PerTensor, QDtype, QParams, QScheme
from qcore_fakequants.lattice import gradient_scale
from qcore_fakequants.lsq import LSQFakeQuantize, positive, values_of_a_step
from qcore_observers.mean_abs import MeanAbsObserver
from qcore_observers.minmax import MinMaxObserver


@pytest.mark.parametrize(
    ("dtype", "zero_point", "levels"),
    [
        (INT8, 0, 127),
        (INT4, 0, 7),
        (INT3, 0, 3),
        (INT2, 0, 1),
        (UINT4, 0, 15),
        (INT8, -128, 255),
        (INT8, 127, 254),
        (UINT4, 5, 10),
        (UINT4, 12, 11),
    ],
    ids=str,
)
@pytest.mark.parametrize("batched", [False, True])
def test_the_gradient_scale(dtype: QDtype, zero_point: int, levels: int, batched: bool) -> None:
    """1 / sqrt(N * Q_P); N counts weights, or features of one example."""
    x = torch.zeros(16, 3, 5, 5)
    step = torch.tensor(0.1)
    found = gradient_scale(
        torch.tensor(zero_point),
        count=values_of_a_step(x, step, batched=batched),
        quant_min=dtype.quant_min,
        quant_max=dtype.quant_max,
    )
    number = 75 if batched else 16 * 75
    assert found.item() == pytest.approx(1 / math.sqrt(number * levels))


def test_a_step_a_channel_counts_the_weights_of_its_channel() -> None:
    """N is the number of values that share the step."""
    count = values_of_a_step(torch.zeros(4, 25), torch.zeros(4), batched=False)
    zero_point = torch.zeros(4, dtype=torch.int32)
    found = gradient_scale(zero_point, count=count, quant_min=-8, quant_max=7)
    torch.testing.assert_close(found, torch.full((4,), (25 * 7) ** -0.5))


@pytest.mark.parametrize("of_weight", [False, True])
def test_equation_3(of_weight: bool) -> None:
    """Below -Q_N it is -Q_N, above Q_P it is Q_P, between round(v / s) - v / s, times g."""
    scheme = QScheme(dtype=INT4)
    fake = LSQFakeQuantize(scheme=scheme, observer=MinMaxObserver(scheme=scheme)).train()
    fake.observer_enabled = False
    fake.of_weight = of_weight
    fake.set_qparams(
        QParams(
            scale=torch.tensor(0.5), zero_point=torch.tensor(0, dtype=torch.int32), scheme=scheme
        )
    )
    values = [-9.0, -4.0, -3.9, 0.3, 3.4, 3.5, 3.6, 100.0, 0.0]
    v = torch.tensor(values).reshape(3, 3).requires_grad_()
    g = 1 / math.sqrt((9 if of_weight else 3) * 7)
    expected = [-8, -8, -8 + 7.8, 1 - 0.6, 7 - 6.8, 7, 7, 7, 0]
    for i, (value, slope) in enumerate(zip(values, expected, strict=True)):
        fake.step.grad = v.grad = None
        fake(v).flatten()[i].backward()
        assert fake.step.grad.item() == pytest.approx(slope * g, abs=1e-6), value
        inside = -4.0 < value < 3.5
        assert v.grad.flatten()[i].item() == float(inside)


def test_a_negative_step_has_the_gradient_of_its_magnitude() -> None:
    """Descent by the parameter is descent by the scale."""
    step = torch.tensor(-0.25, requires_grad=True)
    positive(step).backward()
    assert step.grad is not None
    assert step.grad.item() == -1.0


def test_the_first_step_of_the_paper() -> None:
    """With the observer mean_abs the step is 2 * mean|v| / sqrt(Q_P), for weights by channel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    config = qcore.QConfig(
        weight=qcore.QuantizerConfig(scheme="int4_channel", observer="mean_abs", fake_quant="lsq"),
        activation=qcore.QuantizerConfig(scheme="uint4", observer="mean_abs", fake_quant="lsq"),
    )
    x = torch.rand(10, 6)
    qfloat = qcore.calibrate(qcore.prepare(model, x, config), [x])
    found = dict(qcore.quantizers(qfloat))
    expected = 2 * model[0].weight.abs().mean(1) / math.sqrt(7)
    torch.testing.assert_close(found["0.weight_quantizer"].step.detach(), expected.detach())
    (inputs,) = (q for name, q in found.items() if not name.startswith("0"))
    assert inputs.step.item() == pytest.approx(2 * x.mean().item() / math.sqrt(15), rel=1e-5)
    assert found["0.weight_quantizer"].of_weight
    assert not inputs.of_weight


def test_weights_and_activations_are_told_apart_by_prepare() -> None:
    """A weight quantizer's N has no batch in it, whatever its first dimension is."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    qfloat = qcore.prepare(model, torch.zeros(2, 3, 8, 8), "w4a4")
    for name, quantizer in qcore.quantizers(qfloat):
        assert quantizer.of_weight is name.endswith("weight_quantizer"), name


def test_per_tensor_and_per_channel_schemes_have_steps_of_their_shape() -> None:
    """One number, or one a channel."""
    for granularity, shape in ((PerTensor(), ()), (PerChannel(0), (5,))):
        scheme = QScheme(dtype=INT4, granularity=granularity)
        fake = LSQFakeQuantize(scheme=scheme, observer=MeanAbsObserver(scheme=scheme))
        fake(torch.randn(5, 7))
        assert fake.step.shape == shape
