"""Products of two activations."""

import pytest
import torch
from torch import nn

import qcore
from qcore import INT16, QConfig, QScheme, QuantizerConfig

INT16_ACTIVATION = QConfig(
    weight=QuantizerConfig(scheme="int8_channel"),
    activation=QuantizerConfig(scheme=QScheme(dtype=INT16)),
)

PRODUCTS = {
    "batched": ((2, 5, 6), lambda m, x: m.a(x) @ m.b(x).transpose(1, 2)),
    "bmm": ((2, 5, 6), lambda m, x: torch.bmm(m.a(x), m.b(x).mT)),
    "heads": ((2, 2, 5, 6), lambda m, x: torch.matmul(m.a(x), m.b(x).transpose(-1, -2))),
    "itself": ((2, 5, 6), lambda m, x: (lambda y: y @ y.transpose(1, 2))(m.a(x))),
    "broadcast": ((2, 5, 6), lambda m, x: m.a(x) @ m.b(x[0, :, :]).t()),
    "parameter": ((2, 5, 6), lambda m, x: m.a(x) @ m.b.weight.t()),
    "vector": ((2, 5, 6), lambda m, x: m.a(x) @ m.b.bias),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_any_shape(exact, net, name):
    """Matrix products with batches, broadcasting, one operand twice, and a parameter as operand."""
    shape, function = PRODUCTS[name]
    torch.manual_seed(2)
    model = net(function, a=nn.Linear(6, 4), b=nn.Linear(6, 4))
    if name == "parameter":
        model.b = nn.Linear(4, 7)
    done = exact(model, torch.randn(shape))
    assert [row.status for row in done.plan.rows if row.op == "matmul"] == ["quantized"]


@pytest.mark.parametrize("to_float", [False, True])
def test_product_and_clamp(exact, net, to_float):
    """A product takes in the relu behind it, whether integers or floats follow."""
    model = net(
        lambda m, x: (
            (m.a(x) @ m.b(x).mT).relu().softmax(-1)
            if to_float
            else m.c((m.a(x) @ m.b(x).mT).relu())
        ),
        a=nn.Linear(6, 4),
        b=nn.Linear(6, 4),
        c=nn.Linear(5, 3),
    )
    done = exact(model, torch.randn(2, 5, 6))
    (row,) = (row for row in done.plan.rows if row.op == "matmul")
    assert (row.status, row.fused) == ("quantized", ("relu",))
    assert row.output == ("float" if to_float else "int8 affine per_tensor")


def test_attention(exact, net):
    """Scores and context of attention are integer products; the softmax between them is float."""

    def forward(m, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        scores = (q @ k.transpose(-2, -1)) / 2.0
        return m.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    done = exact(net(forward, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)), torch.randn(2, 5, 8))
    assert [row.status for row in done.plan.rows if row.op == "matmul"] == ["quantized"] * 2


def test_product_that_can_overflow_stays_float(net):
    """Two 16-bit operands exceed an int32 accumulator with their first products: float, with
    why."""
    model = net(lambda m, x: m.a(x) @ m.a(x).mT, a=nn.Linear(6, 4))
    row = next(
        r
        for r in qcore.plan(model, torch.randn(2, 5, 6), INT16_ACTIVATION).rows
        if r.op == "matmul"
    )
    assert row.status == "float"
    assert "int32 ends at 2147483647" in row.reason


def test_operand_that_another_layer_widened_is_an_error_at_convert(net):
    """Where an override makes the shared input 16 bits wide, convert refuses with the layer's
    name."""
    x = torch.randn(2, 5, 1000)
    wide = qcore.Override(name="b", activation=INT16_ACTIVATION.activation)
    model = net(lambda m, x: (m.b(x) + 0, x @ x.mT), b=nn.Linear(1000, 4))
    with torch.no_grad():
        model.b.weight[:, 8:] = 0
    qfloat = qcore.prepare(model, x, qcore.Recipe(preset="int8_minmax", overrides=(wide,)))
    qcore.calibrate(qfloat, [x])
    with pytest.raises(qcore.QuantizationError, match=r"layer 'matmul'.*1000 products"):
        qcore.convert(qfloat)
