"""Comparing two executions: where they part, what is inherited, what the numbers say."""

import copy
import gc
import json

import attrs
import pytest
import torch
from torch import nn

import qcore

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual block, a table, a pool, two linear layers and a float end."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1)
        self.b1 = nn.BatchNorm2d(8)
        self.c2 = nn.Conv2d(8, 8, 3, padding=1)
        self.c3 = nn.Conv2d(8, 8, 1)
        self.act = nn.Hardswish()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(128, 10)
        self.last = nn.Linear(10, 5)

    def forward(self, x):
        x = torch.relu(self.b1(self.c1(x)))
        x = torch.relu(self.c2(x) + x)
        x = self.pool(self.act(self.c3(x)))
        return self.last(torch.relu(self.fc(x.flatten(1)))).softmax(-1)


LAYERS = ["x_quantizer", "c1", "c2", "c3", "act", "fc", "last", "(output)"]
OPERATIONS = [*LAYERS[:5], "qmax_pool", *LAYERS[5:]]
"""Of two programs: the pool is no layer of QFloat."""


@pytest.fixture(scope="module")
def made():
    """Float, QFloat and Q; not to be changed."""
    torch.manual_seed(0)
    model = Net().eval()
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    return model, qfloat, qcore.convert(qfloat)


@pytest.fixture
def damaged(made):
    """Q with one weight of ``c3`` far off."""
    q = copy.deepcopy(made[2])
    q.get_buffer("c3.weight")[0, 0, 0, 0] += 90
    return q


def test_equal_phases(made):
    """QFloat, Q and Q on the reference are equal in every operation, in every order."""
    _, qfloat, q = made
    for a, b in [(qfloat, q), (q, qfloat), (q, qcore.lower(q)), (q, q), (qfloat, qfloat)]:
        found = qcore.compare(a, b, [X, X[:1]])
        assert found.equal
        assert (found.differing, found.first, found.sources) == (0, None, ())
        names = LAYERS if qfloat in (a, b) else OPERATIONS
        assert [o.name for o in found.operations] == names
        assert found["c1"].free.compared == 7 * 8 * 64
        assert found.verdict().startswith("equal: ")
        assert found.batches == 2


def test_where_two_programs_part(made, damaged):
    """The damaged operation is the only source; those behind it inherit, those before are equal."""
    found = qcore.compare(made[2], damaged, [X])
    assert not found.equal
    assert [o.name for o in found.sources] == ["c3"]
    assert found.first.name == "c3"
    assert [o.name for o in found.operations if o.free.differing] == OPERATIONS[3:]
    assert [o.name for o in found.operations if o.inherited] == OPERATIONS[4:]
    assert found["c1"].free.sqnr is None
    assert found["c3"].operation == "qconv"
    assert "they part at 'c3' (qconv): weight: weight [0, 0, 0, 0] is" in found.verdict()


@pytest.mark.parametrize("phase", ["qfloat", "lowered"])
def test_every_form_shows_the_same(made, damaged, phase):
    """A QFloat model or a lowered program on the other side finds the same differences."""
    _, qfloat, q = made
    other = qfloat if phase == "qfloat" else qcore.lower(q)
    wanted = qcore.compare(q, damaged, [X])
    found = qcore.compare(other, damaged, [X])
    for operation in found.operations:
        assert operation == wanted[operation.name]
    assert len(found.operations) == len(LAYERS if phase == "qfloat" else OPERATIONS)
    back = qcore.compare(damaged, other, [X])
    assert [o.name for o in back.sources] == ["c3"]
    assert back["c3"].free.histogram == {
        -step: n for step, n in reversed(wanted["c3"].free.histogram.items())
    }
    assert back["c3"].cause.name == "weight"


