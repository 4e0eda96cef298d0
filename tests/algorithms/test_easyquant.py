"""The stage easyquant: scales by the direction of each layer's output."""

import copy

import pytest
import torch
from torch import nn

import qcore
from qcore_algorithms.easyquant import cosine, easyquant, search_scales


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = 4.0  # an outlier, for which min-max wastes the integers
    return model


def prepared(data, preset="megengine_ema_lowbit"):
    qfloat = qcore.prepare(network(), data.train_inputs[:2], preset)
    return qcore.calibrate(qfloat, [data.train_inputs[:64]])


def similarity(model, x):
    """Of the outputs of QFloat and of its float self."""
    float_self = copy.deepcopy(model)
    qcore.disable_fake_quant(float_self)
    return cosine([(float_self(x), model(x))])


def test_every_layer_comes_nearer_to_float(data):
    """At 4 bits the network's output too, on data that was not searched on; and Q is QFloat."""
    model = prepared(data)
    before = copy.deepcopy(model)
    x = data.train_inputs[:64]
    result = search_scales(model, [x[:32], x[32:]], start=0.2, stop=1.2, num=21)
    assert result is model
    assert similarity(model, x) > similarity(before, x) + 0.01
    assert similarity(model, data.test_inputs) > similarity(before, data.test_inputs)
    q = qcore.convert(model)
    assert qcore.count_differences(model, q, [data.test_inputs]).differing == 0


def test_scales_stay_in_the_grid_and_zero_points_stay(data):
    """Each is a factor of the grid, once a round, times what it was."""
    model = prepared(data, "int8")
    before = {name: q.qparams() for name, q in qcore.quantizers(model)}
    search_scales(model, [data.train_inputs[:32]], start=0.5, stop=1.5, num=3, rounds=1)
    moved = 0
    for name, quantizer in qcore.quantizers(model):
        factor = quantizer.qparams().scale / before[name].scale
        torch.testing.assert_close(factor, factor.flatten()[0].expand_as(factor))
        assert min(abs(factor.flatten()[0].item() - f) for f in (0.5, 1.0, 1.5)) < 1e-6
        assert torch.equal(quantizer.qparams().zero_point, before[name].zero_point)
        moved += bool((factor != 1).all())
    assert moved < len(before)


def test_the_best_factor_is_found():
    """One weight, one output: the factor is that of a search written down plainly."""
    torch.manual_seed(1)
    x = torch.randn(64, 6)
    model = nn.Sequential(nn.Linear(6, 4))
    qfloat = qcore.calibrate(qcore.prepare(model, x, "megengine_ema_lowbit"), [x])
    quantizer = dict(qcore.quantizers(qfloat))["0.weight_quantizer"]
    stub = dict(qcore.quantizers(qfloat))["input_1_quantizer"]
    scale, of_input = quantizer.qparams().scale, stub.qparams().scale
    search_scales(qfloat, [x], start=0.5, stop=1.5, num=11, rounds=1)

    def best(scores):
        return max(scores, key=scores.__getitem__)

    def rounded(t, step):
        return (t / step).round().clamp(-8, 7) * step

    factors = torch.linspace(0.5, 1.5, 11).tolist()
    scores = {f: cosine([(x, rounded(x, of_input * f))]) for f in factors}
    torch.testing.assert_close(stub.qparams().scale, of_input * best(scores))
    wanted, given = model(x), rounded(x, of_input * best(scores))
    weight, bias = model[0].weight, model[0].bias
    scores = {
        f: cosine([(wanted, nn.functional.linear(given, rounded(weight, scale * f), bias))])
        for f in factors
    }
    torch.testing.assert_close(quantizer.qparams().scale, scale * best(scores))


def test_it_leaves_the_model_as_it_was_but_for_scales(data):
    """Mode, weights, hooks; observers are off and fake quantizers on."""
    model = prepared(data).train()
    weights = {n: p.clone() for n, p in model.named_parameters()}
    search_scales(model, [(data.train_inputs[:8], data.train_labels[:8])], num=2)
    assert model.training
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert not any(m._forward_hooks for m in model.modules())
    for _, quantizer in qcore.quantizers(model):
        assert quantizer.fake_quant_enabled
        assert not quantizer.observer_enabled


@pytest.mark.parametrize("preset", ["w4a4", "megengine_tqt", "int4_weight_only", "int8_dynamic"])
def test_other_quantizers(data, preset):
    """Learned steps are searched too; and where activations are float or dynamic, the weights."""
    model = prepared(data, preset)
    search_scales(model, [data.train_inputs[:16]], num=3, rounds=1)
    q = qcore.convert(model)
    assert qcore.count_differences(model, q, [data.test_inputs]).differing == 0


def test_powers_of_two_stay(data):
    """A factor would make them something else."""
    scheme = qcore.QScheme(dtype=qcore.INT4, power_of_two=True)
    config = qcore.QuantizerConfig(scheme=scheme)
    model = prepared(data, qcore.QConfig(weight=config, activation=config))
    before = {name: q.qparams().scale for name, q in qcore.quantizers(model)}
    search_scales(model, [data.train_inputs[:16]])
    for name, quantizer in qcore.quantizers(model):
        assert torch.equal(quantizer.qparams().scale, before[name])


def test_as_a_stage(data):
    """The same seed gives the same scales; the host knows it by its name."""
    stage = qcore.default_host().get("algorithm", "easyquant")
    assert stage is easyquant
    options = {"dataset": data, "samples": 16, "batch_size": 8, "num": 4, "rounds": 1}
    runs = [stage(prepared(data), seed=seed, **options).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.0}, "start=0.0"),
        ({"start": 1.5}, "use 0 < start <= stop"),
        ({"num": 0}, "num=0"),
        ({"rounds": 0}, "rounds=0"),
    ],
)
def test_a_wrong_option_is_an_error(data, options, message):
    """It names the option and what is allowed."""
    with pytest.raises(qcore.RecipeError, match=message):
        easyquant(prepared(data), dataset=data, **options)


def test_without_scales_or_data_it_is_an_error(data):
    """With the cure."""
    model = qcore.prepare(network(), data.train_inputs[:2], "int8")
    with pytest.raises(qcore.QuantizationError, match=r"run qcore\.calibrate first"):
        search_scales(model, [data.train_inputs[:8]])
    with pytest.raises(qcore.QuantizationError, match="no batch"):
        search_scales(prepared(data), [])
