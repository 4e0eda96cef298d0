"""MegEngine's configurations: what they are made of, their scales, and that they run."""

import pytest
import torch
from torch import nn

import qcore

NAMES = ("min_max", "ema", "sync_ema", "ema_lowbit", "calibration", "tqt", "passive", "easyquant")

COMPOSITION = {
    # activation observer, weight observer, fake quantize, weight dtype, activation dtype
    "min_max": ("minmax", "minmax", "affine", (-127, 127), (-128, 127)),
    "ema": ("ema", "minmax", "affine", (-127, 127), (-128, 127)),
    "sync_ema": ("ema", "minmax", "affine", (-127, 127), (-128, 127)),
    "ema_lowbit": ("ema", "minmax", "affine", (-8, 7), (-8, 7)),
    "calibration": ("histogram", "minmax", "affine", (-127, 127), (-128, 127)),
    "tqt": ("ema", "minmax", "tqt", (-127, 127), (-128, 127)),
    "passive": ("passive", "passive", "affine", (-127, 127), (-128, 127)),
    "easyquant": ("histogram", "minmax", "affine", (-127, 127), (-128, 127)),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_all_eight_are_there():
    """Under their names with a prefix."""
    found = {spec.name for spec in qcore.default_host().specs("preset")}
    assert {name for name in found if name.startswith("megengine_")} == {
        f"megengine_{name}" for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_composition(name):
    """Observers, fake quantizers, dtypes; symmetric, one scale a tensor; EMA of momentum 0.9."""
    observer, of_weight, fake_quant, weight_range, activation_range = COMPOSITION[name]
    host = qcore.default_host()
    qconfig = host.get("preset", f"megengine_{name}")
    for config, seen_by, limits in (
        (qconfig.weight, of_weight, weight_range),
        (qconfig.activation, observer, activation_range),
    ):
        scheme = host.get("scheme", config.scheme)
        assert (config.observer, config.fake_quant) == (seen_by, fake_quant)
        assert (scheme.dtype.quant_min, scheme.dtype.quant_max) == limits
        assert scheme.symmetric
        assert not scheme.power_of_two
        assert scheme.granularity == qcore.PerTensor()
        made = host.get("observer", config.observer)(scheme=scheme, **dict(config.observer_options))
        if seen_by == "ema":
            assert made.momentum == 0.9


@pytest.mark.parametrize("name", ["min_max", "ema", "sync_ema", "ema_lowbit", "tqt"])
def test_scales_are_those_of_megengines_formula(name):
    """The largest magnitude over half the number of steps, for weights and activations."""
    model = network()
    qfloat = qcore.calibrate(qcore.prepare(model, X, f"megengine_{name}"), [X])
    quantizers = dict(qcore.quantizers(qfloat))
    seen = {"0.weight_quantizer": model[0].weight, "input_1_quantizer": X}
    for place, tensor in seen.items():
        dtype = quantizers[place].scheme.dtype
        wanted = tensor.detach().abs().max() / ((dtype.quant_max - dtype.quant_min) / 2)
        qparams = quantizers[place].qparams()
        # To the rounding of the logarithm, where that is what is learned.
        torch.testing.assert_close(qparams.scale, wanted, rtol=1e-6, atol=0)
        assert qparams.zero_point == 0


def test_a_scale_may_be_smaller_than_megengines():
    """Values near 1e-6 keep their bits, where a smallest scale of 1e-5 rounds them to 0."""
    qfloat = qcore.calibrate(qcore.prepare(network(), X, "megengine_min_max"), [1e-6 * X])
    scale = dict(qcore.quantizers(qfloat))["input_1_quantizer"].qparams().scale
    torch.testing.assert_close(scale, 1e-6 * X.abs().max() / 127.5)
    assert scale < 1e-5


@pytest.mark.parametrize("name", [name for name in NAMES if name != "passive"])
def test_it_runs(name):
    """Prepare, calibrate, train, convert; QFloat equals Q on every integer."""
    qfloat = qcore.calibrate(qcore.prepare(network(), X, f"megengine_{name}"), [X])
    qcore.enable_observer(qfloat.train())
    qfloat(X).square().sum().backward()
    assert all(p.grad is not None for p in qfloat.parameters())
    # Or the comparison would move the scales.
    qcore.disable_observer(qfloat.eval())
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, [X]).differing == 0


def test_passive_takes_qparams_from_outside():
    """Without them every layer is an error that says so; with them it converts."""
    given = qcore.calibrate(qcore.prepare(network(), X, "megengine_min_max"), [X])
    qfloat = qcore.prepare(network(), X, "megengine_passive")
    with pytest.raises(qcore.QuantizationError, match="'input_1_quantizer'"):
        qcore.calibrate(qfloat, [X])
    sources = dict(qcore.quantizers(given))
    for name, quantizer in qcore.quantizers(qfloat):
        quantizer.observer.set_qparams(sources[name].qparams())
    qcore.calibrate(qfloat, [X])
    assert torch.equal(qfloat(X), given(X))
    q = qcore.convert(qfloat)
    assert qcore.count_differences(given, q, [X]).differing == 0
