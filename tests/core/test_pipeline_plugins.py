"""Parts of third parties: a converter with a fusion, a movement, an observer and a backend, by
recipe."""

import importlib
import types

import pytest
import torch
from torch import nn

import qcore
from qcore import Override, QuantizerConfig, Recipe

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

LAYERS = """
    import torch
    from torch import nn

    class Square(nn.Module):
        '''x * x, with a gain that is a parameter.'''

        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return x * x * self.gain

    class Reverse(nn.Module):
        def forward(self, x):
            return x.flip(-1)

    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2
    """

PARTS = """
    import torch
    from torch import fx, nn
    from acme_layers import Square
    from qcore import (
        Backend, BackendSpec, ConverterSpec, FusionSpec, Movement, Numerics, Observer, ObserverSpec,
        QFloatOp, hookimpl,
    )

    class QFloatSquare(QFloatOp):
        program_op = "qmul"

        def __init__(self, square, *, relu):
            super().__init__()
            self.square = square
            self.relu = relu

        @classmethod
        def from_match(cls, match, quantizers):
            return cls(match.first.module, relu=len(match.steps) > 1)

        def compute(self, x):
            y = self.square(x)
            return torch.relu(y) if self.relu else y

        def emit(self, b, x):
            # The gain is part of one operand's scale.
            gained = x.scale * float(self.square.gain)
            operands = (x.value, gained, x.zero_point, x.value, x.scale, x.zero_point)
            output = self.output_args(0.0 if self.relu else None)
            return self.result(b.call("qmul", *operands, *output))

    class Flip(Movement):
        pass

    class Fixed(Observer):
        '''The range -limit..limit, whatever is seen.'''

        def __init__(self, *, scheme, where="", limit=1.0):
            super().__init__(scheme=scheme, where=where)
            self.limit = limit
            self.register_buffer("rows", None)

        def update(self, rows, low, high):
            self.rows = torch.ones(rows.shape[0])

        def range(self):
            return -self.limit * self.rows, self.limit * self.rows

        def combine(self, other):
            pass

    class Engine(Backend):
        '''Multiplies in float32 as oneDNN does; has no pools.'''

        name = "engine"
        numerics = Numerics(requantization="scale_bias_rescale", bias="float32")
        compiled = []

        def why_not(self, node):
            name = str(node.target)
            return None if "qlinear" in name else f"the engine has no kernel for {name}"

        def kernel(self, node):
            return "engine_gemm"

        def compile(self, program, own):
            self.compiled.append(own)
            return program

    class Absent(Engine):
        name = "absent"

        @classmethod
        def unavailable(cls):
            return "it needs a fast card; insert one"

    def only_scalars(match):
        return "gain is trained" if match.first.module.gain.ndim else None

    @hookimpl
    def qcore_module_converters():
        yield ConverterSpec(
            name="square",
            op="square",
            types=("acme_layers.Square",),
            target="acme_parts:QFloatSquare",
        )
        yield ConverterSpec(
            name="reverse", op="reverse", types=("acme_layers.Reverse",), target="acme_parts:Flip"
        )

    @hookimpl
    def qcore_fusion_patterns():
        yield FusionSpec(
            name="square-relu", pattern=("square", "relu"), check="acme_parts:only_scalars"
        )

    @hookimpl
    def qcore_observers():
        yield ObserverSpec(name="fixed", target="acme_parts:Fixed")

    @hookimpl
    def qcore_backends():
        yield BackendSpec(name="engine", target="acme_parts:Engine")
        yield BackendSpec(name="absent", target="acme_parts:Absent")
    """


@pytest.fixture
def acme(site):
    """A host with the plug-in acme, and its layers."""
    site.write("acme_layers.py", LAYERS)
    site.write("acme_parts.py", PARTS)
    layers = importlib.import_module("acme_layers")
    host = qcore.PluginHost()
    host.register(importlib.import_module("acme_parts"), name="acme")
    torch.manual_seed(0)
    return types.SimpleNamespace(
        host=host, layers=layers, parts=importlib.import_module("acme_parts")
    )


def network(acme):
    return nn.Sequential(
        nn.Linear(4, 4), acme.layers.Square(), nn.ReLU(), acme.layers.Reverse(), nn.Linear(4, 2)
    )


