"""The 17 module triples of MegEngine's quantization: each float form is found without rewriting the
network, runs on integers, and QFloat equals Q on every one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

import qcore

X = torch.randn(2, 4, 7, 6)
PRESETS = ("int8_minmax", "uint8")
DIMENSIONS = ((1, "int8_minmax"), (2, "int8_minmax"), (2, "uint8"), (3, "int8_minmax"))
PADDINGS = ("zeros", "reflect", "replicate", "circular")
CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def images(dims):
    return torch.randn(2, 4, *(7, 6, 5)[:dims])


def alive(bn):
    bn.running_mean.uniform_(-0.5, 0.5)
    bn.running_var.uniform_(0.5, 2)
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    return bn


FORMS = {
    "": (),
    "relu": (nn.ReLU,),
    "bn": ("bn",),
    "bn-relu": ("bn", nn.ReLU),
}


def chain(layer, norm, form):
    """The layer with what MegEngine has a fused module for."""
    torch.manual_seed(0)
    parts = [alive(norm(4)) if part == "bn" else part() for part in FORMS[form]]
    return nn.Sequential(layer, *parts)


def fused_whole(done, kernel):
    """Whether all layers became one, which gives integers to nobody or somebody."""
    (row,) = (row for row in done.plan.rows if row.name == "0")
    assert (row.status, row.kernel) == ("quantized", kernel)
    assert len(row.fused) == len(done.model) - 1
    return row


@pytest.mark.parametrize(("dims", "preset"), DIMENSIONS)
@pytest.mark.parametrize("form", FORMS)
def test_convolutions(exact, form, dims, preset):
    """Conv2d, ConvRelu2d, ConvBn2d and ConvBnRelu2d; in one and three dimensions too."""
    model = chain(CONV[dims - 1](4, 4, 3, padding=1), NORM[dims - 1], form)
    fused_whole(exact(model, images(dims), preset), "qconv")


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mode", PADDINGS)
def test_padding_modes_and_groups(exact, mode, groups):
    """Every padding mode of torch, with groups, up to depthwise."""
    conv = nn.Conv2d(4, 4, 3, padding=2, padding_mode=mode, groups=groups, stride=2)
    fused_whole(exact(chain(conv, nn.BatchNorm2d, "bn-relu"), X), "qconv")


@pytest.mark.parametrize(("dims", "preset"), DIMENSIONS)
@pytest.mark.parametrize("form", FORMS)
def test_transposed_convolutions(exact, form, dims, preset):
    """ConvTranspose2d, ConvTransposeRelu2d, ConvTransposeBn2d and ConvTransposeBnRelu2d run on
    integers, with bias and groups; in one and three dimensions too."""
    layer = TRANSPOSED[dims - 1](4, 4, 3, stride=2, output_padding=1, groups=2)
    model = chain(layer, NORM[dims - 1], form)
    assert layer.bias is not None
    fused_whole(exact(model, images(dims), preset), "qconv_transpose")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", PRESETS)
def test_linear_layers(exact, form, preset):
    """Linear, LinearRelu, LinearBn1d and LinearBnRelu1d."""
    model = chain(nn.Linear(6, 4), nn.BatchNorm1d, form)
    fused_whole(exact(model, torch.randn(8, 6), preset), "qlinear")


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_batch_matmul_activation(exact, net, relu, preset):
    """BatchMatMulActivation, whose relu is kept."""

    def forward(m, x):
        y = torch.bmm(m.a(x), m.b(x).transpose(1, 2))
        return m.c(y.relu() if relu else y)

    model = net(forward, a=nn.Linear(6, 4), b=nn.Linear(6, 4), c=nn.Linear(7, 3))
    done = exact(model, torch.randn(2, 7, 6), preset)
    (row,) = (row for row in done.plan.rows if row.op == "matmul")
    assert (row.status, row.fused) == ("quantized", ("relu",) if relu else ())


METHODS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "maximum": lambda a, b: torch.maximum(a, b),
    "minimum": lambda a, b: torch.minimum(a, b),
    "fuse_add_relu": lambda a, b: F.relu(a + b),
    "fuse_mul_relu": lambda a, b: F.relu(a * b),
    "relu": lambda a, b: F.relu(b),
    "relu6": lambda a, b: F.relu6(b),
    "clip": lambda a, b: b.clamp(-0.4, 0.5),
    "leaky_relu": lambda a, b: F.leaky_relu(b),
    "elu": lambda a, b: F.elu(b),
    "sigmoid": lambda a, b: torch.sigmoid(b),
    "tanh": lambda a, b: torch.tanh(b),
    "silu": lambda a, b: F.silu(b),
    "gelu": lambda a, b: F.gelu(b),
    "hswish": lambda a, b: F.hardswish(b),
    "hsigmoid": lambda a, b: F.hardsigmoid(b),
    "softplus": lambda a, b: F.softplus(b),
    "logsigmoid": lambda a, b: F.logsigmoid(b),
    "abs": lambda a, b: b.abs(),
    "negate": lambda a, b: -b,
}


@pytest.mark.parametrize("method", METHODS)
def test_elemwise(exact, net, method):
    """Elemwise(method): two operands by integer arithmetic, one by a table."""
    torch.manual_seed(1)
    model = net(
        lambda m, x: m.c(METHODS[method](m.a(x), F.max_pool2d(m.b(x), 1))),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 3, padding=1),
        c=nn.Conv2d(4, 2, 1),
    )
    done = exact(model, X, "uint8")
    assert done.plan.count("float") == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_concat(exact, net, preset):
    """Concat: inputs of any scales, to one."""
    model = net(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x) * 3], 1)),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 2, 1),
        c=nn.Conv2d(6, 2, 1),
    )
    (row,) = (row for row in exact(model, X, preset).plan.rows if row.op == "cat")
    assert (row.status, row.kernel) == ("quantized", "qcat")


def test_quant_stub_and_dequant_stub(exact):
    """Quantize and dequantize stand where integers begin and end; torch's own stubs in a network
    change nothing."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    plain = exact(nn.Sequential(*layers), X)
    stubbed = exact(nn.Sequential(QuantStub(), *layers, DeQuantStub()), X)
    assert torch.equal(stubbed.q(X), plain.q(X))
    kinds = [str(n.target) for n in stubbed.q.graph.nodes if n.op == "call_function"]
    assert kinds.count("qcore.quantize.default") == 1
    assert stubbed.plan.count("quantized") == 2


