"""The fusion of convolution and SiLU."""

import pytest
import torch
from qcore_acme.silu import LEVELS, QFloatConvSilu, pre_activation_bound
from torch import nn

import qcore


def batches(*shape):
    """Four batches of normal values."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def net(*layers):
    """Layers before a convolution that keeps them in integers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Conv2d(8, 2, 1)).eval()


def quantized(model, data, **options):
    """QFloat, calibrated."""
    return qcore.calibrate(qcore.prepare(model, data[0], **options), data)


@pytest.mark.parametrize("layers", [1, 2], ids=["silu", "batch norm and silu"])
def test_it_fuses_and_q_equals_qfloat(layers):
    """The chain is one operation, with every integer of Q equal to QFloat's."""
    model = net(*[nn.BatchNorm2d(8), nn.SiLU()][2 - layers :])
    data = batches(8, 3, 9, 9)
    qfloat = quantized(model, data)
    row = qcore.info_of(qfloat).plan.row("0")
    assert row.fusion == ("acme:acme_conv_silu" if layers == 1 else "acme:acme_conv_bn_silu")
    assert isinstance(dict(qcore.qfloat_ops(qfloat))["0"], QFloatConvSilu)
    fidelity = qcore.count_differences(qfloat, qcore.convert(qfloat), data)
    assert fidelity.differing == 0
    assert fidelity.compared > 1000


def test_it_is_nearer_to_float_than_two_operations():
    """One rounding to 8 bits instead of two: at most three quarters of what they add."""
    model, data = net(nn.SiLU()), batches(8, 3, 9, 9)
    fused, split = (
        dict(qcore.qfloat_ops(quantized(model, data, host=host).eval()))
        for host in (None, qcore.PluginHost(block=["acme"]))
    )
    x = fused["0"].input_quantizers[0](data[0])
    convolved = split["0"].compute(x)
    exact = nn.functional.silu(convolved)
    one, two = fused["0"](x) - exact, split["1"](split["0"](x)) - exact
    assert one.square().mean().sqrt() < two.square().mean().sqrt() * 3 / 4


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.02, 0.5, 1.9, 2.5, 30.0])
def test_saturating_changes_nothing(scale):
    """Inputs beyond the bound give the integers that they would give unbounded."""
    for high in (0.0, 3 * scale, 255 * scale):
        bound = pre_activation_bound(scale, high)
        x = torch.logspace(0, 4, 200, dtype=torch.float64) * bound
        assert (torch.nn.functional.silu(-x) / scale).abs().max() < 0.5
        assert torch.nn.functional.silu(x).min() >= high


def test_the_table_has_an_entry_for_each_integer():
    """The program holds convolution and table, and nothing in float between them."""
    data = batches(8, 3, 9, 9)
    q = qcore.convert(quantized(net(nn.SiLU()), data))
    names = [str(node.target) for node in q.graph.nodes if node.op == "call_function"]
    assert names == [f"qcore.{op}.default" for op in ("quantize", "qconv", "qtable", "qconv")]
    (table,) = (b for b in q.buffers() if b.numel() == 2 * LEVELS + 1)
    assert table.dtype == torch.int8


def test_training_reaches_every_parameter():
    """In training BatchNorm normalizes with the batch, and all parameters get gradients."""
    data = batches(8, 3, 9, 9)
    qfloat = quantized(net(nn.BatchNorm2d(8), nn.SiLU()), data).train()
    qfloat(data[0]).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in qfloat.parameters())


def test_batch_norm_without_statistics_is_refused():
    """What normalizes with each batch stays unfused; the plan says why."""
    model = net(nn.BatchNorm2d(8, track_running_stats=False), nn.SiLU())
    row = qcore.plan(model, batches(8, 3, 9, 9)[0]).row("0")
    assert row.fusion == ""
    assert "normalizes with each batch" in row.reason
