"""Observers, batches and comparisons, for the contracts of observers."""

import torch
from torch import Tensor

from ..config import QScheme
from ..granularity import PerChannel, PerTensor
from ..observer import Observer
from .contract import NotApplicable, Subject, require
from .values import (
    SHAPE,
    accepted,
    draw,
    one_of_each_granularity,
)

__all__ = [
    "WHERE",
    "after",
    "answer",
    "fresh",
    "make_batches",
    "observed_schemes",
    "require_agreement",
    "require_same",
    "require_same_answer",
    "schemes_of",
    "short",
    "state_difference",
]


WHERE = "block.conv"


def fresh(subject: Subject, scheme: QScheme) -> Observer:
    observer: Observer = subject.make(scheme=scheme, where=WHERE)
    return observer


def after(subject: Subject, scheme: QScheme, *batches: Tensor) -> Observer:
    observer = fresh(subject, scheme)
    for batch in batches:
        observer(batch)
    return observer


def schemes_of(subject: Subject) -> list[QScheme]:
    return accepted(lambda scheme: fresh(subject, scheme), f"observer {subject.name}")


def observed_schemes(subject: Subject) -> list[QScheme]:
    """A scheme of each granularity, of those for which it takes notice of values."""
    seen = [s for s in schemes_of(subject) if after(subject, s, draw(0, *SHAPE)).seen]
    found = one_of_each_granularity(seen)
    if not found:
        raise NotApplicable("it has no statistics: values leave it as it was (see values_are_seen)")
    return found


def make_batches(scheme: QScheme, count: int) -> list[Tensor]:
    """Batches of growing range, of several sizes where the scheme allows it."""
    per_row = isinstance(scheme.granularity, PerTensor) or scheme.granularity == PerChannel(0)
    sizes = (100, 7, 333, 64) if per_row else (SHAPE[1],)
    return [draw(i, SHAPE[0], sizes[i % len(sizes)]) * 2.0**i for i in range(count)]


def state_difference(due: Observer, found: Observer) -> str | None:
    """Where two states differ, or None."""
    wanted, state = due.state_dict(), found.state_dict()
    for name in wanted.keys() | state.keys():
        one, other = wanted.get(name), state.get(name)
        if not (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)):
            return f"its {name!r} is {short(other)}; due is {short(one)}"
    return None


def require_same(given: str, due: Observer, found: Observer) -> None:
    difference = state_difference(due, found)
    require(difference is None, f"{given}: {difference}")


def require_same_answer(given: str, due: Observer, found: Observer) -> None:
    require_same(given, due, found)
    if due.seen:
        p, q = due.calculate_qparams(), found.calculate_qparams()
        same = torch.equal(p.scale, q.scale) and torch.equal(p.zero_point, q.zero_point)
        require(same, f"{given}: it answers {answer(found)}; due is {answer(due)}")


def require_agreement(given: str, due: Observer, found: Observer) -> None:
    # That equal states answer equally is what state_dict_round_trip is for.
    if state_difference(due, found) is None:
        return
    p, q = due.calculate_qparams(), found.calculate_qparams()
    agree = (
        p.scale.shape == q.scale.shape
        and torch.allclose(p.scale, q.scale, rtol=1e-4, atol=0)
        and bool(((p.zero_point - q.zero_point).abs() <= 1).all())
    )
    require(agree, f"{given}: it answers {answer(found)}; due is {answer(due)}")


def answer(observer: Observer) -> str:
    qparams = observer.calculate_qparams()
    return f"scale {short(qparams.scale)}, zero point {short(qparams.zero_point)}"


def short(value: object) -> str:
    if not isinstance(value, Tensor):
        return "missing" if value is None else repr(value)
    if value.numel() > 8:
        return f"{value.flatten()[:8].tolist()}... {list(value.shape)}"
    return str(value.tolist())
