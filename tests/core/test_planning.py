"""The plan: which values are held as integers, at what width, and what is said about the rest."""

import json

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore
from qcore import Override, PlanRow, QConfig, QuantizerConfig, Recipe

X = torch.randn(2, 4, 8, 8)


def conv(inputs=4, outputs=4):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def planned(model, recipe="int8_minmax", x=X):
    return qcore.plan(model.eval(), x, recipe)


def status(plan):
    return {row.name: row.status for row in plan.rows}


def test_an_anchor_is_quantized_and_its_float_inputs_get_a_quantizer(net):
    """A convolution behind a float operation is quantized all the same."""
    plan = planned(net(lambda m, x: m.a(x.softmax(1)), a=conv()))
    assert status(plan) == {"softmax": "float", "a": "quantized"}
    assert plan.row("a").inputs == ("int8 affine per_tensor",)
    assert plan.row("a").output == "float"


def test_other_operations_need_integers_before_and_behind(net):
    """Between float operations, or with nothing quantized behind it, an addition stays float."""
    plan = planned(net(lambda m, x: m.a(x + x.flip(1)) * F.max_pool2d(x, 1), a=conv()))
    for name in ("add", "mul"):
        assert "not all of its inputs are integers" in plan.row(name).reason
    plan = planned(net(lambda m, x: F.max_pool2d(m.a(x), 1).sigmoid() * 2, a=conv()))
    assert [r.status for r in plan.rows] == ["quantized", "float", "float", "float"]
    assert "only float operations follow" in plan.row("sigmoid").reason
    assert plan.row("max_pool2d").reason == "moves a float value"


def test_float_spreads_backwards_through_a_chain(net):
    """Of a chain of optional operations that ends in a float one none is quantized."""
    plan = planned(
        net(lambda m, x: (m.a(x).sigmoid().tanh().abs().flip(1) * 3).softmax(1), a=conv())
    )
    assert plan.count("quantized") == 1
    assert plan.row("a").output == "float"


def test_a_float_input_spreads_forwards(net):
    """Of a chain of optional operations that starts with a float one none is quantized."""
    plan = planned(net(lambda m, x: m.a(x.sin().sigmoid().tanh() + 1), a=conv()))
    assert status(plan) == {
        "sin": "float", "sigmoid": "float", "tanh": "float", "add": "float", "a": "quantized",
    }  # fmt: skip


def test_one_integer_user_is_enough(net):
    """A value that a convolution and a float operation use is held as integers for the
    convolution."""
    plan = planned(
        net(lambda m, x: (lambda y: (m.b(y), y.softmax(1)))(m.a(x).sigmoid()), a=conv(), b=conv())
    )
    assert plan.row("sigmoid").status == "quantized"


def test_a_value_is_as_wide_as_its_widest_user_asks(net):
    """Of two users with different activation schemes the wider one decides, for both."""
    wide = QuantizerConfig(scheme="int16")
    recipe = Recipe(preset="int8_minmax", overrides=(Override(name="c", activation=wide),))
    plan = planned(
        net(lambda m, x: m.b(m.a(x)) + m.c(m.a(x)), a=conv(), b=conv(), c=conv()), recipe
    )
    assert plan.row("a").inputs == ("int8 affine per_tensor",)
    assert plan.row("c").inputs == ("int16 symmetric per_tensor",)
    twice = net(
        lambda m, x: (lambda y: m.b(y).flip(1) + m.c(y))(m.a(x)), a=conv(), b=conv(), c=conv()
    )
    plan = planned(twice, recipe)
    assert plan.row("a").output == "int16 symmetric per_tensor"
    assert plan.row("b").inputs == ("int16 symmetric per_tensor",)


def test_of_equally_wide_schemes_the_producers_is_taken(exact, net):
    """Of two schemes of one width the one that the producer is configured with is taken."""
    unsigned = QuantizerConfig(scheme="uint8")
    recipe = Recipe(preset="int8_minmax", overrides=(Override(name="a", activation=unsigned),))
    recipe = attrs.evolve(
        recipe, overrides=(*recipe.overrides, attrs.evolve(recipe.overrides[0], name="c"))
    )
    model = net(lambda m, x: (lambda y: (m.b(y), m.c(y)))(m.a(x)), a=conv(), b=conv(), c=conv())
    done = exact(model, X, recipe)
    assert done.plan.row("a").output == "uint8 affine per_tensor"
    assert done.plan.row("b").inputs == ("uint8 affine per_tensor",)
    alone = planned(
        net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv()),
        attrs.evolve(recipe, overrides=recipe.overrides[:1]),
    )
    assert alone.row("a").inputs == ("uint8 affine per_tensor",)
    assert alone.row("a").output == "int8 affine per_tensor"


