"""Every module that MegEngine quantizes, written as torch writes it, runs on integers.

Found in the model as it is: none of it is rewritten, and nothing is put in by hand.
"""

import pytest
import torch
from torch import nn

X1, X2 = torch.randn(4, 6), torch.randn(4, 4, 8, 8)


def conv(**options):
    return nn.Conv2d(4, 6, 3, **options)


def transposed(**options):
    return nn.ConvTranspose2d(4, 6, 3, stride=2, **options)


def bn(layer):
    """A layer with a BatchNorm that is not the identity."""
    norm = nn.BatchNorm1d(6) if isinstance(layer, nn.Linear) else nn.BatchNorm2d(6)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.uniform_(0.5, 1.5)
    norm.bias.data.normal_()
    return [layer, norm]


MODULES = {
    # Name there: layers here, input, the other layers that become part of the first.
    "Conv2d": (lambda: [conv()], X2, 0),
    "ConvRelu2d": (lambda: [conv(), nn.ReLU()], X2, 1),
    "ConvBn2d": (lambda: bn(conv(bias=False)), X2, 1),
    "ConvBnRelu2d": (lambda: [*bn(conv()), nn.ReLU()], X2, 2),
    "ConvTranspose2d": (lambda: [transposed()], X2, 0),
    "ConvTransposeRelu2d": (lambda: [transposed(), nn.ReLU()], X2, 1),
    "ConvTransposeBn2d": (lambda: bn(transposed(bias=False)), X2, 1),
    "ConvTransposeBnRelu2d": (lambda: [*bn(transposed()), nn.ReLU()], X2, 2),
    "Linear": (lambda: [nn.Linear(6, 6)], X1, 0),
    "LinearRelu": (lambda: [nn.Linear(6, 6), nn.ReLU()], X1, 1),
    "LinearBn1d": (lambda: bn(nn.Linear(6, 6)), X1, 1),
    "LinearBnRelu1d": (lambda: [*bn(nn.Linear(6, 6)), nn.ReLU()], X1, 2),
}


@pytest.mark.parametrize("preset", ["megengine_min_max", "int8_minmax"])
@pytest.mark.parametrize("name", MODULES)
def test_layers(exact, name, preset):
    """Alone and with what follows them, as one operation with one output quantizer."""
    torch.manual_seed(0)
    make, x, fused = MODULES[name]
    # A layer behind it, so that its output is integers too.
    after = nn.Linear(6, 3) if x is X1 else nn.Conv2d(6, 3, 1)
    done = exact(nn.Sequential(*make(), after), x, preset, sqnr=20)
    row = done.plan.row("0")
    assert row.status == "quantized"
    assert len(row.fused) == fused
    assert row.output != "float"


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "replicate"},
        {"groups": 2},
        {"groups": 2, "padding": 2, "padding_mode": "reflect", "stride": 2, "dilation": 2},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_padding_and_groups(exact, options):
    """Zeros, reflected and replicated borders; groups."""
    torch.manual_seed(0)
    done = exact(nn.Sequential(conv(**options), nn.ReLU(), nn.Conv2d(6, 3, 1)), X2)
    assert done.plan.row("0").status == "quantized"


@pytest.mark.parametrize("options", [{"groups": 2}, {"bias": False}, {"output_padding": 1}])
def test_transposed_convolutions(exact, options):
    """With groups, with and without bias."""
    torch.manual_seed(0)
    done = exact(nn.Sequential(transposed(**options), nn.ReLU(), nn.Conv2d(6, 3, 1)), X2)
    assert done.plan.row("0").status == "quantized"


def test_batch_matmul_activation(exact, net):
    """A product of two values, with a bias and a relu that counts."""

    def forward(m, x):
        left, right = m.left(x), m.right(x)
        return m.out(torch.relu(torch.bmm(left, right) + m.bias))

    torch.manual_seed(0)
    model = net(forward, left=nn.Linear(6, 5), right=nn.Linear(6, 4), out=nn.Linear(4, 3))
    model.bias = nn.Parameter(torch.randn(4))
    done = exact(model, torch.randn(2, 5, 6), sqnr=20)
    kinds = {row.op: row.status for row in done.plan.rows}
    assert kinds["matmul"] == "quantized"


ELEMWISE = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "fuse_add_relu": lambda a, b: torch.relu(a + b),
    "relu": lambda a, b: torch.relu(a) + torch.relu(b),
}


@pytest.mark.parametrize("method", ELEMWISE)
def test_elemwise(exact, net, method):
    """Functions and operators between quantized layers, without a module for them."""
    torch.manual_seed(0)
    model = net(
        lambda m, x: m.out(ELEMWISE[method](m.a(x), m.b(x))),
        a=nn.Linear(6, 6),
        b=nn.Linear(6, 6),
        out=nn.Linear(6, 3),
    )
    done = exact(model, X1, sqnr=20)
    assert {row.status for row in done.plan.rows} <= {"quantized", "moves"}


def test_concat(exact, net):
    """Of integers, which move."""
    torch.manual_seed(0)
    model = net(
        lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1)),
        a=conv(),
        b=conv(),
        out=nn.Conv2d(12, 3, 1),
    )
    done = exact(model, X2)
    assert "float" not in {row.status for row in done.plan.rows}


def test_stubs_are_put_in(pipeline):
    """The float input is quantized once, and the output leaves as float, without QuantStub and
    DequantStub."""
    torch.manual_seed(0)
    done = pipeline(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), X1)
    targets = [str(node.target) for node in done.q.graph.nodes if node.op == "call_function"]
    assert sum("quantize." in name and "dequantize" not in name for name in targets) == 1
    assert done.q(X1).is_floating_point()
