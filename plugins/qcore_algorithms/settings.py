"""The options of quantization-aware training, and what each may be."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import attrs

from qcore import OptimizerName, RecipeError

__all__ = ["Augment", "Fold", "Settings", "checked"]

Augment = Literal["flip", "shift"]
Fold = Literal["approximate", "exact"]


@attrs.frozen(kw_only=True)
class Settings:
    """The options of :func:`~qcore_algorithms.qat.qat`, which says what each means."""

    epochs: int
    seed: int
    batch_size: int
    optimizer: OptimizerName
    lr: float
    lr_end: float
    warmup: float
    momentum: float
    weight_decay: float
    scale_optimizer: OptimizerName
    scale_lr: float
    scale_weight_decay: float
    batch_norm_fold: Fold
    schedule: Sequence[Mapping[str, Any]]
    distillation: float
    temperature: float
    label_smoothing: float
    augment: Sequence[Augment]
    shift_pixels: int
    validation: int
    checkpoint: str | None
    checkpoint_every: int
    compiled: bool
    channels_last: bool
    threads: int | None


_RANGES: Mapping[str, tuple[float, float]] = {
    "epochs": (1, math.inf),
    "batch_size": (1, math.inf),
    "lr": (0, math.inf),
    "lr_end": (0, 1),
    "warmup": (0, 0.99),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "scale_lr": (0, math.inf),
    "scale_weight_decay": (0, math.inf),
    "distillation": (0, 1),
    "temperature": (1e-3, math.inf),
    "label_smoothing": (0, 1),
    "shift_pixels": (0, math.inf),
    "validation": (0, math.inf),
    "checkpoint_every": (0, math.inf),
    "threads": (1, math.inf),
}


def checked(options: Mapping[str, Any]) -> Settings:
    """The options of a call.

    Raises:
        RecipeError: an unknown choice, or a number out of its range.
    """
    for name, (low, high) in _RANGES.items():
        value = options[name]
        if value is not None and not low <= value <= high:
            allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise RecipeError(f"qat: {name}={value}; use {allowed}")
    augment = options["augment"]
    if isinstance(augment, str):
        raise RecipeError(f"qat: augment={augment!r}; use a list of names")
    chosen = [(name, options[name]) for name in ("optimizer", "scale_optimizer")]
    choices = [(*pair, OptimizerName) for pair in chosen]
    choices.append(("batch_norm_fold", options["batch_norm_fold"], Fold))
    choices += [("augment", name, Augment) for name in augment]
    for name, value, allowed_values in choices:
        if value not in get_args(allowed_values):
            words = " or ".join(map(repr, get_args(allowed_values)))
            raise RecipeError(f"qat: {name}={value!r}; use {words}")
    return Settings(**options)
