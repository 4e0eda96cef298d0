"""Programs of one operation, drawn from a seed: what backends are tried on.

There is a drawing function for every operation of ``torch.ops.qcore``. Each draws geometry, dtypes,
scales and values; an *emphasis* says where most of the values lie: on ties, beyond the ends of the
range, and so on.
"""

import math
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import attrs
import torch
from torch import Tensor

from ..numerics import Numerics
from ..ops.storage import pack

__all__ = ["CASES", "Case", "Draw", "Emphasis", "Packed", "Place"]

Emphasis = Literal["any", "ties", "saturation", "zero points", "channel scales"]

_BYTES = (torch.int8, torch.uint8)


@attrs.frozen
class Place:
    """Stands in the arguments of a case for the run-time tensor of that index."""

    index: int


@attrs.frozen(eq=False)
class Packed:
    """Stands in the arguments of a case for constant integers that lie packed in the program.

    Args:
        values: int8 ``[..., K]``.
        bits: 1, 2 or 4.
    """

    values: Tensor
    bits: int

    def packed(self) -> Tensor:
        """uint8, several values to a byte."""
        return pack(self.values, self.bits)


@attrs.frozen(kw_only=True, eq=False)
class Case:
    """One operation with its arguments.

    Args:
        op: name of the operation.
        arguments: by position: literals, constant tensors, :class:`Place`, :class:`Packed`.
        inputs: the run-time tensors; integers of at most 16 bits, or floats.
        batched: dimension 0 of all inputs is a batch whose examples don't touch each other.
    """

    op: str
    arguments: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    batched: bool = True

    def __str__(self) -> str:
        shown = []
        for value in self.arguments:
            if isinstance(value, Place):
                x = self.inputs[value.index]
                shown.append(f"<{_name(x.dtype)} {list(x.shape)}>")
            elif isinstance(value, Packed):
                shown.append(f"<{value.bits}-bit {list(value.values.shape)}>")
            elif isinstance(value, Tensor):
                shown.append(f"<constant {_name(value.dtype)} {list(value.shape)}>")
            else:
                shown.append(str(value))
        return f"{self.op}({', '.join(shown)})"


