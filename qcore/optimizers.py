"""What the trainings of plug-ins have in common about optimizers: those that have a name, and which
parameters decay."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

__all__ = ["OptimizerName", "decay_groups", "make_optimizer"]

OptimizerName = Literal["sgd", "adamw"]


def decay_groups(
    parameters: Iterable[nn.Parameter], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups for an optimizer: only parameters with two dimensions or more decay.

    Biases, scales and the parameters of normalisation have one; decay would pull them to 0 without
    making the function any simpler.

    >>> groups = decay_groups(nn.Linear(3, 2).parameters(), weight_decay=0.1)
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.1), (1, 0.0)]
    """
    known = list(parameters)
    return [
        {"params": [p for p in known if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in known if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(
    name: OptimizerName, groups: Sequence[dict[str, Any]], *, momentum: float
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW with betas (0.9, 0.999).

    Args:
        name: ``"sgd"`` or ``"adamw"``.
        groups: parameters and the options of each group.
        momentum: of SGD; 0 for none.

    Returns:
        The optimizer, with a learning rate of 0: a training sets that of each step.
    """
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, foreach=True
        )
    return torch.optim.AdamW(groups, lr=0.0, foreach=True)
