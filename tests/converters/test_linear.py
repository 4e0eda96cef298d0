"""Linear layers: shapes, BatchNorm, groups along K, functional calls."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import qcore
from qcore import INT4, INT8, UINT4, PerGroup, QConfig, QScheme, QuantizerConfig

ACTIVATION = QuantizerConfig(scheme="int8_affine", observer="minmax")


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6), (2, 3, 2, 6)], ids=["2d", "3d", "4d"])
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_leading_dimensions(exact, shape, bias):
    """A linear layer over inputs of 2, 3 and 4 dimensions, in the middle of a network."""
    model = nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 3, bias=bias))
    done = exact(model, torch.randn(shape))
    assert done.plan.row("0").fused == ("1",)
    assert done.plan.row("2").kernel == "qlinear"


def test_folds_batch_norm(exact):
    """BatchNorm after a linear layer of 2 dimensions is folded."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU6(), nn.Linear(8, 3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    assert exact(model, torch.randn(2, 6)).plan.row("0").fused == ("1", "2")


@pytest.mark.parametrize("dtype", [INT4, UINT4, INT8], ids=lambda d: d.name)
@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_in_groups(exact, dtype, symmetric):
    """Weights with a scale for each group along K, symmetric and affine, with integer
    activations."""
    scheme = QScheme(dtype=dtype, granularity=PerGroup(4), symmetric=symmetric)
    qconfig = QConfig(weight=QuantizerConfig(scheme=scheme), activation=ACTIVATION)
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
    done = exact(model, torch.randn(2, 5, 12), qconfig, sqnr=12)
    assert done.plan.row("0").weight == scheme.describe()


def test_group_size_that_does_not_divide_names_the_layer():
    """A group size that does not divide the columns is an error that names layer, shape and
    cure."""
    scheme = QScheme(dtype=INT4, granularity=PerGroup(5))
    qconfig = QConfig(weight=QuantizerConfig(scheme=scheme), activation=ACTIVATION)
    model = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 4))
    with pytest.raises(
        qcore.QuantizationError, match=r"layer '1' \(Linear, weight \[4, 8\]\).*5"
    ) as e:
        qcore.plan(model, torch.randn(2, 10), qconfig)
    assert "override" in str(e.value)


def test_override_cures_a_group_size_that_does_not_divide(exact):
    """An override for the layer sets another scheme, as the error says."""
    qconfig = QConfig(
        weight=QuantizerConfig(scheme=QScheme(dtype=INT8, granularity=PerGroup(5))),
        activation=ACTIVATION,
    )
    override = qcore.Override(name="1", weight=QuantizerConfig(scheme="int8_channel"))
    recipe = qcore.Recipe(qconfig=qconfig, overrides=(override,))
    model = nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 4))
    exact(model, torch.randn(2, 10), recipe)


def test_functional_calls_on_parameters(exact, net):
    """F.linear and F.conv2d on parameters of the model are layers as their modules are."""
    model = net(
        lambda m, x: F.linear(F.relu(F.linear(x, m.a.weight, m.a.bias)), m.b.weight),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 4),
    )
    done = exact(model, torch.randn(2, 6))
    assert done.plan.count("quantized") == 2


def test_computed_weight_stays_float(exact, net):
    """A weight that a parametrization computes is left in float; the plan names the cure."""
    model = net(
        lambda m, x: m.b(m.a(x)), a=parametrizations.weight_norm(nn.Linear(6, 8)), b=nn.Linear(8, 4)
    )
    done = exact(model, torch.randn(2, 6))
    assert "remove_parametrizations" in done.plan.row("a").reason
    assert done.plan.row("b").status == "quantized"


def test_weight_that_is_read_elsewhere_stays_a_float_tensor(exact, net):
    """A parameter that a layer uses and the forward reads is there twice: integers, and float."""
    model = net(lambda m, x: m.a(x) + m.a.weight.abs().sum(1), a=nn.Linear(6, 8))
    done = exact(model, torch.randn(2, 6))
    held = dict(done.q.named_buffers()) | dict(done.q.named_parameters())
    kinds = {t.dtype for n, t in held.items() if n.startswith("a.weight") and t.ndim == 2}
    assert kinds == {torch.int8, torch.float32}


@pytest.mark.parametrize("preset", ["int8_weight_only", "int4_weight_only"])
def test_weight_only(exact, preset):
    """Only the weight is integers: the layer dequantizes it, and computes and clamps in float."""
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU6(), nn.Linear(32, 3))
    done = exact(model, torch.randn(2, 5, 32), preset, sqnr=12)
    assert done.statuses() == {"0": "weight-only", "2": "weight-only"}
    assert done.plan.row("0").inputs == ("float",)
    assert {
        n.target.__name__.split(".")[0] for n in done.q.graph.nodes if "dequantize" in n.name
    } == {"dequantize_block"}