def test_the_numbers_of_a_difference(made, damaged):
    """Counts, histogram, largest and SQNR are those of the values themselves."""
    q = made[2]
    a, b = (qcore.layer_values(m, X)["c3"] for m in (q, damaged))
    step = b.long() - a.long()
    layer = next(layer for layer in q.meta["qcore"].layers if layer.name == "c3")
    real = [(v.double() - layer.zero_point) * layer.scale for v in (a, b)]
    noise = 10 * torch.log10(real[0].square().sum() / (real[1] - real[0]).square().sum())
    found = qcore.compare(q, damaged, [X[:2], X[2:]])["c3"].free
    assert found.compared == a.numel()
    assert found.differing == int((a != b).sum()) == sum(found.histogram.values())
    assert found.share == found.differing / found.compared
    assert found.largest == int(step.abs().max()) > 8
    assert found.sqnr == pytest.approx(float(noise), abs=1e-3)
    clipped = step.clamp(-8, 8)
    assert found.histogram == {
        k: int((clipped == k).sum()) for k in range(-8, 9) if k and (clipped == k).any()
    }


def test_isolated_operations_get_the_inputs_of_a(made):
    """Two damaged operations are two sources, and the second one's difference is its own alone."""
    q = made[2]
    both, second = copy.deepcopy(q), copy.deepcopy(q)
    for program in (both, second):
        program.get_buffer("fc.bias")[3] += 3000
    both.get_buffer("c1.bias")[0] += 3000
    found, alone = qcore.compare(q, both, [X]), qcore.compare(q, second, [X])
    assert [o.name for o in found.sources] == ["c1", "fc"]
    assert found["fc"].isolated == alone["fc"].isolated == alone["fc"].free
    assert found["fc"].free.differing > alone["fc"].free.differing
    assert found["fc"].cause == alone["fc"].cause


def test_a_pool_that_is_wrong(made):
    """An operation that only selects integers is an operation too, and can be a source."""
    q = copy.deepcopy(made[2])
    pool = next(node for node in q.graph.nodes if "qmax_pool" in node.name)
    with q.graph.inserting_before(pool):
        rolled = q.graph.call_function(torch.ops.aten.roll.default, (pool.args[0], [1], [3]))
    pool.update_arg(0, rolled)
    q.recompile()
    found = qcore.compare(made[2], q, [X])
    assert [o.name for o in found.sources] == ["qmax_pool"]
    assert found.first.cause.name == "operations"
    assert "aten.roll([1], [3])" in found.first.cause.reason


def test_float_against_quantized(made):
    """Float is compared by distance: every layer has its SQNR, and no cause is sought."""
    model, qfloat, q = made
    for quantized in (qfloat, q):
        found = qcore.compare(model, quantized, [X])
        assert not found.exact
        assert found.a == "Float"
        assert [o.name for o in found.operations] == LAYERS
        assert all(20 < o.isolated.sqnr < 90 for o in found.operations if o.isolated.sqnr)
        assert found["x_quantizer"].free.differing == 0
        assert found["c2"].isolated.sqnr > found["c2"].free.sqnr
        assert not any(o.cause for o in found.operations)
        assert "SQNR" in found.verdict()
    output = found["(output)"].free.sqnr
    with torch.no_grad():
        a, b = model(X).double(), q(X).double()
    assert output == pytest.approx(
        float(10 * torch.log10(a.square().sum() / (b - a).square().sum())), abs=0.1
    )


def test_quantized_against_float(made):
    """Float on the other side; its operations get the quantized values."""
    model, _, q = made
    found = qcore.compare(q, model, [X])
    assert found.b == "Float"
    # One rounding apart at most: half a step, and what the clamp cut off.
    assert found["c3"].isolated.largest <= 1


def test_other_qparams_on_an_edge(made):
    """A layer that holds its result in another scale is a source; what it means is compared."""
    _, qfloat, q = made
    other = copy.deepcopy(qfloat)
    quantizer = dict(qcore.qfloat_ops(other))["c3"].output_quantizer
    p = quantizer.qparams()
    quantizer.set_qparams(
        qcore.QParams(scale=p.scale * 1.5, zero_point=p.zero_point, scheme=p.scheme)
    )
    found = qcore.compare(q, qcore.convert(other), [X])
    assert found.first.name == "c3"
    assert found.first.cause.name == "qparams"
    assert "y_scale" in found.first.cause.reason
    assert found["c3"].isolated.largest == 1


