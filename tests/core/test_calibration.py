"""Calibration: what the observers see, and what it leaves behind."""

import copy

import pytest
import torch
from torch import nn

import qcore

G = torch.Generator().manual_seed(0)
X = torch.randn(8, 4, generator=G)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def scales(qfloat):
    return {n: (q.qparams().scale, q.qparams().zero_point) for n, q in qcore.quantizers(qfloat)}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True)), name


def test_observers_see_the_float_values():
    """Every activation's range is that of the float model, not of rounded values before it."""
    made = model().eval()
    qfloat = qcore.calibrate(qcore.prepare(made, X, "int8_minmax"), [X])
    hidden = made[:2](X)
    scale, zero_point = scales(qfloat)["0.output_quantizer"]
    torch.testing.assert_close(scale, hidden.max() / 255)
    assert zero_point == -128
    scale, _ = scales(qfloat)["0.weight_quantizer"]
    torch.testing.assert_close(scale, made[0].weight.detach().abs().amax(1) / 127)


def test_batches_add_up_in_any_order():
    """Several batches give the range of all, whatever their order and size."""
    parts = [[X], [X[:3], X[3:]], [X[5:], X[:5]], [(x[None],) for x in X]]
    found = [scales(qcore.calibrate(qcore.prepare(model(), X, "int8_minmax"), p)) for p in parts]
    for other in found[1:]:
        assert_equal(found[0], other)


def test_limit():
    """Only the first batches count, and no more are drawn from a generator."""
    drawn = []

    def batches():
        for i in range(10):
            drawn.append(i)
            yield X * (i + 1)

    qfloat = qcore.calibrate(qcore.prepare(model(), X, "int8_minmax"), batches(), limit=2)
    other = qcore.calibrate(qcore.prepare(model(), X, "int8_minmax"), [X, 2 * X])
    assert_equal(scales(qfloat), scales(other))
    assert drawn == [0, 1]


def test_calibrating_again_widens():
    """A second calibration adds to what was seen; weights are observed anew."""
    qfloat = qcore.calibrate(qcore.prepare(model(), X, "int8_minmax"), [X])
    first = scales(qfloat)
    with torch.no_grad():
        qfloat.get_parameter("0.weight").mul_(0.5)
    qcore.calibrate(qfloat, [X[:1] * 0.01])
    second = scales(qfloat)
    assert torch.equal(first["input_1_quantizer"][0], second["input_1_quantizer"][0])
    assert torch.equal(first["0.weight_quantizer"][0] / 2, second["0.weight_quantizer"][0])


def test_modes_and_switches_afterwards():
    """Observers are off and fake quantizers on; every module is in the mode that it was in."""
    qfloat = qcore.prepare(model(), X, "int8_minmax").train()
    qfloat.get_submodule("2").eval()
    modes = {n: m.training for n, m in qfloat.named_modules()}
    assert qcore.calibrate(qfloat, [X]) is qfloat
    assert {n: m.training for n, m in qfloat.named_modules()} == modes
    assert all(q.fake_quant_enabled and not q.observer_enabled for _, q in qcore.quantizers(qfloat))


def test_dropout_and_batch_norm_are_in_eval_mode_meanwhile():
    """Statistics of BatchNorm don't move in calibration, and dropout drops nothing."""
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Conv2d(4, 2, 1))
    x = torch.randn(4, 3, 6, 6, generator=G)
    qfloat = qcore.prepare(made.train(), x, "int8_minmax")
    before = copy.deepcopy(qfloat.get_submodule("0.bn").state_dict())
    qcore.calibrate(qfloat, [x])
    assert all(
        torch.equal(t, before[n]) for n, t in qfloat.get_submodule("0.bn").state_dict().items()
    )
    made.eval()
    largest = made[:2](x).amax()
    scale, zero_point = scales(qfloat)["0.output_quantizer"]
    torch.testing.assert_close((127 - zero_point) * scale, largest, rtol=0.02, atol=0.0)


def test_no_gradients_are_kept():
    """Calibration leaves no gradients and no graph behind."""
    qfloat = qcore.calibrate(qcore.prepare(model(), X, "int8_minmax"), [X.clone().requires_grad_()])
    assert all(p.grad is None for p in qfloat.parameters())
    assert not any(q.qparams().scale.requires_grad for _, q in qcore.quantizers(qfloat))


def test_constant_values():
    """A layer that only ever saw zeros, or one number, has a positive scale and exact integers."""
    made = model()
    for x in (torch.zeros(2, 4), torch.full((2, 4), 3.0)):
        qfloat = qcore.calibrate(qcore.prepare(made, X, "int8_minmax"), [x])
        assert all((scale > 0).all() for scale, _ in scales(qfloat).values())
        assert qcore.count_differences(qfloat, qcore.convert(qfloat), [x, X]).differing == 0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_magnitudes(size):
    """Values near the ends of float32 calibrate, and QFloat equals Q."""
    made = nn.Sequential(nn.Linear(4, 3, bias=False))
    qfloat = qcore.calibrate(qcore.prepare(made, X, "int8_minmax"), [X * size])
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [X * size]).differing == 0