def test_converter_fusion_and_movement_of_a_plugin(exact, acme):
    """A layer of the plug-in's own is fused, runs on integers, and equals QFloat."""
    done = exact(network(acme), X, host=acme.host)
    row = done.plan.row("1")
    assert (row.status, row.fused, row.kernel) == ("quantized", ("2",), "qmul")
    assert (row.converter, row.fusion) == ("acme:square", "acme:square-relu")
    assert done.plan.row("3").status == "moves"
    origins = {(c.kind, c.plugin, c.name) for c in done.q.meta["qcore"].origins}
    assert {("converter", "acme", "square"), ("fusion", "acme", "square-relu")} <= origins


def test_without_the_plugin_its_layer_is_float(exact, acme):
    """Without the plug-in nothing knows the layer: what is inside of it is float or its own
    parts."""
    done = exact(network(acme), X)
    assert "1" not in done.statuses()
    assert done.plan.row("4").status == "quantized"


def test_check_of_a_plugins_fusion(exact, acme):
    """The check of the plug-in's pattern may refuse a match, with a reason that the plan shows."""
    model = network(acme)
    model[1].gain = nn.Parameter(torch.full((1,), 2.0))
    done = exact(model, X, host=acme.host)
    assert done.plan.row("1").fused == ()
    assert done.plan.row("1").reason == "not fused: gain is trained"


def test_observer_of_a_plugin_in_a_recipe(exact, acme):
    """A recipe names the plug-in's observer, with options, alone and as plugin:name."""
    for name in ("fixed", "acme:fixed"):
        activation = QuantizerConfig(scheme="int8", observer=name, observer_options={"limit": 8.0})
        recipe = Recipe(preset="int8_minmax", activation=activation)
        done = exact(network(acme), X, recipe, host=acme.host, sqnr=5)
        scale = dict(qcore.quantizers(done.qfloat))["input_1_quantizer"].qparams().scale
        torch.testing.assert_close(scale, torch.tensor(8 / 127.5))


def test_backend_of_a_plugin(exact, acme):
    """QFloat and Q follow the contract of the recipe's backend, and lower to it without a word."""
    done = exact(network(acme), X, Recipe(preset="int8_minmax", backend="engine"), host=acme.host)
    assert done.plan.numerics == "half_even.scale_bias_rescale.float32.after.int32"
    assert done.plan.backend == "engine"
    assert done.q.get_buffer("0.bias").dtype == torch.float32
    lowered = qcore.lower(done.q, "engine", host=acme.host)
    table = qcore.lowered_info(lowered)[""]
    assert set(table.kernels.values()) == {"engine_gemm"}
    assert len(table.kernels) == 2
    assert all("no kernel for" in why for why in table.reference.values())
    assert table.may_differ == ()
    assert torch.equal(lowered(X), done.q(X))
    assert acme.parts.Engine.compiled[-1] == frozenset(table.kernels)


def test_backend_with_another_contract(exact, acme):
    """A program of another contract is refused with the reason, unless asked for by name."""
    done = exact(network(acme), X, host=acme.host)
    with pytest.raises(
        qcore.BackendError, match="integers could differ; operations: 2.*allow_other"
    ):
        qcore.lower(done.q, "engine", host=acme.host)
    lowered = qcore.lower(done.q, "engine", allow_other_numerics=True, host=acme.host)
    assert len(qcore.lowered_info(lowered)[""].may_differ) == 2


def test_backend_that_is_not_available(exact, acme):
    """A backend that can't run here says why and what helps."""
    done = exact(network(acme), X, host=acme.host)
    with pytest.raises(qcore.BackendError, match="'absent' is not available.*insert one"):
        qcore.lower(done.q, "absent", host=acme.host)


RIVAL = """
    from qcore import ConverterSpec, hookimpl

    @hookimpl
    def qcore_module_converters():
        yield ConverterSpec(
            name="mine", op="linear", types=("torch.nn.Linear",),
            target="qcore_converters.linear:QFloatLinear",
        )
    """


def test_two_converters_of_one_type(exact, site):
    """Two plug-ins that claim one type are an error that names both; `prefer` decides."""
    site.write("rival_parts.py", RIVAL)
    host = qcore.PluginHost()
    host.register(importlib.import_module("rival_parts"), name="rival")
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(qcore.PluginError, match="converters:linear and rival:mine.*prefer") as e:
        qcore.prepare(model, X, "int8_minmax", host=host)
    assert "torch.nn.modules.linear.Linear" in str(e.value)
    for winner in ("rival:mine", "converters:linear"):
        recipe = Recipe(preset="int8_minmax", prefer=(winner,))
        done = exact(model, X, recipe, host=host)
        assert done.plan.row("0").converter == winner
        assert done.plan.row("0").fused == ("1",)


