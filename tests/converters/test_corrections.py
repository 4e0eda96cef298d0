"""Gain and shift of output channels, by a layer's own parameters."""

import copy

import pytest
import torch
from torch import nn

import qcore

SHAPES = {
    "linear": (6, 8),
    "conv1d": (4, 4, 9),
    "conv2d": (4, 4, 6, 6),
    "depthwise": (4, 8, 6, 6),
    "conv3d": (4, 4, 4, 4, 4),
    "conv_transpose2d": (4, 4, 5, 5),
}
NORMS = {"linear": nn.BatchNorm1d, "conv1d": nn.BatchNorm1d, "conv3d": nn.BatchNorm3d}


def layer(kind, *, bias):
    return {
        "linear": lambda: nn.Linear(8, 8, bias=bias),
        "conv1d": lambda: nn.Conv1d(4, 8, 3, bias=bias),
        "conv2d": lambda: nn.Conv2d(4, 8, 3, padding=1, bias=bias),
        "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8, bias=bias),
        "conv3d": lambda: nn.Conv3d(4, 8, 2, bias=bias),
        "conv_transpose2d": lambda: nn.ConvTranspose2d(4, 8, 3, bias=bias),
    }[kind]()


def calibrated(kind, preset="w4a4", *, norm=None, bias=True):
    """A QFloat model of one layer with its clamp, its operation, and an input."""
    torch.manual_seed(0)
    layers = [layer(kind, bias=bias)]
    if norm is not None:
        bn = NORMS.get(kind, nn.BatchNorm2d)(8, affine=norm == "affine")
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
        if norm == "affine":
            bn.weight.data.uniform_(-1.5, 1.5)
            bn.bias.data.normal_()
        layers.append(bn)
    model = nn.Sequential(*layers, nn.ReLU()).eval()
    x = torch.randn(SHAPES[kind])
    qfloat = qcore.calibrate(qcore.prepare(model, x, preset), [x])
    (op,) = (op for _, op in qcore.qfloat_ops(qfloat))
    return qfloat, op, x


def channels(y, values, dim):
    shape = [1] * y.ndim
    shape[dim] = -1
    return values.reshape(shape)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("norm", [None, "affine", "plain"])
@pytest.mark.parametrize("bias", [True, False])
def test_preactivations_are_scaled_and_shifted(kind, norm, bias):
    """By exactly what was asked; the weight has the same integers, and Q is QFloat."""
    qfloat, op, x = calibrated(kind, norm=norm, bias=bias)
    assert isinstance(op, qcore.ChannelOp)
    gain, shift = torch.rand(8) + 0.5, torch.randn(8)
    assert (op.why_no_shift is not None) == (norm is None and not bias)
    if op.why_no_shift:
        shift.zero_()
    before = op.preactivation(x).detach()
    constants = dict(qcore.convert(qfloat).named_buffers())
    op.correct(gain, shift)
    wanted = before * channels(before, gain, op.channel_dim)
    wanted = wanted + channels(before, shift, op.channel_dim)
    torch.testing.assert_close(op.preactivation(x).detach(), wanted, rtol=1e-4, atol=1e-4)
    q = qcore.convert(qfloat)
    (name,) = (name for name in constants if name.endswith("weight"))
    assert torch.equal(q.get_buffer(name), constants[name])
    assert qcore.count_differences(qfloat, q, [x]).differing == 0


