"""Each contract of converters catches what breaks it, and lets the right one pass."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcore
from qcore import (
    Builder,
    ChannelOp,
    ConverterSpec,
    FakeQuantize,
    Match,
    PerChannel,
    PerTensor,
    PerToken,
    QConfig,
    QFloatOp,
    Quantizers,
    QValue,
    quantize_tensor,
)
from qcore.testing import Subject, check_contract, check_subject, contracts


class Dense(nn.Module):
    """relu(x W^T + b)."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) / columns**0.5)
        self.bias = nn.Parameter(torch.randn(rows))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(x, self.weight, self.bias))


def examples() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    yield nn.Sequential(Dense(6, 8), Dense(8, 8), nn.Linear(8, 3)), (torch.randn(4, 6),)
    yield nn.Sequential(Dense(6, 8), nn.Unflatten(-1, (2, 4)), Dense(4, 3)), (torch.randn(4, 6),)


class QFloatDense(QFloatOp):
    """The right converter: one linear layer with its clamp."""

    anchor: ClassVar[bool] = True
    program_op: ClassVar[str] = "qlinear"

    def __init__(self, layer: Dense, quantizer: FakeQuantize) -> None:
        super().__init__()
        self.register_parameter("weight", layer.weight)
        self.register_parameter("bias", layer.bias)
        self.quantizer = quantizer

    @classmethod
    def why_not(cls, match: Match, qconfig: QConfig) -> str | None:
        activation = qconfig.activation
        if activation is None or isinstance(activation.scheme.granularity, PerToken):
            return "it needs inputs of a known scale"
        if not isinstance(qconfig.weight.scheme.granularity, PerTensor | PerChannel):
            return "it takes per-tensor or per-channel scales"
        return None

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> "QFloatDense":
        return cls(match.first.module, quantizers.weight())

    def weight_quantizers(self) -> Iterator[tuple[FakeQuantize, Tensor]]:
        yield self.quantizer, self.weight

    def compute(self, *xs: Tensor) -> Tensor:
        return F.relu(F.linear(*xs, self.quantizer(self.weight), self.bias))

    def emit(self, b: Builder, *xs: QValue) -> Any:
        (x,) = xs
        weight = self.quantizer.qparams()
        step = x.scale * weight.scale
        parts = {
            "w": quantize_tensor(self.weight, weight),
            "w_scale": weight.scale,
            "bias": (self.bias / step).round().to(torch.int32),
        }
        w, scale, bias = (b.constant(name, value) for name, value in parts.items())
        operands = (x.value, x.scale, x.zero_point, w, scale, None, bias)
        y = b.call("qlinear", *operands, *self.output_args(0.0))
        return self.finish(b, y)

    def finish(self, b: Builder, y: Any) -> Any:
        if self.output_quantizer is None:
            return b.function(torch.ops.aten.relu.default, y)
        return self.result(y)


def wrong(**methods: Any) -> type[QFloatDense]:
    """The right converter but for some methods."""
    return type("Wrong", (QFloatDense,), methods)


def without_clamp(self: QFloatDense, low: float | None = None, high: float | None = None) -> Any:
    return QFloatOp.output_args(self)


def zero_point_of_0(self: QFloatDense, b: Builder, *xs: QValue) -> Any:
    (x,) = xs
    moved = QValue(value=x.value, scale=x.scale, zero_point=0, dtype=x.dtype)
    return QFloatDense.emit(self, b, moved)


def half_the_scale(self: QFloatDense, b: Builder, *xs: QValue) -> Any:
    (x,) = xs
    moved = QValue(value=x.value, scale=x.scale / 2, zero_point=x.zero_point, dtype=x.dtype)
    return QFloatDense.emit(self, b, moved)


def another_each_time(self: QFloatDense, b: Builder, *xs: QValue) -> Any:
    with torch.no_grad():
        self.bias.add_(0.5)
    return QFloatDense.emit(self, b, *xs)


