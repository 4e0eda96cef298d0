"""The stages of a recipe: whether their order and options are possible, and running one."""

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from .dataset import Dataset
from .errors import RecipeError
from .recipe import Stage
from .specs import PHASES, AlgorithmSpec
from .suggest import did_you_mean

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["checked_stages", "run_stage"]

_GIVEN = ("model", "dataset")
"""What a stage gets from the run, and no recipe may set."""


def checked_stages(
    stages: Iterable[Stage], host: "PluginHost"
) -> list[tuple[Stage, AlgorithmSpec]]:
    """The stages of a recipe with their records; nothing runs.

    Args:
        stages: in the recipe's order.
        host: plug-ins.

    Raises:
        RecipeError: a stage stands behind one of a later phase, needs what none before it makes, or
            has no option of a name that is given.
        PluginError: there is no such algorithm, or it can't be imported.
    """
    found: list[tuple[Stage, AlgorithmSpec]] = []
    written: set[str] = set()
    last = 0
    for stage in stages:
        spec = host.find("algorithm", stage.name)
        assert isinstance(spec, AlgorithmSpec)
        phase = PHASES.index(spec.phase)
        if phase < last:
            raise RecipeError(
                f"algorithm {stage.name!r} works on the {spec.phase} model, but an earlier stage "
                f"in the recipe works on the {PHASES[last]} model; put it before that"
            )
        missing = set(spec.reads) - written
        if missing:
            raise RecipeError(
                f"algorithm {stage.name!r} needs {', '.join(sorted(missing))}, which no stage "
                "before it makes; add one that does"
            )
        last = phase
        written |= set(spec.writes)
        found.append((stage, spec))
    # Importing comes last: an impossible order is told without it.
    for stage, spec in found:
        _check_names(stage, host.load(spec))
    return found


def _check_names(stage: Stage, target: Any) -> None:
    """Every option of a stage is one of its target."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [
        p.name
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in _GIVEN
    ]
    for name in stage.options:
        if name not in known:
            raise RecipeError(
                f"algorithm {stage.name!r} has no option {name!r}{did_you_mean(name, known)} "
                f"(options: {', '.join(known) or 'none'})"
            )


def run_stage(
    target: Any,
    model: nn.Module,
    *,
    name: str,
    dataset: Dataset,
    seed: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """Runs one stage.

    Args:
        target: of the algorithm's record.
        model: of the phase that the stage works on.
        name: of the stage, for error messages.
        dataset: the recipe's data.
        seed: the recipe's; an option of that name comes before it.
        options: the recipe's, of this stage.

    Returns:
        What the stage returns.

    Raises:
        RecipeError: an option has the wrong type.
    """
    try:
        result: nn.Module = target(model, dataset=dataset, **{"seed": seed, **options})
    except TypeError as error:
        raise RecipeError(f"algorithm {name!r} with options {dict(options)}: {error}") from error
    return result
