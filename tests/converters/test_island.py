"""What stays float by policy: the plan says why, and QFloat equals Q around it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qcore

X = torch.randn(2, 4, 6, 6)

ISLANDS = {
    "layer-norm": (nn.LayerNorm(6), "layer_norm", "squares"),
    "rms-norm": (nn.RMSNorm(6), "layer_norm", "squares"),
    "group-norm": (nn.GroupNorm(2, 4), "group_norm", "squares"),
    "instance-norm": (nn.InstanceNorm2d(4), "instance_norm", "squares"),
    "local-response-norm": (nn.LocalResponseNorm(2), "local_response_norm", "squares"),
    "softmax": (nn.Softmax(1), "softmax", "magnitude"),
    "softmax-2d": (nn.Softmax2d(), "softmax", "magnitude"),
    "softmin": (nn.Softmin(1), "softmax", "magnitude"),
    "log-softmax": (nn.LogSoftmax(1), "softmax", "magnitude"),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "interpolate", "between those"),
    "bicubic": (nn.Upsample(scale_factor=2, mode="bicubic"), "interpolate", "between those"),
    "bilinear-2d": (nn.UpsamplingBilinear2d(scale_factor=2), "interpolate", "between those"),
}

FUNCTIONS = {
    "F.layer_norm": (lambda y: F.layer_norm(y, (6,)), "layer_norm"),
    "F.group_norm": (lambda y: F.group_norm(y, 2), "group_norm"),
    "softmax": (lambda y: y.softmax(-1), "softmax"),
    "log_softmax": (lambda y: y.log_softmax(-1), "softmax"),
    "exp": (lambda y: y.exp(), "exp"),
    "log1p": (lambda y: (y * y).log1p(), "log"),
    "pow": (lambda y: y**3, "pow"),
    "sqrt": (lambda y: y.abs().sqrt(), "pow"),
    "rsqrt": (lambda y: (y.abs() + 1).rsqrt(), "reciprocal"),
    "F.interpolate": (lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"), "interpolate"),
}


@pytest.mark.parametrize("name", ISLANDS)
def test_modules_that_stay_float(exact, name):
    """The layer runs in float between two convolutions on integers, and the plan says why."""
    module, op, why = ISLANDS[name]
    model = nn.Sequential(nn.Conv2d(4, 4, 1), module, nn.Conv2d(4, 3, 1))
    row = exact(model, X).plan.row("1")
    assert (row.op, row.status) == (op, "float")
    assert why in row.reason


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_that_stay_float(exact, net, name):
    """The same for functions."""
    function, op = FUNCTIONS[name]
    model = net(lambda m, x: m.b(function(m.a(x))), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 3, 1))
    (row,) = (row for row in exact(model, X).plan.rows if row.op == op)
    assert row.status == "float"
    assert "float" in row.reason


def test_an_override_can_name_an_island():
    """The operations have names, so an override that speaks of one fits a layer."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Softmax(1), nn.Conv2d(4, 3, 1))
    recipe = qcore.Recipe(overrides=(qcore.Override(op="softmax", quantize=False),))
    assert qcore.plan(model, X, recipe).row("1").status == "float"
