"""prepare: operations and quantizers in their places, names, and what callers may pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def conv(inputs=4):
    return nn.Conv2d(inputs, 4, 3, padding=1)


def prepared(model, x=X, recipe="int8_minmax"):
    return qcore.prepare(model.eval(), x, recipe)


def test_one_quantizer_a_value(net):
    """A float value that several operations use goes through one quantizer, that all are linked
    to."""
    model = net(lambda m, x: (m.a(x), m.b(x), m.c(x.abs())), a=conv(), b=conv(), c=conv())
    ops = dict(qcore.qfloat_ops(prepared(model)))
    (a,), (b,), (c,) = (ops[n].input_quantizers for n in "abc")
    assert a is b
    assert a is not c


def test_an_operation_owns_its_output_quantizer(net):
    """The quantizer of a value that an operation makes is that operation's own."""
    ops = dict(qcore.qfloat_ops(prepared(net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv()))))
    assert ops["b"].input_quantizers == (ops["a"].output_quantizer,)
    assert ops["b"].output_quantizer is None


def test_movements_share_the_quantizer_of_what_they_move(net):
    """Behind a flip and a pool the quantizer is still the convolution's."""
    model = net(lambda m, x: m.b(F.max_pool2d(m.a(x).flip(1), 2)), a=conv(), b=conv())
    ops = dict(qcore.qfloat_ops(prepared(model)))
    assert ops["b"].input_quantizers == (ops["a"].output_quantizer,)


def test_names_that_are_taken(exact, net):
    """Operations of functions don't take the names of modules, parameters or constants."""
    model = net(
        lambda m, x: m.last(F.max_pool2d(m.add(x), 1) + F.max_pool2d(m.mul(x), 1)) + m.x_quantizer,
        add=conv(), mul=conv(), last=conv(),
    )  # fmt: skip
    model.x_quantizer = nn.Parameter(torch.ones(1))
    done = exact(model, X)
    names = [n for n, _ in qcore.qfloat_ops(done.qfloat)]
    assert len(set(names)) == 4
    assert {"add", "mul", "last"} < set(names)
    assert isinstance(done.qfloat.x_quantizer, nn.Parameter)


def test_where_says_the_place():
    """Quantizers know the layer's full name, for messages."""
    model = nn.Sequential(nn.Sequential(conv(), nn.ReLU()), conv())
    where = {n: q.where for n, q in qcore.quantizers(prepared(model))}
    assert where["0.0.weight_quantizer"] == "0.0.weight"
    assert where["0.0.output_quantizer"] == "0.0"


def test_parameters_are_those_of_the_copy():
    """QFloat's parameters have the names of the layers and are trainable copies."""
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
    qfloat = prepared(model)
    assert dict(qfloat.named_parameters()).keys() == {
        "0.weight",
        "0.bias",
        "0.bn.weight",
        "0.bn.bias",
    }
    assert torch.equal(qfloat.get_parameter("0.weight"), model[0].weight)
    assert qfloat.get_parameter("0.weight") is not model[0].weight


@pytest.mark.parametrize(
    "example", [X, (X,), [X], {"input": X}], ids=["tensor", "tuple", "list", "dict"]
)
def test_forms_of_example_inputs(example):
    """A tensor, a tuple or list of positional inputs, and a dictionary by name are all taken."""
    qfloat = qcore.prepare(nn.Sequential(conv()).eval(), example, "int8_minmax")
    batch = {"input": X} if isinstance(example, dict) else X
    qcore.calibrate(qfloat, [batch])
    q = qcore.convert(qfloat)
    assert torch.equal(q(X), q(input=X))


def test_forms_of_recipes():
    """A preset by name, a QConfig and a recipe with it give the same plan."""
    host = qcore.default_host()
    qconfig = host.find("preset", "int8_minmax").qconfig
    plans = [
        qcore.plan(nn.Sequential(conv()).eval(), X, recipe)
        for recipe in ("int8_minmax", qconfig, qcore.Recipe(preset="int8_minmax"))
    ]
    assert plans[0] == plans[1] == plans[2]


def test_hosts_are_independent():
    """A host without converters quantizes nothing; one with the built-ins does."""
    with pytest.raises(qcore.PluginError, match="no preset is called 'int8'"):
        qcore.plan(nn.Sequential(conv()), X, host=qcore.PluginHost([]))
    host = qcore.PluginHost(block=["converters"])
    plan = qcore.plan(nn.Sequential(conv()).eval(), X, host=host)
    assert plan.count("quantized") == 0
    host = qcore.PluginHost(block=["fusions"])
    plan = qcore.plan(nn.Sequential(conv(), nn.ReLU(), conv()).eval(), X, host=host)
    assert [row.status for row in plan.rows] == ["quantized"] * 3


def test_without_fusions_the_integers_still_agree(exact):
    """With the plug-in of fusions blocked every layer is an operation of its own."""
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv())
    done = exact(model, X, host=qcore.PluginHost(block=["fusions"]))
    assert [row.kernel for row in done.plan.rows] == ["qconv", "qconv", "qtable", "qconv"]


def test_required_plugins_are_checked_first():
    """A requirement of the recipe that is not met stops before anything is copied or captured."""
    recipe = qcore.Recipe(require=("qcore-quant>=0.1",))
    qcore.plan(nn.Sequential(conv()).eval(), X, recipe)
    with pytest.raises(qcore.PluginError, match="qcore-quant>=99"):
        qcore.plan(nn.Sequential(conv()).eval(), X, qcore.Recipe(require=("qcore-quant>=99",)))


def test_preparing_is_repeatable():
    """Two preparations of one model are equal, state for state."""
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()).eval()
    one, two = prepared(model), prepared(model)
    assert str(one.graph) == str(two.graph)
    assert one.state_dict().keys() == two.state_dict().keys()


def test_a_frozen_parameter_and_a_buffer_used_by_the_forward(exact, net):
    """Buffers and parameters that the forward adds or multiplies with are float operands."""
    model = net(lambda m, x: m.b(m.a(x) * m.scale + m.shift), a=conv(), b=conv())
    model.scale = nn.Parameter(torch.rand(1, 4, 1, 1), requires_grad=False)
    model.register_buffer("shift", torch.randn(1, 4, 1, 1))
    done = exact(model, X)
    assert done.statuses() == {"a": "quantized", "mul": "float", "add": "float", "b": "quantized"}
