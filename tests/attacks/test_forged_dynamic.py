"""Forged programs with layers that quantize their inputs at run time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .conftest import Forgery, saved

DYNAMIC = "qcore.qlinear_dynamic.default"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of one layer with weights in groups."""
    folder = tmp_path_factory.mktemp("artifacts") / "dynamic"
    return saved(nn.Sequential(nn.Linear(64, 3)), torch.randn(4, 64), folder, "int4_dynamic")


@pytest.fixture
def forgery(original: Path, tmp_path: Path) -> Forgery:
    """A copy of it to be changed."""
    return Forgery(original, tmp_path / "forged")


@pytest.mark.parametrize(
    ("index", "value", "match"),
    [
        (1, 0, "quant_min=0, quant_max=127; a symmetric range"),
        (1, -(2**20), "what int16 holds"),
        (2, -1, "quant_min=-128, quant_max=-1; a symmetric range"),
        (2, 2**15, "what int16 holds"),
        (2, -200, "must ascend"),
        (1, -127.5, "is no int"),
        (3, None, "is no Tensor"),
        (4, {"node": "input_1"}, "w_scale is computed by the program"),
        (6, {"node": "input_1"}, "bias is computed by the program"),
    ],
)
def test_arguments_are_checked(forgery: Forgery, index: int, value: Any, match: str) -> None:
    """The range has 0 inside and fits its storage; scales and bias are stored tensors."""
    args = forgery.node(DYNAMIC)["args"]
    assert args[index] != value
    args[index] = value
    forgery.refused(match)


@pytest.mark.parametrize(
    ("name", "edit", "match"),
    [
        ("0.weight_scale", lambda t: t * float("nan"), "w_scale="),
        ("0.weight_scale", lambda t: -t, "w_scale="),
        ("0.weight_scale", lambda t: t[:, :1].repeat(1, 7), "they don't belong together"),
        ("0.weight_scale", torch.Tensor.double, "w_scale is float64"),
        ("0.bias", torch.Tensor.int, "bias is int32"),
        ("0.bias", lambda t: t[:-1], "bias is float32"),
        ("0.bias", lambda t: t * float("inf"), "not finite"),
        ("0.weight", lambda t: t[:, :-1], "bytes a row"),
    ],
)
def test_stored_parameters_are_checked(
    forgery: Forgery, name: str, edit: Callable[[torch.Tensor], torch.Tensor], match: str
) -> None:
    """Scales are positive and finite, one a group; the bias is float32."""
    forgery.tensors[name] = edit(forgery.tensors[name]).contiguous()
    forgery.refused(match)


def test_the_bias_of_scales_by_channel_is_float_too(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An int32 bias has no step where each token has its own."""
    model = nn.Sequential(nn.Linear(8, 3))
    source = saved(model, torch.randn(4, 8), tmp_path / "source", "int8_dynamic")
    forgery = Forgery(source, tmp_path / "forged")
    forgery.tensors["0.bias"] = forgery.tensors["0.bias"].int()
    forgery.refused("where each token has its own step it is float32")


def test_the_input_is_float(forgery: Forgery) -> None:
    """Integers are no input of an operation that quantizes."""
    args = ["input_1", 0.1, 0, -128, 127, {"dtype": "int8"}, "half_even"]
    node = {"kwargs": {}, "name": "early", "op": "call", "target": "qcore.quantize.default"}
    forgery.program["nodes"].insert(1, {**node, "args": [{"node": args[0]}, *args[1:]]})
    forgery.node(DYNAMIC)["args"][0] = {"node": "early"}
    forgery.refused("x is int8; use float32")
