"""LSTM, GRU and RNN layers and cells: both products of a step on integers, gates in float.

The input of a layer is multiplied with its weights for the whole sequence at once, the state step
by step. Products have integer accumulators and give float; the gates, the state and the cell stay
float. What is rounded is the operand of each product: the input of every layer, and the state. Each
has a scale of its own, found by calibration, or one a token at run time.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcore import (
    Builder,
    FakeQuantize,
    Match,
    Numerics,
    PerChannel,
    PerGroup,
    PerTensor,
    QConfig,
    QFloatOp,
    QScheme,
    QuantizationError,
    Quantizers,
    QValue,
    recurrent_step,
)

from .weights import integer_weight, put_float_weight, put_weight

__all__ = ["QFloatRecurrent", "QFloatRecurrentCell"]

aten = torch.ops.aten
_TO_FLOAT = (1.0, 0, 0, 0, torch.float32)


class _Recurrent(QFloatOp):
    """What layers and cells share: the parameters, and one pass of a sequence.

    Args:
        module: the float module.
        cell: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        passes: what follows the names of the parameters of each pass: ``"_l0_reverse"``.
        quantizers: of weights, and of inputs and states where these have a scale of their own.
    """

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qrecurrent"
    dynamic_op: ClassVar[str] = "qrecurrent"
    float_output: ClassVar[bool] = True

    def __init__(
        self, module: nn.Module, *, cell: str, passes: tuple[str, ...], quantizers: Quantizers
    ) -> None:
        super().__init__()
        self.cell = cell
        self.size = int(module.hidden_size)  # type: ignore[arg-type]
        for name, parameter in module.named_parameters(recurse=False):
            # The same Parameter objects, under their own names.
            self.register_parameter(name, parameter)
        self.dynamic = quantizers.dynamic()
        static = quantizers.qconfig.activation is not None and self.dynamic is None
        self.of_weights = nn.ModuleDict()
        self.of_states = nn.ModuleDict()
        self.of_inputs = nn.ModuleDict()
        for suffix in passes:
            for part in ("weight_ih", "weight_hh"):
                name = part + suffix
                self.of_weights[name] = quantizers.weight(0, name)
            if static:
                self.of_states[f"state{suffix}"] = quantizers.activation(f"state{suffix}")

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        module = match.first.module
        assert module is not None
        if getattr(module, "proj_size", 0):
            return "its state is projected (proj_size)"
        weights = [k for k in vars(module)["_parameters"] if k.startswith("weight")]
        if not {"weight_ih", "weight_hh"} <= {k.partition("_l")[0] for k in weights}:
            return (
                "its weights are computed from other parameters (weight norm, ...); make them "
                "parameters first"
            )
        value = match.inputs[0].meta.get("val") if match.inputs else None
        if isinstance(value, Tensor) and value.ndim != cls.dimensions:
            return "its input has no batch"
        assert qconfig.weight is not None
        scheme = qconfig.weight.scheme
        assert isinstance(scheme, QScheme)
        if not isinstance(scheme.granularity, PerTensor | PerChannel | PerGroup):
            return (
                f"weight scheme {scheme.describe()}: a recurrent layer takes per-tensor, "
                "per-channel or per-group scales"
            )
        for name in weights:
            shape = module.get_parameter(name).shape
            try:
                scheme.granularity.block_shape(shape)
            except QuantizationError as error:
                raise QuantizationError(
                    f"layer {match.name!r} ({match.first.kind}, {name} {list(shape)}): {error}; an "
                    "override for this layer can set another scheme"
                ) from None
        return None

    dimensions: ClassVar[int]
    """Of the input."""

    @classmethod
    def why_not_by(cls, numerics: Numerics, qconfig: QConfig) -> str | None:
        # Float results are the same by every contract, if only the sums are exact.
        if numerics.accumulator != "int32":
            return f"a recurrent layer has no accumulator {numerics.accumulator!r}"
        return None

    def weight_quantizers(self) -> Iterator[tuple[FakeQuantize, Tensor]]:
        for name, quantizer in self.of_weights.items():
            assert isinstance(quantizer, FakeQuantize)
            yield quantizer, self.get_parameter(name)

    def inner_quantizers(self) -> Iterator[FakeQuantize]:
        for quantizer in (*self.of_inputs.values(), *self.of_states.values()):
            assert isinstance(quantizer, FakeQuantize)
            yield quantizer

    def _quantized(self, name: str) -> Tensor:
        """A fake-quantized weight; an observer that is on sees this weight and no earlier one."""
        quantizer = self.of_weights[name]
        assert isinstance(quantizer, FakeQuantize)
        if quantizer.observer_enabled:
            quantizer.observer.reset()
        return quantizer(self.get_parameter(name))  # type: ignore[no-any-return]

    def _biases(self, suffix: str) -> tuple[Tensor | None, Tensor | None]:
        """Biases of the two products. Only in a GRU, whose gate multiplies it, is the second one
        on its own."""
        one, two = (getattr(self, f"{name}{suffix}", None) for name in ("bias_ih", "bias_hh"))
        if one is None or two is None:
            return None, None
        return (one, two) if self.cell == "gru" else (one + two, None)

    def _operand(self, x: Tensor, place: str) -> Tensor:
        """An operand of a product, fake-quantized."""
        if self.dynamic is not None:
            return self.dynamic(x)  # type: ignore[no-any-return]
        inner = self.of_states if place in self.of_states else self.of_inputs
        return inner[place](x) if place in inner else x

    def _sequence(
        self, x: Tensor, h: Tensor, c: Tensor | None, suffix: str, *, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One pass over ``[T, B, K]`` in float: the states, and the last state and cell."""
        first, second = self._biases(suffix)
        x = F.linear(x, self._quantized(f"weight_ih{suffix}"), first)
        weight = self._quantized(f"weight_hh{suffix}")
        states: list[Tensor] = []
        steps = range(x.shape[0])
        for t in reversed(steps) if reverse else steps:
            a = F.linear(self._operand(h, f"state{suffix}"), weight, second)
            h, c = recurrent_step(self.cell, x[t], a, h, c)
            states.append(h)
        return torch.stack(states[::-1] if reverse else states), h, c

    def _emit_sequence(
        self, b: Builder, x: Any, state: tuple[Any, Any] | None, suffix: str, *, reverse: bool
    ) -> tuple[Any, Any, Any]:
        """The same as operations of Q; ``x`` is a QValue, or float."""
        first, second = self._biases(suffix)
        gates = self._emit_gates(b, x, first, suffix)
        if state is None:
            row = b.function(aten.select.int, gates, 0, 0)
            row = b.function(aten.slice.Tensor, row, -1, 0, self.size)
            zeros = b.function(aten.zeros_like.default, row)
            state = zeros, zeros if self.cell == "lstm" else None
        kind, meaning = self._state(suffix)
        weight, quantizer = self._weight(f"weight_hh{suffix}")
        numerics = attrs.evolve(self.numerics, bias="float32")
        w = integer_weight(weight, None, quantizer, meaning, numerics)
        dtype = meaning.dtype
        result = b.call(
            "qrecurrent",
            gates,
            *state,
            *put_weight(b, w, f"weight_hh{suffix}")[:3],
            None if second is None else b.constant(f"bias_hh{suffix}", second),
            self.cell,
            reverse,
            kind,
            meaning.scale,
            meaning.zero_point,
            dtype.quant_min,
            dtype.quant_max,
        )
        last = b.function(aten.select.int, result, 0, 0 if reverse else -1)
        if self.cell != "lstm":
            return result, last, None
        parts = (
            b.function(aten.slice.Tensor, value, -1, *ends)
            for value, ends in (
                (result, (0, self.size)),
                (last, (0, self.size)),
                (last, (self.size, 2 * self.size)),
            )
        )
        y, h, c = parts
        return y, h, c

    def _emit_gates(self, b: Builder, x: Any, bias: Tensor | None, suffix: str) -> Any:
        """The share of the input in the gates, float."""
        name = f"weight_ih{suffix}"
        weight, quantizer = self._weight(name)
        if isinstance(x, QValue):
            w = integer_weight(weight, bias, quantizer, x, self.numerics)
            meaning = (x.scale, x.zero_point)
            to_float = (*_TO_FLOAT, self.numerics.key)
            return b.call("qlinear", x.value, *meaning, *put_weight(b, w, name), *to_float)
        if self.dynamic is not None:
            meaning_of = self._state(suffix)[1]
            numerics = attrs.evolve(self.numerics, bias="float32")
            w = integer_weight(weight, bias, quantizer, meaning_of, numerics)
            low, high = meaning_of.dtype.quant_min, meaning_of.dtype.quant_max
            return b.call("qlinear_dynamic", x, low, high, *put_weight(b, w, name))
        values = put_float_weight(b, weight, quantizer, name)
        constant = None if bias is None else b.constant(f"bias_ih{suffix}", bias)
        return b.function(aten.linear.default, x, values, constant)

    def _state(self, suffix: str) -> tuple[str, QValue]:
        """How the state is quantized for its product, and what its integers mean."""
        quantizer = self.of_states[f"state{suffix}"] if self.of_states else None
        if isinstance(quantizer, FakeQuantize):
            return "tensor", QValue.of(None, quantizer.qparams())
        if self.dynamic is not None:
            dtype = self.dynamic.scheme.dtype
            return "token", QValue(value=None, scale=1.0, zero_point=0, dtype=dtype)
        # No integers: the bound on their sum is that of nothing.
        dtype = next(iter(self.weight_quantizers()))[0].scheme.dtype
        return "float", QValue(value=None, scale=1.0, zero_point=0, dtype=dtype)

    def _weight(self, name: str) -> tuple[Tensor, FakeQuantize]:
        quantizer = self.of_weights[name]
        assert isinstance(quantizer, FakeQuantize)
        return self.get_parameter(name), quantizer


