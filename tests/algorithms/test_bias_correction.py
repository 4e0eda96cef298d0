"""The stage bias_correction: statistics of layers as they are in float."""

import copy
import warnings

import pytest
import torch
from torch import nn

import qcore
from qcore_algorithms.bias_correction import bias_correction, correct_biases


def statistics(op, x):
    y = op.preactivation(x).double()
    dims = [i for i in range(y.ndim) if i != op.channel_dim % y.ndim]
    return y.mean(dims), y.std(dims, correction=0)


def by_layer(model, x):
    """Mean and deviation of each layer's channels in a forward."""
    ops = {op: name for name, op in qcore.qfloat_ops(model) if isinstance(op, qcore.ChannelOp)}
    found = {}

    def look(op, xs):
        found[ops[op]] = statistics(op, xs[0])

    hooks = [op.register_forward_pre_hook(look) for op in ops]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return found


def float_self(model):
    """What the model computes without rounding."""
    other = copy.deepcopy(model)
    qcore.disable_fake_quant(other)
    return other


@pytest.fixture
def qfloat(qfloat):
    """In eval mode."""
    return lambda preset: qfloat(preset).eval()


def assert_same_means(found, wanted):
    for name, (mean, _) in wanted.items():
        torch.testing.assert_close(found[name][0], mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", ["w4a4", "w2a4", "int8", "int8_weight_only"])
def test_every_layer_has_the_statistics_of_float(qfloat, data, preset):
    """Of the batch by which it was corrected; Q is QFloat, on other data too."""
    model = qfloat(preset)
    x = data.train_inputs[:128]
    wanted, before = by_layer(float_self(model), x), by_layer(model, x)
    assert correct_biases(model, [x]) is model
    found = by_layer(model, x)
    assert len(found) == 3
    assert_same_means(found, wanted)
    for name, (_, std) in wanted.items():
        torch.testing.assert_close(found[name][1], std, rtol=1e-3, atol=1e-4)
    if preset in ("w4a4", "w2a4"):
        assert any((before[name][1] - std).abs().max() > 0.02 for name, (_, std) in wanted.items())
    q = qcore.convert(model)
    assert qcore.count_differences(model, q, [data.test_inputs]).differing == 0


def test_the_output_comes_nearer_to_float(qfloat, data):
    """On data that it was not corrected by, and more so with the gain."""
    errors = []
    for gain in (None, False, True):
        model = qfloat("w2a4")
        wanted = float_self(model)(data.test_inputs)
        if gain is not None:
            bias_correction(model, dataset=data, gain=gain)
        errors.append((model(data.test_inputs) - wanted).square().mean().item())
    assert errors[2] < 0.7 * errors[0]
    assert errors[2] < errors[1]


def test_without_gain_scales_stay(qfloat, data):
    """Only means are corrected."""
    model = qfloat("w4a4")
    x = data.train_inputs[:64]
    wanted = by_layer(float_self(model), x)
    scales = [q.qparams().scale for _, q in qcore.quantizers(model)]
    correct_biases(model, [x], gain=False)
    for (_, quantizer), scale in zip(qcore.quantizers(model), scales, strict=True):
        assert torch.equal(quantizer.qparams().scale, scale)
    assert_same_means(by_layer(model, x), wanted)


def test_batches_are_one_large_batch(qfloat, data):
    """The first one corrects less well; the last one corrects by all of them."""
    together, apart = qfloat("w4a4"), qfloat("w4a4")
    correct_biases(together, [data.train_inputs])
    correct_biases(apart, list(data.train_inputs.split(64)))
    first = by_layer(together, data.train_inputs)["0"]
    other = by_layer(apart, data.train_inputs)["0"]
    # Nothing is before the first layer, so there it makes no difference at all.
    for a, b in zip(first, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    wanted = float_self(qfloat("w4a4"))(data.test_inputs)
    errors = [(m(data.test_inputs) - wanted).norm() for m in (together, apart, qfloat("w4a4"))]
    assert errors[1] < errors[2]
    assert abs(errors[0] - errors[1]) < 0.3 * errors[2]


def test_it_leaves_the_model_as_it_was_but_for_the_correction(qfloat, data):
    """Mode, hooks, gamma and beta; observers are off, fake quantizers on; it still goes back to
    float."""
    model = qfloat("w4a4").train()
    norms = {n: p.clone() for n, p in model.named_parameters() if ".bn." in n}
    assert norms
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    correct_biases(model, [(data.train_inputs[:64], data.train_labels[:64])])
    assert model.training
    assert all(torch.equal(p, norms[n]) for n, p in model.named_parameters() if n in norms)
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    for _, quantizer in qcore.quantizers(model):
        assert quantizer.fake_quant_enabled
        assert not quantizer.observer_enabled
    qcore.to_float(model)


def test_it_is_no_other_model_for_training(qfloat, data):
    """With the statistics of a batch BatchNorm takes gain and shift out."""
    plain, corrected = qfloat("w4a4"), qfloat("w4a4")
    correct_biases(corrected, [data.train_inputs])
    first, other = (m.get_submodule("0").train() for m in (plain, corrected))
    x = data.train_inputs[:32]
    torch.testing.assert_close(first.compute(x), other.compute(x), rtol=1e-3, atol=0.05)


def test_a_layer_without_bias_is_said(data):
    """Its spread is corrected, its mean can't be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8, bias=False), nn.ReLU(), nn.Linear(8, 3))
    model = qcore.prepare(model, data.train_inputs[:2], "w2a4")
    qcore.calibrate(model, [data.train_inputs])
    wanted = by_layer(float_self(model), data.train_inputs)
    with pytest.warns(UserWarning, match="'1': it has neither bias nor BatchNorm"):
        correct_biases(model, [data.train_inputs])
    found = by_layer(model, data.train_inputs)
    torch.testing.assert_close(found["1"][1], wanted["1"][1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["3"][0], wanted["3"][0], rtol=0, atol=1e-4)


def test_scales_a_tensor_are_said(qfloat, data):
    """They have no gain a channel."""
    scheme = qcore.QScheme(dtype=qcore.INT4)
    config = qcore.QConfig(
        weight=qcore.QuantizerConfig(scheme=scheme),
        activation=qcore.QuantizerConfig(scheme="int8"),
    )
    model = qfloat(config)
    wanted = by_layer(float_self(model), data.train_inputs)
    with pytest.warns(UserWarning, match="'0', '3', '9': its weight does not have a scale"):
        correct_biases(model, [data.train_inputs])
    assert_same_means(by_layer(model, data.train_inputs), wanted)


def test_layers_that_share_a_weight_stay():
    """A correction of the one would be none of the other."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = nn.Linear(6, 4)

        def forward(self, x):
            return self.b(torch.relu(self.a(torch.relu(self.a(x)))))

    torch.manual_seed(0)
    x = torch.randn(64, 6)
    model = qcore.calibrate(qcore.prepare(Twice().eval(), x, "w2a4"), [x])
    weight = model.get_parameter("a.weight").clone()
    with pytest.warns(UserWarning, match="parameters are those of another layer"):
        correct_biases(model, [x])
    assert torch.equal(model.get_parameter("a.weight"), weight)


def test_operations_that_are_no_channel_ops_are_said():
    """An LSTM has weights, and no output channels of its own."""
    torch.manual_seed(0)
    x = torch.randn(8, 5, 6)
    model = nn.LSTM(6, 4, batch_first=True)
    model = qcore.calibrate(qcore.prepare(model, x, "int8"), [x])
    with pytest.warns(UserWarning, match="no qcore.ChannelOp"):
        correct_biases(model, [x])


def test_constant_channels(data):
    """What has no spread gets no gain: zeros in the weight, and all of a batch alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        model[0].weight[1] = 0.0
    model = qcore.calibrate(
        qcore.prepare(model, data.train_inputs[:2], "w2a4"), [data.train_inputs]
    )
    with warnings.catch_warnings(action="error"):
        correct_biases(model, [data.train_inputs[:1], torch.zeros(2, 3, 6, 6)])
    assert bool(model(data.test_inputs).isfinite().all())


def test_an_empty_batch_changes_nothing(qfloat, data):
    """It has no statistics."""
    one, other = qfloat("w4a4"), qfloat("w4a4")
    correct_biases(one, [data.train_inputs])
    correct_biases(other, [data.train_inputs[:0], data.train_inputs, data.train_inputs[:0]])
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input(qfloat, data):
    """Before anything is changed."""
    model = qfloat("w4a4")
    with pytest.raises(qcore.QuantizationError, match="no batch"):
        correct_biases(model, [])
    fresh = qcore.prepare(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4), "int8")
    with pytest.raises(qcore.QuantizationError, match="not calibrated"):
        correct_biases(fresh, [torch.zeros(1, 4)])
    with pytest.raises(qcore.QuantizationError, match="not a QFloat model"):
        correct_biases(nn.Linear(4, 2), [torch.zeros(1, 4)])
