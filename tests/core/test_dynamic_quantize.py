"""Linear layers that quantize their inputs at run time, one scale a token: plan, QFloat and Q."""

import copy

import attrs
import pytest
import torch
from torch import nn

import qcore
from qcore import INT4, INT8, PerToken, QConfig, QScheme, QuantizerConfig

WEIGHT = QuantizerConfig(scheme="int8_channel")
TOKENS = QuantizerConfig(scheme="int8_token")
DYNAMIC = QConfig(weight=WEIGHT, activation=TOKENS)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 32), nn.Linear(32, 5)
    )


def calls(q):
    return [str(n.target) for n in q.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("preset", "weight"),
    [
        ("int8_dynamic", "int8_narrow symmetric per_channel(0)"),
        ("int4_dynamic", "int4 symmetric per_group(32)"),
    ],
)
def test_presets(exact, preset, weight):
    """Every linear layer is dynamic, with float before and behind it; QFloat equals Q."""
    done = exact(network(), torch.randn(2, 7, 32), preset, sqnr=15)
    for name in ("0", "3", "4"):
        row = done.plan.row(name)
        assert (row.status, row.weight, row.inputs, row.output, row.kernel) == (
            "dynamic", weight, ("int8 symmetric per_token",), "float", "qlinear_dynamic",
        )  # fmt: skip
    assert done.plan.row("0").fused == ("1",)
    assert done.plan.row("2").status == "float"
    assert calls(done.q).count("qcore.qlinear_dynamic.default") == 3
    assert not any("qcore.quantize" in name for name in calls(done.q))
    assert "3 dynamic, 1 float" in str(done.plan)


def test_nothing_but_weights_is_calibrated():
    """No data is needed: calibrate without batches fixes the scales of the weights."""
    model, x = network().eval(), torch.randn(2, 7, 32)
    bare = qcore.calibrate(qcore.prepare(model, x, DYNAMIC))
    shown = qcore.calibrate(qcore.prepare(model, x, DYNAMIC), [100 * x])
    assert torch.equal(qcore.convert(bare)(x), qcore.convert(shown)(x))
    weight_only = qcore.calibrate(qcore.prepare(model, x, "int8_weight_only"))
    assert qcore.count_differences(weight_only, qcore.convert(weight_only), [x]).differing == 0
    with pytest.raises(qcore.QuantizationError, match="calibration got no batch"):
        qcore.calibrate(qcore.prepare(model, x, "int8_minmax"))


def test_static_and_dynamic_layers_in_one_model(exact):
    """An override makes one layer dynamic: static neighbours get their quantizers around it."""
    recipe = qcore.Recipe(
        preset="int8_minmax", overrides=(qcore.Override(name="1", activation=TOKENS),)
    )
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4))
    done = exact(model, torch.randn(2, 16), recipe)
    assert list(done.statuses().values()) == ["quantized", "dynamic", "quantized"]
    assert done.plan.row("0").output == "float"
    assert done.plan.row("2").inputs == ("int8 affine per_tensor",)


def test_batch_norm_and_clamp_are_part_of_it(exact):
    """BatchNorm is folded; a clamp acts on the float result."""
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU6(), nn.Linear(8, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    done = exact(model, torch.randn(2, 16), DYNAMIC)
    assert done.plan.row("0").fused == ("1", "2")


def test_without_example_inputs(exact):
    """Layer by layer, with any shape of inputs."""
    done = exact(network(), (None, torch.randn(2, 3, 4, 32)), DYNAMIC)
    assert done.plan.count("dynamic") == 3


def test_a_token_never_notices_its_batch():
    """The result of a token is the same alone as among others."""
    x = torch.randn(6, 5, 32)
    q = qcore.convert(qcore.calibrate(qcore.prepare(network()[0], x, DYNAMIC)))
    assert torch.equal(q(x)[3:4, 2:3], q(x[3:4, 2:3]))


@pytest.mark.parametrize("contract", ["reference", "cpu"])
def test_the_contract_plays_no_part(contract):
    """The program is the same whatever it was prepared for, and no backend refuses it."""
    model, x = network().eval(), torch.randn(3, 32)
    default = qcore.convert(qcore.calibrate(qcore.prepare(model, x, DYNAMIC)))
    numerics = qcore.default_host().get("backend", contract).numerics.key
    recipe = qcore.Recipe(qconfig=DYNAMIC, numerics=numerics)
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, x, recipe)))
    assert torch.equal(q(x), default(x))
    assert torch.equal(qcore.lower(q, "reference")(x), q(x))


@pytest.mark.parametrize(
    ("activation", "match"),
    [
        (attrs.evolve(TOKENS, observer="ema"), "observer 'ema'.*leave them out"),
        (QuantizerConfig(scheme="uint8_token"), "symmetric, signed range"),
        (QuantizerConfig(scheme=QScheme(dtype=qcore.INT32, granularity=PerToken())), "16 bits"),
        (
            QuantizerConfig(scheme=QScheme(dtype=INT8, granularity=PerToken(), power_of_two=True)),
            "no power of two",
        ),
    ],
    ids=["observer", "unsigned", "wide", "power of two"],
)
def test_what_a_layer_can_not_do_at_run_time(activation, match):
    """The plan leaves the layer in float and says why; prepare refuses to do nothing."""
    model, x = nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8)
    qconfig = QConfig(weight=WEIGHT, activation=activation)
    assert qcore.plan(model, x, qconfig).row("0").status == "float"
    with pytest.raises(qcore.QuantizationError, match=match):
        qcore.prepare(model, x, qconfig)


