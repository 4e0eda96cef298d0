"""convert: what a program holds, where its layers stand, and which float operations it keeps."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import qcore

X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def conv(inputs=4):
    return nn.Conv2d(inputs, 4, 3, padding=1)


def targets(program):
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


def test_a_program_calls_no_module(exact, net):
    """A program is a graph of functions over tensors: float layers are inlined as aten
    operations."""
    model = net(
        lambda m, x: m.b(m.n(m.a(x))),
        a=conv(),
        n=nn.Sequential(nn.GroupNorm(2, 4), nn.Softplus()),
        b=conv(),
    )
    done = exact(model, X)
    assert {n.op for n in done.q.graph.nodes} == {
        "placeholder",
        "get_attr",
        "call_function",
        "output",
    }
    assert "aten.group_norm.default" in targets(done.q)
    assert all(type(m) is nn.Module for m in done.q.modules() if m is not done.q)


def test_tensors_of_a_program(exact):
    """Weights are integers under the layers' names, and nothing in a program is trainable."""
    done = exact(nn.Sequential(conv(), nn.ReLU(), conv()), X)
    held = dict(done.q.named_buffers())
    assert {n: t.dtype for n, t in held.items()} == {
        "0.weight": torch.int8, "0.weight_scale": torch.float32, "0.bias": torch.int32,
        "2.weight": torch.int8, "2.weight_scale": torch.float32, "2.bias": torch.int32,
    }  # fmt: skip
    assert not list(done.q.parameters())


def test_weights_below_eight_bits_are_packed(exact):
    """int4 weights take half a byte each, int2 a quarter."""
    for scheme, parts in (("int4_channel", 2), ("int2_channel", 4)):
        weight = qcore.QuantizerConfig(scheme=scheme)
        recipe = qcore.Recipe(preset="int8_minmax", weight=weight)
        done = exact(nn.Sequential(nn.Linear(16, 8)), torch.randn(2, 16), recipe, sqnr=1)
        packed = done.q.get_buffer("0.weight")
        assert (packed.dtype, packed.numel()) == (torch.uint8, 16 * 8 // parts)


def test_layers_of_a_program(exact, net):
    """A program knows at which node each layer's result stands, and what its integers mean."""
    model = net(lambda m, x: m.b(F.relu(m.a(x) + x)), a=conv(), b=conv())
    done = exact(model, X)
    layers = {layer.name: layer for layer in done.q.meta["qcore"].layers}
    assert {"a", "b"} < set(layers)
    assert len(layers) == 3
    names = {n.name for n in done.q.graph.nodes}
    ops = dict(qcore.qfloat_ops(done.qfloat))
    assert all(layer.node in names for layer in layers.values())
    p = ops["a"].output_quantizer.qparams()
    assert (layers["a"].scale, layers["a"].zero_point) == (float(p.scale), int(p.zero_point))
    assert (layers["b"].scale, layers["b"].zero_point) == (None, None)


def test_a_value_is_quantized_and_dequantized_once(exact, net):
    """A value with many users is brought to integers once, and back once."""

    def forward(m, x):
        y = m.a(x)
        return m.b(x), m.b(y), m.c(y), y.exp(), y.transpose(1, 2).sin(), y.cos()

    done = exact(net(forward, a=conv(), b=conv(), c=conv()), X)
    calls = targets(done.q)
    assert calls.count("qcore.quantize.default") == 1
    # Once as it is, and once as it was moved.
    assert calls.count("qcore.dequantize.default") == 2


def test_what_only_training_uses_is_not_in_a_program(exact):
    """Dropout, identities and dead branches leave nothing
    behind."""
    model = nn.Sequential(conv(), nn.Dropout(), nn.Identity(), nn.ReLU(), nn.Dropout2d(), conv())
    done = exact(model, X)
    assert targets(done.q) == [
        "qcore.quantize.default",
        "qcore.qconv.default",
        "qcore.qtable.default",
        "qcore.qconv.default",
    ]


def test_sizes_are_read_from_integers(exact, net):
    """A size of a quantized value is read from its integers, without a dequantize."""

    def forward(m, x):
        y = m.a(x)
        return m.b(y.reshape(y.shape[0], -1, 4).transpose(1, 2).reshape(y.size(0), 4, 6, 6))

    done = exact(net(forward, a=conv(), b=conv()), X)
    assert not any("dequantize" in t for t in targets(done.q))


def test_a_layer_after_its_own_parameter_is_read(exact, net):
    """A parameter that is read behind its layer does not overwrite the layer's integers."""
    for read_first in (True, False):
        forward = (
            (lambda m, x: m.a(x) * m.a.weight.std()) if read_first
            else (lambda m, x: F.linear(m.a(x).exp(), m.a.weight.exp()))
        )  # fmt: skip
        done = exact(net(forward, a=nn.Linear(4, 4)), torch.randn(2, 4))
        dtypes = {t.dtype for n, t in done.q.named_buffers() if n.startswith("a.weight")}
        assert torch.int8 in dtypes


def test_origins(exact):
    """A program names the parts of plug-ins that made it, with distribution and version."""
    done = exact(nn.Sequential(conv(), nn.ReLU()), X)
    origins = {(c.kind, c.name): c for c in done.q.meta["qcore"].origins}
    assert ("converter", "conv2d") in origins
    assert ("fusion", "conv-relu") in origins
    assert ("preset", "int8_minmax") in origins
    assert ("observer", "minmax") in origins
    assert ("converter", "linear") not in origins
    assert origins["converter", "conv2d"].distribution == "qcore-quant"


def test_programs():
    """The programs of a model by path, and an error where there is none."""
    model = nn.Sequential(conv()).eval()
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    q = qcore.convert(qfloat)
    assert qcore.programs(q) == {"": q}
    outer = nn.Sequential(nn.Identity(), q)
    assert list(qcore.programs(outer)) == ["1"]
    for other in (model, qfloat, fx.symbolic_trace(nn.Identity())):
        with pytest.raises(qcore.QuantizationError, match="holds no Q program"):
            qcore.programs(other)


def test_convert_leaves_qfloat_as_it_is():
    """Converting changes neither values nor switches nor modes, and can be repeated."""
    qfloat = qcore.calibrate(qcore.prepare(nn.Sequential(conv()), X, "int8_minmax"), [X])
    before = {n: t.clone() for n, t in qfloat.state_dict().items()}
    one, two = qcore.convert(qfloat), qcore.convert(qfloat)
    assert all(torch.equal(t, before[n]) for n, t in qfloat.state_dict().items())
    assert torch.equal(one(X), two(X))
    with torch.no_grad():
        qfloat.get_parameter("0.weight").zero_()
    assert torch.equal(one(X), two(X))


def test_convert_while_observing_takes_what_was_seen():
    """With observers still on, convert takes the scales of all that was seen up to now."""
    qfloat = qcore.prepare(nn.Sequential(conv(), conv()).eval(), X, "int8_minmax")
    qfloat(X)
    q = qcore.convert(qfloat)
    qcore.disable_observer(qfloat)
    assert qcore.count_differences(qfloat, q, [X]).differing == 0
