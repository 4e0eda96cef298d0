"""Convolutions in one and two dimensions, as matrix products of gathered windows, or by channel."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocking import blocks, uses_tiles
from .layer import (
    BYTES,
    Given,
    Layer,
    channels_last,
    constant,
    in_layout,
    output_multiplier,
    output_record,
    plain,
    storage_of,
    stored_zero,
)
from .memory import Value
from .planner import Planner
from .records import Depthwise, Gather, Gemm, Kind, Window
from .weights import (
    DEPTH_STEP,
    LANES,
    channel_multipliers,
    grouped_lanes,
    pack_panels,
    padded,
    prepared_bias,
    weight_of,
    why_no_layer,
)

__all__ = ["Convolution", "DepthwiseConvolution"]

_GATHER_ROWS = 16


def two_dimensional(sizes: Sequence[int], fill: int) -> list[int]:
    """Options of a convolution along one or two dimensions, for two."""
    return [fill] * (2 - len(sizes)) + list(sizes)


class _Windows(Layer):
    """What both convolutions share: scales, padding and the residual."""

    inputs: ClassVar[tuple[str, ...]] = ("x", "other")

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        why = why_no_layer(given)
        if why is not None:
            return why
        if given["other"] is not None and storage_of(given["other"]) not in BYTES:
            return "the residual is no 8-bit tensor"
        weight = constant(given["w"])
        if weight is not None and weight.ndim not in (3, 4):
            return "it has three spatial dimensions"
        if any(p < 0 for p in given["padding"]):
            return "the padding is negative"
        x_zero = stored_zero(given["x_zero_point"], storage_of(given["x"]))
        if any(given["padding"]) and not 0 <= x_zero <= 255:
            return "the zero point of the input, which pads it, is not an 8-bit integer"
        return None

    def __init__(self, given: Given) -> None:
        weight = weight_of(given)
        self.weight = weight.unsqueeze(2) if weight.ndim == 3 else weight
        self.geometry = {
            "stride": two_dimensional(given["stride"], 1),
            "pad": two_dimensional(given["padding"], 0),
            "dilation": two_dimensional(given["dilation"], 1),
        }
        self.x_zero = stored_zero(given["x_zero_point"], storage_of(given["x"]))
        self.multiplier = channel_multipliers(given, weight)
        self.bias = prepared_bias(given, weight)
        self.dtype: torch.dtype = given["y_dtype"]
        self.options = plain(given)
        self.other_scale, self.other_zero = 0.0, 0
        if given["other"] is not None:
            step = torch.tensor(given["other_scale"], dtype=torch.float32)
            self.other_scale = float(output_multiplier(given, step))
            self.other_zero = stored_zero(given["other_zero_point"], storage_of(given["other"]))

    def output(self, channels: int) -> Any:
        """The last step, for pixels of ``channels`` values."""
        record = output_record(
            self.options, other_scale=self.other_scale, other_zero=self.other_zero
        )
        record.y_row = record.other_row = channels
        return record

    def window(self, x: Tensor, y: Tensor) -> Window:
        """The window over images ``x`` that gives ``y``, both channels last."""
        kernel = self.weight.shape[2:]
        sizes: dict[str, int] = {"pixel": x.shape[1]}
        images = [two_dimensional(t.shape[2:], 1) for t in (x, y)]
        for i, side in enumerate("hw"):
            sizes |= {side: images[0][i], f"out_{side}": images[1][i]}
            sizes[f"kernel_{side}"] = kernel[i]
            sizes |= {f"{name}_{side}": values[i] for name, values in self.geometry.items()}
        return Window(**sizes)

    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        x = in_layout(planner, inputs["x"], channels_last(inputs["x"].shape))
        other = inputs.get("other")
        if other is not None:
            other = in_layout(planner, other, channels_last(other.shape))
        y = planner.new(channels_last(expected.shape), self.dtype)
        self.write_layer(planner, x, other, y)
        return y

    def write_layer(self, planner: Planner, x: Value, other: Value | None, y: Value) -> None:
        """Adds the operation; all tensors are channels last."""
        raise NotImplementedError


class Convolution(_Windows):
    """``qconv`` as a matrix product of the window's values, at each pixel, by the weight."""

    label: ClassVar[str] = "matrix product of windows"

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.groups: int = given["groups"]
        rows = self.weight.movedim(1, -1).to(torch.int8)
        self.depth = rows[0].numel()
        self.panels = pack_panels(rows.reshape(self.groups, -1, self.depth))
        self.biases = grouped_lanes(self.bias, self.groups)
        self.scales = grouped_lanes(self.multiplier, self.groups)

    def write_layer(self, planner: Planner, x: Value, other: Value | None, y: Value) -> None:
        channels = y.shape[1]
        rows = y.layout.numel() // channels
        columns = channels // self.groups
        depth = padded(self.depth, DEPTH_STEP)
        window = self.window(x.layout, y.layout)
        cut = blocks(planner, products=self.groups, rows=rows, columns=columns, depth=depth)
        gathers = not self._reads_pixels(window)
        record = Gemm(
            output=self.output(channels),
            outer=1,
            inner=self.groups,
            x_inner=x.shape[1] // self.groups,
            weight_inner=self.panels[0].numel(),
            bias_inner=self.biases.shape[1],
            scale_inner=self.scales.shape[1],
            y_inner=columns,
            x_row=x.shape[1],
            rows=rows,
            columns=columns,
            depth=self.depth,
            depth_padded=depth,
            rows_a_task=cut.rows,
            panels_a_task=cut.panels,
            channels=x.shape[1] // self.groups,
            window=window,
            gathers=int(gathers),
            padding_value=self.x_zero if 0 <= self.x_zero <= 255 else 0,
            tiles=int(uses_tiles(planner, rows)),
        )
        source: Any = x
        if gathers and cut.splits_columns and self.groups == 1:
            # Each task would gather all rows again.
            source = self._gathered(planner, x, record)
        planner.reads_rows(record.x_row)
        planner.add(
            Kind.GEMM,
            record,
            x=source,
            weight=planner.constant(self.panels),
            bias=planner.constant(self.biases),
            scale=planner.constant(self.scales),
            output_y=y,
            output_other=other,
        )

    def _reads_pixels(self, window: Window) -> bool:
        """Whether the rows of the product are the pixels of the image as they lie."""
        one = window.kernel_h == window.kernel_w == window.stride_h == window.stride_w == 1
        return bool(one and not window.pad_h and not window.pad_w)

    @staticmethod
    def _gathered(planner: Planner, x: Value, record: Gemm) -> Any:
        """The rows of the product, written out once; the product then reads them."""
        rows = planner.new_bytes(record.rows * record.depth_padded)
        gather = Gather(
            rows=record.rows,
            channels=record.channels,
            depth_padded=record.depth_padded,
            rows_a_task=_GATHER_ROWS,
            window=record.window,
            padding_value=record.padding_value,
        )
        planner.add(Kind.GATHER, gather, x=x, y=rows)
        record.gathers = 0
        record.x_row = record.depth_padded
        return rows


