"""Pools over images of bytes."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from qcore import BackendError

from .convolution import two_dimensional
from .layer import (
    BYTES,
    Given,
    Layer,
    channels_last,
    contiguous,
    in_layout,
    output_multiplier,
    output_record,
    plain,
    storage_of,
    stored_zero,
    why_no_output,
)
from .memory import Value
from .planner import Planner
from .records import Kind, Pool, Window
from .weights import LANES, padded

__all__ = ["GlobalAverage", "MaxPool"]

_LARGEST_AREA = 2**22
"""Pixels whose sum 32 bits hold."""


def batched(x: Value, dims: int) -> Value:
    """Images ``[C, *spatial]`` as a batch of one; others as they are."""
    return x if x.layout.ndim > dims + 1 else x.like(x.layout.unsqueeze(0))


class MaxPool(Layer):
    """``qmax_pool`` in one or two dimensions."""

    label: ClassVar[str] = "maximum"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        if storage_of(given["x"]) not in BYTES:
            return "the input is no 8-bit tensor"
        if given["ceil_mode"]:
            return "windows may hang over the edge (ceil_mode)"
        if len(given["kernel"]) > 2:
            return "it has three spatial dimensions"
        return None

    def __init__(self, given: Given) -> None:
        kernel = list(given["kernel"])
        self.dims = len(kernel)
        self.geometry = {
            "kernel": two_dimensional(kernel, 1),
            "stride": two_dimensional(list(given["stride"]) or kernel, 1),
            "pad": two_dimensional(given["padding"], 0),
            "dilation": two_dimensional(given["dilation"], 1),
        }

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        x = batched(inputs["x"], self.dims)
        x = in_layout(planner, x, channels_last(x.shape))
        whole = channels_last((*x.shape[:2], *expected.shape[-self.dims :]))
        y = planner.new(whole, x.dtype)
        sizes = {"pixel": x.shape[1]}
        images = [two_dimensional(t.shape[2:], 1) for t in (x, y)]
        for i, side in enumerate("hw"):
            sizes |= {side: images[0][i], f"out_{side}": images[1][i]}
            sizes |= {f"{name}_{side}": values[i] for name, values in self.geometry.items()}
        record = Pool(batch=x.shape[0], channels=x.shape[1], window=Window(**sizes))
        planner.add(Kind.MAX_POOL, record, x=x, output_y=y)
        return y if expected.ndim == y.layout.ndim else y.like(y.layout[0])


class GlobalAverage(Layer):
    """``qadaptive_avg_pool`` to one value a channel."""

    label: ClassVar[str] = "average of the image"
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        if storage_of(given["x"]) not in BYTES:
            return "the input is no 8-bit tensor"
        if any(size != 1 for size in given["output_size"]):
            return "it gives more than one value a channel"
        return why_no_output(given)

    def __init__(self, given: Given) -> None:
        self.options = plain(given)
        self.dtype: torch.dtype = given["y_dtype"]
        self.x_zero = stored_zero(given["x_zero_point"], storage_of(given["x"]))
        self._constants: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        x = batched(inputs["x"], len(self.options["output_size"]))
        x = in_layout(planner, x, channels_last(x.shape))
        batch, channels = x.shape[:2]
        area = math.prod(x.shape[2:])
        if area > _LARGEST_AREA:
            raise BackendError(
                f"backend 'native': the sum over an image of {area} pixels could exceed 32 bits; "
                f"at most {_LARGEST_AREA} are exact. Lower to 'reference'"
            )
        # One value a channel lies the same in every order.
        y = planner.new(contiguous(expected.shape), self.dtype)
        output = output_record(self.options)
        output.y_row = channels
        record = Pool(
            output=output,
            batch=batch,
            channels=channels,
            window=Window(h=1, w=area, pixel=channels),
        )
        scale, bias = self._constants_of(channels, area)
        planner.add(
            Kind.SUM_POOL,
            record,
            x=x,
            scale=planner.constant(scale),
            bias=planner.constant(bias),
            output_y=y,
        )
        return y

    def _constants_of(self, channels: int, area: int) -> tuple[Tensor, Tensor]:
        """Multiplier and start of each channel's sum."""
        key = (channels, area)
        if key not in self._constants:
            lanes = padded(channels, LANES)
            step = torch.tensor(self.options["x_scale"], dtype=torch.float32)
            factor = output_multiplier(self.options, step / torch.tensor(float(area)))
            start = torch.full((lanes,), -area * self.x_zero, dtype=torch.int32)
            self._constants[key] = (factor.expand(lanes).contiguous(), start)
        return self._constants[key]
