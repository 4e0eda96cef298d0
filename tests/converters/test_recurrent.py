"""LSTM, GRU and RNN layers and cells."""

import pytest
import torch
from torch import nn

import qcore

X = torch.randn(3, 5, 8)
PRESETS = ("int8_minmax", "uint8", "int8_dynamic", "int8_weight_only", "int4")
STATUS = {"int8_dynamic": "dynamic", "int8_weight_only": "weight-only"}

LAYERS = {
    "lstm": lambda: nn.LSTM(8, 6, batch_first=True),
    "lstm-deep-both-ways": lambda: nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True),
    "lstm-no-bias": lambda: nn.LSTM(8, 6, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(8, 6, batch_first=True),
    "gru-deep-both-ways": lambda: nn.GRU(8, 6, 2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(8, 6, 2, batch_first=True),
    "rnn-relu": lambda: nn.RNN(8, 6, nonlinearity="relu", batch_first=True),
}


ALL_PRESETS = ("lstm", "gru-deep-both-ways")


@pytest.mark.parametrize(
    ("name", "preset"),
    [(n, p) for n in LAYERS for p in (PRESETS if n in ALL_PRESETS else PRESETS[:1])],
)
def test_layers(exact, net, name, preset):
    """Any depth, direction and cell: every result of QFloat and Q is equal, and near float."""
    torch.manual_seed(1)
    layer = LAYERS[name]()
    outputs = 6 * (2 if layer.bidirectional else 1)
    model = net(lambda m, x: m.last(m.layer(x)[0]), layer=layer, last=nn.Linear(outputs, 4))
    done = exact(model, X, preset, sqnr=15 if preset == "int4" else 25)
    row = done.plan.row("layer")
    assert row.status == STATUS.get(preset, "quantized")
    if row.status != "weight-only":
        assert row.kernel == "qrecurrent"
    calls = [n for n in done.q.graph.nodes if "qrecurrent" in str(n.target)]
    assert len(calls) == layer.num_layers * (2 if layer.bidirectional else 1)
    assert done.plan.row("last").status == STATUS.get(preset, "quantized")


@pytest.mark.parametrize("preset", ["int8_minmax", "int8_dynamic"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_states_go_in_and_come_out(exact, net, kind, preset):
    """A state that is given, the sequence first: the last states are results too."""
    torch.manual_seed(2)

    def forward(m, x, h):
        state = h.transpose(0, 1).contiguous()
        y, last = m.layer(x.transpose(0, 1), (state, state * 2) if kind is nn.LSTM else state)
        return y.transpose(0, 1), last if kind is nn.GRU else (last[0] * 2, last[1])

    model = net(forward, layer=kind(8, 6, 2))
    done = exact(model, (X, torch.randn(3, 2, 6)), preset)
    with torch.no_grad():
        batch = done.batches[0]
        for got, want in zip(done.q(*batch)[1], model(*batch)[1], strict=True):
            assert got.shape == want.shape
            assert (got - want).abs().max() < 0.1


@pytest.mark.parametrize("preset", ["int8_minmax", "int8_dynamic", "int8_weight_only"])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(exact, net, kind, preset):
    """One step at a time, as a decoder calls it: from no state, then from the last one."""
    torch.manual_seed(3)

    def forward(m, x):
        state = m.cell(x[:, 0])
        for t in range(1, 3):
            state = m.cell(x[:, t], state)
        return m.last(state[0] if isinstance(state, tuple) else state)

    done = exact(net(forward, cell=kind(8, 6), last=nn.Linear(6, 4)), X, preset)
    rows = [row for row in done.plan.rows if row.kind == kind.__name__]
    assert [row.status for row in rows] == [STATUS.get(preset, "quantized")] * 3


def test_bare_layer_returns_what_the_module_returns(exact):
    """The whole model is a layer: tuple of output and states, as from torch."""
    torch.manual_seed(4)
    model = nn.LSTM(8, 6, batch_first=True)
    done = exact(model, X)
    y, (h, c) = done.q(X)
    assert (y.shape, h.shape, c.shape) == ((3, 5, 6), (1, 3, 6), (1, 3, 6))
    assert torch.equal(y[:, -1], h[0])


def test_layer_without_example_inputs(pipeline, net):
    """Without a graph the layer is quantized by itself."""
    torch.manual_seed(5)
    model = net(
        lambda m, x: m.last(m.layer(x)[0]),
        layer=nn.GRU(8, 6, batch_first=True),
        last=nn.Linear(6, 4),
    )
    done = pipeline(model, (None, X), "int8_dynamic")
    assert done.statuses()["layer"] == "dynamic"
    assert done.fidelity.differing == 0
    assert done.sqnr > 25


def test_groups_of_four_bits(exact):
    """Weights of 4 bits in groups of 32, two values a byte."""
    torch.manual_seed(6)
    done = exact(nn.GRU(64, 32, batch_first=True), torch.randn(3, 5, 64), "int4_dynamic", sqnr=15)
    tensors = {n.rpartition("weight")[2]: t for n, t in done.q.named_buffers() if "weight" in n}
    assert {k: (tuple(v.shape), v.dtype) for k, v in tensors.items() if "scale" not in k} == {
        "_ih_l0": ((96, 32), torch.uint8), "_hh_l0": ((96, 16), torch.uint8),
    }  # fmt: skip
    assert tuple(tensors["_ih_l0_scale"].shape) == (96, 2)


STAY = {
    "projected": (nn.LSTM(8, 6, proj_size=3, batch_first=True), X, "proj_size"),
    "no-batch": (nn.LSTM(8, 6), X[0], "no batch"),
    "weight-norm": (
        nn.utils.parametrizations.weight_norm(nn.GRU(8, 6, batch_first=True), "weight_hh_l0"),
        X,
        "computed from other parameters",
    ),
}


@pytest.mark.parametrize("name", STAY)
def test_what_stays_float(net, name):
    """What the converter can't do stays float, and the plan says why."""
    layer, x, why = STAY[name]
    model = net(lambda m, x: m.last(m.layer(x)[0][..., :3]), layer=layer, last=nn.Linear(3, 4))
    row = qcore.plan(model.eval(), x).row("layer")
    assert row.status == "float"
    assert why in row.reason


def test_training(exact):
    """Every parameter learns through the roundings, with dropout between the layers."""
    torch.manual_seed(7)
    done = exact(nn.LSTM(8, 6, 2, dropout=0.5, batch_first=True), X)
    done.qfloat.train()
    y, (h, c) = done.qfloat(X)
    (y.square().mean() + h.sum() + c.sum()).backward()
    named = {n: p for n, p in done.qfloat.named_parameters() if "_l" in n}
    assert len(named) == 8
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in named.values())
    assert not torch.equal(done.qfloat(X)[0], y)


def test_gradients_of_the_exact_forward(exact):
    """In eval mode the values are those of Q, and gradients are those of the simulation."""
    torch.manual_seed(7)
    done = exact(nn.LSTM(8, 6, batch_first=True), X)
    y, (h, _) = done.qfloat.eval()(X)
    assert torch.equal(y, done.q(X)[0])
    (y.sum() + h.sum()).backward()
    assert all(p.grad is not None for n, p in done.qfloat.named_parameters() if "_l0" in n)


def test_state_is_rounded_for_the_product_only(exact):
    """A state has more values than eight bits: it is float, and only its product sees integers."""
    torch.manual_seed(8)
    done = exact(nn.GRU(8, 64, batch_first=True), torch.randn(64, 9, 8))
    assert done.q(torch.randn(64, 9, 8))[0].unique().numel() > 10_000


@pytest.mark.parametrize("preset", ["int8_minmax", "int8_dynamic", "int8_weight_only"])
def test_artifact_of_recurrent_layers(pipeline, net, tmp_path, preset):
    """Saved and loaded, a network with both kinds gives the same values, on other lengths of the
    batch too."""
    torch.manual_seed(9)
    model = net(
        lambda m, x: m.b(m.a(x)[0])[1],
        a=nn.LSTM(8, 6, bidirectional=True, batch_first=True),
        b=nn.GRU(12, 4, batch_first=True),
    )
    done = pipeline(model, X, preset)
    folder = qcore.save(done.q, tmp_path / "artifact", golden_inputs=X)
    loaded = qcore.load(folder)
    for batch in done.batches:
        assert torch.equal(loaded(batch), done.q(batch))
    assert qcore.verify(folder).equal


def test_recurrent_layers_on_the_cpu_backend(pipeline, net):
    """The cpu backend runs the products of the sequence and leaves the recurrence to the reference
    kernel; equal on every value."""
    torch.manual_seed(10)
    model = net(
        lambda m, x: m.last(m.layer(m.first(x))[0]),
        first=nn.Linear(8, 8),
        layer=nn.LSTM(8, 16, batch_first=True),
        last=nn.Linear(16, 4),
    )
    done = pipeline(model, X, qcore.Recipe(backend="cpu"))
    assert done.fidelity.differing == 0
    lowered = qcore.lower(done.q, "cpu")
    assert qcore.count_differences(done.qfloat, lowered, done.batches).differing == 0
    (info,) = qcore.lowered_info(lowered).values()
    assert [n for n in info.reference if "recurrent" in n] == ["qrecurrent_default"]
