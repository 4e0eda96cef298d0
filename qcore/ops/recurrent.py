"""The recurrence of LSTM, GRU and plain RNN layers: integer products, gates in float32.

A layer multiplies its whole sequence with ``W_ih`` first, by any linear operation. What is left is
the part that has to go step by step:

    a[t] = x[t] + round_to_integers(h[t-1]) @ W_hh^T (+ b_hh)              int32 accumulator
    h[t], c[t] = cell(a[t], h[t-1], c[t-1])                                float32

The state itself is never rounded, only the operand of the product. So rounding does not pile up in
it over time.

References:
    Hochreiter and Schmidhuber, 1997 <https://doi.org/10.1162/neco.1997.9.8.1735>
    Cho et al., 2014 <https://arxiv.org/abs/1406.1078>
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import QuantizationError
from ..numerics import Numerics, integers
from ..qparams import token_scale
from .dynamic import qlinear_dynamic
from .exact import multiplier
from .library import define
from .linear import qlinear
from .output import centred
from .storage import dequantize_block, quantize

__all__ = ["CELLS", "STATES", "qrecurrent", "recurrent_step"]

CELLS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
"""Kinds of cells, and how many gates each has."""

STATES = ("tensor", "token", "float")
"""How the operand of the product is quantized: with one scale, with one a token at run time, not at
all."""

_FLOAT = (1.0, 0, 0, 0, torch.float32, Numerics().key)


def recurrent_step(
    cell: str, x: Tensor, a: Tensor, h: Tensor, c: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """One step of a cell, in float.

    Args:
        cell: one of ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` and ``"rnn_relu"``.
        x: ``[B, G * H]``: the share of the input in the gates, in torch's order of gates.
        a: like ``x``: the share of the state.
        h: ``[B, H]``, the state.
        c: ``[B, H]``, the cell of an LSTM; else None.

    Returns:
        The next ``h`` and ``c``.

    >>> h = torch.zeros(1, 2)
    >>> recurrent_step("gru", torch.zeros(1, 6), torch.zeros(1, 6), h, None)[0]
    tensor([[0., 0.]])
    """
    if cell == "lstm":
        assert c is not None
        i, f, g, o = (x + a).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if cell == "gru":
        (xr, xz, xn), (ar, az, an) = x.chunk(3, -1), a.chunk(3, -1)
        n = torch.tanh(xn + torch.sigmoid(xr + ar) * an)
        return n + torch.sigmoid(xz + az) * (h - n), None
    return torch.relu(x + a) if cell == "rnn_relu" else torch.tanh(x + a), None


def _qrecurrent_meta(
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    cell: str,
    reverse: bool,
    state: str,
    h_scale: float,
    h_zero_point: int,
    quant_min: int,
    quant_max: int,
) -> Tensor:
    if cell not in CELLS or state not in STATES or (cell == "lstm") != (c is not None):
        raise QuantizationError(
            f"qrecurrent: cell={cell!r}, state={state!r}, c {'' if c is None else 'not '}None; use "
            f"one of {', '.join(CELLS)}, one of {', '.join(STATES)}, and c for lstm only"
        )
    size, rows = w.shape[-1], w.shape[0]
    shapes = [list(t.shape) for t in (x, h, w)]
    if x.ndim != 3 or w.ndim != 2 or rows != CELLS[cell] * size or x.shape[2] != rows:
        raise QuantizationError(
            f"qrecurrent: x, h and w of shapes {shapes}; a {cell} takes [T, B, G * H], [B, H] and "
            f"[G * H, H] with {CELLS[cell]} gates"
        )
    states = [h] if c is None else [h, c]
    if any(s.ndim != 2 or s.shape[1] != size for s in states):
        raise QuantizationError(f"qrecurrent: states must be [B, {size}] for x of {shapes[0]}")
    return x.new_empty((*x.shape[:2], len(states) * size))


@define(
    "qrecurrent(Tensor x, Tensor h, Tensor? c, Tensor w, Tensor w_scale, Tensor? w_zero_point, "
    "Tensor? bias, str cell, bool reverse, str state, float h_scale, int h_zero_point, "
    "int quant_min, int quant_max) -> Tensor",
    meta=_qrecurrent_meta,
)
def qrecurrent(
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    bias: Tensor | None,
    cell: str,
    reverse: bool,
    state: str,
    h_scale: float,
    h_zero_point: int,
    quant_min: int,
    quant_max: int,
) -> Tensor:
    """A sequence through a recurrent cell.

    Args:
        x: float32 ``[T, B, G * H]``: the share of the input in the gates.
        h: float32 ``[B, H]``, the state before the first step.
        c: float32 ``[B, H]`` for an LSTM, else None.
        w: ``[G * H, H]``, integers.
        w_scale: float32 ``[]``, ``[G * H]`` or ``[G * H, groups]``.
        w_zero_point: int32 like ``w_scale``, or None for 0.
        bias: float32 ``[G * H]``, added to the product; None for none.
        cell: one of :data:`CELLS`.
        reverse: the last step comes first; results stay in their places.
        state: one of :data:`STATES`; ``h_scale`` and ``h_zero_point`` count for ``"tensor"``.
        quant_min, quant_max: range of the integers of the state; ignored for ``"float"``.

    Returns:
        float32 ``[T, B, H]``: the state after each step; for an LSTM ``[T, B, 2 * H]``: state and
        cell.

    Raises:
        QuantizationError: shapes, a cell or a kind of state that do not belong together.
    """
    out = _qrecurrent_meta(
        x, h, c, w, w_scale, w_zero_point, bias, cell, reverse, state, h_scale, h_zero_point,
        quant_min, quant_max,
    )  # fmt: skip
    product = _product(w, w_scale, w_zero_point, state, h_scale, h_zero_point, quant_min, quant_max)
    steps = range(x.shape[0])
    for t in reversed(steps) if reverse else steps:
        a = product(h)
        h, c = recurrent_step(cell, x[t], a if bias is None else a + bias, h, c)
        out[t] = h if c is None else torch.cat([h, c], -1)
    return out


def _product(
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor | None,
    state: str,
    h_scale: float,
    h_zero_point: int,
    quant_min: int,
    quant_max: int,
) -> Callable[[Tensor], Tensor]:
    """``h -> h @ w^T`` in float32, with ``h`` as integers where that is asked for."""
    weight = (w, w_scale, w_zero_point)
    if state == "float":
        columns = w.shape[1] // (w_scale.shape[1] if w_scale.ndim == 2 else 1)
        block = [1, columns] if w_scale.ndim else list(w.shape)
        table = dequantize_block(*weight, block)
        return lambda h: F.linear(h, table)
    if w_scale.ndim == 2:
        return _grouped_product(
            weight, state == "token", h_scale, h_zero_point, quant_min, quant_max
        )
    zero = 0 if w_zero_point is None else w_zero_point.reshape(-1, 1)
    step = torch.tensor(h_scale, device=w.device)
    offset = 0 if state == "token" else h_zero_point
    times = multiplier(centred(w, zero), x_max=max(quant_max - offset, offset - quant_min))

    def product(h: Tensor) -> Tensor:
        # As qlinear and qlinear_dynamic do, whose weights are made ready here once.
        own = token_scale(h, quant_min=quant_min, quant_max=quant_max) if state == "token" else step
        q = integers(h, scale=own, zero_point=offset, quant_min=quant_min, quant_max=quant_max)
        acc = times(q - offset).float() + 0.0
        return acc * w_scale * own if state == "token" else acc * (step * w_scale)

    return product


def _grouped_product(
    weight: tuple[Tensor, Tensor, Tensor | None],
    at_run_time: bool,
    h_scale: float,
    h_zero_point: int,
    quant_min: int,
    quant_max: int,
) -> Callable[[Tensor], Tensor]:
    """The product by weights that have a scale for each group of columns."""
    if at_run_time:
        return lambda h: qlinear_dynamic(h, quant_min, quant_max, *weight, None)
    stored = next(
        dtype
        for dtype in (torch.int8, torch.uint8, torch.int16)
        if torch.iinfo(dtype).min <= quant_min and quant_max <= torch.iinfo(dtype).max
    )
    meaning = (h_scale, h_zero_point)
    bounds = (quant_min, quant_max, stored, "half_even")
    return lambda h: qlinear(quantize(h, *meaning, *bounds), *meaning, *weight, None, *_FLOAT)
