"""Sums, differences, products, extremes, concatenations and lookup tables."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore
from qcore import INT16, QConfig, QScheme, QuantizerConfig

X = torch.randn(2, 3, 8, 8)


def between(net, function, **modules):
    """A network with two convolutions before ``function(m, a, b)`` and one behind."""
    torch.manual_seed(1)
    return net(
        lambda m, x: m.last(function(m, m.one(x), m.two(x))),
        one=nn.Conv2d(3, 4, 3, padding=1),
        two=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(3, 1, 1)),
        last=nn.Conv2d(4, 2, 1),
        **modules,
    )


BINARY = {
    "add-pooled": (lambda m, a, b: F.max_pool2d(a, 3, 1, 1) + b, "add", "quantized"),
    "mul": (lambda m, a, b: a * b, "mul", "quantized"),
    "mul-relu": (lambda m, a, b: F.relu(a * b), "mul", "quantized"),
    "add-broadcast": (lambda m, a, b: a + b.mean((2, 3), keepdim=True), "add", "quantized"),
    "mul-broadcast": (lambda m, a, b: a.mean(1, keepdim=True) * b, "mul", "quantized"),
    "add-with-alpha": (lambda m, a, b: torch.add(a, b, alpha=2), "add", "float"),
    "in-place": (lambda m, a, b: b.mul_(a), "mul", "quantized"),
    "out-of-operator": (lambda m, a, b: torch.mul(a, b), "mul", "quantized"),
    "same-twice": (lambda m, a, b: b + b, "add", "quantized"),
    "square": (lambda m, a, b: b * b, "mul", "quantized"),
    "sub": (lambda m, a, b: a - b, "sub", "quantized"),
    "sub-relu": (lambda m, a, b: F.relu(a - b), "sub", "quantized"),
    "sub-broadcast": (lambda m, a, b: a.mean(1, keepdim=True) - b, "sub", "quantized"),
    "sub-with-alpha": (lambda m, a, b: torch.sub(a, b, alpha=2), "sub", "float"),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("preset", ["int8_minmax", "uint8"])
def test_sums_and_products_of_two_tensors(exact, net, name, preset):
    """Sums and products of two quantized tensors, with clamp, broadcasting and one tensor twice."""
    function, op, status = BINARY[name]
    done = exact(between(net, function), X, preset)
    rows = [row for row in done.plan.rows if row.op == op]
    assert [row.status for row in rows] == [status]
    assert (rows[0].kernel == f"q{op}") == (status == "quantized")
    if status == "float":
        assert "alpha is not 1" in rows[0].reason


GATES = {
    "module": (lambda m, a, b: m.f(b.repeat(1, 2, 1, 1)), {"f": nn.GLU(1)}),
    "function": (lambda m, a, b: F.glu(b, 2), {}),
    "last": (lambda m, a, b: F.glu(b), {}),
}


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("preset", ["int8_minmax", "uint8"])
def test_gated_linear_units(exact, net, name, preset):
    """One half times the sigmoid of the other: the gate is a table with a scale of its own."""
    function, modules = GATES[name]
    done = exact(between(net, function, **modules), X, preset)
    (row,) = (row for row in done.plan.rows if row.op == "glu")
    assert (row.status, row.kernel) == ("quantized", "qmul")
    kinds = [str(n.target) for n in done.q.graph.nodes]
    assert (kinds.count("qcore.qtable.default"), kinds.count("qcore.qmul.default")) == (1, 1)


EXTREMES = {
    "maximum": lambda m, a, b: torch.maximum(a, b),
    "max-of-two": lambda m, a, b: torch.max(a, b.mean(1, keepdim=True)),
    "minimum": lambda m, a, b: torch.minimum(a, b),
    "min-of-two": lambda m, a, b: torch.min(b, a),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("preset", ["int8_minmax", "uint8"])
def test_extremes_of_two_tensors(exact, net, name, preset):
    """The larger or smaller of two values of different scales: each integer within half a step."""
    done = exact(between(net, EXTREMES[name]), X, preset)
    row = next(row for row in done.plan.rows if row.op == name[:3] + "imum")
    assert (row.status, row.kernel) == ("quantized", "qrequantize")


def test_dropout_hands_on_the_same_tensor(exact, net):
    """``y + dropout(y)``: in eval mode both inputs are one tensor, in training two."""
    model = between(net, lambda m, a, b: b + m.drop(b), drop=nn.Dropout(0.5))
    done = exact(model, X)
    done.qfloat.train()
    assert done.qfloat(X).shape == (2, 2, 8, 8)


TABLES = {
    "add-number": lambda m, a, b: b + 0.5,
    "number-add": lambda m, a, b: 2 + b,
    "mul-number": lambda m, a, b: b * -1.5,
    "mul-relu6": lambda m, a, b: F.relu6(b * 3),
    "sub-number": lambda m, a, b: b - 0.3,
    "number-sub": lambda m, a, b: 1 - b,
    "div-number": lambda m, a, b: b / 4,
    "abs": lambda m, a, b: b.abs(),
    "neg": lambda m, a, b: -b,
    "hardswish": lambda m, a, b: F.hardswish(b),
    "hardsigmoid": lambda m, a, b: F.hardsigmoid(b),
    "sigmoid": lambda m, a, b: b.sigmoid(),
    "tanh": lambda m, a, b: torch.tanh(b),
    "gelu": lambda m, a, b: F.gelu(b),
    "gelu-tanh": lambda m, a, b: F.gelu(b, approximate="tanh"),
    "silu": lambda m, a, b: F.silu(b),
    "mish": lambda m, a, b: F.mish(b),
    "elu": lambda m, a, b: F.elu(b, 0.7),
    "selu": lambda m, a, b: F.selu(b),
    "celu": lambda m, a, b: F.celu(b),
    "leaky-relu": lambda m, a, b: F.leaky_relu(b, 0.2),
    "softplus": lambda m, a, b: F.softplus(b),
    "log-sigmoid": lambda m, a, b: F.logsigmoid(b),
    "hardshrink": lambda m, a, b: F.hardshrink(b, 0.1),
    "softshrink": lambda m, a, b: F.softshrink(b, 0.1),
    "threshold": lambda m, a, b: F.threshold(b, 0.1, -0.2),
    "relu-alone": lambda m, a, b: F.relu(b),
    "clamp-alone": lambda m, a, b: b.clamp(-0.2, 0.4),
    "clamp-min": lambda m, a, b: b.clamp(min=-0.1),
}


@pytest.mark.parametrize("name", TABLES)
def test_functions_of_one_value_are_tables(exact, net, name):
    """A function of one value after a pool becomes a table, with an entry for each integer."""
    done = exact(between(net, TABLES[name]), X)
    rows = [row for row in done.plan.rows if row.kernel in ("qtable", "qadd", "qsub", "qmul")]
    assert [row.status for row in rows] == ["quantized"]
    (table,) = (t for n, t in done.q.named_buffers() if n.endswith("table"))
    assert table.shape == (256,)


MODULES = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.3, 0.5), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(),
    nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.CELU(), nn.SELU(), nn.LeakyReLU(0.1),
    nn.PReLU(), nn.Softplus(), nn.LogSigmoid(), nn.Hardshrink(0.1), nn.Softshrink(0.1),
    nn.Tanhshrink(), nn.Threshold(0.1, 0.0), nn.RReLU(), nn.ReLU(inplace=True),
    nn.Hardswish(inplace=True),
]  # fmt: skip


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_modules_of_one_value_are_tables(exact, net, module):
    """The same for the modules of torch.nn, in place too."""
    done = exact(between(net, lambda m, a, b: m.f(b), f=module), X)
    assert (done.plan.row("f").status, done.plan.row("f").kernel) == ("quantized", "qtable")


def test_table_over_sixteen_bits(exact, net):
    """Of an int16 input the table has 65536 entries."""
    activation = QuantizerConfig(scheme=QScheme(dtype=INT16))
    qconfig = QConfig(weight=QuantizerConfig(scheme="int8_channel"), activation=activation)
    exact(between(net, lambda m, a, b: torch.tanh(b)), X, qconfig)


def test_prelu_by_channel_stays_float(exact, net):
    """A PReLU with a slope for each channel is no single function: float."""
    done = exact(between(net, lambda m, a, b: m.f(b), f=nn.PReLU(4)), X)
    assert "differs by channel" in done.plan.row("f").reason


def test_trained_slope_is_in_the_table(exact, net):
    """A PReLU slope that training moved is what the table holds."""
    done = exact(between(net, lambda m, a, b: m.f(b), f=nn.PReLU(init=0.1)), X)
    with torch.no_grad():
        next(p for n, p in done.qfloat.named_parameters() if n.startswith("f.")).fill_(0.9)
    q = qcore.convert(done.qfloat)
    assert qcore.count_differences(done.qfloat, q, done.batches).differing == 0
    assert not torch.equal(q(X), done.q(X))


OTHERS = {
    "mask-of-truth-values": lambda m, a, b, k: a * k,
    "integers": lambda m, a, b, k: a + k.to(torch.int64),
    "concatenated-integers": lambda m, a, b, k: torch.cat([a, k.to(torch.int32)], 1)[:, :4],
}


@pytest.mark.parametrize("name", OTHERS)
def test_operand_that_is_no_float_tensor_stays_float(exact, net, name):
    """A mask or a tensor of integers as operand: the operation is float, not another one."""
    torch.manual_seed(1)
    model = net(
        lambda m, x, k: m.last(OTHERS[name](m, m.one(x), None, k)),
        one=nn.Conv2d(3, 4, 3, padding=1),
        last=nn.Conv2d(4, 2, 1),
    )
    done = exact(model, (X, torch.ones(2, 4, 8, 8, dtype=torch.bool)))
    rows = [row for row in done.plan.rows if row.op in ("mul", "add", "cat")]
    assert [row.status for row in rows] == ["float"]
    assert "no floating-point tensor" in rows[0].reason
    assert done.plan.row("one").fused == ()


def test_number_computed_at_run_time_stays_float(exact, net):
    """A number that comes from a size of the input is no constant of a table."""
    done = exact(between(net, lambda m, a, b: F.relu(b * a.shape[0])), X)
    row = next(row for row in done.plan.rows if row.op == "mul")
    assert (row.status, row.reason) == ("float", "one of its arguments is computed at run time")


def test_other_dtypes_stay_float(exact, net):
    """A product in float64 keeps its precision and dtype: it is left alone."""
    done = exact(between(net, lambda m, a, b: (a.double() * b.double()).float()), X)
    row = next(row for row in done.plan.rows if row.op == "mul")
    assert row.reason == "it computes in float64, not in float32"


CATS = {
    "channels": lambda m, a, b: torch.cat([a, b], 1)[:, ::2],
    "batch": lambda m, a, b: torch.cat([a, b]),
    "negative-dim": lambda m, a, b: torch.cat((a, b), dim=-1),
    "three-with-one-twice": lambda m, a, b: torch.cat([a, b, a], 2),
}


@pytest.mark.parametrize("name", CATS)
def test_concatenation_to_one_scale(exact, net, name):
    """Concatenation along any dimension brings its inputs to one scale."""
    done = exact(between(net, CATS[name]), X)
    row = next(row for row in done.plan.rows if row.op == "cat")
    assert (row.status, row.kernel) == ("quantized", "qcat")


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_stack_to_one_scale(exact, net, dim):
    """A new dimension anywhere; the parts are brought to one scale."""
    model = between(net, lambda m, a, b: torch.stack([a, b], dim).amax(dim))
    done = exact(model, X)
    row = next(row for row in done.plan.rows if row.op == "stack")
    assert (row.status, row.kernel) == ("quantized", "qcat")


def test_concatenation_with_a_float_stays_float(exact, net):
    """Where one input is float anyway, concatenating integers would only add rounding."""
    done = exact(between(net, lambda m, a, b: torch.cat([a, b.cumsum(1)], 2)), X)
    row = next(row for row in done.plan.rows if row.op == "cat")
    assert "not all of its inputs are integers" in row.reason


def test_result_that_only_floats_use_is_not_quantized(exact, net):
    """An addition in front of a softmax would only lose precision: float."""
    model = net(
        lambda m, x: (m.a(x) + F.max_pool2d(m.b(x), 1)).softmax(1),
        a=nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(1)),
        b=nn.Conv2d(3, 4, 1),
    )
    done = exact(model, X)
    row = next(row for row in done.plan.rows if row.op == "add")
    assert "only float operations follow" in row.reason
