"""Counting differences: it sees every layer, finds the layer that differs, and disturbs nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def both():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)
    ).eval()
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    return qfloat, qcore.convert(qfloat)


def test_every_layer_is_counted(both):
    """Inputs, layers with integers and float outputs are compared, value by value."""
    found = qcore.count_differences(*both, [X, X[:1]])
    sizes = {"0": 4 * 16, "4": 2 * 4}
    assert {k: v for k, v in found.layers.items() if k in sizes} == {
        name: (4 * size, 0) for name, size in sizes.items()
    }
    (quantizer,) = set(found.layers) - set(sizes)
    assert found.layers[quantizer] == (4 * 4 * 36, 0)
    assert found.compared == 4 * (64 + 8 + 144)


@pytest.mark.parametrize("layer", ["0", "4"])
def test_the_layer_that_differs_is_found(both, layer):
    """One changed weight shows in its layer and those behind it, not before."""
    qfloat, q = both
    q.get_buffer(f"{layer}.weight")[0, 0, 0, 0] += 30
    found = qcore.count_differences(qfloat, q, [X])
    differs = [name for name, (_, differing) in found.layers.items() if differing]
    assert differs == (["0", "4"] if layer == "0" else ["4"])
    assert found.differing == sum(d for _, d in found.layers.values()) > 0


def test_a_single_step_shows(both):
    """A bias that is one step off makes some integers differ by it."""
    qfloat, q = both
    scale = dict(qcore.qfloat_ops(qfloat))["0"].output_quantizer.qparams().scale
    step = (
        q.get_buffer("0.weight_scale") * dict(qcore.quantizers(qfloat))["input_1_quantizer"].scale
    )
    q.get_buffer("0.bias").add_((scale / step).round().int())
    a, b = (qcore.layer_values(m, X)["0"].float() for m in (qfloat.eval(), q))
    assert set((b - a).unique().tolist()) == {0.0, 1.0}


def test_values_of_layers(both):
    """Integers within the range of their dtype; in QFloat as float32, in Q in storage."""
    qfloat, q = both
    left, right = qcore.layer_values(qfloat.eval(), X), qcore.layer_values(q, X)
    assert left.keys() == right.keys()
    assert right["0"].dtype == torch.int8
    assert left["0"].dtype == torch.float32
    assert torch.equal(left["0"], right["0"].float())
    assert right["4"].dtype == torch.float32
    assert torch.equal(right["4"], q(X))


def test_nothing_is_disturbed(both):
    """Comparing leaves modes, hooks and outputs as they were."""
    qfloat, q = both
    qfloat.train()
    before = {n: (m.training, len(m._forward_hooks)) for n, m in qfloat.named_modules()}
    nodes = [n.name for n in q.graph.nodes]
    y = q(X)
    qcore.count_differences(qfloat, q, [X])
    assert {n: (m.training, len(m._forward_hooks)) for n, m in qfloat.named_modules()} == before
    assert [n.name for n in q.graph.nodes] == nodes
    assert torch.equal(q(X), y)


def test_an_error_in_a_batch_disturbs_nothing(both):
    """The same where a batch can't be run."""
    qfloat, q = both
    qfloat.train()
    with pytest.raises(qcore.CaptureError):
        qcore.count_differences(qfloat, q, [X, torch.randn(1, 4, 9, 9)])
    assert qfloat.training
    assert not any(m._forward_hooks for m in qfloat.modules())


def test_watching(both):
    """The caller sees each batch with both outputs."""
    seen = []
    qcore.count_differences(*both, [(X, "label")], watch=lambda b, a, c: seen.append((b[1], a, c)))
    ((label, left, right),) = seen
    assert label == "label"
    assert torch.equal(left, right)


def test_values_that_are_not_finite_count_as_differing(both):
    """NaN is never equal, so a float output of NaN counts."""
    qfloat, q = both
    q.get_buffer("4.weight_scale").fill_(float("nan"))
    assert qcore.count_differences(qfloat, q, [X]).layers["4"] == (3 * 8, 3 * 8)


def test_layers_that_only_one_side_has(both):
    """A layer that one side lacks counts in full."""
    _, q = both
    other = qcore.prepare(nn.Sequential(nn.Conv2d(4, 4, 3)).eval(), X, "int8_minmax")
    found = qcore.count_differences(qcore.calibrate(other, [X]), q, [X])
    assert found.layers["4"] == (24, 24)


def test_all_calls_of_a_module_are_compared(net):
    """A module that is called twice is two layers of the comparison."""
    model = net(lambda m, x: m.a(F.relu(m.a(x))), a=nn.Conv2d(4, 4, 3, padding=1)).eval()
    qfloat = qcore.calibrate(qcore.prepare(model, X, "int8_minmax"), [X])
    found = qcore.count_differences(qfloat, qcore.convert(qfloat), [X])
    assert {"a", "a_1"} <= set(found.layers)
    assert found.differing == 0
