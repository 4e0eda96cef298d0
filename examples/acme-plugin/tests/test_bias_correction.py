"""Bias correction."""

import pytest
import torch
from qcore_acme.bias_correction import correct_biases, output_shift
from torch import nn

import qcore


@pytest.fixture
def data():
    """Images whose channels have means of their own."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 4, 8, 8, generator=generator).abs() + torch.arange(4).reshape(4, 1, 1)
    labels = torch.zeros(256, dtype=torch.int64)
    return qcore.Dataset(
        name="means",
        train_inputs=inputs,
        train_labels=labels,
        test_inputs=inputs[:8],
        test_labels=labels[:8],
        num_classes=2,
    )


def net(*, bias=True, norm=False):
    """A grouped convolution, another one, and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, bias=bias),
        *([nn.BatchNorm2d(8), nn.ReLU()] if norm else [nn.ReLU()]),
        nn.Conv2d(8, 6, 3, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5, bias=bias),
    )
    if norm:
        model[1].running_mean += torch.randn(8)
        model[1].running_var *= 3.0
    return model.eval()


def calibrated(model, data):
    """QFloat with weights of 3 bits and exact activations."""
    recipe = qcore.Recipe.from_table(
        {"preset": "int8", "weight": {"scheme": "int3_channel"}, "activation": {"scheme": "int16"}}
    )
    return qcore.calibrate(
        qcore.prepare(model, data.train_inputs[:2], recipe), [data.train_inputs]
    ).eval()


def mean_errors(model, qfloat, data):
    """Mean error of each output channel, as its largest magnitude."""
    with torch.no_grad():
        return (qfloat(data.train_inputs) - model(data.train_inputs)).mean(0).abs().max().item()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "plain"])
def test_the_mean_error_goes(data, bias, norm):
    """The outputs' means come nearer to the float model's, by an order of magnitude."""
    model = net(bias=bias, norm=norm)
    qfloat = calibrated(model, data)
    before = mean_errors(model, qfloat, data)
    assert correct_biases(qfloat, dataset=data, seed=0) is qfloat
    assert mean_errors(model, qfloat, data) < before / 5


def test_one_linear_layer_is_exact(data):
    """Of a single layer the mean error on the same examples goes altogether."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16)).eval()
    qfloat = calibrated(model, data)
    before = mean_errors(model, qfloat, data)
    correct_biases(qfloat, dataset=data, seed=0)
    assert mean_errors(model, qfloat, data) < before / 100


def test_switches_modes_and_the_float_model_stay(data):
    """Only biases change; the user's model does not, and Q equals QFloat afterwards."""
    model = net()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    qfloat = calibrated(model, data).train()
    flags = [(q.observer_enabled, q.fake_quant_enabled) for _, q in qcore.quantizers(qfloat)]
    before = {name: value.clone() for name, value in qfloat.named_parameters()}
    correct_biases(qfloat, dataset=data, seed=0)
    assert all(module.training for module in qfloat.modules())
    assert flags == [
        (q.observer_enabled, q.fake_quant_enabled) for _, q in qcore.quantizers(qfloat)
    ]
    changed = [n for n, value in qfloat.named_parameters() if not torch.equal(before[n], value)]
    assert changed == ["0.bias", "2.bias", "5.bias"]
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    batches = [data.train_inputs[:32]]
    assert qcore.count_differences(qfloat.eval(), qcore.convert(qfloat), batches).differing == 0


def test_a_shared_layer_is_corrected_once(data):
    """A layer that stands in two places gets the mean of the two corrections."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer).eval()
    data = qcore.Dataset(
        name="rows",
        train_inputs=data.train_inputs[:, :, 0, :].reshape(-1, 8)[:256],
        train_labels=data.train_labels,
        test_inputs=data.train_inputs[:1, 0, 0],
        test_labels=data.train_labels[:1],
        num_classes=2,
    )
    qfloat = calibrated(model, data)
    biases = {id(op.bias) for _, op in qcore.qfloat_ops(qfloat)}
    before = mean_errors(model, qfloat, data)
    correct_biases(qfloat, dataset=data, seed=0)
    assert len(biases) == 1
    assert mean_errors(model, qfloat, data) < before


def test_groups_see_their_own_channels():
    """With two groups each output has the inputs of its half."""
    error = torch.ones(4, 2, 1, 1)
    mean = torch.tensor([1.0, 2.0, 30.0, 40.0])
    assert output_shift(error, mean).tolist() == [3.0, 3.0, 70.0, 70.0]


@pytest.mark.parametrize("option", ["samples", "batch_size"])
def test_options_out_of_range(data, option):
    """The error names the option, the value and what is allowed."""
    with pytest.raises(qcore.RecipeError, match=f"{option}=0; use 1 or more"):
        correct_biases(net(), dataset=data, seed=0, **{option: 0})


def test_models_of_other_phases_are_refused(data):
    """A float model, or one that was not calibrated, has no rounding error to correct."""
    model = net()
    with pytest.raises(qcore.QuantizationError, match="is not a QFloat model"):
        correct_biases(model, dataset=data, seed=0)
    with pytest.raises(qcore.QuantizationError, match=r"is not calibrated.*calibrate first"):
        correct_biases(qcore.prepare(model, data.train_inputs[:2]), dataset=data, seed=0)