def test_other_operations_stay_float():
    """Only linear layers quantize at run time; a convolution says so."""
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Linear(6, 2))
    rows = qcore.plan(model, torch.randn(2, 3, 8), DYNAMIC).rows
    assert [row.status for row in rows] == ["float", "dynamic"]
    assert "which is for linear layers" in rows[0].reason


def test_a_saturating_accumulator_is_refused():
    """The sums are exact, so a contract that saturates them leaves the layer in float."""
    recipe = qcore.Recipe(qconfig=DYNAMIC, numerics=qcore.Numerics(accumulator="int16_pairs").key)
    row = qcore.plan(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8), recipe).row("0")
    assert row.status == "float"
    assert "adds up in 32 bits" in row.reason


def test_a_sum_that_can_overflow_is_an_error():
    """16-bit tokens and large weights over a long sum, at convert, with the layer's name."""
    scheme = QScheme(dtype=qcore.INT16, granularity=PerToken())
    model = nn.Sequential(nn.Linear(2048, 2))
    nn.init.constant_(model[0].weight, 0.5)
    qconfig = QConfig(weight=WEIGHT, activation=QuantizerConfig(scheme=scheme))
    qfloat = qcore.calibrate(qcore.prepare(model, torch.randn(2, 2048), qconfig))
    with pytest.raises(qcore.QuantizationError, match=r"layer '0.weight'.*accumulator"):
        qcore.convert(qfloat)


def test_training_simulates_the_rounding_with_a_straight_gradient():
    """In training the values are those of eval mode up to float rounding, and x gets the gradient
    of the layer with its rounded weight."""
    x = torch.randn(3, 5, 32, requires_grad=True)
    qfloat = qcore.calibrate(qcore.prepare(network()[0], x.detach(), DYNAMIC)).train()
    y = qfloat(x)
    torch.testing.assert_close(y, qfloat.eval()(x.detach()), rtol=1e-5, atol=1e-5)
    ones = torch.ones_like(y)
    (gradient,) = torch.autograd.grad(y, x, ones)
    ((_, op),) = qcore.qfloat_ops(qfloat)
    torch.testing.assert_close(gradient, ones @ op.quantized(op.weight))
    (again,) = torch.autograd.grad(qfloat(x), x, ones)
    assert torch.equal(again, gradient)


def test_fake_quantization_can_be_switched_off():
    """Switched off, the layer is the float layer; the switch is part of the state."""
    model, x = network().eval(), torch.randn(3, 32)
    qfloat = qcore.calibrate(qcore.prepare(model, x, DYNAMIC))
    qcore.disable_fake_quant(qfloat)
    torch.testing.assert_close(qfloat(x), model(x))
    other = copy.deepcopy(qfloat)
    qcore.enable_fake_quant(other)
    assert not torch.equal(other(x), qfloat(x))
    other.load_state_dict(qfloat.state_dict())
    assert torch.equal(other(x), qfloat(x))


def test_a_calibration_that_fails_leaves_the_switches():
    """After an error everything is as before."""
    x = torch.randn(3, 32)
    qfloat = qcore.calibrate(qcore.prepare(network().eval(), x, DYNAMIC))
    before = qfloat(x)
    with pytest.raises(RuntimeError, match="too early"):
        qcore.calibrate(qfloat, _failing(x))
    assert torch.equal(qfloat(x), before)


def _failing(x):
    yield x
    raise RuntimeError("too early")


def test_values_of_the_simulation():
    """Each token has its own step; NaN shows in its token alone; the gradient is that of x."""
    quantize = qcore.DynamicQuantize(scheme=QScheme(dtype=INT4, granularity=PerToken()))
    x = torch.tensor([[7.5, -7.5, 2.4], [0.75, 0.3, 0.0], [1.0, float("nan"), 0.0]])
    x.requires_grad_()
    y = quantize(x)
    torch.testing.assert_close(y[:2], torch.tensor([[7.0, -8.0, 2.0], [0.7, 0.3, 0.0]]))
    assert y[2].isnan().all()
    y[:2].sum().backward()
    assert x.grad[:2].eq(1).all()
    half = quantize(x.detach()[:2].bfloat16())
    assert half.dtype == torch.bfloat16


def test_artifacts(tmp_path):
    """A program with dynamic layers is saved, loaded and verified."""
    x = torch.randn(2, 7, 32)
    for preset in ("int8_dynamic", "int4_dynamic"):
        q = qcore.convert(qcore.calibrate(qcore.prepare(network().eval(), x, preset)))
        folder = qcore.save(q, tmp_path / preset)
        assert torch.equal(qcore.load(folder)(x), q(x))
        assert qcore.verify(folder).equal
        layers = {layer.name: layer for layer in qcore.inspect_artifact(folder).layers}
        assert layers["3"].operation == "qcore.qlinear_dynamic.default"
        assert layers["3"].float_bytes == 4 * (64 * 32 + 32)
