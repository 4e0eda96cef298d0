"""The contract of fake quantizers: they own the qparams of one tensor and simulate its rounding.

In training :meth:`FakeQuantize.fake_quantize`, which a plug-in writes, decides value and gradient.
In eval mode every fake quantizer computes the one formula of :mod:`qcore.numerics` with its
:meth:`FakeQuantize.qparams`, so that what is deployed equals what is simulated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._state import LateBuffers
from .config import QScheme
from .errors import QuantizationError
from .numerics import dequantize_tensor, quantize_tensor
from .observer import Observer, calculate_together
from .qparams import QParams

__all__ = ["FakeQuantize", "refresh_together", "straight_through"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient_of: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def straight_through(value: Tensor, gradient_of: Tensor) -> Tensor:
    """``value``, bit for bit, with the gradient of ``gradient_of``.

    Args:
        value: any shape; gets no gradient.
        gradient_of: same shape; gets the incoming gradient unchanged.
    """
    if not (torch.is_grad_enabled() and gradient_of.requires_grad):
        return value.detach()
    result: Tensor = _StraightThrough.apply(value.detach(), gradient_of)  # type: ignore[no-untyped-call]
    return result


class FakeQuantize(LateBuffers):
    """Base of all fake quantizers: an observer, the switches, and the qparams of one tensor.

    Args:
        scheme: what to quantize to.
        observer: finds the range; its answer is computed once after it has seen values, not at
            every forward.
        where: the place, for error messages.

    Attributes:
        observer_enabled: forward shows its input to the observer.
        fake_quant_enabled: forward returns quantized values; else its input.
        of_weight: it quantizes a weight; else activations, whose first dimension is the batch.
        scale, zero_point: buffers, None until known; shaped by the scheme's granularity.

    ``state_dict`` holds the qparams, the observer's statistics and the switches, so that a fresh
    one that loads it behaves as this one does.

    A learned fake quantizer derives from :class:`qcore.LearnedFakeQuantize`.
    """

    scale: Tensor | None
    zero_point: Tensor | None

    def __init__(self, *, scheme: QScheme, observer: Observer, where: str = "") -> None:
        super().__init__()
        self.scheme = scheme
        self.observer = observer
        self.where = where
        self.observer_enabled = True
        self.fake_quant_enabled = True
        self.of_weight = False
        self._stale = False
        self._current: QParams | None = None
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        """Quantized values of ``x`` with the gradient of the method; what a plug-in writes.

        Args:
            x: any shape, floating point.
            qparams: the current ones.

        Returns:
            Tensor shaped like ``x`` and of its dtype, on the lattice ``(q - zero_point) * scale``.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Observes and quantizes, as the switches say."""
        if self.observer_enabled:
            self.observe(x)
        if not self.fake_quant_enabled:
            return x
        qparams = self.qparams()
        if self.training:
            return self.fake_quantize(x, qparams)
        exact = dequantize_tensor(quantize_tensor(x.detach(), qparams), qparams).to(x.dtype)
        if torch.is_grad_enabled() and x.requires_grad:
            return straight_through(exact, self.fake_quantize(x, qparams))
        return exact

    def observe(self, x: Tensor) -> None:
        """Shows ``x`` to the observer; the qparams are found anew when next asked for."""
        self.observer(x)
        self._stale = self._stale or x.numel() > 0

    def qparams(self) -> QParams:
        """The current qparams.

        Raises:
            QuantizationError: none were set and nothing was observed; names the layer.
        """
        if self._stale and self.observer.seen:
            self.set_qparams(self.observer.calculate_qparams())
        if self.scale is None or self.zero_point is None:
            self.observer.require_seen()
            self.set_qparams(self.observer.calculate_qparams())
        assert self.scale is not None
        assert self.zero_point is not None
        if torch.compiler.is_compiling():
            return QParams.unchecked(
                scale=self.scale, zero_point=self.zero_point, scheme=self.scheme
            )
        # Checked once for each pair of tensors: on a GPU the check waits for the device.
        current = self._current
        if (
            current is None
            or current.scale is not self.scale
            or current.zero_point is not self.zero_point
        ):
            current = QParams(scale=self.scale, zero_point=self.zero_point, scheme=self.scheme)
            self._current = current
        return current

    def set_qparams(self, qparams: QParams) -> None:
        """Fixes the qparams, from the observer or from outside; ends a pending refresh.

        Raises:
            QuantizationError: they are of another scheme.
        """
        if qparams.scheme != self.scheme:
            raise QuantizationError(
                f"layer {self.where!r}: qparams of {qparams.scheme.describe()} given to a "
                f"quantizer of {self.scheme.describe()}"
            )
        self.scale = qparams.scale.detach().clone()
        self.zero_point = qparams.zero_point.detach().clone()
        self._stale = False

    @property
    def calibrated(self) -> bool:
        """Whether :meth:`qparams` has an answer."""
        return self.scale is not None or self.observer.seen

    def get_extra_state(self) -> Tensor:
        """The switches, and whether the qparams are due to be found anew; uint8 ``[3]``."""
        state = (self.observer_enabled, self.fake_quant_enabled, self._stale)
        return torch.tensor(state, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Counterpart of :meth:`get_extra_state`."""
        self.observer_enabled, self.fake_quant_enabled, self._stale = map(bool, state.tolist())

    def extra_repr(self) -> str:
        return (
            f"{self.scheme.describe()}, observer_enabled={self.observer_enabled}, "
            f"fake_quant_enabled={self.fake_quant_enabled}"
        )


def refresh_together(quantizers: Sequence[FakeQuantize]) -> None:
    """Finds the qparams of several quantizers, as each would when it is next asked for them.

    Raises:
        QuantizationError: none were set and nothing was observed; names the layer.
    """
    due = [q for q in quantizers if q._stale and q.observer.seen]
    for quantizer, qparams in zip(due, calculate_together([q.observer for q in due]), strict=True):
        quantizer.set_qparams(qparams)
    for quantizer in quantizers:
        quantizer.qparams()
