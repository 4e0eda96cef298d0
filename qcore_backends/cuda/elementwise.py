"""Operations on each value by itself: into integers and back, sums, products and lookups.

All of them read and write values in the order in which they lie in memory.
"""

from typing import Any, ClassVar

import torch
import triton
from torch import Tensor

from ..values import constant, storage_of
from .kernel import Kernel, float32, given_tensor
from .kernels.elementwise import combined, quantize, scaled, table
from .launch import launch
from .output import Output, why_output

__all__ = ["Add", "Cat", "Dequantize", "Mul", "Quantize", "Requantize", "Table"]

_BLOCK = 1024
_INTEGERS = (torch.int8, torch.uint8, torch.int16)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _blocks(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), _BLOCK),)


def _dense(x: Tensor) -> Tensor:
    """``x`` itself if its values fill a piece of memory, each once; else a copy that does."""
    return x if torch.ops.aten.is_non_overlapping_and_dense(x) else x.contiguous()


class Quantize(Kernel):
    """``quantize``: ``clamp(round_half_even(x / scale) + zero_point)``."""

    label: ClassVar[str] = "triton quantize"

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if given["dtype"] not in _INTEGERS or given["rounding"] != "half_even":
            return "it does not round half to even to 8 or 16 bits"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.dtype: torch.dtype = given["dtype"]
        self.scale, self.zero_point = given["scale"], given["zero_point"]
        bounds = (given["quant_min"], given["quant_max"])
        self.low, self.high = (float(bound - self.zero_point) for bound in bounds)
        self.definition = tuple(given[key] for key in list(given) if key != "x")

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in _FLOATS:
            # float64 is divided in float64.
            return torch.ops.qcore.quantize.default(x, *self.definition)  # type: ignore[no-any-return]
        x = _dense(x)
        q = torch.empty_like(x, dtype=self.dtype)
        launch(
            quantize, _blocks(x), x, q, x.numel(), self.scale, self.low, self.high,
            self.zero_point, on=x, BLOCK=_BLOCK,
        )  # fmt: skip
        return q


class _Scaled(Kernel):
    """What :func:`scaled` computes."""

    x_zero: int
    scale: float
    output: Output

    def scaled(self, x: Tensor) -> Tensor:
        x = _dense(x)
        y = torch.empty_like(x, dtype=self.output.dtype)
        launch(
            scaled, _blocks(x), x, y, x.numel(), self.x_zero, self.scale, *self.output.clamp,
            on=x, FLOAT=self.output.is_float, BLOCK=_BLOCK,
        )  # fmt: skip
        return y


class Dequantize(_Scaled):
    """``dequantize``: ``(q - zero_point) * scale``."""

    label: ClassVar[str] = "triton dequantize"
    inputs: ClassVar[tuple[str, ...]] = ("q",)

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        return None if storage_of(given["q"]) in _INTEGERS else "it is not of 8 or 16 bits"

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.x_zero, self.scale = given["zero_point"], given["scale"]
        self.output = Output(
            dtype=torch.float32, scale=float32(1.0), zero_point=0, low=0.0, high=0.0
        )

    def forward(self, q: Tensor) -> Tensor:
        return self.scaled(q)


class Requantize(_Scaled):
    """``qrequantize``: the same values under another scale and zero point."""

    label: ClassVar[str] = "triton requantize"

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if storage_of(given["x"]) not in _INTEGERS:
            return "it is not of 8 or 16 bits"
        return why_output(given)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.output = Output.of(given)
        self.x_zero = given["x_zero_point"]
        self.scale = float(self.output.multiplier(float32(given["x_scale"])))

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x)


class Cat(Kernel):
    """``qcat``: each part under the qparams of the result, then one behind the other."""

    label: ClassVar[str] = "triton requantize, cat"
    inputs: ClassVar[tuple[str, ...]] = ("xs",)

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        reasons = [Requantize.why_not(part) for part in _parts(given)]
        return next((why for why in reasons if why is not None), None)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.dim: int = given["dim"]
        self.parts = torch.nn.ModuleList(Requantize(part) for part in _parts(given))

    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat([part(x) for part, x in zip(self.parts, xs, strict=True)], self.dim)


def _parts(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Arguments of the requantization of each part of a concatenation."""
    shared = {key: value for key, value in given.items() if key.startswith("y_")}
    parts = zip(given["xs"], given["scales"], given["zero_points"], strict=True)
    return [{"x": x, "x_scale": s, "x_zero_point": z, **shared} for x, s, z in parts]


class _Two(Kernel):
    """An operation on two operands that broadcast."""

    inputs: ClassVar[tuple[str, ...]] = ("a", "b")
    product: ClassVar[bool]

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        allowed = _INTEGERS[:2] if cls.product else _INTEGERS
        if any(storage_of(given[side]) not in allowed for side in ("a", "b")):
            return f"an operand is not of {'8' if cls.product else '8 or 16'} bits"
        return why_output(given)

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.output = output = Output.of(given)
        self.zeros = (given["a_zero_point"], given["b_zero_point"])
        a_scale, b_scale = float32(given["a_scale"]), float32(given["b_scale"])
        steps = (a_scale * b_scale, b_scale) if self.product else (a_scale, b_scale)
        self.scales = [float(output.multiplier(step)) for step in steps]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        shape: torch.Size = torch.broadcast_shapes(a.shape, b.shape)  # type: ignore[no-untyped-call]
        like = next((t for t in (a, b) if t.shape == shape), None)
        # Stored like the operand that has the shape of the result.
        if like is None:
            y = a.new_empty(shape, dtype=self.output.dtype)
        else:
            y = torch.empty_like(like, dtype=self.output.dtype)
        left, right = (_laid_out(operand, y) for operand in (a, b))
        launch(
            combined, _blocks(y), left, right, y, y.numel(), *self.zeros, *self.scales,
            *self.output.clamp,
            on=a, PRODUCT=self.product, FLOAT=self.output.is_float, BLOCK=_BLOCK,
        )  # fmt: skip
        return y


def _laid_out(operand: Tensor, like: Tensor) -> Tensor:
    """An operand broadcast to the shape of ``like`` and stored in its order."""
    if operand.shape == like.shape and operand.stride() == like.stride():
        return operand
    return torch.empty_like(like, dtype=operand.dtype).copy_(operand)


class Add(_Two):
    """``qadd``, with any clamp behind it."""

    label: ClassVar[str] = "triton add"
    product: ClassVar[bool] = False


class Mul(_Two):
    """``qmul``."""

    label: ClassVar[str] = "triton mul"
    product: ClassVar[bool] = True


class Table(Kernel):
    """``qtable``: any function of one byte."""

    label: ClassVar[str] = "triton lookup"
    table: Tensor

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        if constant(given["table"]) is None:
            return "the table is computed at run time"
        if storage_of(given["x"]) not in _INTEGERS[:2]:
            return "the input is no 8-bit tensor"
        return None

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        table, dtype = given_tensor(given, "table"), storage_of(given["x"])
        assert dtype is not None
        byte = torch.arange(256, dtype=torch.int32).to(torch.uint8)
        # Bytes beyond a narrower range never come, but need a place.
        place = byte.view(dtype).to(torch.int64).sub_(given["offset"]).clamp_(0, len(table) - 1)
        self.hold("table", table[place])

    def forward(self, x: Tensor) -> Tensor:
        x = _dense(x)
        y = torch.empty_like(x, dtype=self.table.dtype)
        launch(table, _blocks(x), x.view(torch.uint8), self.table, y, x.numel(), on=x, BLOCK=_BLOCK)
        return y
