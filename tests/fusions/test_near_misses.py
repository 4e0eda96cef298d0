"""Chains that look like a pattern and must not be fused; the plan says why, and the integers
agree."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(2, 4, 8, 8)


def conv(channels=4, **options):
    return nn.Conv2d(channels, 4, 3, padding=1, **options)


def bn(**options):
    layer = nn.BatchNorm2d(4, **options)
    if layer.track_running_stats:
        layer.running_mean.uniform_(-0.5, 0.5)
        layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(9)


# Function of the model, the layer looked at, what it takes in, and a word of the reason if there is
# one.
CASES = {
    "output-used-twice": (
        lambda m, x: (lambda y: m.b(F.relu(y) + y))(m.a(x)),
        ("a", (), ""),
    ),
    "batch-norm-and-input-used": (
        lambda m, x: (lambda y: m.b(m.n(y) + y))(m.a(x)),
        ("a", (), ""),
    ),
    "pre-activation-in-place": (
        # relu_ changes what is added later too: y is relu(x) from then on.
        lambda m, x: (lambda y: m.b(m.c(F.relu_(y)) + y))(m.a(x)),
        ("a", ("relu_",), ""),
    ),
    "pre-activation": (
        lambda m, x: (lambda y: m.b(m.c(F.relu(y)) + y))(m.a(x)),
        ("a", (), ""),
    ),
    "no-running-statistics": (
        lambda m, x: m.b(m.free(m.a(x))),
        ("a", (), "no running statistics"),
    ),
    "alpha": (
        lambda m, x: m.b(torch.add(m.a(x), x, alpha=2)),
        ("a", (), "alpha is not 1"),
    ),
    "alpha-of-one": (
        lambda m, x: m.b(torch.add(m.a(x), x, alpha=1)),
        ("a", ("add",), ""),
    ),
    "broadcast": (
        lambda m, x: m.b(m.a(x) + x.mean((2, 3), keepdim=True)),
        ("a", (), "broadcast"),
    ),
    "broadcast-of-the-batch": (
        lambda m, x: m.b(m.a(x[:1]) + x),
        ("a", (), "broadcast"),
    ),
    "number": (
        lambda m, x: m.b(m.a(x) + 1.5),
        ("a", (), "it adds a number"),
    ),
    "itself": (
        lambda m, x: (lambda y: m.b(y + y))(m.a(x)),
        ("a", (), ""),
    ),
    "integers": (
        lambda m, x: m.b(m.a(x) + (x > 0).to(torch.int64)),
        ("a", (), "no floating-point tensor"),
    ),
    "bound-at-run-time": (
        lambda m, x: m.b(m.a(x).clamp(max=x.shape[0])),
        ("a", (), "computed at run time"),
    ),
    "something-between": (
        lambda m, x: m.b(F.relu(m.a(x).flip(2))),
        ("a", (), ""),
    ),
    "dropout-between": (
        lambda m, x: m.b(F.relu(m.drop(m.a(x)))),
        ("a", (), ""),
    ),
    "output-of-the-model": (
        lambda m, x: (lambda y: (y, m.b(F.relu(y))))(m.a(x)),
        ("a", (), ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_near_miss(exact, net, name):
    """Not fused, or fused rightly; QFloat and Q agree, and are near the float model."""
    function, (layer, fused, reason) = CASES[name]
    model = net(
        function,
        a=conv(), n=bn(), free=bn(track_running_stats=False), b=conv(), c=conv(), drop=nn.Dropout(),
    )  # fmt: skip
    done = exact(model, X)
    row = done.plan.row(layer)
    assert tuple(f.removesuffix("_") for f in row.fused) == tuple(
        f.removesuffix("_") for f in fused
    )
    assert reason in row.reason
    assert row.status == "quantized"


def test_reasons_are_not_given_for_chains_that_do_not_fit(exact, net):
    """A layer in front of something that no pattern has gets no remark."""
    done = exact(net(lambda m, x: m.b(m.a(x).sigmoid()), a=conv(), b=conv()), X)
    assert done.plan.row("a").reason == ""


def test_module_called_twice_in_a_chain(exact, net):
    """Two convolutions that share one BatchNorm: each is fused with it by itself."""
    done = exact(net(lambda m, x: m.n(m.b(m.n(m.a(x)))), a=conv(), b=conv(), n=bn()), X)
    assert [row.fused for row in done.plan.rows] == [("n",), ("n",)]


def test_unbatched_convolution_and_batch_norm(net):
    """Without a batch, BatchNorm over the convolution's output normalizes another dimension: not
    fused."""
    model = net(lambda m, x: m.n(m.a(x)), a=nn.Conv1d(2, 6, 3), n=nn.BatchNorm1d(6)).eval()
    row = qcore.plan(model, torch.randn(2, 8)).row("a")
    assert (row.fused, "has no batch" in row.reason) == ((), True)


def test_dropout_scales_in_training_only(exact):
    """Dropout is nothing in eval mode, and drops and scales in training mode of QFloat."""
    done = exact(nn.Sequential(conv(), nn.Dropout(0.5), nn.Conv2d(4, 4, 1)), X)
    qfloat = done.qfloat
    assert torch.equal(qfloat.eval()(X), qfloat(X))
    qfloat.train()
    assert not torch.equal(qfloat(X), qfloat(X))
    assert torch.equal(qfloat.eval()(X), done.q(X))