def test_weight_only_convolutions(exact):
    """Convolutions of both directions, with BatchNorm and a residual, with integer weights
    alone."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
            self.bn = nn.BatchNorm2d(3)
            self.up = nn.ConvTranspose2d(3, 4, 3, stride=2)

        def forward(self, x):
            return self.up(F.relu(self.bn(self.a(x)) + x))

    done = exact(Block(), torch.randn(2, 3, 8, 8), "int8_weight_only")
    assert done.plan.row("a").fused == ("bn", "add", "relu")
    assert done.plan.row("up").status == "weight-only"


def test_per_tensor_weight_and_power_of_two_scales(exact):
    """One scale for the whole weight, and scales that are powers of two."""
    weight = QScheme(dtype=INT8, power_of_two=True)
    activation = QScheme(dtype=INT8, symmetric=False, power_of_two=True)
    qconfig = QConfig(
        weight=QuantizerConfig(scheme=weight), activation=QuantizerConfig(scheme=activation)
    )
    done = exact(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), torch.randn(2, 6), qconfig)
    for _, quantizer in qcore.quantizers(done.qfloat):
        scale = quantizer.qparams().scale
        assert torch.equal(scale.log2(), scale.log2().round())


def test_scheme_of_a_weight_that_an_operation_does_not_take(exact):
    """Group-wise weights are for linear layers: a convolution stays float, and the plan says
    why."""
    weight = QScheme(dtype=INT8, granularity=PerGroup(3))
    qconfig = QConfig(weight=QuantizerConfig(scheme=weight), activation=ACTIVATION)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 4))
    done = exact(model, torch.randn(2, 3, 8, 8), qconfig)
    assert "per-tensor or per-channel" in done.plan.row("0").reason
    assert done.plan.row("2").status == "quantized"


def test_sixteen_bit_activations(exact):
    """Activations of 16 bits are stored in int16 and stay exact."""
    activation = QScheme(dtype=qcore.INT16)
    qconfig = QConfig(
        weight=QuantizerConfig(scheme="int8_channel"), activation=QuantizerConfig(scheme=activation)
    )
    done = exact(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)), torch.randn(2, 16), qconfig)
    assert any(torch.int16 in node.args for node in done.q.graph.nodes)


def test_accumulator_that_can_overflow_is_an_error_at_convert():
    """16-bit activations times 8-bit weights over a long sum: an error that names the layer and
    bound."""
    activation = QScheme(dtype=qcore.INT16)
    qconfig = QConfig(
        weight=QuantizerConfig(scheme="int8_channel"), activation=QuantizerConfig(scheme=activation)
    )
    model = nn.Sequential(nn.Linear(2048, 2))
    nn.init.constant_(model[0].weight, 0.5)
    x = torch.randn(2, 2048)
    qfloat = qcore.calibrate(qcore.prepare(model, x, qconfig), [x])
    with pytest.raises(
        qcore.QuantizationError, match=r"layer '0.weight'.*accumulator.*2147483647.*fewer"
    ):
        qcore.convert(qfloat)


def test_weights_decide_whether_an_accumulator_overflows(exact):
    """The same shape passes where the weights themselves keep the sum below the bound."""
    activation = QScheme(dtype=qcore.INT16)
    qconfig = QConfig(
        weight=QuantizerConfig(scheme="int8_channel"), activation=QuantizerConfig(scheme=activation)
    )
    model = nn.Sequential(nn.Linear(2048, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[:, :8] = torch.randn(2, 8)
    exact(model, torch.randn(2, 2048), qconfig)


def test_override_gives_one_layer_another_scheme(exact):
    """An override by type replaces the weight's part of the preset; the rest stays."""
    override = qcore.Override(type="Linear", weight=QuantizerConfig(scheme="int4_channel"))
    recipe = qcore.Recipe(preset="int8_minmax", overrides=(override,))
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.Linear(48, 4))
    done = exact(model, torch.randn(2, 3, 8), recipe, sqnr=10)
    assert done.plan.row("0").weight.startswith("int8")
    assert done.plan.row("2").weight.startswith("int4")
    packed = done.q.get_buffer("2.weight")
    assert packed.dtype == torch.uint8
    assert packed.shape == (4, 24)


def test_activations_of_other_granularities_stay_float():
    """Groups of activations have no operation: the plan says so, and prepare refuses to do
    nothing."""
    scheme = QScheme(dtype=INT8, granularity=PerGroup(3))
    qconfig = QConfig(
        weight=QuantizerConfig(scheme="int8_channel"), activation=QuantizerConfig(scheme=scheme)
    )
    model = nn.Sequential(nn.Linear(6, 8))
    row = qcore.plan(model, torch.randn(2, 6), qconfig).row("0")
    assert "neither static per tensor nor at run time per token" in row.reason
    with pytest.raises(qcore.QuantizationError, match="nothing in the model can be quantized"):
        qcore.prepare(model, torch.randn(2, 6), qconfig)
