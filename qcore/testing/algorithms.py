"""The contracts of algorithms, tried on a small classifier or on the author's examples."""

import copy
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from ..calibration import calibrate
from ..conversion import convert, programs
from ..errors import QcoreError, RecipeError
from ..fidelity import count_differences
from ..host import PluginHost
from ..preparation import prepare
from ..qfloat_model import info_of
from ..recipe import Stage
from ..specs import PHASES, AlgorithmSpec
from ..stages import checked_stages
from .algorithm_tasks import (
    RECIPE,
    is_program,
    options_of,
    run,
    spec_of,
    state_of,
    structure_of,
    tasks,
)
from .contract import Contract, ContractViolation, NotApplicable, Subject
from .host_views import WithSpecs
from .trials import batches, results, sized

__all__ = ["CONTRACTS"]


def _changes_what_it_declares(subject: Subject) -> int:
    declared = set(spec_of(subject).writes)
    count = 0
    for task in tasks(subject):
        before, structure = state_of(task.given), structure_of(task.given)
        result = run(subject, task)
        after = state_of(result)
        changed: dict[str, str] = {}
        if structure_of(result) != structure or before.keys() != after.keys():
            other = sorted(set(structure_of(result)) ^ set(structure)) or sorted(
                before.keys() ^ after
            )
            part = "program" if is_program(result) else "structure"
            changed[part] = other[0] if other else "the order of the modules"
        for name in before.keys() & after.keys():
            part, value = before[name]
            if not _equal(value, after[name][1]):
                changed.setdefault(part, name)
        for part, name in changed.items():
            if part not in declared:
                raise ContractViolation(
                    f"{task.what}: the stage changed {name!r}, which is of the {part}; its record "
                    f"declares writes={spec_of(subject).writes!r}: add {part!r}, or leave it"
                )
        count += len(before)
    return count


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _leaves_the_model_valid(subject: Subject) -> int:
    phase, count = spec_of(subject).phase, 0
    for task in tasks(subject):
        model = run(subject, task)
        q = model
        if phase != "q":
            qfloat = model
            if phase == "float":
                qfloat = prepare(model.eval(), task.inputs, RECIPE, host=subject.host)
            else:
                info_of(model)
            if phase != "calibrated":
                calibrate(qfloat, [task.data.train_inputs])
            q = convert(qfloat)
            given = list(batches(task.inputs))
            fidelity = count_differences(qfloat, q, given)
            if fidelity.differing:
                raise ContractViolation(
                    f"{task.what}: after the stage, QFloat and Q differ in {fidelity.differing} of "
                    f"{fidelity.compared} values"
                )
        programs(q)
        for size in (1, 5):
            with torch.no_grad():
                found = results(q, sized(task.inputs, size))
                wanted = results(task.phases["float"], sized(task.inputs, size))
            if [y.shape for y in found] != [y.shape for y in wanted]:
                raise ContractViolation(
                    f"{task.what}: after the stage Q gives {[list(y.shape) for y in found]} for a "
                    f"batch of {size}; due are {[list(y.shape) for y in wanted]}"
                )
            if not all(bool(y.isfinite().all()) for y in found):
                raise ContractViolation(f"{task.what}: after the stage Q gives NaN or infinities")
            count += 1
    return count


def _repeats_itself(subject: Subject) -> int:
    count = 0
    for task in tasks(subject):
        states = []
        for disturbance in (1, 2):
            # What was drawn before must not matter: the seed is the recipe's.
            torch.manual_seed(disturbance)
            states.append(state_of(run(subject, task, seed=7)))
        first, second = states
        other = [n for n in first if n not in second or not _equal(first[n][1], second[n][1])]
        if other or first.keys() != second.keys():
            raise ContractViolation(
                f"{task.what}: run twice on the same model with the same seed, the stage gave "
                f"another {other[0] if other else 'structure'!r}; draw from the seed it is given"
            )
        count += len(first)
    return count


def _leaves_the_given_model(subject: Subject) -> int:
    if spec_of(subject).phase != "float":
        raise NotApplicable("only a float model is the user's own; later ones are the run's")
    count = 0
    for task in tasks(subject):
        given = copy.deepcopy(task.given)
        before, modes = state_of(given), [m.training for m in given.modules()]
        result = run(subject, task, model=given)
        after = state_of(given)
        changed = [name for name in before if not _equal(before[name][1], after[name][1])]
        shared = {t.data_ptr() for t in given.parameters()} & {
            t.data_ptr() for t in result.parameters()
        }
        if changed or shared or modes != [m.training for m in given.modules()]:
            raise ContractViolation(
                f"{task.what}: the stage changed the float model that it was given, or shares "
                f"tensors with it: {', '.join(changed) or 'its mode or memory'}; work on a copy"
            )
        count += len(before)
    return count


