"""The contract of converters: one operation of a QFloat model, written once for float and for
integers.

A converter's target is a :class:`QFloatOp`. Its author writes

- :meth:`QFloatOp.compute`: the float result on (fake-quantized) inputs, for calibration and
  training;
- :meth:`QFloatOp.emit`: the operations of Q.

``convert`` runs ``emit`` with a builder that writes a graph. QFloat in eval mode runs the same
``emit`` with a builder that executes at once. So both compute the same integers by construction.

Operations that only move or select values (reshape, max pool, ...) are :class:`Movement`: they keep
the scale and zero point of their input and need no quantizer of their own. What is never quantized
has an :class:`Island`, so that the plan says why.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from . import ops as _ops  # registers torch.ops.qcore
from .config import QConfig
from .dtypes import QDtype
from .dynamic_quantize import DynamicQuantize
from .fake_quantize import FakeQuantize, straight_through
from .numerics import Numerics, round_to_int, storage
from .qparams import QParams

if TYPE_CHECKING:
    from .match import Match, Step

__all__ = [
    "Builder",
    "ChannelOp",
    "Eager",
    "Island",
    "Movement",
    "QFloatOp",
    "QValue",
    "Quantizers",
]

del _ops


@attrs.frozen(kw_only=True, eq=False)
class QValue:
    """A quantized value of a program: the integers and what they mean.

    Args:
        value: a tensor of integers (eager), or the graph node that makes it.
        scale: the scale, a float32 number.
        zero_point: the integer that stands for 0.
        dtype: the range in use.
    """

    value: Any
    scale: float
    zero_point: int
    dtype: QDtype

    @classmethod
    def of(cls, value: Any, qparams: QParams) -> "QValue":
        """``value`` with per-tensor qparams."""
        return cls(
            value=value,
            scale=float(qparams.scale),
            zero_point=int(qparams.zero_point),
            dtype=qparams.scheme.dtype,
        )

    def replace(self, value: Any) -> "QValue":
        """Another value with the same meaning of the integers."""
        return attrs.evolve(self, value=value)


class Builder(Protocol):
    """What :meth:`QFloatOp.emit` writes its operations with."""

    def call(self, op: str, *args: Any) -> Any:
        """The operation ``torch.ops.qcore.<op>`` on values and literals."""

    def function(self, target: Callable[..., Any], *args: Any) -> Any:
        """Any other function, such as ``torch.ops.aten.relu.default``."""

    def constant(self, name: str, value: Tensor) -> Any:
        """A tensor of the program, named after the operation's own name."""


class Eager:
    """Executes each operation at once."""

    def call(self, op: str, *args: Any) -> Any:
        return getattr(torch.ops.qcore, op).default(*args)

    def function(self, target: Callable[..., Any], *args: Any) -> Any:
        return target(*args)

    def constant(self, name: str, value: Tensor) -> Any:
        return value


class Quantizers(Protocol):
    """What :meth:`QFloatOp.from_match` gets to build the quantizers of its weights."""

    qconfig: QConfig
    where: str

    def weight(self, ch_axis: int = 0, name: str = "weight") -> FakeQuantize:
        """The fake quantizer of a weight whose output channels are dimension ``ch_axis``."""

    def activation(self, name: str) -> FakeQuantize:
        """The fake quantizer of a value inside the operation, by the scheme of its inputs."""

    def dynamic(self) -> DynamicQuantize | None:
        """What quantizes the inputs at run time; None where they are static, or stay float."""


class Movement:
    """Base of operations that move or select values and keep their qparams."""

    @staticmethod
    def why_not(step: "Step") -> str | None:
        """Why this call can't run on integers; None if it can."""
        return None

    @staticmethod
    def emit(b: Builder, target: Callable[..., Any], args: Sequence[Any]) -> Any:
        """The call on integers.

        Args:
            b: the builder.
            target: an aten overload, or ``operator.getitem``.
            args: its arguments by position; the moved input is a :class:`QValue`.

        Returns:
            QValue
        """
        moved = next(a for a in args if isinstance(a, QValue))
        plain = [a.value if isinstance(a, QValue) else a for a in args]
        return moved.replace(b.function(target, *plain))


class Island:
    """Base of converters of operations that stay float by policy: they only say why."""

    @staticmethod
    @abstractmethod
    def reason(step: "Step") -> str:
        """Why this call stays float; the plan shows it."""