@pytest.mark.parametrize("form", ["conv", "transposed", "linear", "elemwise", "concat"])
def test_triples_on_the_cpu_backend(pipeline, net, form):
    """Prepared for the cpu backend, lowered Q equals QFloat on every integer."""
    torch.manual_seed(3)
    model, x = {
        "conv": (chain(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d, "bn-relu"), X),
        "transposed": (chain(nn.ConvTranspose2d(4, 4, 3, 2), nn.BatchNorm2d, "bn-relu"), X),
        "linear": (chain(nn.Linear(6, 4), nn.BatchNorm1d, "bn-relu"), torch.randn(8, 6)),
        "elemwise": (
            net(
                lambda m, x: m.c(F.silu(m.a(x) - m.b(x)) * torch.maximum(m.a(x), m.b(x))),
                a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(4, 2, 1),
            ),
            X,
        ),
        "concat": (
            net(
                lambda m, x: m.c(F.interpolate(torch.cat([m.a(x), m.b(x)], 1), scale_factor=2)),
                a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(8, 2, 1),
            ),
            X,
        ),
    }[form]  # fmt: skip
    done = pipeline(model, x, qcore.Recipe(backend="cpu"))
    assert done.fidelity.differing == 0
    counted = qcore.count_differences(done.qfloat, qcore.lower(done.q, "cpu"), done.batches)
    assert (counted.differing, counted.compared > 0) == (0, True)


DYNAMIC = {
    "int8_dynamic": ("dynamic", "float"),
    "int4_weight_only": ("weight-only", "weight-only"),
}


@pytest.mark.parametrize("preset", DYNAMIC)
def test_other_presets(exact, preset):
    """Scales at run time are for linear layers, weight-only is for every layer with a weight."""
    torch.manual_seed(4)
    weight = qcore.QuantizerConfig(scheme="int4_channel", observer="mse")
    overrides = (qcore.Override(op="conv2d", weight=weight),) if "int4" in preset else ()
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(80, 32), nn.Linear(32, 4))
    override = qcore.Override(name="2", weight=weight) if "int4" in preset else None
    recipe = qcore.Recipe(preset=preset, overrides=(*overrides, *filter(None, [override])))
    done = exact(model, X, recipe, sqnr=15)
    linear, conv = DYNAMIC[preset]
    assert (done.plan.row("3").status, done.plan.row("0").status) == (linear, conv)
