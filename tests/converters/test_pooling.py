"""Average pools, means and maximum pools."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZE = (8, 7, 6)


def around(dims, pool):
    torch.manual_seed(4)
    return nn.Sequential(CONV[dims](3, 4, 3, padding=1), pool, CONV[dims](4, 2, 1))


AVERAGE = {
    "plain": {},
    "padding": {"stride": 1, "padding": 1},
    "padding-not-counted": {"padding": 1, "count_include_pad": False},
    "ceil": {"stride": 2, "ceil_mode": True},
    "ceil-padding": {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    "divisor": {"divisor_override": 5},
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", AVERAGE)
def test_average_pools(exact, dims, name):
    """Average pools with every way of counting the values of a window."""
    if dims == 1 and name == "divisor":
        pytest.skip("torch has no divisor_override in one dimension")
    pool = getattr(nn, f"AvgPool{dims}d")(3, **AVERAGE[name])
    done = exact(around(dims, pool), torch.randn(2, 3, *SIZE[:dims]))
    assert (done.plan.row("1").status, done.plan.row("1").kernel) == ("quantized", "qavg_pool")


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_adaptive_average_pools(exact, dims, size):
    """Adaptive average pools whose windows differ in size."""
    pool = getattr(nn, f"AdaptiveAvgPool{dims}d")(size)
    done = exact(around(dims, pool), torch.randn(2, 3, *SIZE[:dims]))
    assert (done.plan.row("1").status, done.plan.row("1").kernel) == (
        "quantized",
        "qadaptive_avg_pool",
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1, "padding": 1, "dilation": 1},
        {"ceil_mode": True, "stride": 2},
        {"dilation": 2},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_maximum_pools_keep_the_scale(exact, dims, options):
    """Maximum pools select integers: scale and zero point stay those of the input."""
    pool = getattr(nn, f"MaxPool{dims}d")(2, **options)
    done = exact(around(dims, pool), torch.randn(2, 3, *SIZE[:dims]))
    assert done.plan.row("1").status == "moves"
    assert any("qmax_pool" in str(n.target) for n in done.q.graph.nodes)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_adaptive_maximum_pools_keep_the_scale(exact, dims):
    """The same for adaptive maximum pools."""
    pool = getattr(nn, f"AdaptiveMaxPool{dims}d")(3)
    done = exact(around(dims, pool), torch.randn(2, 3, *SIZE[:dims]))
    assert done.plan.row("1").status == "moves"
    assert any("qadaptive_max_pool" in str(n.target) for n in done.q.graph.nodes)


def test_maximum_pool_after_which_all_is_negative(exact):
    """Padding of a maximum pool is no value: it loses against every integer, also the smallest."""
    model = around(2, nn.MaxPool2d(3, 1, 1))
    with torch.no_grad():
        model[0].bias.fill_(-50.0)
    exact(model, torch.randn(2, 3, 6, 6), sqnr=15)


def test_pool_that_returns_indices_stays_float(exact, net):
    """A pool that also returns indices is float."""
    model = net(
        lambda m, x: m.b(m.p(m.a(x))[0]),
        a=nn.Conv2d(3, 4, 3),
        p=nn.MaxPool2d(2, return_indices=True),
        b=nn.Conv2d(4, 2, 1),
    )
    done = exact(model, torch.randn(2, 3, 8, 8))
    assert done.plan.row("p").reason == "it returns indices"


FUNCTIONS = {
    "avg": (lambda y: F.avg_pool2d(y, 2), "quantized"),
    "avg-all-options": (lambda y: F.avg_pool2d(y, 3, 2, 1, True, False, 4), "quantized"),
    "avg-strides": (lambda y: F.avg_pool2d(y, (2, 3), stride=(1, 2)), "quantized"),
    "adaptive": (lambda y: F.adaptive_avg_pool2d(y, (3, 2)), "quantized"),
    "adaptive-one": (lambda y: F.adaptive_avg_pool2d(y, 1), "quantized"),
    "mean": (lambda y: y.mean((2, 3), keepdim=True), "quantized"),
    "mean-one-dim": (lambda y: torch.mean(y, 2, True), "quantized"),
    "mean-all": (lambda y: y.mean() + y, "quantized"),
    "mean-with-dtype": (
        lambda y: y.mean((2, 3), keepdim=True, dtype=torch.float64).float(),
        "float",
    ),
    "max": (lambda y: F.max_pool2d(y, 2), "moves"),
    "max-all-options": (lambda y: F.max_pool2d(y, 3, 2, 1, 1, True), "moves"),
    "max-one-number": (lambda y: F.max_pool2d(y, [2], padding=[1]), "moves"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functional_forms(exact, net, name):
    """Pools and means that are called as functions."""
    function, status = FUNCTIONS[name]
    torch.manual_seed(4)
    model = net(
        lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 2, 1)
    )
    done = exact(model, torch.randn(2, 3, 7, 8), sqnr=22)
    rows = [row for row in done.plan.rows if "pool" in row.op or row.op == "mean"]
    assert [row.status for row in rows] == [status]


def test_subclass_of_a_pool(exact):
    """A subclass under any name is pooled in the dimensions of its base."""

    class Half(nn.AvgPool2d):
        pass

    class Global(nn.AdaptiveAvgPool2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Half(2), Global(2), nn.Conv2d(4, 2, 1))
    done = exact(model, torch.randn(2, 3, 9, 9))
    assert [row.status for row in done.plan.rows] == ["quantized"] * 4


def test_adaptive_size_of_the_input_stays_float(exact):
    """An output size that is None follows the input: float, and the plan says what to write."""
    model = around(2, nn.AdaptiveAvgPool2d((3, None)))
    done = exact(model, torch.randn(2, 3, 8, 6))
    assert "write the size as a number" in done.plan.row("1").reason
