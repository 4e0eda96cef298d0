"""Fake quantizers that are wrong in one thing each, and the contract that finds it."""

import copy
from collections.abc import Mapping
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from qcore import (
    FakeQuantize,
    LearnedFakeQuantize,
    QParams,
    QuantizationError,
    choose_qparams,
    dequantize_tensor,
    expand,
    quantize_tensor,
    straight_through,
)
from qcore.testing import check_contract, check_subject, contracts

CONTRACTS = {contract.name: contract for contract in contracts("fake_quant")}


class Right(FakeQuantize):
    """The formula, with the gradient of a clamp."""

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        return straight_through(self.value(x, qparams), self.slope(x, *self.ends(x, qparams)))

    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        return dequantize_tensor(quantize_tensor(x, qparams), qparams).to(x.dtype)

    def slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(x, low), high)

    def ends(self, x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.expanded(x, qparams)
        dtype = self.scheme.dtype
        low, high = (dtype.quant_min - zero_point) * scale, (dtype.quant_max - zero_point) * scale
        return low.to(x.dtype), high.to(x.dtype)

    def expanded(self, x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
        granularity = self.scheme.granularity
        return tuple(expand(t, granularity, x.shape) for t in (qparams.scale, qparams.zero_point))  # type: ignore[return-value]


class RoundsHalfAway(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        q = quantize_tensor(x, qparams, rounding="half_away")
        return dequantize_tensor(q, qparams).to(x.dtype)


class AddsTheZeroPointBeforeRounding(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale, zero_point = self.expanded(x, qparams)
        q = torch.round(x / scale + zero_point)
        dtype = self.scheme.dtype
        return (q.clamp(dtype.quant_min, dtype.quant_max) - zero_point) * scale


class ZeroPointOffByOne(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale, _ = self.expanded(x, qparams)
        return super().value(x, qparams) + scale


class RangeOffByOne(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale, zero_point = self.expanded(x, qparams)
        dtype = self.scheme.dtype
        q = torch.round(x / scale) + zero_point
        return (q.clamp(dtype.quant_min, dtype.quant_max + 1) - zero_point) * scale


class NarrowRange(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale, zero_point = self.expanded(x, qparams)
        dtype = self.scheme.dtype
        q = torch.round(x / scale) + zero_point
        return (q.clamp(dtype.quant_min + 1, dtype.quant_max) - zero_point) * scale


class WrapsAround(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale, zero_point = self.expanded(x, qparams)
        dtype = self.scheme.dtype
        count = dtype.quant_max - dtype.quant_min + 1
        q = torch.round(x.clamp(-1e9, 1e9) / scale) + zero_point - dtype.quant_min
        return (q.remainder(count) + dtype.quant_min - zero_point) * scale


class RoundsDown(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale, _ = self.expanded(x, qparams)
        return super().value(torch.floor(x / scale) * scale, qparams)


class ShrinksEachTime(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        return super().value(0.8 * x, qparams)


class SwapsNeighbours(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        q = quantize_tensor(x, qparams)
        return dequantize_tensor(torch.where(q == 0, q, q ^ 1), qparams).to(x.dtype)


class StochasticRounding(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale, _ = self.expanded(x, qparams)
        return super().value((x / scale + torch.rand_like(x) - 0.5) * scale, qparams)


class HalfTheError(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        return (super().value(x, qparams) + self.slope(x, *self.ends(x, qparams))) / 2


class OneScaleForAllChannels(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        scale = qparams.scale.mean().expand_as(qparams.scale)
        one = QParams(scale=scale, zero_point=qparams.zero_point, scheme=self.scheme)
        return super().value(x, one)


class ChannelsInReverse(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        if qparams.scale.ndim:
            scale, zero_point = qparams.scale.flip(0), qparams.zero_point.flip(0)
            qparams = QParams(scale=scale, zero_point=zero_point, scheme=self.scheme)
        return super().value(x, qparams)


class AlwaysFloat32(Right):
    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        return super().fake_quantize(x.float(), qparams)


class ChangesItsInput(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        return x.copy_(super().value(x, qparams))


class PassesEveryGradient(Right):
    def slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return x


class PassesNoGradient(Right):
    def slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return 0 * x


class ScalesTheGradient(Right):
    def slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return super().slope(x, low, high) / 2


class ClipsTheGradientOnOneSide(Right):
    def slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(x, high)


class EvalOfItsOwn(Right):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.training else y * 1.001


class AlwaysObserves(Right):
    def forward(self, x: Tensor) -> Tensor:
        if not self.observer_enabled:
            self.observer(x)
        return super().forward(x)


class AlwaysQuantizes(Right):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.fake_quant_enabled else self.fake_quantize(y, self.qparams())


class EvalStopsObserving(Right):
    def train(self, mode: bool = True) -> Self:
        self.observer_enabled = mode
        return super().train(mode)


class SharesItsCopy(Right):
    def __deepcopy__(self, memo: object) -> Self:
        return copy.copy(self)


class SharesItsObserver(Right):
    def __deepcopy__(self, memo: Any) -> Self:
        memo[id(self.observer)] = self.observer
        new = copy.copy(self)
        new._buffers = copy.deepcopy(self._buffers, memo)
        return new


class LastScaleCounts(Right):
    """Remembers a range from the last input, which no switch turns off."""

    largest = 0.0

    def fake_quantize(self, x: Tensor, qparams: QParams) -> Tensor:
        self.largest = max(self.largest, x.abs().amax().item())
        return super().fake_quantize(x, qparams) * (1 if self.largest < 100 else 2)


class ScaleOutsideOfTheState(Right):
    kept: QParams | None = None

    def set_qparams(self, qparams: QParams) -> None:
        super().set_qparams(qparams)
        self.kept = QParams(
            scale=qparams.scale.clone(), zero_point=qparams.zero_point, scheme=self.scheme
        )

    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        return super().value(x, self.kept) if self.kept else torch.zeros_like(x)


class ForgetsTheZeroPoint(Right):
    def set_qparams(self, qparams: QParams) -> None:
        zero = torch.zeros_like(qparams.zero_point).clamp(min=self.scheme.dtype.quant_min)
        super().set_qparams(QParams(scale=qparams.scale, zero_point=zero, scheme=self.scheme))


class RoundsTheScale(Right):
    def set_qparams(self, qparams: QParams) -> None:
        scale = torch.exp2(qparams.scale.log2().round())
        super().set_qparams(QParams(scale=scale, zero_point=qparams.zero_point, scheme=self.scheme))


class ClipsTheObservedRange(Right):
    def qparams(self) -> QParams:
        if self.scale is None and self.observer.seen:
            low, high = self.observer.range()
            self.set_qparams(
                choose_qparams(
                    self.observer.shaped(low) / 2,
                    self.observer.shaped(high) / 2,
                    scheme=self.scheme,
                )
            )
        return super().qparams()


class DefaultScale(Right):
    def qparams(self) -> QParams:
        if not self.calibrated:
            one = torch.ones(self.scheme.granularity.scale_shape((2, 16)))
            return choose_qparams(-one, one, scheme=self.scheme)
        return super().qparams()


class ComplainsWithoutAPlace(Right):
    def qparams(self) -> QParams:
        if not self.calibrated:
            raise QuantizationError("there is no scale")
        return super().qparams()


class NeedsContiguousInput(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        return super().value(x.view(-1).view(x.shape), qparams)


class ReadsTheMemory(Right):
    def slope(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        # Right for contiguous tensors only.
        return super().slope(x, low, high) * (1 if x.is_contiguous() else 2)


class NeedsValues(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        x = x.clamp(max=x.amax() + 1)
        return super().value(x, qparams)


class AnotherOneWhenCompiled(Right):
    def value(self, x: Tensor, qparams: QParams) -> Tensor:
        y = super().value(x, qparams)
        return y + 1 if torch.compiler.is_compiling() else y


class RightLearned(LearnedFakeQuantize):
    """The logarithm of the scale is learned, by what autograd makes of the formula."""

    learned = ("log_scale",)

    def start(self, qparams: QParams) -> Mapping[str, Tensor]:
        return {"log_scale": qparams.scale.log()}

    def current(self) -> tuple[Tensor, Tensor]:
        return self.log_scale.exp(), self.zero_point

    def simulate(self, x: Tensor) -> Tensor:
        scale, zero_point = (
            expand(t, self.scheme.granularity, x.shape) for t in self.for_training()
        )
        dtype = self.scheme.dtype
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        u = x.to(wide) / scale
        q = straight_through(torch.round(u), u)
        low, high = (dtype.quant_min - zero_point).to(wide), (dtype.quant_max - zero_point).to(wide)
        q = torch.where(q < low, low, torch.where(q > high, high, q))
        return (q.float() * scale).to(x.dtype)

    def for_training(self) -> tuple[Tensor, Tensor]:
        return self.current()


class LearnsNothing(RightLearned):
    def for_training(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.current()
        return scale.detach(), zero_point


class LearnsNan(RightLearned):
    def for_training(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.current()
        return scale + (self.log_scale - self.log_scale.detach()).abs().sqrt(), zero_point


class DeploysTheStart(RightLearned):
    def current(self) -> tuple[Tensor, Tensor]:
        if not hasattr(self, "first") or self.first.shape != self.log_scale.shape:
            self.first = self.log_scale.detach().clone()
        return self.first.exp(), self.zero_point

    def for_training(self) -> tuple[Tensor, Tensor]:
        return self.log_scale.exp(), self.zero_point


class DeploysAnotherScale(RightLearned):
    def for_training(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = self.current()
        return scale * 1.05, zero_point


MUTANTS = {
    RoundsHalfAway: "training_equals_quantize_then_dequantize",
    AddsTheZeroPointBeforeRounding: "training_equals_quantize_then_dequantize",
    StochasticRounding: "training_equals_quantize_then_dequantize",
    ChannelsInReverse: "training_equals_quantize_then_dequantize",
    ZeroPointOffByOne: "zero_is_exact",
    RangeOffByOne: "values_lie_on_the_lattice",
    HalfTheError: "values_lie_on_the_lattice",
    OneScaleForAllChannels: "values_lie_on_the_lattice",
    DeploysAnotherScale: "values_lie_on_the_lattice",
    NarrowRange: "values_outside_are_clipped",
    WrapsAround: "values_outside_are_clipped",
    RoundsDown: "error_is_at_most_half_a_step",
    ShrinksEachTime: "quantizing_is_idempotent",
    SwapsNeighbours: "quantizing_is_monotone",
    AlwaysFloat32: "other_float_dtypes_are_kept",
    ChangesItsInput: "input_stays_unchanged",
    PassesEveryGradient: "gradient_is_clipped_straight_through",
    PassesNoGradient: "gradient_is_clipped_straight_through",
    ScalesTheGradient: "gradient_is_clipped_straight_through",
    ClipsTheGradientOnOneSide: "gradient_is_clipped_straight_through",
    EvalOfItsOwn: "eval_equals_quantize_then_dequantize",
    AlwaysObserves: "switches_are_obeyed",
    AlwaysQuantizes: "switches_are_obeyed",
    EvalStopsObserving: "train_and_eval_keep_the_switches",
    SharesItsCopy: "deepcopy_is_independent",
    SharesItsObserver: "deepcopy_is_independent",
    LastScaleCounts: "forward_keeps_the_state",
    ScaleOutsideOfTheState: "state_dict_round_trip",
    ForgetsTheZeroPoint: "qparams_are_kept",
    RoundsTheScale: "qparams_are_kept",
    ClipsTheObservedRange: "qparams_come_from_the_observer",
    DefaultScale: "uncalibrated_refuses",
    ComplainsWithoutAPlace: "uncalibrated_refuses",
    NeedsContiguousInput: "memory_layout_does_not_matter",
    ReadsTheMemory: "memory_layout_does_not_matter",
    NeedsValues: "empty_tensors_pass",
    AnotherOneWhenCompiled: "compiles",
    LearnsNothing: "learned_parameters_get_gradients",
    LearnsNan: "learned_parameters_get_gradients",
    DeploysTheStart: "qparams_follow_learned_parameters",
}


@pytest.mark.parametrize("right", [Right, RightLearned])
def test_the_right_one_fulfils_every_contract(subject_of, right):
    """What the wrong ones are made from passes, so it is the mutation that is found."""
    outcomes = check_subject(subject_of("qcore_fake_quants", right))
    assert {o.contract: o.message for o in outcomes if not o.ok} == {}


@pytest.mark.parametrize(
    ("mutant", "contract"), MUTANTS.items(), ids=[cls.__name__ for cls in MUTANTS]
)
def test_it_is_found_by_name(subject_of, mutant, contract):
    """The contract that is about the mistake fails, and says what was given, came and was due."""
    outcome = check_contract(subject_of("qcore_fake_quants", mutant), CONTRACTS[contract])
    assert outcome.status == "failed", outcome
