"""The contracts of observers.

An observer is made as ``cls(scheme=..., where=..., **options)``, for each scheme that it takes, and
shown tensors of a few hundred values. Two observers *are the same* if their states are equal bit
for bit. They *agree* if they are the same, or their scales are equal to a ten-thousandth and their
zero points to 1, which leaves room for sums in another order.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import QScheme
from ..errors import QcoreError
from ..granularity import PerBlock, PerTensor
from ..numerics import dequantize_tensor, quantize_tensor
from ..observer import Observer
from .contract import Contract, NotApplicable, Subject, contract, require
from .observer_cases import (
    WHERE,
    after,
    answer,
    fresh,
    make_batches,
    observed_schemes,
    require_agreement,
    require_same,
    schemes_of,
    short,
)
from .observer_statistics import (
    asking_changes_nothing,
    deepcopy_is_independent,
    merge_equals_seeing_both,
    merge_is_associative,
    merge_leaves_its_sources,
    merge_with_unseen_is_neutral,
    observing_is_deterministic,
    order_of_batches_does_not_matter,
    ranks_equal_one_process,
    reset_forgets,
    state_dict_round_trip,
    state_is_bounded,
)
from .values import (
    EXTREMES,
    SHAPE,
    draw,
    layouts,
    one_of_each_granularity,
    places,
)

__all__ = ["CONTRACTS"]


@contract(
    "observer",
    "Statistics outside of buffers are not seen, saved, moved to a device or merged.",
)
def values_are_seen(subject: Subject) -> int:
    cases = 0
    for scheme in schemes_of(subject):
        observer = fresh(subject, scheme)
        require(
            not observer.seen,
            f"{scheme.describe()}: a new observer has `seen` true; its buffers must start as None",
        )
        observer(draw(0, *SHAPE))
        require(
            observer.seen,
            f"{scheme.describe()}: after a batch of values `seen` is false; statistics must be in "
            "buffers, registered as None",
        )
        qparams = observer.calculate_qparams()
        due = torch.Size(scheme.granularity.scale_shape(SHAPE))
        require(
            qparams.scale.shape == due and qparams.scheme == scheme,
            f"{scheme.describe()}, a tensor {list(SHAPE)}: the scale has shape "
            f"{list(qparams.scale.shape)} for {qparams.scheme.describe()}; due is {list(due)}",
        )
        cases += 1
    return cases


@contract("observer", "A layer that calibration never reached must not get an invented scale.")
def unseen_refuses(subject: Subject) -> int:
    cases = 0
    for scheme in schemes_of(subject):
        try:
            qparams = fresh(subject, scheme).calculate_qparams()
        except QcoreError as error:
            require(
                WHERE in str(error),
                f"{scheme.describe()}: the error of an observer of {WHERE!r} that has seen "
                f"nothing does not name that place: {error}",
            )
        else:
            require(
                False,
                f"{scheme.describe()}: an observer that has seen nothing answers scale "
                f"{short(qparams.scale)}; due is a QuantizationError that names the layer",
            )
        cases += 1
    return cases


@contract("observer", "Observing must change neither the model's values nor what was counted.")
def input_passes_unchanged(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(schemes_of(subject)):
        x = draw(0, *SHAPE)
        before = x.clone()
        observer = fresh(subject, scheme)
        given = f"{scheme.describe()}, a batch of float32"
        require(observer(x) is x, f"{given}: another tensor came back; due is the very input")
        require(torch.equal(x, before), f"{given}: the input was changed")
        if observer.seen:
            # A view of the input that was kept would follow it.
            x.fill_(1e6)
            due = after(subject, scheme, before)
            require_same(f"{given} that was overwritten afterwards", due, observer)
        cases += 1
    return cases


@contract("observer", "Statistics that track gradients keep every graph of a training alive.")
def gradients_are_not_tracked(subject: Subject) -> int:
    cases = 0
    for scheme in schemes_of(subject):
        x = draw(0, *SHAPE).requires_grad_()
        observer = fresh(subject, scheme)
        observer(x).sum().backward()
        require(
            x.grad is not None and bool((x.grad == 1).all()),
            f"{scheme.describe()}: the gradient of an observed tensor is {short(x.grad)}; due is "
            "the incoming one",
        )
        for name, buffer in observer.named_buffers():
            require(
                not buffer.requires_grad,
                f"{scheme.describe()}, an input that requires a gradient: the statistic {name!r} "
                "requires one too; due are statistics without gradients",
            )
        cases += 1
    return cases


@contract("observer", "An empty batch says nothing about the range.")
def empty_batch_changes_nothing(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(schemes_of(subject)):
        empty = torch.empty(0, SHAPE[1])
        observer = fresh(subject, scheme)
        require(observer(empty) is empty, f"{scheme.describe()}: an empty batch did not pass")
        require(
            not observer.seen, f"{scheme.describe()}: after an empty batch alone `seen` is true"
        )
        for batch in make_batches(scheme, 2):
            observer(batch)
            observer(empty)
        due = after(subject, scheme, *make_batches(scheme, 2))
        require_same(f"{scheme.describe()}, empty batches between others", due, observer)
        cases += 1
    return cases


@contract("observer", "One NaN would ruin or silently narrow the range of the whole calibration.")
def nan_and_infinity_are_refused(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(schemes_of(subject)):
        first, last = draw(0, *SHAPE), draw(1, *SHAPE)
        observer = after(subject, scheme, first)
        for bad in (torch.nan, torch.inf, -torch.inf):
            for position in (0, 21, -1):
                x = draw(2, *SHAPE)
                x.view(-1)[position] = bad
                given = f"{scheme.describe()}, a batch with {bad} among {x.numel()} values"
                _require_refusal(given, observer, x)
                cases += 1
        observer(last)
        given = f"{scheme.describe()}, a batch, others with NaN and Inf that were refused, a batch"
        require_same(given, after(subject, scheme, first, last), observer)
    return cases


def _require_refusal(given: str, observer: Observer, x: Tensor) -> None:
    try:
        observer(x)
    except QcoreError as error:
        named = WHERE in str(error)
        require(named, f"{given}: the error does not name the place {WHERE!r}: {error}")
    else:
        require(False, f"{given}: it was taken; due is a QuantizationError")


@contract("observer", "Models in half and double precision have the same numbers to observe.")
def other_float_dtypes_are_as_good(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            x = draw(0, *SHAPE).to(dtype)
            observer = after(subject, scheme, x)
            due = after(subject, scheme, x.float())
            require_same(f"{scheme.describe()}, a batch of {dtype}", due, observer)
            observer.to(dtype)
            require_same(f"{scheme.describe()}, itself brought to {dtype}", due, observer)
            cases += 2
    return cases


@contract("observer", "Views and channels-last tensors hold the same values.")
def memory_layout_does_not_matter(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        # A block is of two dimensions, as its tensor must be then.
        tensors = [draw(0, *SHAPE)]
        if not isinstance(scheme.granularity, PerBlock):
            tensors.append(draw(1, 2, 3, 4, 8))
        for x in tensors:
            due = after(subject, scheme, x)
            for name, other in layouts(x):
                given = f"{scheme.describe()}, {list(x.shape)} {name}"
                require_agreement(given, due, after(subject, scheme, other))
                cases += 1
    return cases


@contract("observer", "Channels have scales of their own: one must not widen another's range.")
def channels_do_not_mix(subject: Subject) -> int:
    schemes = [s for s in observed_schemes(subject) if not isinstance(s.granularity, PerTensor)]
    if not schemes:
        raise NotApplicable("it takes per-tensor schemes only")
    cases = 0
    for scheme in schemes:
        spread = torch.logspace(-2, 2, torch.Size(SHAPE).numel()).reshape(SHAPE)
        batches = [draw(i, *SHAPE) * spread for i in range(2)]
        whole = after(subject, scheme, *batches).calculate_qparams()
        for index, place in places(scheme):
            alone = after(subject, scheme, *(batch[place] for batch in batches))
            due = alone.calculate_qparams()
            scale, zero_point = (t.flatten()[index] for t in (whole.scale, whole.zero_point))
            require(
                torch.allclose(scale, due.scale, rtol=1e-4, atol=0)
                and bool((zero_point - due.zero_point).abs().max() <= 1),
                f"{scheme.describe()}, scale {index} of a tensor {list(SHAPE)}: scale "
                f"{scale.item():.6g}, zero point {zero_point.item()}; observed alone its values "
                f"give {answer(alone)}",
            )
            cases += 1
    return cases


@contract("observer", "Whatever was seen, the model must go on with a scale that can be used.")
def extreme_values_have_an_answer(subject: Subject) -> int:
    cases = 0
    for scheme in _tensor_schemes(subject):
        for name, x in EXTREMES.items():
            observer = after(subject, scheme, x, x)
            qparams = observer.calculate_qparams()
            given = f"{scheme.describe()}, {name}: it answers {answer(observer)}, with which"
            back = dequantize_tensor(quantize_tensor(x, qparams), qparams)
            require(bool(torch.isfinite(back).all()), f"{given} a value becomes infinite or NaN")
            require(bool((back[x == 0] == 0).all()), f"{given} 0 becomes another number")
            error, most = (back.double() - x.double()).abs(), x.double().abs() * 1.01 + 2.0**-39
            require(
                bool((error <= most).all()),
                f"{given} {x[error > most].tolist()[:4]} become {back[error > most].tolist()[:4]}; "
                "due is an error of at most the value itself",
            )
            cases += 1
    return cases


def _tensor_schemes(subject: Subject) -> list[QScheme]:
    schemes = [s for s in schemes_of(subject) if isinstance(s.granularity, PerTensor)]
    # One with a zero point, one without.
    found = list({s.symmetric: s for s in schemes}.values())
    if not any(after(subject, s, torch.ones(3)).seen for s in found):
        raise NotApplicable("it takes no scheme that is per tensor, or no notice of values")
    return found


@contract("observer", "A range that is upside down, infinite or of another shape has no scale.")
def range_is_ordered(subject: Subject) -> int:
    cases = 0
    for scheme, observer in _with_range(subject):
        low, high = observer.range()
        rows = torch.Size(scheme.granularity.scale_shape(SHAPE)).numel()
        given = f"{scheme.describe()}, a tensor {list(SHAPE)}: the range {short(low)} to "
        given += f"{short(high)}"
        require(
            low.shape == high.shape == (rows,) and low.dtype == high.dtype == torch.float32,
            f"{given} is {low.dtype} {list(low.shape)} to {high.dtype} {list(high.shape)}; due is "
            f"float32 [{rows}]",
        )
        require(
            bool(((low <= high) & torch.isfinite(low) & torch.isfinite(high)).all()),
            f"{given} must be finite and ascending",
        )
        cases += 1
    return cases


def _with_range(subject: Subject) -> Iterator[tuple[QScheme, Observer]]:
    overridden = False
    for scheme in observed_schemes(subject):
        observer = after(subject, scheme, *(draw(i, *SHAPE) for i in range(2)))
        overridden = type(observer).calculate_qparams is not Observer.calculate_qparams
        if not overridden:
            yield scheme, observer
    if overridden:
        raise NotApplicable("it answers with qparams, not with a range")


CONTRACTS: tuple[Contract, ...] = (
    values_are_seen,
    unseen_refuses,
    input_passes_unchanged,
    gradients_are_not_tracked,
    empty_batch_changes_nothing,
    nan_and_infinity_are_refused,
    extreme_values_have_an_answer,
    range_is_ordered,
    other_float_dtypes_are_as_good,
    memory_layout_does_not_matter,
    channels_do_not_mix,
    order_of_batches_does_not_matter,
    observing_is_deterministic,
    asking_changes_nothing,
    merge_equals_seeing_both,
    merge_is_associative,
    merge_with_unseen_is_neutral,
    merge_leaves_its_sources,
    ranks_equal_one_process,
    state_dict_round_trip,
    deepcopy_is_independent,
    reset_forgets,
    state_is_bounded,
)