def noting_the_largest(self: QFloatDense, *xs: Tensor) -> Tensor:
    if not self.quantizer.fake_quant_enabled:
        self.largest = max(getattr(self, "largest", 0.0), float(xs[0].abs().max()))
    return QFloatDense.compute(self, *xs)


def up_to_a_part_of_the_largest(
    self: QFloatDense, low: float | None = None, high: float | None = None
) -> Any:
    return QFloatOp.output_args(self, low, getattr(self, "largest", 0.0) / 20)


def python(self: QFloatDense, b: Builder, y: Any) -> Any:
    return QFloatDense.finish(self, b, b.function(same, y))


def same(y: Tensor) -> Tensor:
    return y


def forgotten(self: QFloatDense, memo: dict[int, Any]) -> QFloatDense:
    return self


def observing(self: QFloatDense, mode: bool = True) -> QFloatDense:
    self.quantizer.observer_enabled = mode
    return nn.Module.train(self, mode)


def with_default_scales(self: QFloatDense, inputs: Any, output: Any, numerics: Any) -> None:
    QFloatOp.link(self, inputs, output, numerics)
    self.quantizer.observe(self.weight.detach())
    for quantizer in (*inputs, *[output] * (output is not None)):
        quantizer.observe(torch.tensor([-1.0, 1.0]))


WRONG: dict[str, tuple[type[QFloatDense], str]] = {
    "drops its clamp in Q": (wrong(output_args=without_clamp), "emit_agrees_with_compute"),
    "ignores the zero point": (wrong(emit=zero_point_of_0), "emit_agrees_with_compute"),
    "half the scale": (wrong(emit=half_the_scale), "emit_agrees_with_compute"),
    "drops its bias in float": (
        wrong(compute=lambda s, x: F.relu(F.linear(x, s.quantizer(s.weight)))),
        "computes_the_float_operation",
    ),
    "drops its clamp in float": (
        wrong(compute=lambda s, x: F.linear(x, s.quantizer(s.weight), s.bias)),
        "computes_the_float_operation",
    ),
    "stays simulated in eval mode": (wrong(exact=False), "qfloat_equals_q"),
    "other integers each time": (wrong(emit=another_each_time), "qfloat_equals_q"),
    "forgets what it calibrated": (
        wrong(compute=noting_the_largest, output_args=up_to_a_part_of_the_largest),
        "state_dict_round_trip",
    ),
    "is not copied": (wrong(__deepcopy__=forgotten), "deepcopy_is_whole"),
    "loses hooks": (wrong(__call__=lambda s, *xs: s.forward(*xs)), "keeps_names_and_hooks"),
    "no gradient": (
        wrong(compute=lambda s, x: F.relu(F.linear(x, s.quantizer(s.weight.detach()), s.bias))),
        "gradients_reach_parameters",
    ),
    "never applies": (
        wrong(why_not=classmethod(lambda c, m, q: "not today")),
        "takes_its_examples",
    ),
    "names no kernel": (wrong(program_op=""), "takes_its_examples"),
    "moves switches": (wrong(train=observing), "modes_leave_switches"),
    "code in the program": (wrong(finish=python), "artifact_round_trip"),
    "scales from nowhere": (wrong(link=with_default_scales), "refuses_without_calibration"),
    "takes what it can't": (
        wrong(why_not=classmethod(lambda c, m, q: None)),
        "runs_without_activation_scales",
    ),
}


class QFloatChannels(QFloatDense, ChannelOp):
    """The right converter, with channels that can be corrected."""

    channel_dim: ClassVar[int] = -1

    def preactivation(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantizer(self.weight), self.bias)

    def correct(self, gain: Tensor, shift: Tensor) -> None:
        qparams = self.quantizer.qparams()
        with torch.no_grad():
            self.weight.mul_(gain[:, None])
            self.bias.mul_(gain).add_(shift)
        scale = qparams.scale * (gain if qparams.scale.ndim else 1)
        self.quantizer.set_qparams(attrs.evolve(qparams, scale=scale))

    @property
    def why_no_gain(self) -> str | None:
        scale = self.quantizer.qparams().scale
        return None if scale.ndim else "one scale"


