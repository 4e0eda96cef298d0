"""Operations that move or select values: they run on the integers and keep scale and zero point."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qcore import Builder, Movement, QValue, Step

__all__ = ["Interpolate", "MaxPool", "Move", "Pad"]


class Move(Movement):
    """Reshapes, transposes, slices, splits and the like: the same call on integers."""


class MaxPool(Movement):
    """Maximum pools: a maximum of integers of one scale is the maximum of the values."""

    @staticmethod
    def why_not(step: Step) -> str | None:
        if getattr(step.module, "return_indices", False):
            return "it returns indices"
        return None

    @staticmethod
    def emit(b: Builder, target: Callable[..., Any], args: Sequence[Any]) -> QValue:
        x, *options = args
        assert isinstance(x, QValue)
        if target is operator.getitem:
            # Adaptive pools give indices too; the operation on integers gives the values alone.
            return x
        name = str(target)
        dims = int(name.split("pool")[1][0])

        def many(value: Any) -> list[int]:
            values = list(value) if isinstance(value, list | tuple) else [value]
            return [int(v) for v in (values * dims if len(values) == 1 else values)]

        if "adaptive" in name:
            return x.replace(b.call("qadaptive_max_pool", x.value, many(options[0])))
        defaults: list[Any] = [[], 0, 1, False]
        kernel, stride, padding, dilation, ceil_mode = (*options, *defaults[len(options) - 1 :])
        kernel = many(kernel)
        return x.replace(
            b.call(
                "qmax_pool",
                x.value,
                kernel,
                many(stride) if stride not in ([], None) else kernel,
                many(padding),
                many(dilation),
                bool(ceil_mode),
            )
        )


class Interpolate(Movement):
    """Resizing to the nearest value; other ways compute new values, and stay float."""

    @staticmethod
    def why_not(step: Step) -> str | None:
        mode = getattr(step.module, "mode", None) or step.kind
        if "nearest" in mode:
            return None
        return (
            "it computes values between those of the scale; in float they are rounded once, by the "
            "next layer's quantizer"
        )

    @staticmethod
    def emit(b: Builder, target: Callable[..., Any], args: Sequence[Any]) -> QValue:
        x, *options = args
        assert isinstance(x, QValue)
        # torch has this for unsigned bytes and for floats. Neither changes what is moved.
        stored: torch.dtype = getattr(torch, x.dtype.storage)
        aten = torch.ops.aten
        if stored.itemsize == 1:
            moved = b.function(target, b.function(aten.view.dtype, x.value, torch.uint8), *options)
            return x.replace(b.function(aten.view.dtype, moved, stored))
        moved = b.function(target, b.function(aten.to.dtype, x.value, torch.float32), *options)
        return x.replace(b.function(aten.to.dtype, moved, stored))


class Pad(Movement):
    """Padding: zeros become the zero point; reflected and repeated values are moved."""

    @staticmethod
    def why_not(step: Step) -> str | None:
        value = (
            getattr(step.module, "value", 0)
            if step.module is not None
            else step.arguments.get("value")
        )
        if value not in (None, 0):
            return f"it pads with {value}, which may be no value of the scale; only 0 always is"
        return None

    @staticmethod
    def emit(b: Builder, target: Callable[..., Any], args: Sequence[Any]) -> QValue:
        x, pad, *rest = args
        assert isinstance(x, QValue)
        if "constant_pad_nd" in str(target):
            return x.replace(b.function(target, x.value, pad, x.zero_point))
        if str(target) != "aten.pad.default":
            return x.replace(b.function(target, x.value, pad))
        mode = rest[0] if rest else "constant"
        value = [x.zero_point] if mode == "constant" else []
        return x.replace(b.function(target, x.value, pad, mode, *value))