class QFloatOp(nn.Module):
    """Base of the operations of a QFloat model.

    Attributes:
        anchor: the operation is worth quantizing for its own sake (convolutions, linear layers,
            matrix products), even if its inputs must be quantized for it. Others are quantized
            where their inputs are integers anyway.
        program_op: the operation of Q that it becomes, as plans show it (``"qconv"``).
        dynamic_op: the operation of Q that it becomes where its inputs are quantized at run time;
            empty if there is none.
        float_output: it always gives float, and so may give several tensors.
        weight_only: it quantizes its weight and nothing else, whatever the recipe says of
            activations.
        input_quantizers: the quantizer that each input went through; they belong to other modules.
            None at all where inputs are float: only the weight is quantized, or the inputs are at
            run time.
        dynamic: what simulates the quantization of inputs at run time, which
            :meth:`Quantizers.dynamic` gave; None without.
        output_quantizer: the operation's own; None where only float operations follow.
        numerics: the contract it was prepared for.
        batch_norm_frozen: a BatchNorm that the operation took in uses its running statistics in
            training too, and leaves them as they are; see :func:`qcore.freeze_batch_norm`.
        batch_norm_fold: ``"approximate"`` or ``"exact"``: how it is simulated in training; see
            :func:`qcore.set_batch_norm_fold`.
    """

    anchor: ClassVar[bool] = False
    program_op: ClassVar[str] = ""
    dynamic_op: ClassVar[str] = ""
    float_output: ClassVar[bool] = False
    weight_only: ClassVar[bool] = False

    dynamic: DynamicQuantize | None
    output_quantizer: FakeQuantize | None

    def __init__(self) -> None:
        super().__init__()
        self.dynamic = None
        self.output_quantizer = None
        self.numerics = Numerics()
        self.batch_norm_frozen = False
        self.batch_norm_fold = "approximate"
        # In a tuple, so that quantizers of other modules aren't registered here a second time.
        self._links: tuple[FakeQuantize, ...] = ()

    # What an author writes.

    @classmethod
    def why_not(cls, match: "Match", qconfig: QConfig) -> str | None:
        """Why this match can't be quantized as asked; None if it can.

        Its inputs and its result are known to be float32, and its steps to have no other inputs.
        """
        return None

    @classmethod
    def why_not_by(cls, numerics: Numerics, qconfig: QConfig) -> str | None:
        """Why the operation is not defined by an arithmetic contract; None if it is."""
        return None

    @classmethod
    @abstractmethod
    def from_match(cls, match: "Match", quantizers: Quantizers) -> "QFloatOp":
        """The operation for a match; shares the parameters of the float modules."""

    @abstractmethod
    def compute(self, *xs: Tensor) -> Any:
        """The result before the output quantizer, in float, with gradients.

        Args:
            xs: float tensors, fake-quantized if that is switched on; then the plain ones.

        Returns:
            A tensor. An operation that always gives float may give a tuple of them.
        """

    @abstractmethod
    def emit(self, b: Builder, *xs: QValue) -> Any:
        """The operations of Q.

        Returns:
            :class:`QValue` by :meth:`result` if there is an output quantizer, else a float value,
            or a tuple of them.
        """

    # What the base class does with it.

    @property
    def input_quantizers(self) -> tuple[FakeQuantize, ...]:
        return self._links

    def link(
        self,
        inputs: Sequence[FakeQuantize],
        output: FakeQuantize | None,
        numerics: Numerics,
    ) -> None:
        """Connects the operation with the quantizers of its edges."""
        self._links = tuple(inputs)
        self.output_quantizer = output
        self.numerics = numerics

    def weight_quantizers(self) -> Iterator[tuple[FakeQuantize, Tensor]]:
        """Each weight quantizer with the tensor it now quantizes."""
        yield from ()

    def inner_quantizers(self) -> Iterator[FakeQuantize]:
        """The quantizers of values inside the operation, which ``Quantizers.activation`` gave."""
        yield from ()

    def observe_weights(self) -> None:
        """Shows each weight to its observer, once and anew."""
        for quantizer, weight in self.weight_quantizers():
            quantizer.observer.reset()
            quantizer.observe(weight)

    @property
    def exact(self) -> bool:
        """Whether forward computes the integers of Q: eval mode, and every quantizer switched
        on."""
        if self.training or (self.dynamic is not None and not self.dynamic.fake_quant_enabled):
            return False
        return all(q.fake_quant_enabled for q in self._quantizers())

    def _quantizers(self) -> Iterator[FakeQuantize]:
        yield from self._links
        yield from (quantizer for quantizer, _ in self.weight_quantizers())
        yield from self.inner_quantizers()
        if self.output_quantizer is not None:
            yield self.output_quantizer

    def forward(self, *xs: Tensor) -> Any:
        """Float, fake-quantized or exact, by mode and switches; float tensors in and out."""
        if not self.exact:
            return self._simulate(*xs)
        with torch.no_grad():
            if any(q.observer_enabled for q in self._quantizers() if q not in self._links):
                # Observers look at float values, which the exact way does not have.
                self._simulate(*xs)
            y = self._exact(*xs)
        if torch.is_grad_enabled() and any(
            t.requires_grad for t in (*xs, *self.parameters()) if t is not None
        ):
            return pytree.tree_map(straight_through, y, self._simulate(*xs))
        return y

    def _simulate(self, *xs: Tensor) -> Any:
        y = self.compute(*xs)
        if self.output_quantizer is not None:
            y = self.output_quantizer(y)
        return y

    def _exact(self, *xs: Tensor) -> Any:
        b = Eager()
        inputs: list[Any] = list(xs)
        for i, quantizer in enumerate(self._links):
            inputs[i] = self.integers(b, xs[i], quantizer.qparams())
        return self.floats(b, self.emit(b, *inputs))

    @staticmethod
    def integers(b: Builder, x: Any, qparams: QParams) -> QValue:
        """A float value as a quantized one."""
        meaning = QValue.of(x, qparams)
        dtype = meaning.dtype
        return meaning.replace(
            b.call(
                "quantize",
                x,
                meaning.scale,
                meaning.zero_point,
                dtype.quant_min,
                dtype.quant_max,
                storage(dtype),
                "half_even",
            )
        )

    @staticmethod
    def floats(b: Builder, y: Any) -> Any:
        """A value as a float one."""
        if not isinstance(y, QValue):
            return y
        return b.call("dequantize", y.value, y.scale, y.zero_point)

    def output_args(
        self, low: float | None = None, high: float | None = None
    ) -> tuple[float, int, int, int, torch.dtype, str]:
        """The last six arguments of an operation of Q: qparams, clamp, storage, contract.

        Args:
            low, high: a fused clamp (relu is ``low=0``), in real values.
        """
        if self.output_quantizer is None:
            return 1.0, 0, 0, 0, torch.float32, self.numerics.key
        qparams = self.output_quantizer.qparams()
        y = QValue.of(None, qparams)
        y_min, y_max = y.dtype.quant_min, y.dtype.quant_max
        # Clamping before rounding to the lattice equals clamping the integers at the rounded
        # bounds.
        if low is not None:
            y_min = max(y_min, self._level(low, y))
        if high is not None:
            y_max = min(y_max, self._level(high, y))
        # As torch.clamp does where low is above high.
        y_min = min(y_min, y_max)
        return y.scale, y.zero_point, y_min, y_max, storage(y.dtype), self.numerics.key

    def _level(self, value: float, y: QValue) -> int:
        """The integer of a bound, which may be infinite, within the range."""
        low, high = y.dtype.quant_min - y.zero_point, y.dtype.quant_max - y.zero_point
        step = (torch.tensor(value) / torch.tensor(y.scale)).clamp(low, high)
        return int(round_to_int(step, self.numerics.rounding)) + y.zero_point

    def result(self, value: Any) -> Any:
        """``value`` as the operation's result: a QValue of the output quantizer, or float."""
        if self.output_quantizer is None:
            return value
        return QValue.of(value, self.output_quantizer.qparams())