def _refuses_unknown_options(subject: Subject) -> int:
    key = "no_such_option"
    stage = Stage(name=subject.name, options={key: 1})
    host = WithSpecs(subject.host, algorithm=[_free(spec_of(subject))])
    try:
        checked_stages([stage], host)
        task, *_ = tasks(subject)
        run(subject, task, options={key: 1})
    except RecipeError as error:
        if key not in str(error):
            raise ContractViolation(
                f"option {key!r} was refused by an error that does not name it: {error}"
            ) from error
        return 1
    raise ContractViolation(
        f"a recipe that gives it the option {key!r} runs: a misspelt option would be ignored; name "
        "the options instead of taking **options, or check them"
    )


def _free(spec: AlgorithmSpec) -> AlgorithmSpec:
    """The record without what it needs of others."""
    return attrs.evolve(spec, reads=())


def _refuses_wrong_values(subject: Subject) -> int:
    task, *_ = tasks(subject)
    count = 0
    for name, parameter in options_of(subject.load()).items():
        default = parameter.default
        if isinstance(default, bool) or not (
            isinstance(default, int | float) or parameter.annotation in (int, float)
        ):
            continue
        wrong: list[Any] = ["wrong"]
        if isinstance(default, float) or parameter.annotation is float:
            wrong.append(float("nan"))
        for value in wrong:
            try:
                run(subject, task, options={name: value})
            except QcoreError as error:
                if name not in str(error):
                    raise ContractViolation(
                        f"{name}={value!r} was refused by an error that does not name the option: "
                        f"{error}"
                    ) from error
            except Exception as error:
                raise ContractViolation(
                    f"{name}={value!r} raised {type(error).__name__}: {error}; due is a "
                    "qcore.RecipeError that says what is allowed"
                ) from error
            else:
                raise ContractViolation(f"{name}={value!r} was taken for a number")
            count += 1
    if not count:
        raise NotApplicable("it has no options that are numbers")
    return count


def _refuses_impossible_order(subject: Subject) -> int:
    spec = spec_of(subject)
    name = subject.name
    count = 0
    if spec.reads:
        _refused([Stage(name=name)], WithSpecs(subject.host, algorithm=[spec]), spec.reads[0])
        count += 1
    free = _free(spec)
    if spec.phase != PHASES[-1]:
        later = attrs.evolve(free, name="later", phase=PHASES[-1])
        host = WithSpecs(subject.host, algorithm=[later, free])
        _refused([Stage(name="later"), Stage(name=name)], host, spec.name)
        count += 1
    task, *_ = tasks(subject)
    if spec.phase == "float":
        return count
    earlier = {
        "qfloat": ("float",),
        "calibrated": ("float", "qfloat"),
        "q": ("float", "calibrated"),
    }
    for phase in earlier[spec.phase]:
        try:
            run(subject, task, model=copy.deepcopy(task.phases[phase]))
        except QcoreError:
            count += 1
        except Exception as error:
            raise ContractViolation(
                f"{task.what}: given the {phase} model instead of the {spec.phase} model, the "
                f"stage raised {type(error).__name__}: {error}; due is a qcore error that says "
                "what it needs"
            ) from error
        else:
            raise ContractViolation(
                f"{task.what}: the stage works on the {spec.phase} model, and took the {phase} "
                "model without a word"
            )
    return count


def _refused(stages: list[Stage], host: PluginHost, word: str) -> None:
    names = " before ".join(stage.name for stage in stages)
    try:
        checked_stages(stages, host)
    except RecipeError as error:
        if word not in str(error):
            raise ContractViolation(
                f"the error about the order {names} is of another: {error}"
            ) from error
    else:
        raise ContractViolation(f"a recipe with the impossible order {names} was accepted")


def _contract(name: str, check: Callable[[Subject], int], protects: str) -> Contract:
    return Contract(kind="algorithm", name=name, protects=protects, check=check)


CONTRACTS: tuple[Contract, ...] = (
    _contract(
        "changes_what_it_declares",
        _changes_what_it_declares,
        "The order of stages is checked by what they say they change; an undeclared change undoes "
        "another stage's work.",
    ),
    _contract(
        "leaves_the_model_valid",
        _leaves_the_model_valid,
        "Whatever a stage does, the model still converts, its integers are those of the "
        "simulation, and its results are finite.",
    ),
    _contract(
        "repeats_itself",
        _repeats_itself,
        "A result that the same recipe and seed do not give again can't be compared with anything.",
    ),
    _contract(
        "leaves_the_given_model",
        _leaves_the_given_model,
        "The float model is the reference of every comparison, and the start of the next arm.",
    ),
    _contract(
        "refuses_unknown_options",
        _refuses_unknown_options,
        "A misspelt option that is swallowed is an experiment that was never made.",
    ),
    _contract(
        "refuses_wrong_values",
        _refuses_wrong_values,
        "A value that is no number is an error with the option's name, before hours of work.",
    ),
    _contract(
        "refuses_impossible_order",
        _refuses_impossible_order,
        "An order that can't work is an error before anything runs, and a model of another phase "
        "is refused.",
    ),
)
