"""The optimizers of quantization-aware training: one for weights, and where its options differ
another for learned scales and zero points."""

from typing import Any

import torch
from torch import nn

from qcore import decay_groups, make_optimizer

from .schedule import learned_parameters
from .settings import Settings

__all__ = ["optimizers_of"]


def optimizers_of(model: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """One or two optimizers over all parameters that learn.

    Each group has its largest learning rate under ``"peak"``; ``"lr"`` is 0 until a step sets it.
    """
    scales = learned_parameters(model)
    known = {id(p) for p in scales}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups: list[dict[str, Any]] = [
        {**group, "peak": settings.lr}
        for group in decay_groups(others, weight_decay=settings.weight_decay)
    ]
    of_scales: list[dict[str, Any]] = [
        {"params": scales, "weight_decay": settings.scale_weight_decay, "peak": settings.scale_lr}
    ]
    if settings.scale_optimizer == settings.optimizer:
        parts = [(settings.optimizer, groups + of_scales)]
    else:
        parts = [(settings.optimizer, groups), (settings.scale_optimizer, of_scales)]
    made = []
    for name, members in parts:
        members = [group for group in members if group["params"]]
        if members:
            made.append(make_optimizer(name, members, momentum=settings.momentum))
    return made