def test_recipes_that_differ_in_layers(made):
    """Layers that only one side has are listed and not compared; the others are."""
    model, _, q = made
    recipe = qcore.Recipe(
        preset="int8_minmax", overrides=(qcore.Override(name="c3", quantize=False),)
    )
    qfloat = qcore.calibrate(qcore.prepare(model, X, recipe), [X])
    found = qcore.compare(q, qcore.convert(qfloat), [X])
    assert "c3" in found.only_a
    assert "c3" not in found.only_b
    assert {"c1", "c2"} <= {o.name for o in found.operations}
    assert not found.equal
    assert found["c2"].free.differing == 0


@pytest.mark.parametrize("unfused_side", ["a", "b"])
def test_a_sum_that_only_one_side_fused(unfused_side):
    """The end of a chain is compared with the fused operation, and the cause is named."""
    torch.manual_seed(0)

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.c2, self.c3 = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.relu = nn.ReLU()

        def forward(self, x):
            x = self.c1(x)
            return self.c3(self.relu(self.c2(x) + x))

    model = Sum().eval()
    bare = qcore.PluginHost(block=["fusions"])
    made = []
    for host in (None, bare):
        qfloat = qcore.prepare(model, X, "int8_minmax", host=host)
        made.append(qcore.convert(qcore.calibrate(qfloat, [X])))
    if unfused_side == "a":
        made.reverse()
    found = qcore.compare(*made, [X])
    fused = next(o for o in found.sources)
    assert fused.name == ("c2" if unfused_side == "b" else "relu")
    assert fused.cause.name == ("unfused-add" if unfused_side == "b" else "operations")
    assert fused.cause.explained == fused.cause.differing > 0
    assert [o.name for o in found.sources] == [fused.name]
    assert (found.only_b if unfused_side == "b" else found.only_a) == ("c2", "add")


def test_a_module_that_is_called_twice_and_a_model_in_parts(net):
    """Programs within a model are compared, every call of them."""
    shared = nn.Linear(4, 4)
    model = net(
        lambda m, x: m.b(m.a(m.a(x))) if x.sum() < 1e9 else x, a=shared, b=nn.Linear(4, 4)
    ).eval()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    qfloat = qcore.calibrate(qcore.prepare(model, x, "int8_minmax"), [x])
    q = qcore.convert(qfloat)
    found = qcore.compare(qfloat, q, [x])
    assert found.equal
    assert found["a"].free.compared == 2 * 5 * 4
    damaged = copy.deepcopy(q)
    buffers = dict(damaged.get_submodule("b").named_buffers())
    next(t for name, t in buffers.items() if name.endswith("weight"))[1, 1] += 50
    assert [o.name for o in qcore.compare(q, damaged, [x]).sources] == ["b"]
    assert qcore.compare(q, qcore.lower(q), [x]).equal


def test_nothing_is_disturbed(made):
    """Modes, switches, hooks and results are as before."""
    model, qfloat, q = made
    qfloat = copy.deepcopy(qfloat).train()
    qcore.disable_fake_quant(qfloat)
    qcore.enable_observer(qfloat)
    lowered = qcore.lower(q)

    def state():
        switches = [(m.observer_enabled, m.fake_quant_enabled) for _, m in qcore.quantizers(qfloat)]
        modes = [(n, m.training, len(m._forward_hooks)) for n, m in qfloat.named_modules()]
        return switches, modes, [n.name for n in q.graph.nodes], list(model.state_dict())

    before, y = state(), (q(X), lowered(X))
    assert qcore.compare(qfloat, q, [X]).equal
    qcore.compare(model, lowered, [X])
    assert state() == before
    assert all(torch.equal(*pair) for pair in zip(y, (q(X), lowered(X)), strict=True))


