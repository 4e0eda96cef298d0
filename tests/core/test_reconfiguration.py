"""What was trained survives another configuration, and the way back to the float model."""

import copy

import pytest
import torch
from torch import nn

import qcore

X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Fused layers, a layer that is used twice, tied weights, and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.Linear(256, 256), nn.Linear(256, 256)
        self.second.weight = self.first.weight
        self.shift = nn.Parameter(torch.zeros(256))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = self.twice(self.twice(x)).flatten(1)
        return self.second(torch.relu(self.first(x))) + self.shift


class Branching(Network):
    """Can't be captured whole."""

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return super().forward(x)


def trained(cls=Network, recipe="int8", steps=3):
    torch.manual_seed(0)
    model = cls()
    qfloat = qcore.calibrate(qcore.prepare(model, X, recipe), [X])
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.01)
    qfloat.train()
    for _ in range(steps):
        optimizer.zero_grad()
        qfloat(X).square().mean().backward()
        optimizer.step()
    return model, qfloat


@pytest.mark.parametrize("cls", [Network, Branching])
@pytest.mark.parametrize("copied", [False, True], ids=["itself", "copy"])
def test_the_way_back_to_float(cls, copied):
    """The user's class, with the weights and statistics of now; of a copy those of the copy."""
    model, qfloat = trained(cls)
    if copied:
        original = qfloat
        qfloat = copy.deepcopy(qfloat)
        with torch.no_grad():
            for parameter in original.parameters():
                parameter.zero_()
    back = qcore.to_float(qfloat)
    assert type(back) is cls
    before, after = model.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    for name, value in after.items():
        same = name.startswith("unused")
        assert torch.equal(value, before[name]) is same, name
    assert back.second.weight is back.first.weight
    # It computes what QFloat computes without rounding, and shares nothing with it.
    qcore.disable_fake_quant(qfloat.eval())
    qcore.disable_observer(qfloat)
    torch.testing.assert_close(back.eval()(X), qfloat(X), rtol=1e-4, atol=1e-5)
    mine = {t.data_ptr() for t in qfloat.state_dict().values() if t.numel()}
    assert not any(t.data_ptr() in mine for t in after.values() if t.numel())


def test_a_weight_that_float_does_not_have_is_an_error():
    """Named; nothing is lost in silence."""
    _, qfloat = trained()
    qfloat.get_submodule("conv").register_parameter("extra", nn.Parameter(torch.zeros(1)))
    with pytest.raises(qcore.QuantizationError, match="'conv.extra'"):
        qcore.to_float(qfloat)


@pytest.mark.parametrize("observer", ["minmax", "ema", "histogram", "percentile", "kl", "mse"])
def test_learned_steps_start_where_an_observer_found_them(observer):
    """Calibrate with any, train with LSQ: the same weights, the same scales."""
    scheme = qcore.QuantizerConfig(scheme="int8_affine", observer=observer)
    weight = qcore.QuantizerConfig(scheme="int8_channel", observer="minmax")
    _, qfloat = trained(recipe=qcore.QConfig(weight=weight, activation=scheme))
    learning = qcore.reset_qconfig(qfloat, X, "w8a8")
    assert learning.training
    old = dict(qcore.quantizers(qfloat))
    new = dict(qcore.quantizers(learning))
    assert old.keys() == new.keys()
    for name, quantizer in new.items():
        assert isinstance(quantizer, qcore.LearnedFakeQuantize)
        # To rounding where a step is learned of the weight without its BatchNorm.
        torch.testing.assert_close(
            quantizer.qparams().scale, old[name].qparams().scale, rtol=3e-7, atol=0
        )
        assert torch.equal(quantizer.qparams().zero_point, old[name].qparams().zero_point)
        assert not quantizer.observer_enabled
    outputs = qfloat.eval()(X)
    assert (learning.eval()(X) - outputs).abs().max() < 0.02 * outputs.abs().max()
    # The steps are known to an optimizer that is built now.
    learning.train()(X).sum().backward()
    assert all(p.grad is not None for q in new.values() for p in q.parameters())


def test_another_scheme_waits_for_calibration():
    """Scales of 8 bits mean nothing at 4; what is kept is kept, the rest names the cure."""
    _, qfloat = trained()
    recipe = qcore.Recipe(
        preset="w4a4", overrides=(qcore.Override(name="conv", weight=qcore.QuantizerConfig(
            scheme="int8_channel", fake_quant="lsq")),)
    )  # fmt: skip
    result = qcore.reset_qconfig(qfloat, X, recipe)
    ready = {name for name, q in qcore.quantizers(result) if q.calibrated}
    assert ready == {"conv.weight_quantizer"}
    qcore.disable_observer(result)
    with pytest.raises(qcore.QuantizationError, match=r"qcore\.calibrate"):
        result(X)
    qcore.calibrate(result, [X])
    q = qcore.convert(result)
    assert qcore.count_differences(result, q, [X]).differing == 0
    torch.testing.assert_close(
        result.get_parameter("conv.weight"), qfloat.get_parameter("conv.weight")
    )


def test_layers_may_enter_and_leave_the_quantized_part():
    """Back to float by an override, and back again."""
    _, qfloat = trained()
    override = qcore.Override(type="Linear", quantize=False)
    part = qcore.reset_qconfig(qfloat, X, qcore.Recipe(preset="int8", overrides=(override,)))
    assert qcore.info_of(part).plan.row("first").status == "float"
    whole = qcore.reset_qconfig(part, X, "int8")
    assert qcore.info_of(whole).plan.row("first").status == "quantized"
    for model in (part, whole):
        weights = qcore.to_float(model).state_dict()
        for name, value in qcore.to_float(qfloat).state_dict().items():
            assert torch.equal(weights[name], value), name


def test_switches_of_training_stay():
    """Frozen statistics and the form of the fold."""
    _, qfloat = trained()
    qcore.freeze_batch_norm(qfloat)
    qcore.set_batch_norm_fold(qfloat, "exact")
    result = qcore.reset_qconfig(qfloat, X, "w8a8")
    op = result.get_submodule("conv")
    assert op.batch_norm_frozen
    assert op.batch_norm_fold == "exact"
