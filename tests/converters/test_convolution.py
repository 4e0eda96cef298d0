"""Convolutions and transposed convolutions: every geometry becomes the same integers in QFloat and
Q."""

import pytest
import torch
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}

GEOMETRIES = {
    "plain": {},
    "no-bias": {"bias": False},
    "stride-padding": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "depthwise-multiplier": {"groups": 4, "out_channels": 8, "stride": 2},
    "pointwise": {"kernel_size": 1},
    "even-kernel": {"kernel_size": 2, "padding": 1},
    "same": {"padding": "same", "dilation": 2},
    "same-even": {"kernel_size": 4, "padding": "same"},
    "valid": {"padding": "valid"},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 2, "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "same-even-circular": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
}

EVEN_SAME = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def seeded(make, *args, **options):
    torch.manual_seed(3)
    return make(*args, **options)


@EVEN_SAME
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_of_a_convolution(exact, dims, name):
    """A convolution of any stride, padding, dilation and grouping, in the middle of a network."""
    if dims == 3 and name in ("reflect", "same-even-circular", "even-kernel", "same"):
        pytest.skip("as in 2 dimensions")
    options = {"out_channels": 4, "kernel_size": 3} | GEOMETRIES[name]
    conv = seeded(CONV[dims], 4, **options)
    last = CONV[dims](options["out_channels"], 3, 1)
    done = exact(nn.Sequential(conv, last), torch.randn(2, 4, *SIZE[dims]))
    row = done.plan.row("0")
    assert (row.status, row.output, row.kernel) == ("quantized", "int8 affine per_tensor", "qconv")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"groups": 2, "bias": False},
        {"groups": 4, "stride": 3, "output_padding": 2, "dilation": 2},
        {"groups": 2, "padding": 1, "dilation": 2},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_geometry_of_a_transposed_convolution(exact, dims, options):
    """A transposed convolution with bias, groups, output padding and dilation."""
    conv = seeded(TRANSPOSED[dims], 4, 8, 3, **options)
    last = CONV[dims](8, 3, 1)
    done = exact(nn.Sequential(conv, nn.ReLU(), last), torch.randn(2, 4, *SIZE[dims]))
    row = done.plan.row("0")
    assert (row.status, row.kernel, row.fused) == ("quantized", "qconv_transpose", ("1",))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2])
def test_transposed_convolution_folds_batch_norm(exact, dims, groups):
    """BatchNorm after a transposed convolution is folded channel by channel, across groups too."""
    conv = seeded(TRANSPOSED[dims], 4, 6, 3, groups=groups, stride=2)
    bn = unusual(BATCH_NORM[dims](6))
    done = exact(nn.Sequential(conv, bn, nn.ReLU()), torch.randn(2, 4, *SIZE[dims]), sqnr=30)
    assert done.plan.row("0").fused == ("1", "2")


@pytest.mark.parametrize("affine", [True, False])
def test_convolution_folds_batch_norm(exact, affine):
    """BatchNorm after a convolution is folded, with negative factors, and without gamma and
    beta."""
    bn = unusual(nn.BatchNorm2d(6, eps=1e-2, affine=affine))
    model = nn.Sequential(seeded(nn.Conv2d, 3, 6, 3, bias=False), bn, nn.Conv2d(6, 2, 1))
    done = exact(model, torch.randn(2, 3, 7, 7), sqnr=30)
    assert done.plan.row("0").fused == ("1",)


def unusual(bn):
    """Statistics and parameters that are far from those of a new layer."""
    torch.manual_seed(5)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.2, 3)
    if bn.affine:
        bn.weight.data.normal_()
        bn.bias.data.normal_()
    return bn


def test_a_dead_channel_stays_dead(exact):
    """A BatchNorm factor of 0 makes a channel of weights 0, whose scale is still positive."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), unusual(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        model[1].weight[1] = 0
        model[3].weight[:, 1] = 0
    exact(model, torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("size", [1e-12, 1e-30])
def test_tiny_weights_with_a_large_bias(exact, size):
    """A channel whose bias has no room in int32 at the step of its weights keeps its bias."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0].weight[1] *= size
        model[0].bias[1] = 3.0
    exact(model, torch.randn(2, 3, 6, 6), sqnr=30)


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_memory_format_of_the_input_does_not_matter(pipeline, layout):
    """Inputs in another memory format, or with gaps, give the same integers."""
    import qcore

    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3))
    done = pipeline(model, torch.randn(2, 3, 8, 8))
    x = torch.randn(3, 3, 8, 16)[..., ::2]
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    assert not x.is_contiguous()
    assert torch.equal(done.q(x), done.q(x.contiguous()))
    assert qcore.count_differences(done.qfloat, done.q, [x]).differing == 0


def test_output_size_of_a_transposed_convolution_stays_float(exact, net):
    """A transposed convolution that is called with output_size is left in float, and the plan says
    so."""
    model = net(
        lambda m, x: m.b(m.a(x, output_size=[16, 16])),
        a=nn.ConvTranspose2d(3, 4, 3, stride=2),
        b=nn.Conv2d(4, 2, 1),
    )
    done = exact(model, torch.randn(2, 3, 7, 7))
    assert done.plan.row("a").reason == "it is called with more than its input"


def test_subclass_that_keeps_forward_is_converted(exact):
    """A subclass of a convolution that keeps its forward is one; one with its own forward is
    inlined."""

    class Kept(nn.Conv2d):
        extra = 1

    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).tanh()

    model = nn.Sequential(Kept(3, 4, 3), nn.ReLU(), Own(4, 4, 3))
    done = exact(model, torch.randn(2, 3, 8, 8))
    assert done.plan.row("0").kind == "Kept"
    assert done.plan.row("0").status == "quantized"
    # The call of conv2d in the other's forward is found, and the tanh behind it.
    assert [row.kernel for row in done.plan.rows] == ["qconv", "qconv", ""]
    assert done.plan.rows[-1].kind == "aten.tanh.default"
