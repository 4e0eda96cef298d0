"""The contracts about the statistics of an observer: order, merging, saving, copying, size."""

import copy
import gc
import io
import types

import torch
from torch import Tensor

from ..config import QScheme
from ..observer import Observer
from .contract import Subject, contract, require
from .observer_cases import (
    after,
    fresh,
    make_batches,
    observed_schemes,
    require_agreement,
    require_same,
    require_same_answer,
    schemes_of,
)
from .values import (
    SHAPE,
    draw,
    one_of_each_granularity,
)

__all__ = [
    "asking_changes_nothing",
    "deepcopy_is_independent",
    "merge_equals_seeing_both",
    "merge_is_associative",
    "merge_leaves_its_sources",
    "merge_with_unseen_is_neutral",
    "observing_is_deterministic",
    "order_of_batches_does_not_matter",
    "ranks_equal_one_process",
    "reset_forgets",
    "state_dict_round_trip",
    "state_is_bounded",
]


@contract("observer", "Data loaders shuffle: the range must not depend on the order of batches.")
def order_of_batches_does_not_matter(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        batches = make_batches(scheme, 4)
        due = after(subject, scheme, *batches)
        for order in ((3, 2, 1, 0), (2, 0, 3, 1)):
            observer = after(subject, scheme, *(batches[i] for i in order))
            require_agreement(
                f"{scheme.describe()}, batches of growing range in the order {order}", due, observer
            )
            cases += 1
    return cases


@contract("observer", "The same data must give the same model, whatever ran before.")
def observing_is_deterministic(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(schemes_of(subject)):
        batches = make_batches(scheme, 3)
        torch.manual_seed(1)
        random = torch.get_rng_state()
        due = after(subject, scheme, *batches)
        require(
            torch.equal(torch.get_rng_state(), random),
            f"{scheme.describe()}: observing drew from torch's global random numbers, and so "
            "changes what a seeded training draws after it; use a torch.Generator of its own",
        )
        torch.manual_seed(2)
        again = after(subject, scheme, *batches)
        require_same(f"{scheme.describe()}, the same batches once more", due, again)
        cases += 1
    return cases


@contract("observer", "Asking for a scale half-way, as a report does, must not change the result.")
def asking_changes_nothing(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        observer = fresh(subject, scheme)
        for batch in make_batches(scheme, 2):
            observer(batch)
            observer.state_dict()
            observer.calculate_qparams()
        due = after(subject, scheme, *make_batches(scheme, 2))
        require_agreement(f"{scheme.describe()}, asked after each batch", due, observer)
        cases += 1
    return cases


@contract("observer", "Ranks and shards of a calibration are joined by merging their statistics.")
def merge_equals_seeing_both(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        batches = make_batches(scheme, 4)
        # Unequal shares: an average of two answers would be right for equal ones.
        both = after(subject, scheme, *batches)
        for cut in (1, 3):
            parts = after(subject, scheme, *batches[:cut]), after(subject, scheme, *batches[cut:])
            require_agreement(
                f"{scheme.describe()}, {cut} of 4 batches here and the others there, merged",
                both,
                parts[0].merge(parts[1]),
            )
            cases += 1
    return cases


@contract("observer", "Shards are joined in any grouping, as pairs or one after the other.")
def merge_is_associative(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        a, b, c = (after(subject, scheme, batch) for batch in make_batches(scheme, 3))
        require_agreement(
            f"{scheme.describe()}: a.merge(b.merge(c)) against a.merge(b).merge(c)",
            a.merge(b).merge(c),
            a.merge(b.merge(c)),
        )
        cases += 1
    return cases


@contract("observer", "A rank whose share of the data was empty must not change the result.")
def merge_with_unseen_is_neutral(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        one, unseen = after(subject, scheme, *make_batches(scheme, 2)), fresh(subject, scheme)
        for side, merged in (("right", one.merge(unseen)), ("left", unseen.merge(one))):
            given = f"{scheme.describe()}, merged with one on the {side} that has seen nothing"
            require_same(given, one, merged)
            cases += 1
        nothing = unseen.merge(fresh(subject, scheme))
        require(
            not nothing.seen,
            f"{scheme.describe()}: two that have seen nothing merge to one that has",
        )
    return cases


@contract("observer", "Observers go on after a merge, for instance for a report on each shard.")
def merge_leaves_its_sources(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        batches = make_batches(scheme, 3)
        a, b = after(subject, scheme, batches[0]), after(subject, scheme, batches[1])
        kept = copy.deepcopy(a), copy.deepcopy(b)
        a.merge(b)(batches[2] * 10)
        require_same(f"{scheme.describe()}, the left one after a merge", kept[0], a)
        require_same(f"{scheme.describe()}, the right one after a merge", kept[1], b)
        cases += 2
    return cases


@contract("observer", "Calibration on several processes must equal calibration on one.")
def ranks_equal_one_process(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        batches = make_batches(scheme, 5)
        one = after(subject, scheme, *batches)
        # Uneven shares, of which one is empty; statistics travel as saved states.
        shares: list[list[Tensor]] = [batches[:2], batches[2:3], [], batches[3:]]
        ranks = [_sent(subject, scheme, after(subject, scheme, *share)) for share in shares]
        pairs = ranks[0].merge(ranks[1]).merge(ranks[2].merge(ranks[3]))
        line = ranks[0]
        for rank in ranks[1:]:
            line = line.merge(rank)
        # As qcore.synchronize_observers has it from then on: each batch travels by itself.
        together = after(subject, scheme, batches[0])
        for batch in batches[1:]:
            share = copy.deepcopy(together)
            share.reset()
            share(batch)
            together = together.merge(_sent(subject, scheme, share))
        ways = {"in pairs": pairs, "one by one": line, "batch by batch": together}
        for how, merged in ways.items():
            given = f"{scheme.describe()}, 4 ranks with 2, 1, 0 and 2 batches merged {how}"
            require_agreement(given, one, merged)
            cases += 1
    return cases


def _sent(subject: Subject, scheme: QScheme, observer: Observer) -> Observer:
    """A fresh observer with the state, which went through bytes as between processes."""
    for name, value in observer.state_dict().items():
        require(
            isinstance(value, Tensor),
            f"{scheme.describe()}: its state has {name!r} as a {type(value).__name__}; due are "
            "tensors alone, which are saved without pickle and travel between processes",
        )
    stream = io.BytesIO()
    torch.save(observer.state_dict(), stream)
    stream.seek(0)
    received = fresh(subject, scheme)
    received.load_state_dict(torch.load(stream, weights_only=True))
    return received


@contract("observer", "A checkpoint of a half-calibrated model must go on where it stopped.")
def state_dict_round_trip(subject: Subject) -> int:
    cases = 0
    for scheme in one_of_each_granularity(schemes_of(subject)):
        old = after(subject, scheme, *make_batches(scheme, 2))
        new = _sent(subject, scheme, old)
        require_same_answer(f"{scheme.describe()}, a fresh one with the saved state", old, new)
        if not old.seen:
            cases += 1
            continue
        for observer in (old, new):
            observer(make_batches(scheme, 3)[2])
        require_same(f"{scheme.describe()}, restored, then another batch", old, new)
        new.load_state_dict(fresh(subject, scheme).state_dict())
        require(
            not new.seen,
            f"{scheme.describe()}: the state of one that has seen nothing was loaded, and `seen` "
            "is true",
        )
        new(make_batches(scheme, 1)[0])
        due = after(subject, scheme, make_batches(scheme, 1)[0])
        require_same(f"{scheme.describe()}, an empty state loaded, then a batch", due, new)
        cases += 3
    return cases


@contract("observer", "A copy of a model that is calibrated further must not change the first.")
def deepcopy_is_independent(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        batches = make_batches(scheme, 3)
        one, due = (after(subject, scheme, *batches[:2]) for _ in range(2))
        other = copy.deepcopy(one)
        require_same(f"{scheme.describe()}, a deep copy", due, other)
        other(batches[2] * 10)
        require_same(f"{scheme.describe()}, after its deep copy saw more", due, one)
        one(batches[2])
        due(batches[2])
        require_same_answer(f"{scheme.describe()}, a batch after it was copied", due, one)
        cases += 3
    return cases


@contract("observer", "Weights are observed anew at each calibration, from nothing.")
def reset_forgets(subject: Subject) -> int:
    cases = 0
    for scheme in observed_schemes(subject):
        batches = make_batches(scheme, 2)
        observer = after(subject, scheme, batches[1] * 100)
        observer.reset()
        require(not observer.seen, f"{scheme.describe()}: after reset `seen` is true")
        observer(batches[0])
        due = after(subject, scheme, batches[0])
        require_same(f"{scheme.describe()}, reset, then a batch", due, observer)
        cases += 1
    return cases


@contract("observer", "Calibration on a million batches must fit the memory of one.")
def state_is_bounded(subject: Subject) -> int:
    scheme = observed_schemes(subject)[0]
    observer = fresh(subject, scheme)
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