OWN_LINEAR = """
    from qcore import ConverterSpec, hookimpl

    @hookimpl
    def qcore_module_converters():
        yield ConverterSpec(
            name="half", op="linear", types=("acme_layers.Half",), target="own_parts:QFloatHalf"
        )

    def __getattr__(name):
        from qcore_converters.linear import QFloatLinear

        class QFloatHalf(QFloatLinear):
            def folded(self):
                weight, bias = super().folded()
                return weight / 2, bias / 2

        return {"QFloatHalf": QFloatHalf}[name]
    """


def test_two_types_of_one_operation(exact, acme, site):
    """A plug-in's type may be the operation `linear` too: each type has its converter, also
    fused."""
    site.write("own_parts.py", OWN_LINEAR)
    acme.host.register(importlib.import_module("own_parts"), name="own")
    model = nn.Sequential(acme.layers.Half(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    done = exact(model, X, host=acme.host)
    assert [(r.converter, r.fused) for r in done.plan.rows] == [
        ("own:half", ("1",)), ("converters:linear", ("3",)),
    ]  # fmt: skip


BROKEN = {
    "no-operation": ("target='broken_parts:nothing'", "nothing"),
    "wrong-class": ("target='collections:OrderedDict'", "OrderedDict|QFloatOp"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_converter_that_is_none(acme, site, name):
    """A converter whose target is missing or no operation is an error that names the plug-in."""
    target, message = BROKEN[name]
    site.write(
        "broken_parts.py",
        f"""
    from qcore import ConverterSpec, hookimpl

    @hookimpl
    def qcore_module_converters():
        yield ConverterSpec(name="b", op="b", types=("acme_layers.Square",), {target})
    """,
    )
    host = qcore.PluginHost()
    host.register(importlib.import_module("broken_parts"), name="broken")
    with pytest.raises(qcore.PluginError, match=message) as e:
        qcore.plan(network(acme), X, host=host)
    assert "broken" in str(e.value)


def test_fusion_to_an_operation_that_nobody_converts(acme, site):
    """A pattern for an operation without a converter is an error that says what to contribute."""
    site.write(
        "lone_parts.py",
        """
    from qcore import FusionSpec, hookimpl

    @hookimpl
    def qcore_fusion_patterns():
        yield FusionSpec(name="lone", pattern=("linear", "relu"), op="dense", priority=9)
    """,
    )
    host = qcore.PluginHost()
    host.register(importlib.import_module("lone_parts"), name="lone")
    with pytest.raises(qcore.PluginError, match="fusion 'lone'.*operation 'dense'.*ConverterSpec"):
        qcore.plan(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), X, host=host)


def test_override_by_operation_of_a_plugin(exact, acme):
    """A recipe's override can name the plug-in's operation."""
    recipe = Recipe(preset="int8_minmax", overrides=(Override(op="square", quantize=False),))
    done = exact(network(acme), X, recipe, host=acme.host)
    assert "the recipe says so" in done.plan.row("1").reason


STAGES = """
    from qcore import AlgorithmSpec, hookimpl

    @hookimpl
    def qcore_algorithms():
        yield AlgorithmSpec(name="observe", phase="qfloat", writes=("ranges",), target="x:observe")
        yield AlgorithmSpec(name="round", phase="calibrated", reads=("ranges",), target="x:round")
        yield AlgorithmSpec(name="early", phase="float", target="x:early")
    """

ORDERS = {
    "phase": (["observe", "early"], "algorithm 'early' works on the float model.*put it before"),
    "reads": (["round"], "algorithm 'round' needs ranges, which no stage before it makes"),
    "unknown": (["rond"], "no algorithm is called 'rond'; did you mean 'round'"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_algorithms_in_an_impossible_order(site, name):
    """Stages in an order that can't work are an error before anything is built or run."""
    site.write("stage_parts.py", STAGES)
    host = qcore.PluginHost()
    host.register(importlib.import_module("stage_parts"), name="stages")
    stages, message = ORDERS[name]
    recipe = Recipe(
        model={"name": "no such model"},
        data={"name": "no such data"},
        algorithms=tuple(qcore.Stage(name=stage) for stage in stages),
    )
    for run in (qcore.plan_recipe, qcore.run_recipe):
        with pytest.raises(qcore.QcoreError, match=message):
            run(recipe, host=host)
