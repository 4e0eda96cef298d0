"""Observers that are wrong in one thing each, and the contract that finds it."""

import copy
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from qcore import Observer, QParams, QuantizationError, choose_qparams
from qcore.testing import check_contract, check_subject, contracts

CONTRACTS = {contract.name: contract for contract in contracts("observer")}


class Right(Observer):
    """Smallest and largest value, and the mean of the magnitudes of all."""

    low: Tensor | None
    high: Tensor | None
    total: Tensor | None
    count: Tensor | None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("low", "high", "total", "count"):
            self.register_buffer(name, None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        self.add(min_val, max_val, rows.abs().double().sum(1), torch.tensor(rows.shape[1]))

    def combine(self, other: Self) -> None:
        self.add(other.low, other.high, other.total, other.count)

    def add(self, low: Any, high: Any, total: Any, count: Any) -> None:
        if self.low is not None:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
            total, count = self.total + total, self.count + count
        self.low, self.high, self.total, self.count = low, high, total, count

    def range(self) -> tuple[Tensor, Tensor]:
        # Within the extremes; nearer to the mean magnitude where a tail is long.
        mean = (self.total / self.count).float()
        return torch.maximum(self.low, -9 * mean), torch.minimum(self.high, 9 * mean)


class MergeForgetsTheOther(Right):
    def combine(self, other: Self) -> None:
        pass


class MergeAverages(Right):
    def combine(self, other: Self) -> None:
        self.low, self.high = (self.low + other.low) / 2, (self.high + other.high) / 2


class MergeForgetsToCount(Right):
    def combine(self, other: Self) -> None:
        self.add(other.low, other.high, other.total, 0)


class AverageOfScales(Right):
    """Answers with the mean of the batches' scales, which merging averages without weights."""

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        batches = 0 if self.count is None else int(self.count)
        high = torch.maximum(-min_val, max_val)
        self.high = high if self.high is None else (self.high * batches + high) / (batches + 1)
        self.count = torch.tensor(batches + 1)

    def combine(self, other: Self) -> None:
        self.high = (self.high + other.high) / 2

    def range(self) -> tuple[Tensor, Tensor]:
        return -self.high, self.high


class StateThatIsNoTensor(Right):
    def get_extra_state(self) -> Any:
        return {"shape": self.scale_shape}

    def set_extra_state(self, state: Any) -> None:
        self.scale_shape = state["shape"]


class MovingAverage(Right):
    def add(self, low: Any, high: Any, total: Any, count: Any) -> None:
        if self.low is not None:
            low, high = 0.9 * self.low + 0.1 * low, 0.9 * self.high + 0.1 * high
        self.low, self.high, self.total, self.count = low, high, total, count


class OnlyTheFirstBatch(Right):
    def add(self, *statistics: Any) -> None:
        if self.low is None:
            super().add(*statistics)


class StateOutsideOfBuffers(Right):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("low", "high", "total", "count"):
            del self._buffers[name]
            setattr(self, name, None)


class CountsOutsideOfBuffers(Right):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self._buffers["count"]
        self.count = None

    def range(self) -> tuple[Tensor, Tensor]:
        mean = (self.total / (self.count or 1)).float()
        return -mean, mean


class KeepsEveryBatch(Right):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.batches: list[Tensor] = []

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        super().update(rows, min_val, max_val)
        self.batches.append(rows.clone())


class GrowingBuffer(Right):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("maxima", None)

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        super().update(rows, min_val, max_val)
        self.maxima = max_val if self.maxima is None else torch.cat([self.maxima, max_val])


class SwallowsNan(Right):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(torch.nan_to_num(x, posinf=0, neginf=0))
        return x


class CountsWhatItRefuses(Right):
    def extremes(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.count is not None:
            self.count = self.count + rows.shape[1]
        return super().extremes(rows)


class RefusesWithoutAPlace(Right):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.isfinite(x).all():
            raise QuantizationError("NaN or Inf")
        return super().forward(x)


class OneRangeForAllChannels(Right):
    def range(self) -> tuple[Tensor, Tensor]:
        low, high = super().range()
        return low.amin().expand_as(low), high.amax().expand_as(high)


class ChannelsInReverse(Right):
    def range(self) -> tuple[Tensor, Tensor]:
        low, high = super().range()
        return low.flip(0), high.flip(0)


class MeanOverAllChannels(Right):
    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        total = rows.abs().double().mean(0).sum().expand(rows.shape[0])
        self.add(min_val, max_val, total, torch.tensor(rows.shape[1]))


class ChangesItsInput(Right):
    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        super().update(rows.abs_(), min_val, max_val)


class KeepsAViewOfItsInput(Right):
    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        self.low = self.high = self.total = self.count = rows

    def range(self) -> tuple[Tensor, Tensor]:
        return self.low.amin(1), self.low.amax(1)


class ReturnsACopy(Right):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clone()


class TracksGradients(Right):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        if x.numel():
            self.total = x.abs().sum().expand(self.low.shape)
        return x


class CountsEmptyBatches(Right):
    def forward(self, x: Tensor) -> Tensor:
        if self.count is not None:
            self.count = self.count + 1
        return super().forward(x)


class DefaultScale(Right):
    def calculate_qparams(self) -> QParams:
        if self.seen:
            return super().calculate_qparams()
        one = torch.ones(())
        return choose_qparams(-one, one, scheme=self.scheme)


class ComplainsWithoutAPlace(Right):
    def require_seen(self) -> None:
        if not self.seen:
            raise QuantizationError("nothing was seen")


class SumsInTheDtypeOfTheInput(Right):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        if x.numel():
            self.total = torch.full_like(self.total, x.abs().sum().item())
        return x


class FirstHalfOfARow(Right):
    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        half = rows[:, : (rows.shape[1] + 1) // 2]
        super().update(half, half.amin(1), half.amax(1))


class DrawsFromGlobalRandomNumbers(Right):
    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        kept = rows[:, torch.randperm(rows.shape[1])[:100]]
        super().update(kept, min_val, max_val)


class DecaysWhenAsked(Right):
    def range(self) -> tuple[Tensor, Tensor]:
        self.low, self.high = 0.9 * self.low, 0.9 * self.high
        return super().range()


class MergesIntoItself(Right):
    def merge(self, other: Self) -> Self:
        if self.seen and other.seen:
            self.combine(other)
        return self if self.seen else copy.deepcopy(other)


class MergesNothing(Right):
    def merge(self, other: Self) -> Self:
        merged = copy.deepcopy(self)
        merged.combine(other)
        return merged


class SharesItsCopy(Right):
    def __deepcopy__(self, memo: object) -> Self:
        return copy.copy(self)


class ResetsHalf(Right):
    def reset(self) -> None:
        total, count = self.total, self.count
        super().reset()
        self.kept = total, count

    def add(self, *statistics: Any) -> None:
        super().add(*statistics)
        kept = getattr(self, "kept", None)
        if kept is not None:
            self.total, self.count, self.kept = self.total + kept[0], self.count + kept[1], None


class UpsideDown(Right):
    def range(self) -> tuple[Tensor, Tensor]:
        low, high = super().range()
        return high, low


class OneNumberForAllRows(Right):
    def range(self) -> tuple[Tensor, Tensor]:
        return self.low.min(), self.high.max()


class OverflowsOnTheLargest(Right):
    def range(self) -> tuple[Tensor, Tensor]:
        return 1.1 * self.low, 1.1 * self.high


class NoSmallestScale(Right):
    def calculate_qparams(self) -> QParams:
        qparams = super().calculate_qparams()
        scale = (self.shaped(self.high - self.low) / 255).clamp(min=0)
        return QParams(scale=scale, zero_point=qparams.zero_point, scheme=self.scheme)


MUTANTS = {
    MergeForgetsTheOther: "merge_equals_seeing_both",
    MergeAverages: "merge_equals_seeing_both",
    MergeForgetsToCount: "ranks_equal_one_process",
    StateThatIsNoTensor: "ranks_equal_one_process",
    AverageOfScales: "merge_is_associative",
    MovingAverage: "order_of_batches_does_not_matter",
    OnlyTheFirstBatch: "order_of_batches_does_not_matter",
    StateOutsideOfBuffers: "values_are_seen",
    CountsOutsideOfBuffers: "state_dict_round_trip",
    KeepsEveryBatch: "state_is_bounded",
    GrowingBuffer: "state_is_bounded",
    SwallowsNan: "nan_and_infinity_are_refused",
    CountsWhatItRefuses: "nan_and_infinity_are_refused",
    RefusesWithoutAPlace: "nan_and_infinity_are_refused",
    OneRangeForAllChannels: "channels_do_not_mix",
    ChannelsInReverse: "channels_do_not_mix",
    MeanOverAllChannels: "channels_do_not_mix",
    ChangesItsInput: "input_passes_unchanged",
    KeepsAViewOfItsInput: "input_passes_unchanged",
    ReturnsACopy: "input_passes_unchanged",
    TracksGradients: "gradients_are_not_tracked",
    CountsEmptyBatches: "empty_batch_changes_nothing",
    DefaultScale: "unseen_refuses",
    ComplainsWithoutAPlace: "unseen_refuses",
    SumsInTheDtypeOfTheInput: "other_float_dtypes_are_as_good",
    FirstHalfOfARow: "memory_layout_does_not_matter",
    DrawsFromGlobalRandomNumbers: "observing_is_deterministic",
    DecaysWhenAsked: "asking_changes_nothing",
    MergesIntoItself: "merge_leaves_its_sources",
    MergesNothing: "merge_with_unseen_is_neutral",
    SharesItsCopy: "deepcopy_is_independent",
    ResetsHalf: "reset_forgets",
    UpsideDown: "range_is_ordered",
    OneNumberForAllRows: "range_is_ordered",
    OverflowsOnTheLargest: "extreme_values_have_an_answer",
    NoSmallestScale: "extreme_values_have_an_answer",
}


def test_the_right_one_fulfils_every_contract(subject_of):
    """What the wrong ones are made from passes, so it is the mutation that is found."""
    outcomes = check_subject(subject_of("qcore_observers", Right))
    assert {o.contract: o.message for o in outcomes if o.status != "passed"} == {}


@pytest.mark.parametrize(
    ("mutant", "contract"), MUTANTS.items(), ids=[cls.__name__ for cls in MUTANTS]
)
def test_it_is_found_by_name(subject_of, mutant, contract):
    """The contract that is about the mistake fails, and says what was given, came and was due."""
    outcome = check_contract(subject_of("qcore_observers", mutant), CONTRACTS[contract])
    assert outcome.status == "failed"
