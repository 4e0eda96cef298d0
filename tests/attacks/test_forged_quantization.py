"""Programs whose checksums fit and whose numbers mean nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

CONV, LINEAR = "qcore.qconv.default", "qcore.qlinear.default"
QUANTIZE, TABLE, UNPACK = "qcore.quantize.default", "qcore.qtable.default", "qcore.unpack.default"
POOL, TRANSPOSE = "qcore.qmax_pool.default", "qcore.qconv_transpose.default"
INFINITY, NOT_A_NUMBER = {"float": "inf"}, {"float": "nan"}


@pytest.mark.parametrize(
    ("target", "index", "value", "match"),
    [
        *((QUANTIZE, 1, bad, "scale=") for bad in (0.0, -0.5, INFINITY, NOT_A_NUMBER, 1e-60, 1e60)),
        (QUANTIZE, 2, 128, "zero_point=128 is not in -128..127"),
        (QUANTIZE, 3, 127.5, "is no int"),
        (QUANTIZE, 3, 200, "quant_min=200, quant_max=127"),
        (QUANTIZE, 4, 300, "quant_min=-128, quant_max=300"),
        (QUANTIZE, 5, {"dtype": "float32"}, "use int8, uint8"),
        (QUANTIZE, 5, {"dtype": "bool"}, "use int8, uint8"),
        (QUANTIZE, 6, "stochastic", "rounding='stochastic'"),
        *((CONV, 1, bad, "x_scale=") for bad in (0.0, -1.0, INFINITY, NOT_A_NUMBER)),
        (CONV, 2, -129, "x_zero_point=-129 is not in -128..127"),
        (CONV, 7, [0, 1], r"stride=\[0, 1\]"),
        (CONV, 7, [1, 1, 1], "2 spatial dimensions"),
        (CONV, 8, [-1, 0], r"padding=\[-1, 0\]"),
        (CONV, 9, [0, 0], r"dilation=\[0, 0\]"),
        (CONV, 10, 0, "groups=0"),
        (CONV, 10, 3, "does not divide the 4 output channels"),
        (CONV, 10, 2, "w takes 4 channels"),
        (CONV, 12, 0.0, "other_scale=0.0"),
        (CONV, 14, NOT_A_NUMBER, "y_scale=nan"),
        (CONV, 15, 1000, "y_zero_point=1000"),
        (CONV, 16, 128, "y_min=128, y_max="),
        (CONV, 17, 1000, "y_max=1000"),
        (CONV, 18, {"dtype": "int64"}, "y_dtype=int64"),
        (CONV, 19, "fast", "numerics 'fast'"),
        (CONV, 19, "half_even.multiplier.int32.after.int64", "accumulator='int64'"),
        (CONV, 4, {"node": "quantize_default"}, "w_scale is computed by the program"),
        (CONV, 4, None, "is no Tensor"),
        (LINEAR, 1, 0.0, "x_scale=0.0"),
        (LINEAR, 2, 10_000, "x_zero_point=10000"),
        (TABLE, 2, -200, "offset=-200"),
        (TABLE, 2, 100, "end of the table"),
        (UNPACK, 1, 3, "bits=3"),
        (UNPACK, 1, 0, "bits=0"),
        (UNPACK, 1, 2, "bytes a row"),
        (UNPACK, 3, 0, "columns=0"),
        (UNPACK, 3, 2**40, "bytes a row"),
        (UNPACK, 3, 100, "bytes a row"),
        (POOL, 1, [0, 0], r"kernel=\[0, 0\]"),
        (POOL, 1, [2], "must have one length"),
        (POOL, 2, [0, 1], r"stride=\[0, 1\]"),
        (POOL, 3, [9, 9], "can't run on its arguments"),
        (TRANSPOSE, 9, [-1, -1], "output_padding="),
        (TRANSPOSE, 11, 3, "does not divide the 4 input channels"),
    ],
)
def test_numbers_in_arguments_are_checked(
    forge: Any, target: str, index: int, value: Any, match: str
) -> None:
    """Scales are finite and positive, zero points and clamps are integers of their tensor's
    dtype."""
    args = forge.node(target)["args"]
    assert args[index] != value
    args[index] = value
    forge.refused(match)


def scaled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[-1] = value
        return tensor

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "match"),
    [
        *(
            ("0.weight_scale", scaled(bad), "w_scale=")
            for bad in (0.0, -1.0, float("nan"), float("inf"), 1e-42)
        ),
        ("0.weight_scale", torch.Tensor.double, "w_scale is float64"),
        ("0.weight_scale", lambda t: t[:-1], "they don't belong together"),
        ("0.weight_scale", lambda t: t[None], "they don't belong together"),
        ("0.bias", lambda t: t[:-1], "bias is int32"),
        ("0.bias", torch.Tensor.long, "bias is int64"),
        ("0.bias", lambda t: t.float() * float("nan"), "not finite"),
        ("0.weight", lambda t: t.to(torch.int8), "packed is int8"),
        ("0.weight", lambda t: t[..., :-1], "bytes a row"),
        ("0.weight", lambda t: t[0, 0], "w is int8"),
        ("0.weight", lambda t: t[:, :1], "w takes 1 channels"),
        ("6.weight_scale", lambda t: t[:, None].repeat(1, 3), "they don't belong together"),
        ("6.weight_scale", lambda t: t[:, None].repeat(1, 4), "bias is int32"),
        ("3.table", torch.Tensor.double, "table is float64"),
        ("3.table", lambda t: t[None], "table is int8"),
        ("3.table", lambda t: t[:0], "table is int8"),
    ],
)
def test_stored_parameters_are_checked(
    forge: Any, name: str, edit: Callable[[torch.Tensor], torch.Tensor], match: str
) -> None:
    """Scales, biases, tables and packed weights have values, dtypes and shapes that belong
    together."""
    forge.tensors[name] = edit(forge.tensors[name]).contiguous()
    forge.refused(match)


def test_zero_points_of_weights_are_checked(forge: Any) -> None:
    """A weight's zero points are int32, one for each scale, and integers of the weight's dtype."""
    node = forge.node(LINEAR)
    forge.program["tensors"]["zero"] = "zero"
    tensor = {"args": [], "kwargs": {}, "name": "zero", "op": "tensor", "target": "zero"}
    forge.program["nodes"].insert(1, tensor)
    node["args"][5] = {"node": "zero"}
    forge.tensors["zero"] = torch.full((5,), 500, dtype=torch.int32)
    forge.refused("w_zero_point=500 is not in -128..127")
    forge.tensors["zero"] = torch.zeros(4, dtype=torch.int32)
    forge.refused("w_zero_point is int32")
    forge.tensors["zero"] = torch.zeros(5)
    forge.refused("w_zero_point is float32")


@pytest.mark.parametrize(
    ("target", "index"), [(QUANTIZE, 1), (QUANTIZE, 2), (LINEAR, 1), (CONV, 2)]
)
def test_scales_and_zero_points_are_literals(forge: Any, target: str, index: int) -> None:
    """A number that is computed from the size of an input could be anything, so it is refused."""
    size = {"args": [{"node": "input_1"}, 0], "kwargs": {}, "name": "size", "op": "call"}
    forge.program["nodes"].insert(1, {**size, "target": "aten.sym_size.int"})
    forge.node(target)["args"][index] = {"node": "size"}
    forge.refused("is computed by the program; use a number")


def test_operands_hold_integers(forge: Any) -> None:
    """An operation of Q on a float tensor is refused."""
    forge.node(CONV)["args"][0] = {"node": "input_1"}
    forge.refused("x is float32; use one of int8, uint8, int16")
