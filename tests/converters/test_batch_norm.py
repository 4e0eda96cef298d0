"""BatchNorm that no layer takes in: a depthwise 1x1 convolution of its own."""

import pytest
import torch
from torch import nn

import qcore
from qcore import INT8, UINT8, PerGroup, QConfig, QScheme, QuantizerConfig


def batch_norm(dims, channels, **options):
    torch.manual_seed(2)
    bn = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](channels, **options)
    if bn.track_running_stats:
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.3, 3)
    if bn.affine:
        bn.weight.data.normal_()
        bn.bias.data.normal_()
    return bn


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("clamp", [nn.Identity(), nn.ReLU(), nn.Hardtanh(-0.3, 0.7)], ids=repr)
def test_alone_between_pool_and_convolution(exact, dims, affine, clamp):
    """After a pool, BatchNorm is an operation of its own and takes a clamp in."""
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    model = nn.Sequential(
        conv(3, 4, 3, padding=1), pool, batch_norm(dims, 4, affine=affine), clamp, conv(4, 3, 1)
    )
    done = exact(model, torch.randn(2, 3, *(6, 8, 7)[:dims]))
    row = done.plan.row("2")
    assert (row.status, row.kernel) == ("quantized", "qconv")
    assert row.fused == (() if isinstance(clamp, nn.Identity) else ("3",))


def test_pre_activation_order(exact):
    """BatchNorm and relu before the convolution (pre-activation), with a skip around both."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.bn = batch_norm(2, 4)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.head(self.conv(torch.relu_(self.bn(x))) + x)

    done = exact(Block(), torch.randn(2, 3, 8, 8))
    assert done.plan.row("bn").fused == ("relu",)
    assert done.plan.row("conv").fused == ("add",)


def test_without_running_statistics_stays_float(exact):
    """Without running statistics it normalizes with each batch: float, neither fused nor alone."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), batch_norm(2, 4, track_running_stats=False), nn.Conv2d(4, 2, 1)
    )
    done = exact(model, torch.randn(4, 3, 6, 6))
    assert "no running statistics" in done.plan.row("1").reason
    assert "no running statistics" in done.plan.row("0").reason
    assert done.plan.row("0").fused == ()


def test_on_two_dimensions_alone_stays_float(exact):
    """Over [B, C] with nothing to fold it into it has no spatial dimensions: float."""
    model = nn.Sequential(
        nn.Linear(6, 4), nn.Sigmoid(), batch_norm(1, 4), nn.ReLU(), nn.Linear(4, 2)
    )
    done = exact(model, torch.randn(2, 6))
    assert done.plan.row("2").reason == "its input has no spatial dimensions"


def test_after_a_linear_layer_of_three_dimensions_normalizes_the_middle(exact):
    """Over [B, C, L] after a linear layer it normalizes C, not the outputs: not folded, on its
    own."""
    model = nn.Sequential(nn.Linear(6, 5), batch_norm(1, 4), nn.ReLU(), nn.Linear(5, 2))
    done = exact(model, torch.randn(2, 4, 6))
    assert done.plan.row("0").fused == ()
    assert "another dimension" in done.plan.row("0").reason
    assert (done.plan.row("1").status, done.plan.row("1").fused) == ("quantized", ("2",))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (None, "no scheme for weights"),
        (
            QuantizerConfig(scheme=QScheme(dtype=INT8, granularity=PerGroup(1))),
            "per-tensor or per-",
        ),
    ],
)
def test_weight_scheme_that_it_does_not_take(weight, reason):
    """Without a scheme for weights, or with one in groups, it stays float with the reason."""
    qconfig = QConfig(weight=weight, activation=QuantizerConfig(scheme="int8_affine"))
    override = qcore.Override(op="conv2d", weight=QuantizerConfig(scheme="int8_channel"))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), batch_norm(2, 4), nn.Conv2d(4, 2, 1))
    recipe = qcore.Recipe(qconfig=qconfig, overrides=(override,) if weight else ())
    row = qcore.plan(model, torch.randn(2, 3, 8, 8), recipe).row("2")
    assert row.status == "float"
    assert reason in row.reason


@pytest.mark.parametrize("symmetric", [True, False])
def test_affine_weight_schemes(exact, symmetric):
    """Its factors quantized with one scale, symmetric and with a zero point."""
    qconfig = QConfig(
        weight=QuantizerConfig(scheme=QScheme(dtype=UINT8, symmetric=symmetric)),
        activation=QuantizerConfig(scheme="uint8"),
    )
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), batch_norm(2, 4), nn.Conv2d(4, 2, 1))
    exact(model, torch.randn(2, 3, 8, 8), qconfig)