def test_a_layer_left_out_gets_floats(exact, net):
    """An override that leaves a layer in float puts it between a dequantize and a quantize."""
    recipe = Recipe(preset="int8_minmax", overrides=(Override(name="b", quantize=False),))
    done = exact(net(lambda m, x: m.c(m.b(m.a(x))), a=conv(), b=conv(), c=conv()), X, recipe)
    assert done.plan.row("b").reason == "the recipe says so (override name='b')"
    assert done.plan.row("a").output == "float"


def test_a_part_left_out_is_not_fused(exact, net):
    """An override that leaves the addition in float takes it out of the convolution."""
    model = net(lambda m, x: F.relu(m.b(m.a(x)) + x), a=conv(), b=conv())
    plan = planned(model)
    assert plan.row("b").fused == ("add", "relu")
    recipe = Recipe(preset="int8_minmax", overrides=(Override(op="add", quantize=False),))
    plan = planned(model, recipe)
    assert [row.status for row in plan.rows] == ["quantized", "quantized", "float"]
    assert plan.row("b").output == "float"
    assert plan.row("b").fused == ()
    assert "not fused: the recipe says so (override op='add')" in plan.row("b").reason
    assert plan.row("add").fused == ("relu",)
    exact(model, X, recipe)


def test_a_layer_left_out_is_left_out_with_its_parts(net):
    """Where an override leaves out the layer itself, its row stays one."""
    model = net(lambda m, x: F.relu(m.b(m.a(x)) + x), a=conv(), b=conv())
    recipe = Recipe(preset="int8_minmax", overrides=(Override(name="b", quantize=False),))
    assert planned(model, recipe).row("b").fused == ("add", "relu")


def test_later_overrides_win(net):
    """Of several overrides that fit, later ones replace what they give and keep the rest."""
    four, two = (QuantizerConfig(scheme=s) for s in ("int4_channel", "int2_channel"))
    recipe = Recipe(
        preset="int8_minmax",
        overrides=(
            Override(op="conv2d", weight=four),
            Override(name="b", weight=two),
            Override(name="?", type="Conv2d", activation=QuantizerConfig(scheme="uint8")),
        ),
    )
    plan = planned(net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv()), recipe)
    assert plan.row("a").weight.startswith("int4")
    assert plan.row("b").weight.startswith("int2")
    assert plan.row("b").inputs == ("uint8 affine per_tensor",)


