"""Lowering: to the reference, to parts of a program, and what is refused."""

import pytest
import torch
from torch import nn

import qcore
from qcore import BackendSpec, Numerics, Recipe, hookimpl
from qcore.backend import contract_of

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def program(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    recipe = Recipe(**{"preset": "int8_minmax"} | options)
    return qcore.convert(qcore.calibrate(qcore.prepare(model, X, recipe), [X]))


def test_the_reference_runs_everything():
    """The reference supports each operation, computes the same, and shares nothing."""
    q = program()
    lowered = qcore.lower(q)
    assert torch.equal(lowered(X), q(X))
    table = qcore.lowered_info(lowered)[""]
    calls = [n.name for n in q.graph.nodes if n.op == "call_function"]
    assert (list(table.kernels), dict(table.reference), table.may_differ) == (calls, {}, ())
    lowered.get_buffer("0.weight").zero_()
    assert not torch.equal(lowered(X), q(X))


@pytest.mark.parametrize(
    "numerics",
    [
        "half_away.fixed_point.int32.after.int32",
        "half_even.scale_bias_rescale.float32.before.int32",
    ],
)
def test_the_reference_runs_every_contract(numerics):
    """A program of any contract lowers to the reference."""
    q = program(numerics=numerics)
    assert torch.equal(qcore.lower(q)(X), q(X))


def test_contract_of_a_node():
    """Operations with arithmetic carry their contract; the others have none."""
    numerics = "half_away.multiplier.int32.after.int32"
    calls = [n for n in program(numerics=numerics).graph.nodes if n.op == "call_function"]
    contracts = {str(n.target).split(".")[1]: contract_of(n) for n in calls}
    assert contracts == {"quantize": None, "qlinear": Numerics.parse(numerics)}


def test_unknown_backend():
    """A backend that does not exist is an error with the nearest name."""
    with pytest.raises(qcore.PluginError, match="did you mean 'reference'"):
        qcore.lower(program(), "referenc")


def test_lowering_a_float_model():
    """Only programs can be lowered."""
    with pytest.raises(qcore.QuantizationError, match="holds no Q program"):
        qcore.lower(nn.Linear(2, 2))


class Partial(qcore.Backend):
    """Runs linear layers by a module of its own."""

    name = "partial"

    def why_not(self, node):
        return None if "qlinear" in str(node.target) else "linear layers only"

    def kernel(self, node):
        return "mine"

    def compile(self, program, own):
        program.own = own
        for node in program.graph.nodes:
            if node.name in own:
                node.meta["mine"] = True
        return program


@pytest.fixture
def host():
    class Plugin:
        @hookimpl
        def qcore_backends(self):
            yield BackendSpec(name="partial", target=f"{__name__}:Partial")

    made = qcore.PluginHost()
    made.register(Plugin(), name="mine")
    return made


def test_a_backend_gets_a_copy_of_its_own(host):
    """What a backend does to the program it is given does not reach the caller's."""
    q = program()
    lowered = qcore.lower(q, "partial", host=host)
    assert torch.equal(lowered(X), q(X))
    assert not any("mine" in n.meta for n in q.graph.nodes)
    table = qcore.lowered_info(lowered)[""]
    assert set(table.kernels) == lowered.own
    assert set(table.reference.values()) == {"linear layers only"}


def test_inputs_are_checked_after_lowering_too(host):
    """A lowered program refuses inputs that it was not captured for."""
    for backend in ("reference", "partial"):
        with pytest.raises(qcore.CaptureError, match="captured"):
            qcore.lower(program(), backend, host=host)(torch.randn(2, 5))


def test_a_model_in_parts_is_lowered_part_by_part(host, net):
    """Each program in a model is lowered, in each place where it stands."""
    shared = nn.Linear(4, 4)
    model = net(
        lambda m, x: m.b(m.c(m.a(x))) if x.sum() < 1e9 else x, a=shared, b=nn.Linear(4, 4), c=shared
    ).eval()
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    q = qcore.convert(qfloat)
    lowered = qcore.lower(q, "partial", host=host)
    assert sorted(qcore.lowered_info(lowered)) == ["a", "b"]
    assert lowered.a is lowered.c
    assert torch.equal(lowered(X), q(X))


def test_backends_must_say_what_they_run():
    """The base class can't be used itself."""
    with pytest.raises(TypeError, match="abstract"):
        qcore.Backend()