class ChannelOp(QFloatOp):
    """Base of operations whose output channels can be scaled and shifted by their own parameters:
    convolutions, linear layers.

    Algorithms that correct what quantization does to the statistics of a layer need no more of it.

    Attributes:
        channel_dim: the dimension of :meth:`preactivation` that is the output channels.
    """

    channel_dim: ClassVar[int] = 1

    @abstractmethod
    def preactivation(self, x: Tensor) -> Tensor:
        """The result in eval mode before anything is added and before the clamp, by the quantized
        weight and a bias that is not rounded.

        Args:
            x: the first input, as :meth:`QFloatOp.compute` gets it.

        Returns:
            float, with N channels along :attr:`channel_dim`.
        """

    @property
    def why_no_gain(self) -> str | None:
        """Why a channel can't be multiplied without changing its integers; None if it can."""
        return None

    @property
    def why_no_shift(self) -> str | None:
        """Why nothing can be added to a channel; None if it can."""
        return None

    @abstractmethod
    def correct(self, gain: Tensor, shift: Tensor) -> None:
        """Makes :meth:`preactivation` ``gain * y + shift``, in place, by parameters and scales.

        The integers of the weight stay: its scale is multiplied with it.

        Args:
            gain: positive float32 ``[N]``; ones where :attr:`why_no_gain` says why.
            shift: float32 ``[N]``; zeros where :attr:`why_no_shift` says why.
        """
