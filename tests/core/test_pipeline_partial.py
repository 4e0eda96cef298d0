"""Models that can't be captured as a whole: their parts are quantized, and the plan says what is
not."""

import copy
import types

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def block(inputs=4):
    return nn.Sequential(nn.Conv2d(inputs, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())


class Decides(nn.Module):
    """The forward asks for values of a tensor, so no graph holds for the whole."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = block(3)
        self.body = nn.ModuleList([block(), block()])
        self.norm = nn.LayerNorm(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        y = self.stem(x)
        if y.abs().sum() > 1e9:
            y = -y
        for part in self.body:
            y = part(y) + y
        return {"out": self.head(self.drop(self.norm(y.mean((2, 3))))), "aux": (y, "note")}


@pytest.fixture
def decides():
    return Decides().eval()


def test_largest_parts_are_captured_and_quantized(exact, decides):
    """Submodules become pieces with everything fused in them; the plan says why the whole is
    none."""
    done = exact(decides, X)
    pieces = dict(done.plan.captured)
    assert pieces["stem"] == pieces["body.0"] == pieces["body.1"] == "submodule"
    assert pieces["head"] == "module"
    assert done.plan.row("stem.0").fused == ("stem.1", "stem.2")
    failures = dict(done.plan.failures)
    assert "test_pipeline_partial.py" in failures[""]
    assert failures["unused"] == "not reached by the example inputs"
    assert done.plan.count("quantized") == 4
    assert "not captured: the model: " in str(done.plan)
    assert done.q(X)["aux"][1] == "note"


def test_without_example_inputs_every_layer_is_by_itself(exact, decides):
    """Module swap: each layer with a converter is quantized alone, with float between."""
    recipe = qcore.Recipe(
        preset="int8_minmax", overrides=(qcore.Override(name="unused", quantize=False),)
    )
    done = exact(decides, (None, X), recipe)
    assert set(dict(done.plan.captured).values()) == {"module"}
    assert done.plan.failures == (("", "no example inputs"),)
    assert [row.name for row in done.plan.rows if row.status == "quantized"] == [
        "stem.0", "body.0.0", "body.1.0", "head",
    ]  # fmt: skip
    assert all(row.output == "float" for row in done.plan.rows)


def test_a_layer_that_calibration_does_not_reach_is_named(decides):
    """By module swap an unused layer is quantized too: calibration names it, and the cure works."""
    qfloat = qcore.prepare(decides, None, "int8_minmax")
    with pytest.raises(
        qcore.QuantizationError, match=r"reached no value of layer 'unused.*quantize = false"
    ):
        qcore.calibrate(qfloat, [X])
    recipe = qcore.Recipe(
        preset="int8_minmax", overrides=(qcore.Override(name="unused", quantize=False),)
    )
    qfloat = qcore.calibrate(qcore.prepare(decides, None, recipe), [X])
    assert qcore.count_differences(qfloat, qcore.convert(qfloat), [X]).differing == 0


def test_weight_only_by_module_swap(exact, decides):
    """Weights alone, the usual form for language models, without example inputs."""
    done = exact(decides, (None, X), "int8_weight_only", sqnr=30)
    assert done.plan.count("weight-only") == 5


def test_what_is_not_quantized_stays_the_users_own(decides):
    """A part in which nothing is quantized stays the module that it was, in a copy of the model."""
    qfloat = qcore.calibrate(qcore.prepare(decides, X, "int8_minmax"), [X])
    q = qcore.convert(qfloat)
    for made in (qfloat, q):
        assert type(made) is Decides
        assert type(made.norm) is nn.LayerNorm
        assert type(made.drop) is nn.Dropout
    assert set(qcore.programs(q)) == {"stem", "body.0", "body.1", "head"}


def test_program_is_in_eval_mode_after_training(decides):
    """A model that was trained in parts converts to one in eval mode, its dropout too."""
    qfloat = qcore.calibrate(qcore.prepare(decides, X, "int8_minmax"), [X]).train()
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        qfloat(X)["out"].square().sum().backward()
        optimizer.step()
    q = qcore.convert(qfloat)
    assert not any(module.training for module in q.modules())
    assert torch.equal(q(X)["out"], qfloat.eval()(X)["out"])


def test_copies_and_states_of_a_model_in_parts(decides):
    """deepcopy and state_dict work as for a whole model."""
    qfloat = qcore.calibrate(qcore.prepare(decides, X, "int8_minmax"), [X])
    q = qcore.convert(qfloat)
    assert qcore.count_differences(copy.deepcopy(qfloat), copy.deepcopy(q), [X]).differing == 0
    other = qcore.prepare(Decides().eval(), X, "int8_minmax")
    other.load_state_dict(qfloat.state_dict())
    assert qcore.count_differences(other, q, [X]).differing == 0


def test_shared_part(exact, net):
    """A part that the model holds under two names and calls twice is one piece in both places."""
    part = block()
    model = net(lambda m, x: m.a(m.b(x)) if x.sum() > -1e9 else x, a=part, b=part)
    done = exact(model, torch.randn(2, 4, 6, 6))
    assert done.qfloat.a is done.qfloat.b
    assert done.q.a is done.q.b
    assert dict(done.plan.captured) == {"a": "submodule"}
    lowered = qcore.lower(done.q)
    assert lowered.a is lowered.b
    assert list(qcore.lowered_info(lowered)) == ["a"]


@attrs.frozen
class Output:
    """An output of a class that torch knows nothing of."""

    y: torch.Tensor


OPAQUE = {
    "unknown-class": Output,
    "namespace": lambda y: types.SimpleNamespace(y=y),
    "generator": lambda y: iter([y]),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_outputs_that_torch_does_not_know(net, name):
    """A model that returns an object of its own class is quantized inside, and returns one."""
    model = net(lambda m, x: OPAQUE[name](m.b(m.a(x))), a=block(), b=nn.Conv2d(4, 2, 1)).eval()
    x = torch.randn(2, 4, 6, 6)
    qfloat = qcore.calibrate(qcore.prepare(model, x, "int8_minmax"), [x])
    assert qcore.info_of(qfloat).plan.count("quantized") == 2
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, [x]).differing == 0
    assert type(q(x)) is type(model(x))


def test_two_inputs_without_an_example(exact):
    """By module swap the number of inputs comes from forward; labels that follow are left out."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x, y, scale=1.0):
            return self.a(x) * scale + self.a(y)

    x = torch.randn(2, 4)
    qfloat = qcore.calibrate(qcore.prepare(Two(), None, "int8_minmax"), [(x, -x, "label")])
    q = qcore.convert(qfloat)
    assert qcore.count_differences(qfloat, q, [(x, x, None)]).differing == 0


def test_script_modules_are_left_alone():
    """A TorchScript part can't be captured: it stays, and the plan says so."""
    with pytest.warns(DeprecationWarning, match="jit"):
        script = torch.jit.script(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), script, nn.Linear(4, 4)).eval()
    x = torch.randn(2, 4)
    plan = qcore.plan(model, x, "int8_minmax")
    assert any("TorchScript" in why for _, why in plan.failures)


def test_a_leaf_with_inputs_that_depend_on_data(exact, net):
    """A layer inside of a branch that only some data takes is quantized where the example reaches
    it."""

    def forward(m, x):
        y = m.a(x)
        return F.relu(m.b(y)) if y.mean() < 100 else m.c(y)

    done = exact(
        net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4)), torch.randn(3, 4)
    )
    assert dict(done.plan.failures)["c"] == "not reached by the example inputs"
    assert type(done.q.c) is nn.Linear


def test_settings_of_a_replaced_layer_can_be_read(exact, net):
    """A forward that reads plain attributes of a layer, or of a layer in it, finds them in QFloat,
    in Q and in lowered Q."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Conv2d(3, 4, 1)
            self.flips = True

        def forward(self, x):
            return self.inner(x).relu()

    def forward(m, x):
        y = m.block(x)
        if float(y.sum()) == float("inf"):
            return y
        return y.flip(2) if m.block.flips and m.block.inner.kernel_size == (1, 1) else y

    done = exact(net(forward, block=Block()), torch.randn(2, 3, 5, 5))
    assert done.plan.captured == (("block", "submodule"),)
    lowered = qcore.lower(done.q)
    assert torch.equal(lowered(done.batches[0]), done.q(done.batches[0]))
