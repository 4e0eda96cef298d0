"""qrecurrent against a loop in float64 with integer products."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qcore import QuantizationError, recurrent_step
from qcore.ops.recurrent import CELLS

from .cases import Q, Target, ints

T, B, H = 5, 3, 4
STATE = (0.0081, -7, -128, 127)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def operand(h: np.ndarray, state: str) -> np.ndarray:
    """The state as the product sees it, in real values."""
    scale, zero, low, high = STATE
    if state == "tensor":
        h32 = np.float32(h) / np.float32(scale)
        return (np.clip(np.rint(h32) + zero, low, high) - zero) * float(np.float32(scale))
    if state == "token":
        step = np.float32(np.abs(np.float32(h)).max(-1, keepdims=True)) / np.float32(127)
        step = np.where(step > 0, step, np.float32(1))
        return np.clip(np.rint(np.float32(h) / step), -127, 127) * step.astype(np.float64)
    return h


def expected(x: Tensor, h: Tensor, c: Tensor | None, weight: np.ndarray, bias: Tensor | None,
             cell: str, reverse: bool, state: str) -> np.ndarray:  # fmt: skip
    gates, now = x.double().numpy(), h.double().numpy()
    memory = None if c is None else c.double().numpy()
    out = np.zeros((T, B, H if c is None else 2 * H))
    for t in reversed(range(T)) if reverse else range(T):
        a = operand(now, state) @ weight.T + (0 if bias is None else bias.double().numpy())
        xs, parts = np.split(gates[t], CELLS[cell], -1), np.split(a, CELLS[cell], -1)
        if cell == "lstm":
            i, f, g, o = (one + two for one, two in zip(xs, parts, strict=True))
            memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
            now = sigmoid(o) * np.tanh(memory)
        elif cell == "gru":
            r, z = (sigmoid(xs[k] + parts[k]) for k in (0, 1))
            now = (1 - z) * np.tanh(xs[2] + r * parts[2]) + z * now
        else:
            now = (
                np.tanh(xs[0] + parts[0]) if cell == "rnn_tanh" else np.maximum(xs[0] + parts[0], 0)
            )
        out[t] = now if memory is None else np.concatenate([now, memory], -1)
    return out


def operands(cell: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = CELLS[cell] * H
    x, h, c = (torch.randn(*s, generator=generator) for s in ((T, B, rows), (B, H), (B, H)))
    return x, h * 0.4, c if cell == "lstm" else None, ints((rows, H)), torch.rand(rows) * 0.01


@pytest.mark.parametrize("state", ["tensor", "token", "float"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_each_cell(cell: str, reverse: bool, state: str) -> None:
    """Every cell, in both directions, with each kind of operand."""
    x, h, c, w, scale = operands(cell)
    bias = torch.randn(len(w)) if cell == "gru" else None
    low = -127 if state == "token" else STATE[2]
    args: tuple[Any, ...] = (scale, None, bias, cell, reverse, state, *STATE[:2], low, 127)
    actual = Q.qrecurrent(x, h, c, w, *args)
    weight = w.double().numpy() * scale.double().numpy()[:, None]
    want = expected(x, h, c, weight, bias, cell, reverse, state)
    np.testing.assert_allclose(actual.numpy(), want, rtol=2e-5, atol=2e-5)


def test_zero_points_and_groups() -> None:
    """Weights with a zero point and a scale for each pair of columns."""
    x, h, c, w, _ = operands("lstm")
    scale, zero = torch.rand(16, 2) * 0.01 + 0.001, ints((16, 2), torch.int32, low=-9, high=9)
    wide = scale.repeat_interleave(2, 1).double(), zero.repeat_interleave(2, 1)
    weight = ((w - wide[1]).double() * wide[0]).numpy()
    for state in ("tensor", "float"):
        actual = Q.qrecurrent(x, h, c, w, scale, zero, None, "lstm", False, state, *STATE)
        want = expected(x, h, c, weight, None, "lstm", False, state)
        np.testing.assert_allclose(actual.numpy(), want, rtol=2e-5, atol=2e-5)


def test_products_are_exact() -> None:
    """A linear cell (relu, large and positive) shows the integer accumulator bit by bit."""
    x, w = torch.full((1, B, H), 1000.0), ints((H, H))
    h = ints((B, H), low=-100, high=100).float() * 0.5
    y = Q.qrecurrent(x, h, None, w, torch.tensor(0.25), None, None, "rnn_relu", False, "tensor",
                     0.5, 0, -128, 127)  # fmt: skip
    assert torch.equal(y[0], 1000 + (h * 2) @ w.float().T * 0.125)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("state", ["tensor", "token"])
def test_product_is_that_of_the_linear_operations(state: str, grouped: bool) -> None:
    """One step of a linear cell is ``qlinear``, or ``qlinear_dynamic``, to the bit."""
    w, h = ints((48, 48)), torch.randn(7, 48)
    scale = torch.rand(48, 4) * 0.01 if grouped else torch.rand(48) * 0.01
    zero = ints(tuple(scale.shape), torch.int32, low=-5, high=5)
    x = torch.full((1, 7, 48), 0.0)
    low = -127 if state == "token" else -128
    args = (w, scale, zero, None, "rnn_relu", False, state, 0.02, 5, low, 127)
    if state == "token":
        want = Q.qlinear_dynamic(h, low, 127, w, scale, zero, None)
    else:
        q = Q.quantize(h, 0.02, 5, low, 127, torch.int8, "half_even")
        want = Q.qlinear(q, 0.02, 5, w, scale, zero, None, *Target(dtype=torch.float32).args)
    assert torch.equal(Q.qrecurrent(x, h, None, *args)[0], want.relu())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_float_cell_is_that_of_torch(kind: type[nn.RNNBase]) -> None:
    """``recurrent_step`` step by step is what torch's own layer computes."""
    torch.manual_seed(0)
    layer = kind(6, H)
    x, h, c = torch.randn(T, B, 6), torch.randn(B, H), torch.randn(B, H)
    cell = layer.mode.lower()
    memory = c if cell == "lstm" else None
    given = (h[None], c[None]) if cell == "lstm" else h[None]
    with torch.no_grad():
        want, _ = layer(x, given)
        gates = nn.functional.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
        for t in range(T):
            a = nn.functional.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)
            h, memory = recurrent_step(cell, gates[t], a, h, memory)
            torch.testing.assert_close(h, want[t], rtol=1e-5, atol=1e-6)


REFUSED = {
    "cell": {"cell": "cru"},
    "state": {"state": "row"},
    "memory": {"c": None},
    "gates": {"cell": "gru", "c": None},
    "input": {"x": torch.zeros(T, B, 12)},
    "shape-of-state": {"h": torch.zeros(B, H + 1)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_belong_together(name: str) -> None:
    """Shapes, cells and kinds of state that do not fit are refused in words."""
    x, h, c, w, scale = operands("lstm")
    given = {"x": x, "h": h, "c": c, "cell": "lstm", "state": "tensor"} | REFUSED[name]
    with pytest.raises(QuantizationError, match="qrecurrent: "):
        Q.qrecurrent(given["x"], given["h"], given["c"], w, scale, None, None, given["cell"], False,
                     given["state"], *STATE)  # fmt: skip