class DepthwiseConvolution(_Windows):
    """``qconv`` with as many groups as channels in and out."""

    label: ClassVar[str] = "depthwise"

    @classmethod
    def why_not(cls, given: Given) -> str | None:
        weight = constant(given["w"])
        if weight is not None and not len(weight) == given["groups"] > 1:
            return "it is not depthwise"
        if weight is not None and weight.shape[1] != 1:
            return "it is not depthwise"
        return super().why_not(given)

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        channels, _, height, width = self.weight.shape
        taps = self.weight.reshape(channels, height, width).to(torch.int8)
        full = F.pad(
            taps, (0, 0, 0, padded(height, 4) - height, 0, padded(channels, LANES) - channels)
        )
        # [C, H / 4, 4, W] to [W, H / 4, C, 4].
        words = full.reshape(len(full), -1, 4, width).permute(3, 1, 0, 2)
        self.words = words.contiguous()
        self.biases = grouped_lanes(self.bias, 1)
        self.scales = grouped_lanes(self.multiplier, 1)

    def write_layer(self, planner: Planner, x: Value, other: Value | None, y: Value) -> None:
        record = Depthwise(
            output=self.output(y.shape[1]),
            batch=x.shape[0],
            channels=y.shape[1],
            channels_padded=self.words.shape[2],
            window=self.window(x.layout, y.layout),
            padding_value=self.x_zero if 0 <= self.x_zero <= 255 else 0,
        )
        planner.add(
            Kind.DEPTHWISE,
            record,
            x=x,
            weight=planner.constant(self.words),
            bias=planner.constant(self.biases),
            scale=planner.constant(self.scales),
            output_y=y,
            output_other=other,
        )
