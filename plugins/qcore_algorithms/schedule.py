"""What happens when in a training: actions at an epoch or a step, as data of a recipe.

======================== ==========================================================
action                   what it does
======================== ==========================================================
``enable_observer``      observers see values; scales that are not learned follow
``disable_observer``     scales that are not learned stay
``enable_fake_quant``    forward quantizes
``disable_fake_quant``   forward is float
``freeze_batch_norm``    running statistics are used in training, and stay
``unfreeze_batch_norm``  statistics of the batch again
``freeze_scales``        learned scales stay
``unfreeze_scales``      learned scales learn again
======================== ==========================================================
"""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import attrs
from torch import nn

from qcore import (
    RecipeError,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    freeze_batch_norm,
    quantizers,
    unfreeze_batch_norm,
)

__all__ = ["ACTIONS", "Action", "actions_of", "learned_parameters"]


def learned_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of fake quantizers: learned scales and zero points, each once."""
    found = {id(p): p for _, quantizer in quantizers(model) for p in quantizer.parameters()}
    return list(found.values())


def _freeze_scales(model: nn.Module) -> None:
    for parameter in learned_parameters(model):
        parameter.requires_grad_(False)


def _unfreeze_scales(model: nn.Module) -> None:
    for parameter in learned_parameters(model):
        parameter.requires_grad_(True)


ACTIONS: Mapping[str, Callable[[nn.Module], None]] = {
    "enable_observer": enable_observer,
    "disable_observer": disable_observer,
    "enable_fake_quant": enable_fake_quant,
    "disable_fake_quant": disable_fake_quant,
    "freeze_batch_norm": freeze_batch_norm,
    "unfreeze_batch_norm": unfreeze_batch_norm,
    "freeze_scales": _freeze_scales,
    "unfreeze_scales": _unfreeze_scales,
}


@attrs.frozen(kw_only=True)
class Action:
    """One entry of a schedule.

    Args:
        step: number of steps that are done before it happens.
        do: a key of :data:`ACTIONS`.
    """

    step: int
    do: str

    def apply(self, model: nn.Module) -> None:
        """Does it; doing it twice is doing it once."""
        ACTIONS[self.do](model)


def actions_of(table: Sequence[Mapping[str, Any]], *, steps_per_epoch: int) -> tuple[Action, ...]:
    """The actions of a recipe's list, in the order in which they happen.

    Args:
        table: entries with ``do`` and either ``epoch`` (0 is the start; may be a fraction) or
            ``step``. Of entries at one time the earlier one comes first.
        steps_per_epoch: what an epoch stands for.

    Raises:
        RecipeError: an entry that is none; names its place.

    >>> actions_of([{"epoch": 1.5, "do": "freeze_batch_norm"}], steps_per_epoch=10)
    (Action(step=15, do='freeze_batch_norm'),)
    """
    if isinstance(table, str | Mapping) or not isinstance(table, Sequence):
        raise RecipeError(
            f"qat: schedule={table!r}; give a list of tables [[algorithm.schedule]], each with do "
            "and epoch or step"
        )
    actions = [
        _action(item, f"qat: schedule[{i}]", steps_per_epoch) for i, item in enumerate(table)
    ]
    return tuple(sorted(actions, key=lambda action: action.step))


def _action(item: Any, where: str, steps_per_epoch: int) -> Action:
    if not isinstance(item, Mapping):
        raise RecipeError(f"{where}: got {item!r}; give a table with do and epoch or step")
    unknown = [key for key in item if key not in ("do", "epoch", "step")]
    if unknown:
        raise RecipeError(f"{where}: unknown key {unknown[0]!r}; known are do, epoch, step")
    do = str(item.get("do"))
    if do not in ACTIONS:
        near = get_close_matches(do, ACTIONS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(f"{where}: do={do!r}; {hint}known are {', '.join(ACTIONS)}")
    if ("epoch" in item) == ("step" in item):
        raise RecipeError(f"{where}: give either epoch or step")
    key = "epoch" if "epoch" in item else "step"
    value = item[key]
    allowed = (int, float) if key == "epoch" else (int,)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 <= value < math.inf:
        kind = "number" if key == "epoch" else "whole number"
        raise RecipeError(f"{where}: {key}={value!r}; give a {kind}, 0 or more")
    return Action(step=round(value * (steps_per_epoch if key == "epoch" else 1)), do=do)
