"""The contracts of observers.

An observer is made as ``cls(scheme=..., where=..., **options)``, for each scheme that it takes, and
shown tensors of a few hundred values. Two observers *are the same* if their states are equal bit
for bit. They *agree* if they are the same, or their scales are equal to a ten-thousandth and their
zero points to 1, which leaves room for sums in another order.
"""

import copy
import gc
import io
import types
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import QScheme
from ..errors import QcoreError
from ..granularity import PerBlock, PerChannel, PerTensor
from ..numerics import dequantize_tensor, quantize_tensor
from ..observer import Observer
from .contract import Contract, NotApplicable, Subject, contract, require
from .values import (
    EXTREMES,
    SHAPE,
    accepted,
    draw,
    layouts,
    one_of_each_granularity,
    places,
)

__all__ = ["CONTRACTS"]

_WHERE = "block.conv"


def _fresh(subject: Subject, scheme: QScheme) -> Observer:
    observer: Observer = subject.make(scheme=scheme, where=_WHERE)
    return observer


def _after(subject: Subject, scheme: QScheme, *batches: Tensor) -> Observer:
    observer = _fresh(subject, scheme)
    for batch in batches:
        observer(batch)
    return observer


def _schemes(subject: Subject) -> list[QScheme]:
    return accepted(lambda scheme: _fresh(subject, scheme), f"observer {subject.name}")


def _observed(subject: Subject) -> list[QScheme]:
    """A scheme of each granularity, of those for which it takes notice of values."""
    seen = [s for s in _schemes(subject) if _after(subject, s, draw(0, *SHAPE)).seen]
    found = one_of_each_granularity(seen)
    if not found:
        raise NotApplicable("it has no statistics: values leave it as it was (see values_are_seen)")
    return found


def _batches(scheme: QScheme, count: int) -> list[Tensor]:
    """Batches of growing range, of several sizes where the scheme allows it."""
    per_row = isinstance(scheme.granularity, PerTensor) or scheme.granularity == PerChannel(0)
    sizes = (100, 7, 333, 64) if per_row else (SHAPE[1],)
    return [draw(i, SHAPE[0], sizes[i % len(sizes)]) * 2.0**i for i in range(count)]


def _difference(due: Observer, found: Observer) -> str | None:
    """Where two states differ, or None."""
    wanted, state = due.state_dict(), found.state_dict()
    for name in wanted.keys() | state.keys():
        one, other = wanted.get(name), state.get(name)
        if not (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)):
            return f"its {name!r} is {_short(other)}; due is {_short(one)}"
    return None


def _require_same(given: str, due: Observer, found: Observer) -> None:
    difference = _difference(due, found)
    require(difference is None, f"{given}: {difference}")


def _require_same_answer(given: str, due: Observer, found: Observer) -> None:
    _require_same(given, due, found)
    if due.seen:
        p, q = due.calculate_qparams(), found.calculate_qparams()
        same = torch.equal(p.scale, q.scale) and torch.equal(p.zero_point, q.zero_point)
        require(same, f"{given}: it answers {_answer(found)}; due is {_answer(due)}")


def _require_agreement(given: str, due: Observer, found: Observer) -> None:
    # That equal states answer equally is what state_dict_round_trip is for.
    if _difference(due, found) is None:
        return
    p, q = due.calculate_qparams(), found.calculate_qparams()
    agree = (
        p.scale.shape == q.scale.shape
        and torch.allclose(p.scale, q.scale, rtol=1e-4, atol=0)
        and bool(((p.zero_point - q.zero_point).abs() <= 1).all())
    )
    require(agree, f"{given}: it answers {_answer(found)}; due is {_answer(due)}")


def _answer(observer: Observer) -> str:
    qparams = observer.calculate_qparams()
    return f"scale {_short(qparams.scale)}, zero point {_short(qparams.zero_point)}"


def _short(value: object) -> str:
    if not isinstance(value, Tensor):
        return "missing" if value is None else repr(value)
    if value.numel() > 8:
        return f"{value.flatten()[:8].tolist()}... {list(value.shape)}"
    return str(value.tolist())


