"""What draws a case of each operation of Q: geometry, dtypes, scales and values."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..ops.storage import pack
from .backend_draw import BYTES, Case, Draw, Packed, Place

__all__ = ["CASES"]


def _qconv(d: Draw) -> Case:
    dims, groups = d.choice(1, 2, 2, 2, 3), d.choice(1, 1, 2, 4)
    kernel = [d.choice(1, 3) for _ in range(dims)]
    stride = [d.number(1, 2) for _ in range(dims)]
    dilation = [d.choice(1, 1, 2) for _ in range(dims)]
    padding = [d.number(0, k // 2) for k in kernel]
    if d.choice(False, False, True):
        # Single pixels, which backends like to take as linear layers.
        kernel, stride, padding = [1] * dims, [1] * dims, [0] * dims
    channels, outputs = 4 * groups, 4 * d.number(1, 2)
    size = [d.number(5, 7) for _ in range(dims)]
    x, given = d.operand(0, d.number(1, 3), channels, *size)
    shape = (outputs, channels // groups, *kernel)
    weight: Tensor | Packed = d.weights(*shape)
    if d.emphasis == "any" and d.choice(False, False, True):
        weight = Packed(d.between(-8, 7, *shape).to(torch.int8), 4)
    scale = d.weight_scale(outputs)
    terms = math.prod((channels // groups, *kernel))
    output = d.output(floats=True, step=given[1] * float(scale.max()) * 80 * terms**0.5)
    geometry = (stride, padding, dilation, groups)
    inputs = [x]
    other: tuple[Any, ...] = (None, 1.0, 0)
    if d.choice(False, False, True) and output[4] != torch.float32:
        sizes = zip(size, kernel, stride, padding, dilation, strict=True)
        out = [(n + 2 * p - r * (k - 1) - 1) // s + 1 for n, k, s, p, r in sizes]
        zero_point = d.zero_point(output[4])
        inputs.append(d.integers(output[4], zero_point, x.shape[0], outputs, *out))
        other = (Place(1), d.scale(), zero_point)
    arguments = (*given, weight, scale, None, d.bias(outputs), *geometry, *other, *output)
    return Case(op="qconv", arguments=arguments, inputs=tuple(inputs))


def _qconv_transpose(d: Draw) -> Case:
    dims, groups = d.choice(1, 2, 2, 3), d.choice(1, 2)
    kernel = [d.number(1, 3) for _ in range(dims)]
    stride = [d.number(1, 3) for _ in range(dims)]
    dilation = [d.number(1, 2) for _ in range(dims)]
    padding = [d.number(0, (k - 1) // 2) for k in kernel]
    extra = [d.number(0, max(s, r) - 1) for s, r in zip(stride, dilation, strict=True)]
    x, given = d.operand(0, d.number(1, 2), 4, *[d.number(3, 4) for _ in range(dims)])
    # One scale for each channel of a group.
    weight, scale = d.weights(4, 3, *kernel), d.weight_scale(3)
    output = d.output(floats=True, step=given[1] * float(scale.max()) * 40)
    geometry = (stride, padding, extra, dilation, groups)
    arguments = (*given, weight, scale, None, d.bias(3 * groups), *geometry, *output)
    return Case(op="qconv_transpose", arguments=arguments, inputs=(x,))


def _qlinear(d: Draw) -> Case:
    outputs, groups = d.choice(1, 5, 16, 33), 1
    columns = d.choice(1, 12, 32, 64)
    weight: Tensor | Packed = d.weights(outputs, columns)
    zero_point = None
    scale = d.weight_scale(outputs)
    if d.emphasis == "any":
        form = d.choice("plain", "plain", "packed", "groups", "zero points")
        if form == "packed":
            weight = Packed(d.between(-8, 7, outputs, columns).to(torch.int8), 4)
        elif form == "groups" and columns % 4 == 0:
            groups = columns // 4
            scale = d.uniform(outputs, groups) * 0.01 + 0.001
        elif form == "zero points":
            scale = d.uniform(outputs) * 0.01 + 0.001
            zero_point = d.between(-9, 9, outputs).to(torch.int32)
    if groups > 1 and d.numerics.requantization == "fixed_point":
        scale = d.uniform(outputs) * 0.01 + 0.001
    rows = d.choice((3,), (1,), (2, 3))
    x, given = d.operand(0, *rows, columns)
    output = d.output(floats=True, step=given[1] * float(scale.max()) * 80 * columns**0.5)
    if d.emphasis == "ties":
        output = (1.0, *output[1:])
    bias = d.bias(outputs)
    if scale.ndim == 2 and bias is not None:
        # Groups have no common step, so their bias is always float.
        bias = bias.float()
    arguments = (*given, weight, scale, zero_point, bias, *output)
    return Case(op="qlinear", arguments=arguments, inputs=(x,))


def _qlinear_dynamic(d: Draw) -> Case:
    outputs, groups = d.choice(1, 5, 33), d.choice(1, 1, 3)
    columns = groups * d.choice(1, 16, 33)
    x = d.normal(*d.choice((3,), (1,), (2, 5)), columns)
    if d.emphasis == "ties":
        # Rows that reach 127 have the scale 1.
        x = (x * 60).round().clamp(-126, 126) + 0.5
        x[..., 0] = 127.0
    elif d.emphasis == "saturation":
        x = x * d.choice(1e-30, 1.0, 1e30)
        x[..., -1] = d.choice(0.0, 1.0, -1.0)
    span = d.choice((-128, 127), (-127, 127))
    weight = d.weights(outputs, columns)
    scale = d.uniform(outputs, groups) * 0.1 + 0.001 if groups > 1 else d.weight_scale(outputs)
    bias = d.choice(None, d.normal(outputs))
    arguments = (Place(0), *span, weight, scale, None, bias)
    return Case(op="qlinear_dynamic", arguments=arguments, inputs=(x,))


def _qmatmul(d: Draw) -> Case:
    rows, columns, depth = d.number(1, 9), d.number(1, 9), d.choice(1, 5, 64, 200)
    if d.emphasis == "ties":
        depth = d.choice(1, 5)
    left, right = d.choice(((2,), (2,)), ((2, 3), (2, 3)), ((2, 3), ()), ((2, 1), (1, 3)))
    a, of_a = d.operand(0, *left, rows, depth)
    b, of_b = d.operand(1, *right, depth, columns)
    output = d.output(floats=True, step=of_a[1] * of_b[1] * 60 * depth)
    batched = left == right
    return Case(op="qmatmul", arguments=(*of_a, *of_b, *output), inputs=(a, b), batched=batched)


def _binary(op: str, d: Draw) -> Case:
    a, of_a = d.operand(0, 3, 4, 6, 5)
    shape = (3, 4, 6, 5)
    if d.emphasis == "any":
        shape = d.choice(shape, shape, (4, 1, 1), (1,))
    b, of_b = d.operand(1, *shape)
    step = of_a[1] * of_b[1] * 40 if op == "qmul" else (of_a[1] + of_b[1]) * 0.7
    arguments = (*of_a, *of_b, *d.output(step=step))
    return Case(op=op, arguments=arguments, inputs=(a, b), batched=shape[0] == 3)


def _qrequantize(d: Draw) -> Case:
    x, given = d.operand(0, 4, d.choice(7, 250))
    arguments = (*given, *d.output(step=given[1] * 0.8))
    return Case(op="qrequantize", arguments=arguments, inputs=(x,))


def _qcat(d: Draw) -> Case:
    dtype = d.storage()
    zero_points = [d.zero_point(dtype) for _ in range(3)]
    xs = [d.integers(dtype, z, 2, d.number(1, 4), 5) for z in zero_points]
    scales = [d.scale() for _ in xs]
    places = [Place(i) for i in range(3)]
    arguments = (places, scales, zero_points, 1, *d.output(step=max(scales) * 0.8))
    return Case(op="qcat", arguments=arguments, inputs=tuple(xs))


def _qtable(d: Draw) -> Case:
    dtype = d.storage()
    info = torch.iinfo(dtype)
    of = d.choice(*BYTES)
    low, high = (-8, 7) if dtype == torch.int8 and d.coin() else (info.min, info.max)
    shape = d.choice((3, 5), (2, 4, 6, 6), (7, 1))
    x = d.between(low, high, *shape).to(dtype)
    ends = torch.iinfo(of)
    table = d.between(ends.min, ends.max, high - low + 1).to(of)
    return Case(op="qtable", arguments=(Place(0), table, low), inputs=(x,))


def _qavg_pool(d: Draw) -> Case:
    dims = d.number(1, 3)
    kernel = [d.number(2, 3) for _ in range(dims)]
    padding = [d.choice(0, 0, 1) for _ in range(dims)]
    x, given = d.operand(0, 2, 3, *[d.number(5, 8) for _ in range(dims)])
    stride = d.choice(kernel, [1] * dims)
    divisor = d.choice(None, None, 3)
    geometry = (kernel, stride, padding, d.coin(), d.coin(), divisor)
    arguments = (*given, *geometry, *d.output(floats=True, step=given[1] * 0.6))
    return Case(op="qavg_pool", arguments=arguments, inputs=(x,))


def _qadaptive_avg_pool(d: Draw) -> Case:
    dims = d.number(1, 3)
    x, given = d.operand(0, 2, 3, *[d.number(4, 8) for _ in range(dims)])
    size = d.choice([1] * dims, [1] * dims, [2] * dims)
    arguments = (*given, size, *d.output(floats=True, step=given[1] * 0.6))
    return Case(op="qadaptive_avg_pool", arguments=arguments, inputs=(x,))


def _qmean(d: Draw) -> Case:
    x, given = d.operand(0, 2, 3, 4, d.number(4, 7))
    dims = d.choice([2, 3], [-1], [1], [])
    arguments = (*given, dims, d.coin(), *d.output(floats=True, step=given[1] * 0.6))
    return Case(op="qmean", arguments=arguments, inputs=(x,), batched=bool(dims))


def _qmax_pool(d: Draw) -> Case:
    dims = d.number(1, 3)
    kernel = [d.number(1, 3) for _ in range(dims)]
    padding = [d.number(0, k // 2) for k in kernel]
    dilation = [d.number(1, 2) for _ in range(dims)]
    stride = d.choice([], [1] * dims, [2] * dims)
    x, _ = d.operand(0, 2, 3, *[d.number(5, 9) for _ in range(dims)])
    arguments = (Place(0), kernel, stride, padding, dilation, False)
    return Case(op="qmax_pool", arguments=arguments, inputs=(x,))


def _qadaptive_max_pool(d: Draw) -> Case:
    dims = d.number(1, 3)
    x, _ = d.operand(0, 2, 3, *[d.number(4, 8) for _ in range(dims)])
    size = d.choice([1] * dims, [2] * dims)
    return Case(op="qadaptive_max_pool", arguments=(Place(0), size), inputs=(x,))


def _table(d: Draw) -> tuple[int, tuple[Any, ...]]:
    """A table of embeddings: its rows, and its arguments."""
    rows, columns = d.choice(5, 9), d.choice(4, 8)
    scale = d.choice(d.uniform(rows) + 0.01, d.uniform(rows, 2) + 0.01, torch.tensor(0.1))
    if d.coin():
        packed = pack(d.between(-8, 7, rows, columns), 4)
        return rows, (packed, scale, None, 4, True, columns)
    zero_point = d.choice(None, d.between(-9, 9, *scale.shape).to(torch.int32))
    return rows, (d.weights(rows, columns), scale, zero_point, 8, True, columns)


def _qembedding(d: Draw) -> Case:
    rows, table = _table(d)
    index = d.between(0, rows - 1, *d.choice((3,), (2, 5))).to(d.choice(torch.int32, torch.int64))
    return Case(op="qembedding", arguments=(Place(0), *table), inputs=(index,))


def _qembedding_bag(d: Draw) -> Case:
    rows, table = _table(d)
    index = d.between(0, rows - 1, 3, 4)
    mode = d.choice("sum", "mean", "max")
    inputs, weights = [index], None
    if mode == "sum" and d.coin():
        inputs, weights = [index, d.normal(3, 4)], Place(1)
    arguments = (Place(0), None, weights, *table, mode, False, d.choice(None, 1))
    return Case(op="qembedding_bag", arguments=arguments, inputs=tuple(inputs))


def _qrecurrent(d: Draw) -> Case:
    cell, gates = d.choice(("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    steps, batch, size = d.number(1, 4), d.number(1, 3), d.choice(2, 6)
    x, h = d.normal(steps, batch, gates * size), d.normal(batch, size)
    inputs = (x, h, d.normal(batch, size)) if cell == "lstm" else (x, h)
    weight, scale = d.weights(gates * size, size), d.uniform(gates * size) * 0.01 + 0.001
    bias = d.choice(None, d.normal(gates * size))
    state = d.choice("tensor", "token")
    span = (0.02, 3, -128, 127) if state == "tensor" else (1.0, 0, -127, 127)
    places = (Place(0), Place(1), Place(2) if cell == "lstm" else None)
    arguments = (*places, weight, scale, None, bias, cell, d.coin(), state, *span)
    return Case(op="qrecurrent", arguments=arguments, inputs=inputs, batched=False)


def _quantize(d: Draw) -> Case:
    dtype, scale = d.storage(wide=True), d.choice(0.5, 0.25, 0.0217, 1.0)
    zero_point = d.zero_point(dtype)
    info = torch.iinfo(dtype)
    x = d.normal(4, 60) * 40 * scale
    if d.emphasis == "ties":
        x = (d.between(-200, 200, 4, 60) + 0.5) * scale
    elif d.emphasis == "saturation":
        beyond = [float("inf"), -float("inf"), 3e38, -3e38, 400.0 * scale, -400.0 * scale]
        x[:, :6] = torch.tensor(beyond)
        x[:, 6:] *= 10
    elif d.coin():
        x[0, :4] = torch.tensor([float("nan"), -0.0, 1e-45, 0.0])
    arguments = (Place(0), scale, zero_point, info.min, info.max, dtype, "half_even")
    return Case(op="quantize", arguments=arguments, inputs=(x,))


def _dequantize(d: Draw) -> Case:
    x, given = d.operand(0, 4, d.choice(7, 60))
    return Case(op="dequantize", arguments=given, inputs=(x,))


def _dequantize_block(d: Draw) -> Case:
    outputs, columns = d.choice(3, 8), d.choice(8, 32)
    block = d.choice([1, columns], [1, 4], [outputs, columns], [1, 8])
    count = (outputs // block[0]) * (columns // block[1])
    # Constant, as it is in programs; the float layer behind it is not the operation's.
    weight: Tensor | Packed = d.weights(outputs, columns)
    if d.coin():
        weight = Packed(d.between(-8, 7, outputs, columns).to(torch.int8), 4)
    zero_point = d.choice(None, d.between(-9, 9, count).to(torch.int32))
    arguments = (weight, d.uniform(count) + 0.01, zero_point, block)
    return Case(op="dequantize_block", arguments=arguments, inputs=(), batched=False)


def _unpack(d: Draw) -> Case:
    bits, columns = d.choice(1, 2, 4), d.choice(5, 16)
    x = d.between(0, 255, 3, -(-columns * bits // 8)).to(torch.uint8)
    return Case(op="unpack", arguments=(Place(0), bits, d.coin(), columns), inputs=(x,))


CASES: Mapping[str, Callable[[Draw], Case]] = MappingProxyType(
    {
        "quantize": _quantize,
        "dequantize": _dequantize,
        "dequantize_block": _dequantize_block,
        "unpack": _unpack,
        "qrequantize": _qrequantize,
        "qconv": _qconv,
        "qconv_transpose": _qconv_transpose,
        "qlinear": _qlinear,
        "qlinear_dynamic": _qlinear_dynamic,
        "qmatmul": _qmatmul,
        "qadd": lambda d: _binary("qadd", d),
        "qsub": lambda d: _binary("qsub", d),
        "qmul": lambda d: _binary("qmul", d),
        "qcat": _qcat,
        "qtable": _qtable,
        "qavg_pool": _qavg_pool,
        "qadaptive_avg_pool": _qadaptive_avg_pool,
        "qmean": _qmean,
        "qmax_pool": _qmax_pool,
        "qadaptive_max_pool": _qadaptive_max_pool,
        "qembedding": _qembedding,
        "qembedding_bag": _qembedding_bag,
        "qrecurrent": _qrecurrent,
    }
)
"""Every operation, and what draws a case of it."""