def test_an_override_by_preset(net):
    """It takes the place of the whole configuration; other keys and later overrides go on from
    there."""
    model = net(
        lambda m, x: m.c(m.b(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4)
    )
    narrow = qcore.QuantizerConfig(scheme="int2_channel")
    recipe = qcore.Recipe(
        preset="w4a4",
        overrides=(
            qcore.Override(name="a", preset="int8"),
            qcore.Override(name="b", preset="int8_weight_only"),
            qcore.Override(name="c", preset="int8", weight=narrow),
        ),
    )
    assert qcore.Recipe.from_table(recipe.to_table()) == recipe
    rows = {row.name: row for row in qcore.plan(model, torch.zeros(2, 4), recipe).rows}
    assert rows["a"].weight.startswith("int8_narrow")
    assert rows["a"].inputs == ("int8 affine per_tensor",)
    assert rows["b"].status == "weight-only"
    assert rows["c"].weight.startswith("int2")
    q = qcore.convert(
        qcore.calibrate(qcore.prepare(model, torch.zeros(2, 4), recipe), [torch.randn(8, 4)])
    )
    used = {(o.kind, o.name) for o in q.meta["qcore"].origins}
    assert {("preset", "int8"), ("preset", "w4a4"), ("scheme", "int2_channel")} <= used
    wrong = qcore.Recipe(overrides=(qcore.Override(name="a", preset="int9"),))
    with pytest.raises(qcore.PluginError, match="int9"):
        qcore.plan(model, torch.zeros(2, 4), wrong)


def test_weight_only_recipe_says_what_it_leaves(net):
    """With weights alone everything but layers with a weight is float, and says so."""
    plan = planned(net(lambda m, x: m.b(m.a(x).sigmoid()), a=conv(), b=conv()), "int8_weight_only")
    assert status(plan) == {"a": "weight-only", "sigmoid": "float", "b": "weight-only"}
    assert plan.row("sigmoid").reason == "the recipe quantizes weights only"
    assert plan.row("a").kernel == "dequantize_block + float"


def test_unknown_operations_are_rows_and_sizes_are_not(net):
    """What no converter knows is a row with the reason; sizes and numbers are no rows."""
    plan = planned(net(lambda m, x: m.a(x * x.shape[0]).cumsum(1) / x.size(2), a=conv()))
    kinds = [row.kind for row in plan.rows]
    assert kinds == ["aten.mul.Tensor", "Conv2d", "aten.cumsum.default", "aten.div.Tensor"]
    assert "no converter knows it" in plan.row("cumsum").reason


def test_contract_that_an_operation_does_not_have(exact, net):
    """What a contract does not define stays float, and the plan says which setting is the cause."""
    numerics = "half_even.multiplier.int32.after.int16_pairs"
    recipe = Recipe(preset="int8_minmax", numerics=numerics)
    model = net(
        lambda m, x: m.up(m.a(x)) @ m.up(m.a(x)).mT, a=conv(), up=nn.ConvTranspose2d(4, 4, 2)
    )
    done = exact(model, X, recipe)
    assert done.plan.numerics == numerics
    assert done.plan.row("a").status == "quantized"
    for name in ("up", "matmul"):
        assert "no accumulator 'int16_pairs'" in done.plan.row(name).reason
    groups = QuantizerConfig(scheme="int4_group32")
    fixed = Recipe(
        preset="int8_minmax", weight=groups, numerics="half_even.fixed_point.int32.after.int32"
    )
    plan = qcore.plan(nn.Sequential(nn.Linear(32, 4)), torch.randn(2, 32), fixed)
    assert "groups are added in float32" in plan.row("0").reason
    wide = Recipe(
        preset="int8_minmax", activation=QuantizerConfig(scheme="int16"), numerics=numerics
    )
    assert "at most 8 bits" in planned(nn.Sequential(conv()), wide).row("0").reason


def test_plan_is_what_prepare_does(net):
    """plan and prepare give the same plan, and QFloat has an operation for each quantized row."""
    model = net(
        lambda m, x: m.b(F.relu(m.n(m.a(x)) + x)).mean((2, 3)),
        a=conv(),
        n=nn.BatchNorm2d(4),
        b=conv(),
    )
    plan = planned(model)
    qfloat = qcore.prepare(model, X, "int8_minmax")
    assert qcore.info_of(qfloat).plan == plan
    assert len(qcore.qfloat_ops(qfloat)) == plan.count("quantized")


def test_text_of_a_plan(net):
    """The text has a line a layer, the counts, what was captured, and backend and contract."""
    model = net(lambda m, x: m.b(F.relu(m.a(x)).cumsum(1)), a=conv(), b=conv())
    text = str(planned(model))
    assert "quantized" in text
    assert "with relu" in text
    assert "2 quantized, 1 float; captured: the model (whole)" in text
    assert text.endswith("backend reference, numerics half_even.multiplier.int32.after.int32")
    widths = {len(line) for line in text.splitlines() if line.startswith("--")}
    assert len(widths) == 1


def test_data_of_a_plan(net):
    """A plan is plain data for JSON, and comes back as rows."""
    plan = planned(net(lambda m, x: m.a(x), a=conv()))
    data = json.loads(json.dumps(plan.to_data()))
    (row,) = data["rows"]
    assert (
        PlanRow(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
        == plan.rows[0]
    )


def test_row_of_an_unknown_layer(net):
    """Asking for a row that is not there is a KeyError with the name."""
    with pytest.raises(KeyError, match="nothing"):
        planned(net(lambda m, x: m.a(x), a=conv())).row("nothing")


def test_plan_of_what_can_not_be_quantized_at_all():
    """A plan can be made of any model; only prepare refuses to do nothing."""
    plan = qcore.plan(nn.Sequential(nn.Softmax(1)), X)
    assert (plan.count("float"), plan.count("quantized")) == (1, 0)


def test_scheme_of_more_than_sixteen_bits_stays_float():
    """Activations wider than 16 bits don't fit the operations: float, with the reason."""
    wide = qcore.QScheme(dtype=qcore.INT32)
    qconfig = QConfig(
        weight=QuantizerConfig(scheme="int8_channel"), activation=QuantizerConfig(scheme=wide)
    )
    assert "16 bits or fewer" in planned(nn.Sequential(conv()), qconfig).row("0").reason
