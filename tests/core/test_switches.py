"""Switches and exceptions, of a whole model and of a part of it."""

import pytest
import torch
from torch import nn

import qcore

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def qfloat():
    """Two layers in a part of their own, and one behind it."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model = nn.Sequential(inner, nn.ReLU(), nn.Linear(6, 2))
    return qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])


def switches(model):
    return {name: (q.observer_enabled, q.fake_quant_enabled) for name, q in qcore.quantizers(model)}


def test_train_and_eval_move_no_switch(qfloat):
    """Whatever they are."""
    for change in (qcore.enable_observer, qcore.disable_fake_quant, qcore.disable_observer):
        change(qfloat)
        before = switches(qfloat)
        assert switches(qfloat.train()) == before
        assert switches(qfloat.eval()) == before


def test_a_part_of_the_model(qfloat):
    """The functions take any module; the rest stays as it is."""
    before = switches(qfloat)
    qcore.disable_fake_quant(qfloat.get_submodule("0"))
    qcore.enable_observer(qfloat.get_submodule("2"))
    for name, (observing, quantizing) in switches(qfloat).items():
        assert quantizing is not name.startswith("0.")
        assert observing is name.startswith("2.")
    qcore.enable_fake_quant(qfloat)
    qcore.disable_observer(qfloat)
    assert switches(qfloat) == before


def test_a_hook_on_every_quantized_layer(qfloat):
    """By a loop over the operations: each sees the values of its layer."""
    seen = {}
    hooks = [
        op.register_forward_hook(
            lambda op, inputs, output, name=name: seen.update({name: output.shape})
        )
        for name, op in qcore.qfloat_ops(qfloat)
    ]
    qfloat(X)
    assert seen == {"0.0": (4, 6), "0.2": (4, 6), "2": (4, 2)}
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize(
    ("override", "text", "floats"),
    [
        (qcore.Override(name="0.*", quantize=False), 'name = "0.*"\nquantize = false', 2),
        (qcore.Override(type="Linear", quantize=False), 'type = "Linear"\nquantize = false', 3),
        (qcore.Override(op="linear", name="2", quantize=False),
         'op = "linear"\nname = "2"\nquantize = false', 1),
        (qcore.Override(name="2", weight=qcore.QuantizerConfig(scheme="int4_channel")),
         'name = "2"\nweight = { scheme = "int4_channel" }', 0),
    ],
    ids=["name", "type", "operation", "scheme"],
)  # fmt: skip
def test_an_exception_in_python_is_the_one_of_toml(override, text, floats):
    """A layer stays float, or has other bits, by name, type or operation."""
    recipe = qcore.Recipe(preset="int8_minmax", overrides=(override,))
    assert recipe == qcore.Recipe.from_toml(f'preset = "int8_minmax"\n[[override]]\n{text}')
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model = nn.Sequential(inner, nn.ReLU(), nn.Linear(6, 2))
    if floats < 3:
        plan = qcore.info_of(qcore.prepare(model, X, recipe)).plan
    else:
        plan = qcore.plan(model, X, recipe)
    linear = [row for row in plan.rows if row.op == "linear"]
    assert sum(row.status == "float" for row in linear) == floats
    if override.weight is not None:
        assert plan.row("2").weight == "int4 symmetric per_channel(0)"