def test_plain_data(made, damaged):
    """What ``--json`` prints is JSON without infinities, with a fixed set of keys."""
    found = qcore.compare(made[2], damaged, [X], names=("old", "new"))
    data = json.loads(json.dumps(found.to_data(), allow_nan=False))
    assert (data["a"], data["b"], data["first"], data["equal"]) == ("old", "new", "c3", False)
    assert data["sources"] == ["c3"]
    assert list(data) == [
        "a", "b", "equal", "exact", "verdict", "batches", "compared", "differing", "first",
        "sources", "operations", "only_a", "only_b", "notes",
    ]  # fmt: skip
    row = next(row for row in data["operations"] if row["name"] == "c3")
    assert row["cause"]["name"] == "weight"
    assert row["free"]["histogram"].keys() <= {str(i) for i in range(-8, 9)}


def test_values_that_are_not_finite(made):
    """NaN is equal to nothing, and has no SQNR; the numbers stay plain data."""
    q = copy.deepcopy(made[2])
    q.get_buffer("last.weight_scale").fill_(float("nan"))
    found = qcore.compare(made[2], q, [X])
    assert found["last"].isolated.differing == found["last"].isolated.compared
    assert found["last"].isolated.sqnr is None
    assert found["last"].isolated.largest is None
    json.dumps(found.to_data(), allow_nan=False)


def test_a_lowered_program_whose_source_is_gone(made):
    """The program that a lowered one was made from must be kept; the error says so."""
    lowered = qcore.lower(copy.deepcopy(made[2]))
    gc.collect()
    with pytest.raises(qcore.BackendError, match="keep it"):
        qcore.compare(made[2], lowered, [X])


def test_two_float_models(made):
    """Without a quantized side there are no layers."""
    with pytest.raises(qcore.QuantizationError, match="neither of the two is quantized"):
        qcore.compare(made[0], made[0], [X])


def test_models_that_have_nothing_in_common(made):
    """Both are named, with their layers."""
    other = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    qfloat = qcore.calibrate(qcore.prepare(other, X, "int8_minmax"), [X])
    q = qcore.convert(qfloat)
    with pytest.raises(qcore.QuantizationError, match="no layer in common; A has .*'c1'"):
        qcore.compare(made[2], renamed(q), [X])


def renamed(q):
    """The program with other names of layers."""
    info = q.meta["qcore"]
    layers = tuple(attrs.evolve(layer, name=f"other.{layer.name}") for layer in info.layers)
    q.meta["qcore"] = attrs.evolve(info, layers=layers)
    return q


def test_layers_of_other_shapes(made):
    """Two models with layers of one name and other shapes are refused by name."""
    model = Net()
    model.c1, model.b1 = nn.Conv2d(3, 8, 3, padding=2), nn.BatchNorm2d(8)
    model.pool = nn.AdaptiveMaxPool2d(4)
    qfloat = qcore.calibrate(qcore.prepare(model.eval(), X, "int8_minmax"), [X])
    with pytest.raises(qcore.QuantizationError, match="layer 'c1'.*shapes .*8, 8.*10, 10"):
        qcore.compare(made[2], qcore.convert(qfloat), [X])


@pytest.mark.parametrize("batches", [[], iter(())], ids=["list", "iterator"])
def test_no_batch(made, batches):
    """Nothing to compare on is an error."""
    with pytest.raises(qcore.QuantizationError, match="no batch"):
        qcore.compare(made[1], made[2], batches)


def test_a_batch_without_values(made):
    """A comparison of no value proves nothing."""
    with pytest.raises(qcore.QuantizationError, match="without a value"):
        qcore.compare(made[2], made[2], [X[:0]])


def test_inputs_of_another_shape(made):
    """What a side was not captured for is refused before it runs."""
    for a, b in [(made[1], made[2]), (made[2], made[2])]:
        with pytest.raises(qcore.CaptureError, match="captured for"):
            qcore.compare(a, b, [torch.randn(2, 3, 9, 9)])


def test_qfloat_without_scales(made):
    """QFloat that was never calibrated is named with its layer."""
    qfloat = qcore.prepare(made[0], X, "int8_minmax")
    with pytest.raises(qcore.QuantizationError, match="x_quantizer"):
        qcore.compare(qfloat, made[2], [X])
