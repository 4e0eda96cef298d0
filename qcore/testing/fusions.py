"""The contracts of fusions, tried on the author's examples or on such as the pattern tells."""

import copy
from collections.abc import Callable
from functools import lru_cache

import torch

from ..host import PluginHost
from ..preparation import plan
from ..recipe import Recipe
from ..specs import ConverterSpec, FusionSpec
from .agreement import check_emit, check_float, check_integers
from .contract import Contract, ContractViolation, Subject
from .fusion_examples import fusion_examples
from .host_views import WithSpecs
from .near_misses import near_misses
from .networks import QCONFIGS
from .trials import (
    Trial,
    has_part,
    results,
    trial_if_taken,
    trial_of,
)

__all__ = ["CONTRACTS"]

_CONFIGS = ("int8", "int4 weights")
"""Affine and symmetric activations."""


def _spec(subject: Subject) -> FusionSpec:
    spec = subject.spec
    assert isinstance(spec, FusionSpec)
    return spec


def _alone(subject: Subject) -> PluginHost:
    """The host without any other fusion."""
    return WithSpecs(subject.host, fusion=[_spec(subject)])


def _trials(subject: Subject) -> tuple[Trial, ...]:
    """Each example with each configuration, quantized with this fusion and no other."""
    return _kept_trials(subject.host, subject.name)


@lru_cache(maxsize=2)
def _kept_trials(host: PluginHost, name: str) -> tuple[Trial, ...]:
    spec = host.find("fusion", name)
    assert isinstance(spec, FusionSpec)
    subject = Subject(host=host, spec=spec)
    return tuple(
        trial_of(
            f"example {number} with {config}",
            model,
            inputs,
            subject,
            host=_alone(subject),
            qconfig=QCONFIGS[config],
        )
        for config in _CONFIGS
        for number, (model, inputs) in enumerate(fusion_examples(subject), start=1)
    )


def _matches_its_examples(subject: Subject) -> int:
    spec = _spec(subject)
    for number, (model, inputs) in enumerate(fusion_examples(subject), start=1):
        made = plan(model, inputs, Recipe(qconfig=QCONFIGS["int8"]), host=subject.host)
        rows = [row for row in made.rows if has_part(subject, row)]
        if not rows:
            raise ContractViolation(
                f"example {number}: the pattern {spec.target!r} has no match in it, beside the "
                f"other fusions that are installed\n{made}"
            )
        for row in rows:
            converter = subject.host.find("converter", row.converter)
            assert isinstance(converter, ConverterSpec)
            due = spec.pattern[0] if spec.op is None else spec.op
            if converter.op != due and converter.op not in due:
                raise ContractViolation(
                    f"example {number}: the match {row.name!r} went to the converter of "
                    f"{converter.op!r}; due is that of {due!r}"
                )
            if len(row.fused) != len(spec.pattern) - 1:
                raise ContractViolation(
                    f"example {number}: the match {row.name!r} took in {row.fused}; due are "
                    f"{len(spec.pattern) - 1} operations"
                )
    return len(fusion_examples(subject))


def _equals_the_unfused(subject: Subject) -> int:
    return sum(map(check_float, _trials(subject)))


def _qfloat_equals_q(subject: Subject) -> int:
    return sum(map(check_integers, _trials(subject)))


def _emit_agrees_with_compute(subject: Subject) -> int:
    return sum(map(check_emit, _trials(subject)))


def _computes_near_misses(subject: Subject) -> int:
    """What the fusion takes of the near misses, it computes; what it does not, is left alone."""
    count = 0
    (model, given), *_ = fusion_examples(subject)
    host = _alone(subject)
    for words, graph, inputs in near_misses(model, given, _spec(subject), host):
        graph.eval()
        try:
            with torch.no_grad():
                results(copy.deepcopy(graph), inputs)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
        what = f"near miss: {words}"
        try:
            trial = trial_if_taken(
                what, graph, inputs, subject, host=host, qconfig=QCONFIGS["int8"]
            )
            if trial is not None:
                check_float(trial)
                check_integers(trial)
                check_emit(trial)
        except ContractViolation:
            raise
        except Exception as error:
            raise ContractViolation(f"{what}: {type(error).__name__}: {error}") from error
        count += 1
    return count


def _plans_are_stable(subject: Subject) -> int:
    fusions = [s for s in subject.host.specs("fusion") if isinstance(s, FusionSpec)]
    middle = len(fusions) // 2
    orders = {
        "again": fusions,
        "with the fusions registered in reverse": fusions[::-1],
        "with the fusions registered from the middle on": fusions[middle:] + fusions[:middle],
    }
    recipe = Recipe(qconfig=QCONFIGS["int8"])
    (model, inputs), *_ = fusion_examples(subject)
    due = plan(model, inputs, recipe, host=subject.host)
    for words, order in orders.items():
        made = plan(model, inputs, recipe, host=WithSpecs(subject.host, fusion=order))
        if made != due:
            raise ContractViolation(
                f"example 1: planned {words}, it has another plan\n{due}\n{made}"
            )
    return len(orders)


def _contract(name: str, check: Callable[[Subject], int], protects: str) -> Contract:
    return Contract(kind="fusion", name=name, protects=protects, check=check)


CONTRACTS: tuple[Contract, ...] = (
    _contract(
        "matches_its_examples",
        _matches_its_examples,
        "A pattern that never matches, or whose matches go to another converter, does nothing, and "
        "nobody notices.",
    ),
    _contract(
        "equals_the_unfused",
        _equals_the_unfused,
        "Without quantization the fused operation computes what its parts compute, in eval mode "
        "and in training, so calibration and training see the user's model.",
    ),
    _contract(
        "qfloat_equals_q",
        _qfloat_equals_q,
        "The accuracy that is simulated is the accuracy that is deployed only if every integer is "
        "the same, with the fusion as without.",
    ),
    _contract(
        "emit_agrees_with_compute",
        _emit_agrees_with_compute,
        "What the match takes in (a clamp, an addition) is in the integers too, not only in the "
        "simulation.",
    ),
    _contract(
        "computes_near_misses",
        _computes_near_misses,
        "A graph that nearly fits (another argument, a value that is used twice, a broadcast) is "
        "left alone or computed rightly, never taken for what it is not.",
    ),
    _contract(
        "plans_are_stable",
        _plans_are_stable,
        "The same model gets the same plan, whatever the order of installation.",
    ),
)
