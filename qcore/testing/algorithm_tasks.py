"""A model, a data set and a run of a stage: what algorithms are tried on."""

import copy
import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn

from ..calibration import calibrate
from ..conversion import convert, programs
from ..dataset import Dataset
from ..errors import QcoreError
from ..fake_quantize import FakeQuantize
from ..host import PluginHost
from ..preparation import prepare
from ..recipe import Recipe
from ..specs import AlgorithmSpec
from ..stages import run_stage
from .contract import ContractViolation, Subject
from .networks import QCONFIGS, classifier
from .trials import Inputs, batches, examples_of, lively, results

__all__ = [
    "RECIPE",
    "Task",
    "is_program",
    "options_of",
    "run",
    "spec_of",
    "state_of",
    "structure_of",
    "tasks",
]

_TRAIN, _TEST = 48, 16

RECIPE = Recipe(qconfig=QCONFIGS["int8"])
"""By which the examples are quantized."""


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """An example in the phase that a stage works on; checks run the stage on copies.

    Args:
        what: the example in words.
        given: the model before the stage.
        inputs: the example's.
        data: made for it.
        phases: the example's model in every phase, also those that the stage does not work on.
    """

    what: str
    given: nn.Module
    inputs: Inputs
    data: Dataset
    phases: dict[str, nn.Module]


def spec_of(subject: Subject) -> AlgorithmSpec:
    """The record of an algorithm."""
    spec = subject.spec
    assert isinstance(spec, AlgorithmSpec)
    return spec


def tasks(subject: Subject) -> tuple[Task, ...]:
    """The author's examples in the phase that the stage works on; by default one classifier.

    Raises:
        ContractViolation: an example that is no classifier of one input.
    """
    return _kept_tasks(subject.host, subject.name)


@lru_cache(maxsize=2)
def _kept_tasks(host: PluginHost, name: str) -> tuple[Task, ...]:
    spec = cast(AlgorithmSpec, host.find("algorithm", name))
    subject = Subject(host=host, spec=spec)
    model, inputs = classifier()
    examples = ((lively(model), inputs),) if spec.examples is None else examples_of(subject)
    return tuple(
        _task(f"example {number}", model, inputs, subject)
        for number, (model, inputs) in enumerate(examples, start=1)
    )


def _task(what: str, model: nn.Module, inputs: Inputs, subject: Subject) -> Task:
    with torch.no_grad():
        logits = results(model, inputs)
    if len(inputs) != 1 or not logits or logits[0].ndim != 2:
        raise ContractViolation(
            f"{what}: it takes {len(inputs)} inputs and gives "
            f"{[list(y.shape) for y in logits]}; a stage gets a data set of one input an example "
            "and its class, so give examples of classifiers: one tensor to logits [B, classes]"
        )
    data = _data(inputs, classes=logits[0].shape[1])
    fresh = prepare(model, inputs, RECIPE, host=subject.host)
    calibrated = calibrate(copy.deepcopy(fresh), [data.train_inputs])
    phases = {"float": model, "qfloat": fresh, "calibrated": calibrated, "q": convert(calibrated)}
    given = phases[spec_of(subject).phase]
    return Task(what=what, given=given, inputs=inputs, data=data, phases=phases)


def _data(inputs: Inputs, classes: int) -> Dataset:
    def draw(size: int) -> tuple[Tensor, Tensor]:
        (x,) = next(batches(inputs, sizes=(size,), kinds=("plain",)))
        return x, torch.randint(0, classes, (size,))

    train, test = draw(_TRAIN), draw(_TEST)
    return Dataset(
        name="conformance",
        train_inputs=train[0],
        train_labels=train[1],
        test_inputs=test[0],
        test_labels=test[1],
        num_classes=classes,
    )


@contextmanager
def _own_cache() -> Iterator[None]:
    """Whatever a stage keeps goes to a folder of its own, and nothing is found there."""
    before = os.environ.get("QCORE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["QCORE_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["QCORE_CACHE"]
            else:
                os.environ["QCORE_CACHE"] = before


def run(
    subject: Subject,
    task: Task,
    *,
    seed: int = 0,
    model: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Runs the stage on a copy of the example's model, or on ``model``, as a recipe would.

    Raises:
        ContractViolation: it returns no model.
        RecipeError: an option has the wrong type.
    """
    target = subject.load()
    with _own_cache():
        result = run_stage(
            target,
            copy.deepcopy(task.given) if model is None else model,
            name=subject.name,
            dataset=task.data,
            seed=seed,
            options={**_required(target), **(options or {})},
        )
    if not isinstance(result, nn.Module):
        raise ContractViolation(
            f"{task.what}: the stage returned a {type(result).__name__}; due is the model"
        )
    return result


def options_of(target: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a stage that a recipe may set."""
    given = ("model", "dataset", "seed")
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(target, eval_str=True).parameters.values())[1:]
    return {p.name: p for p in parameters if p.kind in named and p.name not in given}


def _required(target: Any) -> dict[str, Any]:
    """The smallest value for each option that has no default, if it is a number."""
    values: dict[str, Any] = {}
    for name, parameter in options_of(target).items():
        if parameter.default is not parameter.empty:
            continue
        if parameter.annotation not in (int, float):
            raise ContractViolation(
                f"option {name!r} has no default, and is no int or float that the kit could set "
                "to 1; give it a default"
            )
        values[name] = parameter.annotation(1)
    return values


def state_of(model: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Name of each tensor of a model -> the part of the state that it is, and the tensor."""
    quantizers = tuple(n for n, m in model.named_modules() if isinstance(m, FakeQuantize))
    in_program = is_program(model)
    found: dict[str, tuple[str, Tensor]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in model.state_dict().items():
        if any(name.startswith(f"{q}.") for q in quantizers):
            part = "scales"
        elif in_program:
            part = "program"
        else:
            part = "weights" if name in parameters else "statistics"
        if isinstance(value, Tensor):
            found[name] = part, value.detach().clone()
    return found


def is_program(model: nn.Module) -> bool:
    """Whether a model is Q, or holds it."""
    try:
        return bool(programs(model))
    except QcoreError:
        return False


def structure_of(model: nn.Module) -> list[str]:
    """Name and type of each module."""
    return [f"{name}: {type(module).__name__}" for name, module in model.named_modules()]
