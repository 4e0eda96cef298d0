"""The gated layer and its converter."""

import attrs
import pytest
import torch
from qcore_acme.gated_linear import GatedLinear, QFloatGatedLinear
from torch import nn

import qcore


def batches(*shape):
    """Four batches of normal values."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def net():
    """A gated layer between two linear ones."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), GatedLinear(32, 24), nn.Linear(24, 5)).eval()


@pytest.mark.parametrize("shape", [(8, 16), (2, 3, 16)], ids=str)
@pytest.mark.parametrize("preset", ["int8", "int4", "int8_weight_only", "int8_dynamic"])
def test_q_equals_qfloat(shape, preset):
    """Every integer of Q is QFloat's, and weight-only and dynamic forms work too."""
    data = batches(*shape)
    qfloat = qcore.calibrate(qcore.prepare(net(), data[0], preset), data)
    assert isinstance(dict(qcore.qfloat_ops(qfloat))["2"], QFloatGatedLinear)
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, data).differing == 0
    assert torch.equal(q(data[0]), qfloat.eval()(data[0]))


def calibrated_layer(model, data):
    """The gated operation of QFloat, and a function that computes it in float on rounded values."""
    qfloat = qcore.calibrate(qcore.prepare(model, data[0], "int8_minmax"), data).eval()
    op = dict(qcore.qfloat_ops(qfloat))["2"]
    ((quantizer, weight),) = op.weight_quantizers()

    def exact(x):
        value, gate = (x @ quantizer(weight).T + op.bias).chunk(2, -1)
        return value * gate.sigmoid()

    return op, exact


def test_the_error_is_one_rounding():
    """Also where gates are closed and open, the error is that of rounding the output."""
    data, model = batches(256, 16), net()
    with torch.no_grad():
        model[2].weight *= 12
    op, exact = calibrated_layer(model, data)
    x = op.input_quantizers[0](torch.relu(model[0](data[0])))
    assert (x @ model[2].weight[24:].T).abs().max() > 10
    step = op.output_quantizer.qparams().scale
    # Half a step of the output, and what the 16 and 14 bits in between may add to it.
    assert ((op(x) - exact(x)).abs() <= 0.6 * step).float().mean() > 0.999


def test_the_largest_sum_does_not_saturate():
    """The input that a row of the weight answers most to is as exact as any other."""
    data, model = batches(256, 16), net()
    op, exact = calibrated_layer(model, data)
    qparams = op.input_quantizers[0].qparams()
    most = (127 - qparams.zero_point) * qparams.scale
    rows = model[2].weight[:24]
    x = torch.where(rows * rows.sum(1, keepdim=True).sign() > 0, most, 0.0)
    y = op.output_quantizer.qparams()
    # Wide enough that the output does not saturate either.
    op.output_quantizer.set_qparams(attrs.evolve(y, scale=16 * y.scale))
    assert ((op(x) - exact(x)).abs() <= 0.6 * 16 * y.scale).all()


def test_training_reaches_the_gates():
    """Gradients reach both halves of the weight."""
    data = batches(64, 16)
    qfloat = qcore.calibrate(qcore.prepare(net(), data[0]), data).train()
    qfloat(data[0]).square().mean().backward()
    grad = dict(qcore.qfloat_ops(qfloat))["2"].weight.grad
    assert all(half.abs().sum() > 0 for half in grad.chunk(2))


def test_an_artifact_holds_it(tmp_path):
    """Saved and loaded the program gives the same, and the artifact verifies."""
    data = batches(8, 16)
    q = qcore.convert(qcore.calibrate(qcore.prepare(net(), data[0]), data))
    folder = qcore.save(q, tmp_path / "artifact", golden_inputs=data[0])
    assert qcore.verify(folder).equal
    assert torch.equal(qcore.load(folder)(data[1]), q(data[1]))