class QFloatRecurrent(_Recurrent):
    """``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``: any number of layers, both directions, any state.

    In training, dropout between layers is that of the float module.
    """

    dimensions: ClassVar[int] = 3

    def __init__(self, module: nn.RNNBase, quantizers: Quantizers) -> None:
        directions = ("", "_reverse") if module.bidirectional else ("",)
        self.layers = [[f"_l{i}{d}" for d in directions] for i in range(module.num_layers)]
        layers = self.layers
        super().__init__(
            module,
            cell=module.mode.lower(),
            passes=tuple(suffix for layer in layers for suffix in layer),
            quantizers=quantizers,
        )
        self.layers = layers
        self.batch_first = module.batch_first
        self.dropout = float(module.dropout)
        if self.of_states:
            for i in range(1, module.num_layers):
                self.of_inputs[f"input_l{i}"] = quantizers.activation(f"input_l{i}")

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        assert isinstance(match.first.module, nn.RNNBase)
        return cls(match.first.module, quantizers)

    def compute(self, *xs: Tensor) -> Any:
        x, *given = xs
        if self.dynamic is not None:
            x = self.dynamic(x)
        if self.batch_first:
            x = x.transpose(0, 1)
        lasts: list[tuple[Tensor, Tensor | None]] = []
        for i, layer in enumerate(self.layers):
            if i:
                x = F.dropout(x, self.dropout, self.training)
                x = self._operand(x, f"input_l{i}")
            ys = []
            for suffix in layer:
                zeros = x.new_zeros(x.shape[1], self.size)
                h = given[0][len(lasts)] if given else zeros
                c = (given[1][len(lasts)] if given else zeros) if self.cell == "lstm" else None
                y, h, c = self._sequence(x, h, c, suffix, reverse=suffix.endswith("reverse"))
                ys.append(y)
                lasts.append((h, c))
            x = torch.cat(ys, -1)
        y = x.transpose(0, 1) if self.batch_first else x
        h = torch.stack([h for h, _ in lasts])
        if self.cell != "lstm":
            return y, h
        return y, (h, torch.stack([c for _, c in lasts if c is not None]))

    def emit(self, b: Builder, *xs: QValue) -> Any:
        given: tuple[Any, ...]
        x, *given = xs  # type: ignore[assignment]
        data: Any = x
        if self.batch_first:
            moved = b.function(aten.transpose.int, getattr(x, "value", x), 0, 1)
            data = x.replace(moved) if isinstance(x, QValue) else moved
        lasts: list[tuple[Any, Any]] = []
        for i, layer in enumerate(self.layers):
            quantizer = self.of_inputs[f"input_l{i}"] if i and self.of_inputs else None
            if isinstance(quantizer, FakeQuantize):
                data = self.integers(b, data, quantizer.qparams())
            ys = []
            for suffix in layer:
                place, is_lstm = len(lasts), self.cell == "lstm"
                state = None
                if given:
                    h, c = (
                        b.function(aten.select.int, s, 0, place) if s is not None else None
                        for s in (given[0], given[1] if is_lstm else None)
                    )
                    state = h, c
                y, h, c = self._emit_sequence(
                    b, data, state, suffix, reverse=suffix.endswith("reverse")
                )
                ys.append(y)
                lasts.append((h, c))
            data = ys[0] if len(ys) == 1 else b.function(aten.cat.default, ys, -1)
        y = b.function(aten.transpose.int, data, 0, 1) if self.batch_first else data
        h_n = b.function(aten.stack.default, [h for h, _ in lasts])
        if self.cell != "lstm":
            return y, h_n
        return y, (h_n, b.function(aten.stack.default, [c for _, c in lasts]))


