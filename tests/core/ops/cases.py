"""Calls of the layers' operations, with what the oracle says that they give."""

import itertools
from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

import qcore.ops  # noqa: F401  (registers the operations)
from qcore import BackendError, Numerics

from . import oracle

Q = torch.ops.qcore


def _allowed() -> list[str]:
    keys = []
    for values in itertools.product(*Numerics.ALLOWED.values()):
        try:
            keys.append(Numerics(**dict(zip(Numerics.ALLOWED, values, strict=True))).key)
        except BackendError:
            continue
    return keys


CONTRACTS = _allowed()
"""The keys of every arithmetic contract that may be asked for."""

DEFAULT = Numerics().key


def ints(
    shape: Sequence[int],
    dtype: torch.dtype = torch.int8,
    *,
    low: int | None = None,
    high: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Uniform integers of a storage dtype, all of its range unless told otherwise."""
    info = torch.iinfo(dtype)
    low = info.min if low is None else low
    high = info.max if high is None else high
    generator = torch.Generator().manual_seed(seed + 1000 * sum(shape))
    return torch.randint(low, high + 1, tuple(shape), generator=generator).to(dtype)


def wide(q: Tensor) -> oracle.Ints:
    """A tensor of integers for the oracle."""
    return q.numpy().astype(np.int64)


@attrs.frozen(kw_only=True)
class Activation:
    """Integers with their scale and zero point."""

    q: Tensor
    scale: float = 0.02
    zero_point: int = 0

    def centred(self) -> oracle.Ints:
        """Integers less the zero point."""
        return wide(self.q) - self.zero_point


@attrs.frozen(kw_only=True)
class Target:
    """The last six arguments of a computing operation."""

    scale: float = 0.1
    zero_point: int = 0
    low: int = -128
    high: int = 127
    dtype: torch.dtype = torch.int8
    numerics: str = DEFAULT

    @property
    def args(self) -> tuple[float, int, int, int, torch.dtype, str]:
        """As the operations take them."""
        return (self.scale, self.zero_point, self.low, self.high, self.dtype, self.numerics)

    @property
    def contract(self) -> oracle.Contract:
        """As the oracle takes them."""
        rounding, requantization, _, place, _ = self.numerics.split(".")
        return oracle.Contract(
            scale=self.scale,
            zero_point=self.zero_point,
            low=self.low,
            high=self.high,
            rounding=rounding,
            requantization=requantization,
            before=place == "before",
            as_float=self.dtype == torch.float32,
        )

    @property
    def saturates(self) -> bool:
        """Whether the accumulator is that of 16-bit pairs."""
        return self.numerics.endswith("int16_pairs")


@attrs.frozen(kw_only=True)
class Layer:
    """What convolutions and linear layers have in common."""

    x: Activation
    w: Tensor
    w_scale: Tensor
    w_zero_point: Tensor | None = None
    bias: Tensor | None = None
    y: Target = attrs.field(factory=Target)

    def operands(self) -> tuple[object, ...]:
        """The first seven arguments."""
        x = self.x
        return (x.q, x.scale, x.zero_point, self.w, self.w_scale, self.w_zero_point, self.bias)

    def step(self) -> oracle.Floats:
        """``float32(x_scale * w_scale)``."""
        return np.float32(self.x.scale) * self.w_scale.numpy()

    def weights(self, axis: int = 0) -> oracle.Ints:
        """Weights less their zero point."""
        zero_point = self.w_zero_point
        if zero_point is None:
            return wide(self.w)
        shape = [1] * self.w.ndim
        shape[axis] = -1
        return wide(self.w) - wide(zero_point).reshape(shape)


def _along_channels(values: np.ndarray, like: Tensor) -> np.ndarray:
    return values if values.ndim == 0 else values.reshape(-1, *[1] * (like.ndim - 2))


@attrs.frozen(kw_only=True)
class Conv(Layer):
    """A call of ``qconv``, or of ``qconv_transpose`` if there is an output padding."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1
    other: Activation | None = None
    output_padding: Sequence[int] | None = None

    def args(self) -> tuple[object, ...]:
        """All arguments."""
        if self.output_padding is not None:
            window = (self.stride, self.padding, self.output_padding, self.dilation, self.groups)
            return (*self.operands(), *window, *self.y.args)
        window = (self.stride, self.padding, self.dilation, self.groups)
        o = self.other
        residual = (None, 1.0, 0) if o is None else (o.q, o.scale, o.zero_point)
        return (*self.operands(), *window, *residual, *self.y.args)

    def actual(self) -> Tensor:
        """What the operation gives."""
        return (Q.qconv if self.output_padding is None else Q.qconv_transpose)(*self.args())

    def accumulator(self) -> oracle.Ints:
        """Sums without bias."""
        window = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if self.output_padding is not None:
            x, w = self.x.centred(), self.weights(axis=1)
            return oracle.conv_transpose(x, w, output_padding=self.output_padding, **window)
        if self.y.saturates:
            x = wide(self.x.q)
            return oracle.saturating_conv(x, self.x.zero_point, self.weights(), **window)
        return oracle.conv(self.x.centred(), self.weights(), **window)

    def scale(self) -> oracle.Floats:
        """The accumulator's step, shaped to broadcast."""
        step = self.step()
        if self.output_padding is not None and step.ndim:
            step = np.tile(step, self.groups)
        return _along_channels(step, self.w)

    def expected(self) -> np.ndarray:
        """What the oracle says."""
        o = self.other
        return oracle.finish(
            self.accumulator(),
            self.scale(),
            self.y.contract,
            bias=None if self.bias is None else _along_channels(self.bias.numpy(), self.w),
            other=None if o is None else o.centred(),
            other_scale=1.0 if o is None else o.scale,
        )


@attrs.frozen(kw_only=True)
class Linear(Layer):
    """A call of ``qlinear``."""

    def args(self) -> tuple[object, ...]:
        """All arguments."""
        return (*self.operands(), *self.y.args)

    def actual(self) -> Tensor:
        """What the operation gives."""
        return Q.qlinear(*self.args())

    def _sums(self, columns: slice) -> oracle.Ints:
        zero_point = self.w_zero_point
        if zero_point is not None and zero_point.ndim == 2:
            width = self.w.shape[1] // zero_point.shape[1]
            w = wide(self.w) - np.repeat(wide(zero_point), width, axis=1)
        else:
            w = self.weights()
        w = w[:, columns]
        if not self.y.saturates:
            return oracle.linear(self.x.centred()[..., columns], w)
        raw = oracle.saturating_linear(wide(self.x.q)[..., columns], w)
        return raw - self.x.zero_point * w.sum(1)

    def expected(self) -> np.ndarray:
        """What the oracle says."""
        bias = None if self.bias is None else self.bias.numpy()
        step = self.step()
        if step.ndim < 2:
            sums = self._sums(slice(None))
            return oracle.finish(sums, step, self.y.contract, bias=bias)
        groups = step.shape[1]
        width = self.w.shape[1] // groups
        total = None
        for g in range(groups):
            sums = self._sums(slice(g * width, (g + 1) * width))
            term = sums.astype(np.float32) * step[:, g]
            total = term if total is None else total + term
        assert total is not None
        total = total if bias is None else total + bias
        return oracle.finish(total, np.float32(1), self.y.contract)


def assert_equal(case: Conv | Linear) -> np.ndarray:
    """Fails unless the operation gives the oracle's output, in every value; returns that."""
    expected = case.expected()
    actual = case.actual()
    assert actual.dtype == case.y.dtype
    np.testing.assert_array_equal(actual.numpy(), expected)
    return expected