class Draw:
    """What the cases are drawn with; the same seed gives the same case.

    Args:
        seed: of all numbers.
        numerics: the contract that the operations carry.
        emphasis: where most of the values lie.
    """

    def __init__(self, seed: int, numerics: Numerics, emphasis: Emphasis = "any") -> None:
        self.numerics = numerics
        self.emphasis = emphasis
        self._random = random.Random(f"{seed} {emphasis}")
        self._generator = torch.Generator().manual_seed(self._random.getrandbits(48))

    def choice(self, *options: Any) -> Any:
        """One of the options."""
        return self._random.choice(options)

    def number(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``."""
        return self._random.randint(low, high)

    def coin(self) -> bool:
        """True or False."""
        return self._random.random() < 0.5

    def normal(self, *shape: int) -> Tensor:
        """float32 of a standard normal distribution."""
        return torch.randn(shape, generator=self._generator)

    def uniform(self, *shape: int) -> Tensor:
        """float32 from 0 up to 1."""
        return torch.rand(shape, generator=self._generator)

    def between(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 from ``low`` to ``high``."""
        return torch.randint(low, high + 1, shape, generator=self._generator)

    def storage(self, *, wide: bool = False) -> torch.dtype:
        """Storage of a quantized value; rarely int16 where ``wide``."""
        if wide and self.emphasis == "any" and self._random.random() < 0.15:
            return torch.int16
        return self.choice(*_BYTES)  # type: ignore[no-any-return]

    def zero_point(self, dtype: torch.dtype) -> int:
        """Odd ones, the ends of the range, 0."""
        info = torch.iinfo(dtype)
        if dtype == torch.int16:
            return 0
        options = [3, info.min + 127, info.min, info.max, info.max - 54]
        return self.choice(*options, *[0] * (self.emphasis != "zero points"))  # type: ignore[no-any-return]

    def integers(self, dtype: torch.dtype, zero_point: int, *shape: int) -> Tensor:
        """A quantized value: the whole range, or close to the zero point for sums on ties."""
        info = torch.iinfo(dtype)
        if self.emphasis == "ties":
            low, high = max(info.min, zero_point - 5), min(info.max, zero_point + 5)
            return self.between(low, high, *shape).to(dtype)
        values = self.between(info.min, info.max, *shape)
        if self.emphasis == "saturation":
            ends = torch.where(self.uniform(*shape) < 0.5, info.min, info.max)
            values = torch.where(self.uniform(*shape) < 0.5, ends, values)
        return values.to(dtype)

    def scale(self) -> float:
        """Of an input. By powers of two sums lie on ties."""
        if self.emphasis == "ties":
            return self.choice(0.5, 1.0)  # type: ignore[no-any-return]
        return self.choice(0.5, 0.25, 0.0217, 1.0, 0.37)  # type: ignore[no-any-return]

    def weights(self, *shape: int) -> Tensor:
        """int8 without -128, so that it is a weight of any scheme."""
        bound = 2 if self.emphasis == "ties" else 127
        return self.between(-bound, bound, *shape).to(torch.int8)

    def weight_scale(self, channels: int) -> Tensor:
        """float32, for all channels or for each."""
        if self.emphasis == "ties":
            return self.choice(torch.tensor(1.0), torch.ones(channels))  # type: ignore[no-any-return]
        if self.emphasis == "channel scales":
            order = torch.randperm(channels, generator=self._generator)
            return 10 ** torch.linspace(-4, 0, channels)[order]
        spread = self.uniform(channels) * 0.01 + 0.001
        return self.choice(spread, spread[0])  # type: ignore[no-any-return]

    def bias(self, channels: int) -> Tensor | None:
        """As the contract has it: int32 in steps of the accumulator, or float32."""
        if self.emphasis == "any" and self._random.random() < 0.25:
            return None
        if self.emphasis == "ties":
            steps = self.between(-3, 3, channels)
            return steps.to(torch.int32) if self.numerics.bias == "int32" else steps * 0.5
        if self.numerics.bias == "int32":
            return self.between(-3000, 3000, channels).to(torch.int32)
        return self.normal(channels)

    def output(self, *, floats: bool = False, step: float = 1.0) -> tuple[Any, ...]:
        """The last six arguments of an operation.

        Args:
            floats: the result may also be float.
            step: about the largest value of the result over 100, so that a part of it saturates.
        """
        key = self.numerics.key
        if floats and self.emphasis in ("any", "channel scales") and self._random.random() < 0.3:
            return (1.0, 0, 0, 0, torch.float32, key)
        dtype = self.storage(wide=True)
        info = torch.iinfo(dtype)
        zero_point = self.zero_point(dtype)
        low = info.min
        if self.emphasis == "ties":
            scale = self.choice(1.0, 2.0)
        elif self.emphasis == "saturation":
            scale = step * self.choice(0.05, 0.2, 0.5)
        else:
            scale = step * self.choice(0.4, 1.0, 2.7)
            low = self.choice(low, zero_point)
        return (scale, zero_point, low, info.max, dtype, key)

    def operand(self, index: int, *shape: int) -> tuple[Tensor, tuple[Any, ...]]:
        """A run-time integer tensor, and its three arguments: value, scale, zero point."""
        dtype = self.storage()
        zero_point = self.zero_point(dtype)
        values = self.integers(dtype, zero_point, *shape)
        return values, (Place(index), self.scale(), zero_point)


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
    step = (of_a[1] + of_b[1]) * 0.7 if op == "qadd" else of_a[1] * of_b[1] * 40
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
    of = d.choice(*_BYTES)
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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        "qmul": lambda d: _binary("qmul", d),
        "qcat": _qcat,
        "qtable": _qtable,
        "qavg_pool": _qavg_pool,
        "qadaptive_avg_pool": _qadaptive_avg_pool,
        "qmean": _qmean,
        "qmax_pool": _qmax_pool,
        "qadaptive_max_pool": _qadaptive_max_pool,
    }
)
"""Every operation, and what draws a case of it."""
