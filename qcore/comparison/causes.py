"""Why an operation differs: hypotheses that are tried by computing the operation anew.

A hypothesis is a function from a case to candidates, each a name, a sentence, and a prediction of
every value. The first whose prediction is right everywhere is the cause. If there is none, the best
that explains most of the difference is given as likely; else the cause is unknown. Hypotheses that
read the difference from the two programs come first, then those that compute by other rules, then
those that estimate what was changed from the values alone.
"""

from collections.abc import Callable, Iterator

from torch import Tensor

from ..errors import QcoreError
from .data_causes import changed_arguments, changed_operations
from .estimated_causes import bias_of_channels, scale_of_channels, single_weight, stale_batch_norm
from .evidence import Case, Score
from .hypothesis import Candidate
from .records import UNKNOWN, Cause
from .rule_causes import (
    clamp,
    input_zero_point,
    mixed_contract,
    no_bias,
    other_contract,
    padding,
    quantize_rules,
    residual,
    table,
)

__all__ = ["diagnose", "float_arithmetic", "unknown"]

Hypothesis = Callable[[Case], Iterator[Candidate]]

DATA: tuple[Hypothesis, ...] = (changed_arguments, changed_operations)
"""Read the cause off the programs."""

RULES: tuple[Hypothesis, ...] = (
    other_contract,
    quantize_rules,
    clamp,
    no_bias,
    residual,
    padding,
    input_zero_point,
    table,
    mixed_contract,
)
"""Compute by another rule."""

ESTIMATES: tuple[Hypothesis, ...] = (
    bias_of_channels,
    scale_of_channels,
    single_weight,
    stale_batch_norm,
)
"""Fit numbers to the values."""

_FEW = 8
"""So few differing values that several rules may explain them: then all of those are named."""

_LIKELY = 0.5
"""A cause must explain this share of the difference, less what it refutes, to be named."""

_FLOAT_NOISE = 1e-5
"""Largest difference of float values, relative to the largest value, that rounding explains."""


def diagnose(case: Case) -> Cause:
    """The most likely cause of a difference."""
    differing = int((case.got.double() != case.expected.double()).sum())
    best: tuple[int, Candidate, Score] | None = None
    full: list[tuple[Candidate, Score]] = []
    for hypothesis in (*DATA, *RULES, *ESTIMATES):
        if full and hypothesis in (mixed_contract, *ESTIMATES):
            break
        for candidate in hypothesis(case):
            try:
                score = case.score(candidate.predict)
            # Not every contract or change of arguments is possible for every operation.
            except (QcoreError, RuntimeError, IndexError):
                continue
            if score.full:
                if hypothesis in DATA or differing > _FEW:
                    return _cause(candidate, score)
                full.append((candidate, score))
            worth = score.explained - score.refuted
            if best is None or worth > best[0]:
                best = (worth, candidate, score)
    if full:
        first, score = full[0]
        others = dict.fromkeys(c.name for c, _ in full if c.name != first.name)
        return _cause(first, score, tuple(others))
    if case.floats:
        noise = float_arithmetic(case.expected, case.got, case.suspect)
        if noise is not None:
            return noise
    if best is not None and best[0] >= max(1.0, _LIKELY * differing):
        return _cause(best[1], best[2])
    return unknown(f"no hypothesis explains what {case.suspect} computes", differing)


def unknown(reason: str, differing: int) -> Cause:
    """No cause."""
    return Cause(name=UNKNOWN, reason=reason, explained=0, differing=differing)


def _cause(candidate: Candidate, score: Score, alternatives: tuple[str, ...] = ()) -> Cause:
    return Cause(
        name=candidate.name,
        reason=candidate.reason,
        explained=score.explained,
        differing=score.differing,
        refuted=score.refuted,
        alternatives=alternatives,
    )


def float_arithmetic(expected: Tensor, got: Tensor, suspect: str) -> Cause | None:
    """The cause of values in float that are nearly equal; None if they are not."""
    a, b = expected.double(), got.double()
    size, error = float(a.abs().max()), float((a - b).abs().max())
    if not error <= _FLOAT_NOISE * size:
        return None
    differing = int((a != b).sum())
    return Cause(
        name="float-arithmetic",
        reason=f"{suspect} rounds steps in float otherwise; values differ by at most "
        f"{error / size:.1e} of the largest",
        explained=differing,
        differing=differing,
    )