@contract(
    "observer",
    "Statistics outside of buffers are not seen, saved, moved to a device or merged.",
)
def values_are_seen(subject: Subject) -> int:
    cases = 0
    for scheme in _schemes(subject):
        observer = _fresh(subject, scheme)
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
    for scheme in _schemes(subject):
        try:
            qparams = _fresh(subject, scheme).calculate_qparams()
        except QcoreError as error:
            require(
                _WHERE in str(error),
                f"{scheme.describe()}: the error of an observer of {_WHERE!r} that has seen "
                f"nothing does not name that place: {error}",
            )
        else:
            require(
                False,
                f"{scheme.describe()}: an observer that has seen nothing answers scale "
                f"{_short(qparams.scale)}; due is a QuantizationError that names the layer",
            )
        cases += 1
    return cases


@contract("observer", "Observing must change neither the model's values nor what was counted.")
def input_passes_unchanged(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(_schemes(subject)):
        x = draw(0, *SHAPE)
        before = x.clone()
        observer = _fresh(subject, scheme)
        given = f"{scheme.describe()}, a batch of float32"
        require(observer(x) is x, f"{given}: another tensor came back; due is the very input")
        require(torch.equal(x, before), f"{given}: the input was changed")
        if observer.seen:
            # A view of the input that was kept would follow it.
            x.fill_(1e6)
            due = _after(subject, scheme, before)
            _require_same(f"{given} that was overwritten afterwards", due, observer)
        cases += 1
    return cases


@contract("observer", "Statistics that track gradients keep every graph of a training alive.")
def gradients_are_not_tracked(subject: Subject) -> int:
    cases = 0
    for scheme in _schemes(subject):
        x = draw(0, *SHAPE).requires_grad_()
        observer = _fresh(subject, scheme)
        observer(x).sum().backward()
        require(
            x.grad is not None and bool((x.grad == 1).all()),
            f"{scheme.describe()}: the gradient of an observed tensor is {_short(x.grad)}; due is "
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
    for scheme in one_of_each_granularity(_schemes(subject)):
        empty = torch.empty(0, SHAPE[1])
        observer = _fresh(subject, scheme)
        require(observer(empty) is empty, f"{scheme.describe()}: an empty batch did not pass")
        require(
            not observer.seen, f"{scheme.describe()}: after an empty batch alone `seen` is true"
        )
        for batch in _batches(scheme, 2):
            observer(batch)
            observer(empty)
        due = _after(subject, scheme, *_batches(scheme, 2))
        _require_same(f"{scheme.describe()}, empty batches between others", due, observer)
        cases += 1
    return cases


@contract("observer", "One NaN would ruin or silently narrow the range of the whole calibration.")
def nan_and_infinity_are_refused(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(_schemes(subject)):
        first, last = draw(0, *SHAPE), draw(1, *SHAPE)
        observer = _after(subject, scheme, first)
        for bad in (torch.nan, torch.inf, -torch.inf):
            for position in (0, 21, -1):
                x = draw(2, *SHAPE)
                x.view(-1)[position] = bad
                given = f"{scheme.describe()}, a batch with {bad} among {x.numel()} values"
                _require_refusal(given, observer, x)
                cases += 1
        observer(last)
        given = f"{scheme.describe()}, a batch, others with NaN and Inf that were refused, a batch"
        _require_same(given, _after(subject, scheme, first, last), observer)
    return cases


def _require_refusal(given: str, observer: Observer, x: Tensor) -> None:
    try:
        observer(x)
    except QcoreError as error:
        named = _WHERE in str(error)
        require(named, f"{given}: the error does not name the place {_WHERE!r}: {error}")
    else:
        require(False, f"{given}: it was taken; due is a QuantizationError")


@contract("observer", "Data loaders shuffle: the range must not depend on the order of batches.")
def order_of_batches_does_not_matter(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        batches = _batches(scheme, 4)
        due = _after(subject, scheme, *batches)
        for order in ((3, 2, 1, 0), (2, 0, 3, 1)):
            observer = _after(subject, scheme, *(batches[i] for i in order))
            _require_agreement(
                f"{scheme.describe()}, batches of growing range in the order {order}", due, observer
            )
            cases += 1
    return cases


@contract("observer", "The same data must give the same model, whatever ran before.")
def observing_is_deterministic(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(_schemes(subject)):
        batches = _batches(scheme, 3)
        torch.manual_seed(1)
        random = torch.get_rng_state()
        due = _after(subject, scheme, *batches)
        require(
            torch.equal(torch.get_rng_state(), random),
            f"{scheme.describe()}: observing drew from torch's global random numbers, and so "
            "changes what a seeded training draws after it; use a torch.Generator of its own",
        )
        torch.manual_seed(2)
        again = _after(subject, scheme, *batches)
        _require_same(f"{scheme.describe()}, the same batches once more", due, again)
        cases += 1
    return cases


@contract("observer", "Asking for a scale half-way, as a report does, must not change the result.")
def asking_changes_nothing(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        observer = _fresh(subject, scheme)
        for batch in _batches(scheme, 2):
            observer(batch)
            observer.state_dict()
            observer.calculate_qparams()
        due = _after(subject, scheme, *_batches(scheme, 2))
        _require_agreement(f"{scheme.describe()}, asked after each batch", due, observer)
        cases += 1
    return cases


@contract("observer", "Ranks and shards of a calibration are joined by merging their statistics.")
def merge_equals_seeing_both(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        batches = _batches(scheme, 4)
        # Unequal shares: an average of two answers would be right for equal ones.
        both = _after(subject, scheme, *batches)
        for cut in (1, 3):
            parts = _after(subject, scheme, *batches[:cut]), _after(subject, scheme, *batches[cut:])
            _require_agreement(
                f"{scheme.describe()}, {cut} of 4 batches here and the others there, merged",
                both,
                parts[0].merge(parts[1]),
            )
            cases += 1
    return cases


@contract("observer", "Shards are joined in any grouping, as pairs or one after the other.")
def merge_is_associative(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        a, b, c = (_after(subject, scheme, batch) for batch in _batches(scheme, 3))
        _require_agreement(
            f"{scheme.describe()}: a.merge(b.merge(c)) against a.merge(b).merge(c)",
            a.merge(b).merge(c),
            a.merge(b.merge(c)),
        )
        cases += 1
    return cases


@contract("observer", "A rank whose share of the data was empty must not change the result.")
def merge_with_unseen_is_neutral(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        one, unseen = _after(subject, scheme, *_batches(scheme, 2)), _fresh(subject, scheme)
        for side, merged in (("right", one.merge(unseen)), ("left", unseen.merge(one))):
            given = f"{scheme.describe()}, merged with one on the {side} that has seen nothing"
            _require_same(given, one, merged)
            cases += 1
        nothing = unseen.merge(_fresh(subject, scheme))
        require(
            not nothing.seen,
            f"{scheme.describe()}: two that have seen nothing merge to one that has",
        )
    return cases


@contract("observer", "Observers go on after a merge, for instance for a report on each shard.")
def merge_leaves_its_sources(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        batches = _batches(scheme, 3)
        a, b = _after(subject, scheme, batches[0]), _after(subject, scheme, batches[1])
        kept = copy.deepcopy(a), copy.deepcopy(b)
        a.merge(b)(batches[2] * 10)
        _require_same(f"{scheme.describe()}, the left one after a merge", kept[0], a)
        _require_same(f"{scheme.describe()}, the right one after a merge", kept[1], b)
        cases += 2
    return cases


@contract("observer", "Calibration on several processes must equal calibration on one.")
def ranks_equal_one_process(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        batches = _batches(scheme, 5)
        one = _after(subject, scheme, *batches)
        # Uneven shares, of which one is empty; statistics travel as saved states.
        shares: list[list[Tensor]] = [batches[:2], batches[2:3], [], batches[3:]]
        ranks = [_sent(subject, scheme, _after(subject, scheme, *share)) for share in shares]
        pairs = ranks[0].merge(ranks[1]).merge(ranks[2].merge(ranks[3]))
        line = ranks[0]
        for rank in ranks[1:]:
            line = line.merge(rank)
        for how, merged in (("in pairs", pairs), ("one by one", line)):
            given = f"{scheme.describe()}, 4 ranks with 2, 1, 0 and 2 batches merged {how}"
            _require_agreement(given, one, merged)
            cases += 1
    return cases


def _sent(subject: Subject, scheme: QScheme, observer: Observer) -> Observer:
    """A fresh observer with the state, which went through bytes as between processes."""
    stream = io.BytesIO()
    torch.save(observer.state_dict(), stream)
    stream.seek(0)
    received = _fresh(subject, scheme)
    received.load_state_dict(torch.load(stream, weights_only=True))
    return received


@contract("observer", "A checkpoint of a half-calibrated model must go on where it stopped.")
def state_dict_round_trip(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(_schemes(subject)):
        old = _after(subject, scheme, *_batches(scheme, 2))
        new = _sent(subject, scheme, old)
        _require_same_answer(f"{scheme.describe()}, a fresh one with the saved state", old, new)
        if not old.seen:
            cases += 1
            continue
        for observer in (old, new):
            observer(_batches(scheme, 3)[2])
        _require_same(f"{scheme.describe()}, restored, then another batch", old, new)
        new.load_state_dict(_fresh(subject, scheme).state_dict())
        require(
            not new.seen,
            f"{scheme.describe()}: the state of one that has seen nothing was loaded, and `seen` "
            "is true",
        )
        new(_batches(scheme, 1)[0])
        due = _after(subject, scheme, _batches(scheme, 1)[0])
        _require_same(f"{scheme.describe()}, an empty state loaded, then a batch", due, new)
        cases += 3
    return cases


@contract("observer", "A copy of a model that is calibrated further must not change the first.")
def deepcopy_is_independent(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        batches = _batches(scheme, 3)
        one, due = (_after(subject, scheme, *batches[:2]) for _ in range(2))
        other = copy.deepcopy(one)
        _require_same(f"{scheme.describe()}, a deep copy", due, other)
        other(batches[2] * 10)
        _require_same(f"{scheme.describe()}, after its deep copy saw more", due, one)
        one(batches[2])
        due(batches[2])
        _require_same_answer(f"{scheme.describe()}, a batch after it was copied", due, one)
        cases += 3
    return cases


@contract("observer", "Weights are observed anew at each calibration, from nothing.")
def reset_forgets(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        batches = _batches(scheme, 2)
        observer = _after(subject, scheme, batches[1] * 100)
        observer.reset()
        require(not observer.seen, f"{scheme.describe()}: after reset `seen` is true")
        observer(batches[0])
        due = _after(subject, scheme, batches[0])
        _require_same(f"{scheme.describe()}, reset, then a batch", due, observer)
        cases += 1
    return cases


@contract("observer", "Models in half and double precision have the same numbers to observe.")
def other_float_dtypes_are_as_good(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            x = draw(0, *SHAPE).to(dtype)
            observer = _after(subject, scheme, x)
            due = _after(subject, scheme, x.float())
            _require_same(f"{scheme.describe()}, a batch of {dtype}", due, observer)
            observer.to(dtype)
            _require_same(f"{scheme.describe()}, itself brought to {dtype}", due, observer)
            cases += 2
    return cases


@contract("observer", "Views and channels-last tensors hold the same values.")
def memory_layout_does_not_matter(subject: Subject) -> int:
    cases = 0
    for scheme in _observed(subject):
        # A block is of two dimensions, as its tensor must be then.
        tensors = [draw(0, *SHAPE)]
        if not isinstance(scheme.granularity, PerBlock):
            tensors.append(draw(1, 2, 3, 4, 8))
        for x in tensors:
            due = _after(subject, scheme, x)
            for name, other in layouts(x):
                given = f"{scheme.describe()}, {list(x.shape)} {name}"
                _require_agreement(given, due, _after(subject, scheme, other))
                cases += 1
    return cases


@contract("observer", "Channels have scales of their own: one must not widen another's range.")
def channels_do_not_mix(subject: Subject) -> int:
    schemes = [s for s in _observed(subject) if not isinstance(s.granularity, PerTensor)]
    if not schemes:
        raise NotApplicable("it takes per-tensor schemes only")
    cases = 0
    for scheme in schemes:
        spread = torch.logspace(-2, 2, torch.Size(SHAPE).numel()).reshape(SHAPE)
        batches = [draw(i, *SHAPE) * spread for i in range(2)]
        whole = _after(subject, scheme, *batches).calculate_qparams()
        for index, place in places(scheme):
            alone = _after(subject, scheme, *(batch[place] for batch in batches))
            due = alone.calculate_qparams()
            scale, zero_point = (t.flatten()[index] for t in (whole.scale, whole.zero_point))
            require(
                torch.allclose(scale, due.scale, rtol=1e-4, atol=0)
                and bool((zero_point - due.zero_point).abs().max() <= 1),
                f"{scheme.describe()}, scale {index} of a tensor {list(SHAPE)}: scale "
                f"{scale.item():.6g}, zero point {zero_point.item()}; observed alone its values "
                f"give {_answer(alone)}",
            )
            cases += 1
    return cases


@contract("observer", "Calibration on a million batches must fit the memory of one.")
def state_is_bounded(subject: Subject) -> int:
    scheme = _observed(subject)[0]
    observer = _fresh(subject, scheme)
    sizes = []
    for _ in range(2):
        for seed in range(40):
            observer(draw(seed, SHAPE[0], 1024))
        # What an observer puts off for several batches at once is bounded too, but comes and goes.
        observer.settle()
        sizes.append(_held(observer))
    require(
        sizes[1] <= sizes[0],
        f"{scheme.describe()}: after 40 batches of 4096 values it holds {sizes[0]} numbers and "
        f"objects, after 80 batches {sizes[1]}; due is a size that does not grow with the data",
    )
    return len(sizes)


def _held(observer: Observer) -> int:
    """How many numbers and objects it holds on to, wherever it keeps them."""
    skipped = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    found: dict[int, object] = {}
    waiting: list[object] = [vars(observer)]
    while waiting:
        value = waiting.pop()
        if id(value) in found or isinstance(value, skipped):
            continue
        found[id(value)] = value
        if not isinstance(value, Tensor):
            waiting += gc.get_referents(value)
    return sum(v.numel() if isinstance(v, Tensor) else 1 for v in found.values())


@contract("observer", "Whatever was seen, the model must go on with a scale that can be used.")
def extreme_values_have_an_answer(subject: Subject) -> int:
    cases = 0
    for scheme in _tensor_schemes(subject):
        for name, x in EXTREMES.items():
            observer = _after(subject, scheme, x, x)
            qparams = observer.calculate_qparams()
            given = f"{scheme.describe()}, {name}: it answers {_answer(observer)}, with which"
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
    schemes = [s for s in _schemes(subject) if isinstance(s.granularity, PerTensor)]
    # One with a zero point, one without.
    found = list({s.symmetric: s for s in schemes}.values())
    if not any(_after(subject, s, torch.ones(3)).seen for s in found):
        raise NotApplicable("it takes no scheme that is per tensor, or no notice of values")
    return found


@contract("observer", "A range that is upside down, infinite or of another shape has no scale.")
def range_is_ordered(subject: Subject) -> int:
    cases = 0
    for scheme, observer in _with_range(subject):
        low, high = observer.range()
        rows = torch.Size(scheme.granularity.scale_shape(SHAPE)).numel()
        given = f"{scheme.describe()}, a tensor {list(SHAPE)}: the range {_short(low)} to "
        given += f"{_short(high)}"
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
    for scheme in _observed(subject):
        observer = _after(subject, scheme, *(draw(i, *SHAPE) for i in range(2)))
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