class QFloatRecurrentCell(_Recurrent):
    """``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``: one step."""

    dimensions: ClassVar[int] = 2

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> Self:
        module = match.first.module
        assert isinstance(module, nn.RNNCellBase)
        kinds = {nn.LSTMCell: "lstm", nn.GRUCell: "gru"}
        cell = next((v for k, v in kinds.items() if isinstance(module, k)), None)
        cell = cell or f"rnn_{module.nonlinearity}"
        return cls(module, cell=cell, passes=("",), quantizers=quantizers)

    def compute(self, *xs: Tensor) -> Any:
        x, *given = xs
        if self.dynamic is not None:
            x = self.dynamic(x)
        zeros = x.new_zeros(x.shape[0], self.size)
        h, c = (given[0], given[-1]) if given else (zeros, zeros)
        _, h, cell = self._sequence(
            x.unsqueeze(0), h, c if self.cell == "lstm" else None, "", reverse=False
        )
        return h if cell is None else (h, cell)

    def emit(self, b: Builder, *xs: QValue) -> Any:
        x, *given = xs
        moved = b.function(aten.unsqueeze.default, getattr(x, "value", x), 0)
        data: Any = x.replace(moved) if isinstance(x, QValue) else moved
        state = (given[0], given[1] if self.cell == "lstm" else None) if given else None
        _, h, c = self._emit_sequence(b, data, state, "", reverse=False)
        return h if c is None else (h, c)