def by_weight_alone(self: QFloatChannels, gain: Tensor, shift: Tensor) -> None:
    with torch.no_grad():
        self.weight.mul_(gain[:, None])
        self.bias.mul_(gain).add_(shift)


def without_the_bias(self: QFloatChannels, gain: Tensor, shift: Tensor) -> None:
    with torch.no_grad():
        self.bias.div_(gain)
    QFloatChannels.correct(self, gain, shift)


def without_shift(self: QFloatChannels, gain: Tensor, shift: Tensor) -> None:
    QFloatChannels.correct(self, gain, 0 * shift)


def kept_aside(self: QFloatChannels, gain: Tensor, shift: Tensor) -> None:
    """In what QFloat computes, and not in Q."""
    before = self.preactivation
    self.preactivation = lambda x: before(x) * gain + shift
    self.emit = lambda b, *xs: QFloatDense.emit(self, b, *xs)
    self.compute = lambda x: F.relu(self.preactivation(x))
    type(self).exact = False


def wrong_channels(**methods: Any) -> type[QFloatDense]:
    return type("Wrong", (QFloatChannels,), methods)


WRONG |= {
    "leaves the scale": (wrong_channels(correct=by_weight_alone), "corrects_channels"),
    "leaves the bias": (wrong_channels(correct=without_the_bias), "corrects_channels"),
    "leaves the mean": (wrong_channels(correct=without_shift), "corrects_channels"),
    "corrects QFloat alone": (wrong_channels(correct=kept_aside), "corrects_channels"),
    "takes rows for channels": (wrong_channels(channel_dim=0), "corrects_channels"),
}


def subject(target: type[QFloatDense], **changes: Any) -> Subject:
    """The converter as a plug-in of this process beside those installed."""
    options = {"examples": f"{__name__}:examples", **changes}

    class Plugin:
        @qcore.hookimpl
        def qcore_module_converters(self) -> tuple[ConverterSpec, ...]:
            return (
                ConverterSpec(
                    name="dense",
                    op="dense",
                    types=(f"{__name__}.Dense",),
                    target=f"{__name__}:Chosen",
                    **options,
                ),
            )

    globals()["Chosen"] = target
    host = qcore.PluginHost()
    host.register(Plugin(), name="acme")
    return Subject(host=host, spec=host.find("converter", "acme:dense"))


@pytest.mark.parametrize("target", [QFloatDense, QFloatChannels])
def test_the_right_converter_fulfils_every_contract(target: type[QFloatDense]) -> None:
    """The originals of the wrong ones; only what they refuse has no meaning for them."""
    outcomes = check_subject(subject(target))
    assert [o for o in outcomes if not o.ok] == []
    unexamined = {o.contract for o in outcomes if not o.examined}
    without = {"corrects_channels"} if target is QFloatDense else set()
    assert unexamined == {"runs_without_activation_scales"} | without


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_converter_is_caught(name: str) -> None:
    """By the contract that names its fault."""
    target, wanted = WRONG[name]
    contract = next(c for c in contracts("converter") if c.name == wanted)
    outcome = check_contract(subject(target), contract)
    assert outcome.status == "failed", outcome
    assert outcome.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"examples": None}, "give the record examples="),
        ({"examples": f"{__name__}:none"}, "nothing"),
    ],
)
def test_without_examples_the_cure_is_said(changes: dict[str, Any], words: str) -> None:
    """A converter that can't be tried fulfils nothing."""
    outcome = check_contract(subject(QFloatDense, **changes), contracts("converter")[0])
    assert outcome.status == "failed"
    assert words in outcome.message


def none() -> Callable[..., Any]:
    return ()