def test_the_linear_layer_of_gpt2():
    """Its weight is stored the other way round."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = nn.Sequential(transformers.pytorch_utils.Conv1D(8, 6)).eval()
    x = torch.randn(5, 6)
    qfloat = qcore.calibrate(qcore.prepare(model, x, "int8"), [x])
    ((_, op),) = qcore.qfloat_ops(qfloat)
    before = op.preactivation(x)
    gain = torch.rand(8) + 0.5
    op.correct(gain, torch.zeros(8))
    torch.testing.assert_close(op.preactivation(x), before * gain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", ["int8_dynamic", "int4_weight_only", "int8_weight_only"])
def test_without_activation_scales(preset):
    """Inputs that are float, or quantized at run time; weights in groups."""
    torch.manual_seed(0)
    x = torch.randn(5, 64)
    qfloat = qcore.calibrate(qcore.prepare(nn.Sequential(nn.Linear(64, 8)), x, preset))
    ((_, op),) = qcore.qfloat_ops(qfloat)
    gain, shift = torch.rand(8) + 0.5, torch.randn(8)
    before = op.preactivation(x)
    op.correct(gain, shift)
    torch.testing.assert_close(op.preactivation(x), before * gain + shift)
    torch.testing.assert_close(qfloat(x), op.preactivation(x))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("norm", [None, "affine"])
def test_integers_stay_whatever_the_gain(bits, norm):
    """Of the weights between two integers too, as is the largest one by min-max."""
    weight = qcore.QuantizerConfig(scheme=f"int{bits}_channel")
    config = qcore.QConfig(weight=weight, activation=qcore.QuantizerConfig(scheme="uint8"))
    qfloat, op, _ = calibrated("conv2d", config, norm=norm)
    (before,) = (t for n, t in qcore.convert(qfloat).named_buffers() if n.endswith("weight"))
    for gain in torch.rand(50, 8) + 0.5:
        op.correct(gain, torch.zeros(8))
        (after,) = (t for n, t in qcore.convert(qfloat).named_buffers() if n.endswith("weight"))
        assert torch.equal(after, before)


@pytest.mark.parametrize("fold", ["approximate", "exact"])
def test_in_training_batch_norm_takes_it_out_again(fold):
    """The batch has the statistics of float already, so what learns is not disturbed."""
    qfloat, op, x = calibrated("conv2d", norm="affine", bias=False)
    qcore.set_batch_norm_fold(qfloat, fold)
    corrected = copy.deepcopy(qfloat)
    (other,) = (op for _, op in qcore.qfloat_ops(corrected))
    other.correct(torch.rand(8) + 0.5, torch.randn(8))
    # Biases, which are rounded, follow the running mean.
    torch.testing.assert_close(
        other.train().compute(x), op.train().compute(x), rtol=1e-3, atol=0.02
    )


def test_a_channel_without_gamma_stays():
    """BatchNorm makes it constant."""
    _, op, x = calibrated("conv2d", norm="affine")
    with torch.no_grad():
        op.bn.weight[3] = 0.0
    before = op.preactivation(x)
    op.correct(torch.full((8,), 1.5), torch.ones(8))
    after = op.preactivation(x)
    assert bool(after.isfinite().all())
    torch.testing.assert_close(after[:, 3], before[:, 3])
    torch.testing.assert_close(after[:, 4], before[:, 4] * 1.5 + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "scheme", "why"),
    [
        ("conv2d", qcore.QScheme(dtype=qcore.INT8), "a scale a channel"),
        (
            "conv2d",
            qcore.QScheme(dtype=qcore.INT8, granularity=qcore.PerChannel(0), power_of_two=True),
            "powers of two",
        ),
    ],
)
def test_why_there_is_no_gain(kind, scheme, why):
    """A shift there is all the same."""
    activation = qcore.QuantizerConfig(scheme="uint8")
    config = qcore.QConfig(weight=qcore.QuantizerConfig(scheme=scheme), activation=activation)
    _, op, x = calibrated(kind, config)
    assert why in op.why_no_gain
    before = op.preactivation(x)
    shift = torch.randn(8)
    op.correct(torch.ones(8), shift)
    torch.testing.assert_close(
        op.preactivation(x), before + channels(before, shift, 1), rtol=1e-4, atol=1e-4
    )


def test_groups_of_a_transposed_convolution_share_scales():
    """So there is no gain for one of them."""
    torch.manual_seed(0)
    x = torch.randn(4, 4, 5, 5)
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, groups=2))
    qfloat = qcore.calibrate(qcore.prepare(model, x, "int8"), [x])
    ((_, op),) = qcore.qfloat_ops(qfloat)
    assert "groups" in op.why_no_gain
