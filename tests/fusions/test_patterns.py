"""Chains that are fused: what the plan says, and that the integers stay those of QFloat."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(2, 4, 8, 8)

CLAMPS = {
    "relu": nn.ReLU(),
    "relu-in-place": nn.ReLU(inplace=True),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.4, 0.9),
    "hardtanh-one-sided": nn.Hardtanh(-0.1, float("inf")),
}

FUNCTIONAL_CLAMPS = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "F.relu-in-place": lambda y: F.relu(y, inplace=True),
    "relu_": lambda y: y.relu_(),
    "torch.relu_": torch.relu_,
    "F.relu6": F.relu6,
    "F.hardtanh": lambda y: F.hardtanh(y, -0.5, 0.5),
    "clamp": lambda y: y.clamp(-0.3, 0.6),
    "clamp-min": lambda y: y.clamp(min=0),
    "clamp-max": lambda y: torch.clamp(y, max=0.2),
    "clamp_": lambda y: y.clamp_(-0.1, 0.3),
    "clamp-infinite": lambda y: y.clamp(-float("inf"), 0.1),
}


def conv(**options):
    return nn.Conv2d(4, 4, 3, padding=1, **options)


def bn(cls=nn.BatchNorm2d, channels=4):
    layer = cls(channels)
    layer.running_mean.uniform_(-0.5, 0.5)
    layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(9)


@pytest.mark.parametrize("name", CLAMPS)
@pytest.mark.parametrize("first", ["conv1d", "conv2d", "conv3d", "linear", "transposed"])
def test_layer_and_clamp(exact, first, name):
    """A layer takes in the clamp behind it: the clamp is the range of its output integers."""
    layer, x = {
        "conv1d": (nn.Conv1d(4, 4, 3), X[..., 0]),
        "conv2d": (conv(), X),
        "conv3d": (nn.Conv3d(4, 4, 2), torch.randn(2, 4, 4, 4, 4)),
        "linear": (nn.Linear(8, 4), X),
        "transposed": (nn.ConvTranspose2d(4, 4, 3), X),
    }[first]
    last = type(layer)(4, 4, 1) if first != "linear" else nn.Linear(4, 4)
    done = exact(nn.Sequential(layer, CLAMPS[name], last), x)
    assert done.plan.row("0").fused == ("1",)
    assert done.plan.row("0").fusion.startswith("fusions:")
    assert len(done.plan.rows) == 2


@pytest.mark.parametrize("name", FUNCTIONAL_CLAMPS)
def test_functional_and_in_place_clamps(exact, net, name):
    """Functions, methods and in-place forms are fused as modules are."""
    model = net(lambda m, x: m.b(FUNCTIONAL_CLAMPS[name](m.a(x))), a=conv(), b=conv())
    done = exact(model, X)
    assert len(done.plan.rows) == 2
    assert len(done.plan.row("a").fused) == 1


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (nn.Conv1d(4, 4, 3), nn.BatchNorm1d, X[..., 0]),
        (nn.Conv2d(4, 4, 3), nn.BatchNorm2d, X),
        (nn.Conv3d(4, 4, 2), nn.BatchNorm3d, torch.randn(2, 4, 4, 4, 4)),
        (nn.Linear(4, 4), nn.BatchNorm1d, X[..., 0, 0]),
        (nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d, X),
    ],
    ids=["conv1d", "conv2d", "conv3d", "linear", "transposed"],
)
@pytest.mark.parametrize("clamp", [None, nn.ReLU(), nn.Hardtanh(-0.2, 0.3)], ids=repr)
def test_layer_and_batch_norm(exact, layer, norm, x, clamp):
    """A layer takes in BatchNorm, with and without a clamp behind it."""
    parts = [layer, bn(norm)] + ([clamp] if clamp else [])
    done = exact(nn.Sequential(*parts), x)
    assert done.plan.row("0").fused == ("1", "2")[: len(parts) - 1]


RESIDUALS = {
    "conv-add": lambda m, x: m.b(m.a(x) + x),
    "add-conv": lambda m, x: m.b(x + m.a(x)),
    "conv-iadd": lambda m, x: m.b(m.a(x).add_(x)),
    "conv-add-relu": lambda m, x: m.b(F.relu(m.a(x) + x)),
    "conv-bn-add": lambda m, x: m.b(m.n(m.a(x)) + x),
    "conv-bn-add-relu": lambda m, x: m.b(F.relu(m.n(m.a(x)) + x)),
    "conv-bn-add-hardtanh": lambda m, x: m.b((m.n(m.a(x)) + x).clamp(-0.5, 0.5)),
}


@pytest.mark.parametrize("name", RESIDUALS)
@pytest.mark.parametrize("preset", ["int8_minmax", "uint8", "int4"])
def test_residual(exact, net, name, preset):
    """A convolution takes in the addition of a residual, whichever side it stands on."""
    model = net(RESIDUALS[name], a=conv(), n=bn(), b=conv())
    done = exact(model, X, preset, sqnr=12)
    row = done.plan.row("a")
    assert row.op == "conv2d"
    assert len(row.inputs) == 2
    assert len(row.fused) == name.count("-")
    assert [r.name for r in done.plan.rows] == ["a", "b"]


def test_two_branches_of_convolutions(exact, net):
    """Where both sides of an addition are convolutions, one takes the addition, the other does
    not."""

    def forward(m, x):
        return m.last(F.relu(m.n(m.a(x)) + m.p(m.b(x))))

    done = exact(net(forward, a=conv(), n=bn(), b=conv(), p=bn(), last=conv()), X)
    fused = {row.name: row.fused for row in done.plan.rows}
    assert sorted(map(len, fused.values())) == [0, 1, 3]
    assert fused["last"] == ()
    assert done.plan.count("float") == 0


def test_residual_of_a_float_value(exact, net):
    """A residual that is float gets a quantizer of its own."""
    model = net(lambda m, x: m.b(m.a(x) + x.softmax(1)), a=conv(), b=conv())
    done = exact(model, X)
    assert done.plan.row("a").fused == ("add",)
    names = [name for name, _ in qcore.quantizers(done.qfloat)]
    assert sum(name.endswith("_quantizer") and "." not in name for name in names) == 2


def test_residual_without_an_output_quantizer(exact, net):
    """The last block of a network gives float from its accumulator and residual, and clamps it."""
    done = exact(net(lambda m, x: F.relu6(m.n(m.a(x)) + x), a=conv(), n=bn()), X)
    assert (done.plan.row("a").output, done.plan.row("a").fused) == ("float", ("n", "add", "relu6"))


def test_add_and_clamp(exact, net):
    """An addition that no layer takes in is an operation with its own clamp."""
    model = net(
        lambda m, x: m.b(F.relu(F.max_pool2d(m.a(x), 1) + F.max_pool2d(m.c(x), 1))),
        a=conv(), c=conv(), b=conv(),
    )  # fmt: skip
    done = exact(model, X)
    assert done.plan.row("add").fused == ("relu",)
    assert done.plan.row("add").kernel == "qadd"


def test_activation_that_is_no_clamp_is_a_table_of_its_own(exact):
    """Hardswish is not a range of integers: it stays an operation, a table on integers."""
    done = exact(nn.Sequential(conv(), bn(), nn.Hardswish(), conv()), X)
    assert done.plan.row("0").fused == ("1",)
    assert done.plan.row("2").kernel == "qtable"


def test_clamp_whose_bounds_cross(exact, net):
    """Where the lower bound is above the upper one, torch gives the upper one everywhere; so does
    Q."""
    done = exact(net(lambda m, x: m.b(m.a(x).clamp(0.5, 0.2)), a=conv(), b=conv()), X)
    assert done.qfloat.a(X).unique().numel() == 1


def test_ops_of_the_plan_are_those_of_the_program(exact, net):
    """Each quantized row of a plan is one operation of the program, by the kernel that it names."""
    model = net(lambda m, x: m.b(F.relu(m.n(m.a(x)) + x)).mean((2, 3)), a=conv(), n=bn(), b=conv())
    done = exact(model, X)
    found = [str(n.target).split(".")[1] for n in done.q.graph.nodes if "qcore" in str(n.target)]
    wanted = [row.kernel for row in done.plan.rows if row.kernel]
    assert [k for k in found if k not in ("quantize", "dequantize")] == wanted
