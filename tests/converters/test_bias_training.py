"""In training biases are rounded as the accumulator rounds them."""

import copy

import pytest
import torch
from torch import nn

import qcore
from qcore_converters.bias import round_bias

KINDS = {
    "linear": (lambda: nn.Linear(6, 8), (16, 6)),
    "conv2d": (lambda: nn.Conv2d(4, 8, 3), (8, 4, 6, 6)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), (8, 4, 5, 5)),
}
PRESETS = ["w4a4", "w2a4", "int8_minmax", "megengine_ema_lowbit"]


def deployed_bias(program):
    """The int32 bias of the only layer of a program, and its step."""
    (name,) = [name for name in dict(program.named_buffers()) if name.endswith("bias")]
    return program.get_buffer(name)


def trained(kind, preset, *, norm=None, numerics=None, fold="approximate"):
    """A layer in training, its input, and the float layer."""
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    layers = [make()]
    if norm is not None:
        bn = (nn.BatchNorm1d if kind == "linear" else nn.BatchNorm2d)(8, affine=norm == "affine")
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
        if norm == "affine":
            bn.weight.data.uniform_(0.5, 1.5)
            bn.bias.data.normal_()
        layers.append(bn)
    x = torch.randn(shape)
    recipe = qcore.Recipe(preset=preset, numerics=numerics)
    qfloat = qcore.calibrate(qcore.prepare(nn.Sequential(*layers), x, recipe), [x])
    qcore.set_batch_norm_fold(qfloat, fold)
    return qfloat.train(), x


def watched(op):
    """What goes into the float layer of an operation."""
    seen = []
    inner = op.layer
    op.layer = lambda x, weight, bias: seen.append(bias) or inner(x, weight, bias)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_without_batch_norm_it_is_the_bias_of_the_program(kind, preset):
    """Integer for integer."""
    qfloat, x = trained(kind, preset)
    op = qfloat.get_submodule("0")
    seen = watched(op)
    qfloat(x).sum().backward()
    integers = deployed_bias(qcore.convert(qfloat))
    assert integers.dtype == torch.int32
    step = dict(qcore.quantizers(qfloat))["input_1_quantizer"].qparams().scale
    step = step * op.weight_quantizer.qparams().scale
    step = step.repeat(2) if kind == "conv_transpose2d" and step.ndim else step
    torch.testing.assert_close(seen[0].detach(), integers * step, rtol=1e-6, atol=0)
    assert not torch.equal(seen[0], op.bias)
    # The gradient goes straight through.
    outputs = qfloat(x)[0, 0].numel() * len(x) if x.ndim > 2 else len(x)
    torch.testing.assert_close(op.bias.grad, torch.full((8,), float(outputs)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("norm", ["affine", "plain"])
def test_the_approximate_fold_adds_the_error_of_deployment(kind, preset, norm):
    """Training and training without it differ by what the rounding of the folded bias adds."""
    qfloat, x = trained(kind, preset, norm=norm)
    op = qfloat.get_submodule("0")
    with torch.no_grad():
        folded = op.folded()[1]
        integers = deployed_bias(qcore.convert(qfloat))
        step = dict(qcore.quantizers(qfloat))["input_1_quantizer"].qparams().scale
        step = step * op.weight_quantizer.qparams().scale
        step = step.repeat(2) if kind == "conv_transpose2d" and step.ndim else step
        error = (integers * step - folded).reshape(1, -1, *[1] * (x.ndim - 2))
        without = copy.deepcopy(qfloat)
        without.get_submodule("0")._rounded = lambda bias: bias
        simulated, plain = qfloat(x), without(x)
    assert error.abs().max() > 0
    torch.testing.assert_close(simulated, plain + error, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_fold_rounds_the_shift_of_the_batch(kind):
    """What is added in the second layer lies on the steps of the accumulator."""
    qfloat, x = trained(kind, "w4a4", norm="affine", fold="exact")
    op = qfloat.get_submodule("0")
    seen = watched(op)
    qfloat(x)
    step = dict(qcore.quantizers(qfloat))["input_1_quantizer"].qparams().scale
    step = step * op.weight_quantizer.qparams().scale
    step = step.repeat(2) if kind == "conv_transpose2d" else step
    integers = seen[1].detach() / step
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)


def test_frozen_statistics_train_what_is_deployed():
    """Then the training forward is that of eval mode, but for the order of float sums."""
    qfloat, x = trained("conv2d", "w2a4", norm="affine")
    qcore.freeze_batch_norm(qfloat)
    in_training = qfloat(x)
    torch.testing.assert_close(in_training, qfloat.eval()(x), rtol=1e-5, atol=1e-6)


def test_a_contract_with_a_float_bias_rounds_nothing():
    """It is added after the scale."""
    qfloat, x = trained(
        "conv2d", "w4a4", numerics="half_even.scale_bias_rescale.float32.after.int32"
    )
    op = qfloat.get_submodule("0")
    seen = watched(op)
    qfloat(x)
    assert torch.equal(seen[0], op.bias)


@pytest.mark.parametrize("preset", ["int8_weight_only", "int8_dynamic"])
def test_layers_without_integer_inputs_keep_their_bias(preset):
    """They have no such accumulator."""
    qfloat, x = trained("linear", preset)
    op = qfloat.get_submodule("0")
    seen = watched(op)
    qfloat(x)
    assert torch.equal(seen[0], op.bias)


def test_round_bias():
    """To even at ties, in float64; the gradient is that of the identity."""
    bias = torch.tensor([0.25, 0.75, -0.3, 1e6 + 0.5], requires_grad=True)
    y = round_bias(bias, torch.tensor(0.5))
    assert y.tolist() == [0.0, 1.0, -0.5, 1e6 + 0.5]
    y.sum().backward()
    assert bias.grad.tolist() == [1.0] * 4
