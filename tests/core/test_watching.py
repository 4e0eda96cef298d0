"""Watching programs: every backend shows its layers, and takes others' values for them."""

import copy
import pickle

import pytest
import torch
from torch import nn

import qcore
from qcore import BackendSpec, hookimpl, schema_arguments
from qcore.watching import WatchedPrograms, WatchedQFloat, watch

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


class Kernel(nn.Module):
    """A linear layer as a module of a backend."""

    def __init__(self, node):
        super().__init__()
        self.target, self.given = node.target, schema_arguments(node)

    def forward(self, x, w, w_scale, bias):
        given = {**self.given, "x": x, "w": w, "w_scale": w_scale, "bias": bias}
        return self.target(**given)


class Replacing(qcore.Backend):
    """Puts a module in the place of every linear layer, under names of its own."""

    name = "replacing"

    def why_not(self, node):
        return None if "qlinear" in str(node.target) else "linear layers only"

    def kernel(self, node):
        return "mine"

    def compile(self, program, own):
        for node in list(program.graph.nodes):
            if node.name in own:
                given = schema_arguments(node)
                program.add_module(f"mine_{node.name}", Kernel(node))
                inputs = tuple(given[key] for key in ("x", "w", "w_scale", "bias"))
                with program.graph.inserting_before(node):
                    new = program.graph.call_module(f"mine_{node.name}", inputs)
                node.replace_all_uses_with(new)
                program.graph.erase_node(node)
        program.graph.eliminate_dead_code()
        program.recompile()
        return program


@pytest.fixture
def host():
    class Plugin:
        @hookimpl
        def qcore_backends(self):
            yield BackendSpec(name="replacing", target=f"{__name__}:Replacing")

    made = qcore.PluginHost()
    made.register(Plugin(), name="mine")
    return made


@pytest.fixture
def made():
    """QFloat and Q of a small model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 4)).eval()
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X]).eval()
    return qfloat, qcore.convert(qfloat)


def test_a_backend_that_leaves_no_node_of_a_layer(made, host):
    """Layers that are modules of a backend are seen, counted and compared."""
    qfloat, q = made
    lowered = qcore.lower(q, "replacing", host=host)
    assert not {layer.node for layer in q.meta["qcore"].layers} <= {
        node.name for node in lowered.graph.nodes
    }
    values, wanted = qcore.layer_values(lowered, X), qcore.layer_values(q, X)
    assert values.keys() == wanted.keys()
    assert all(torch.equal(values[name], wanted[name]) for name in wanted)
    assert qcore.count_differences(qfloat, lowered, [X, X[:1]]).differing == 0
    assert qcore.compare(qfloat, lowered, [X]).equal


def test_values_in_the_place_of_others(made, host):
    """What is behind a layer gets the given value; the layer still shows its own."""
    qfloat, q = made
    source = qcore.lower(q, "replacing", host=host)
    first = next(iter(qcore.layer_values(q, X)))
    other = qcore.layer_values(q, X.flip(0))
    names = frozenset({first, "0"})
    sides = [
        WatchedQFloat(qfloat),
        WatchedPrograms(q, forced=names),
        WatchedPrograms(q, forced=names, lower=source.qcore_lowered_from.lower),
    ]
    for side in sides:
        forced = {name: [other[name]] for name in names}
        output, values = side((X,), {}, forced)
        own = qcore.layer_values(q, X)
        assert torch.equal(values[first][0].to(torch.int8), own[first])
        # Layer "0" has the other input, and computes from it what it is replaced by.
        assert torch.equal(values["0"][0].to(torch.int8), other["0"])
        assert torch.equal(values["2"][0].to(torch.int8), other["2"])
        assert torch.equal(output, q(X.flip(0)))


def test_the_program_stays_as_it_is(made):
    """Its nodes, and what it shares with the watched one, are untouched by replaced values."""
    _, q = made
    before = (
        [str(node) for node in q.graph.nodes],
        {k: v.clone() for k, v in q.state_dict().items()},
    )
    watched = WatchedPrograms(q, forced=frozenset({"0"}))
    watched((X,), {}, {"0": [torch.zeros(5, 8, dtype=torch.int8)]})
    assert [str(node) for node in q.graph.nodes] == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in q.state_dict().items())
    assert watch(q)((X,), {})[0].equal(q(X))


def test_inputs_are_checked(made):
    """A watched program refuses what the program refuses."""
    with pytest.raises(qcore.CaptureError, match="captured for"):
        watch(made[1])((X[:, :3],), {})


def test_structures_go_in_and_come_out(net):
    """Keyword arguments, and results in tuples and dictionaries, are as of the program."""
    model = net(
        lambda m, x: {"y": (m.a(x["left"]), m.b(x["right"]))}, a=nn.Linear(8, 4), b=nn.Linear(8, 4)
    )
    batch = {"left": X, "right": X.flip(0)}
    qfloat = qcore.calibrate(qcore.prepare(model.eval(), (batch,), "int8_minmax"), [(batch,)])
    q = qcore.convert(qfloat)
    output, values = watch(q)((batch,), {})
    assert {"a", "b"} <= values.keys()
    wanted = q(batch)
    assert all(torch.equal(*pair) for pair in zip(output["y"], wanted["y"], strict=True))
    found = qcore.compare(qfloat, q, [(batch,)])
    assert found.equal
    assert [o.name for o in found.operations][-2:] == ["(output 0)", "(output 1)"]


def test_tensors_that_several_layers_share(tmp_path):
    """A program that was loaded holds equal tensors once, under several names."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.bias.zero_()
    q = qcore.convert(qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X]))
    loaded = qcore.load(qcore.save(q, tmp_path / "artifact", golden_inputs=X))
    assert qcore.layer_values(loaded, X).keys() == qcore.layer_values(q, X).keys()
    assert qcore.compare(q, loaded, [X]).equal


def test_a_lowered_program_can_be_copied_and_stored(made):
    """A copy still knows its program; what was stored elsewhere says that it does not."""
    q = made[1]
    lowered = qcore.lower(q)
    assert qcore.compare(q, copy.deepcopy(lowered), [X]).equal
    source = pickle.loads(pickle.dumps(lowered.qcore_lowered_from))
    with pytest.raises(qcore.BackendError, match=r"qcore.lower\(q, 'reference'\)"):
        source.q  # noqa: B018
