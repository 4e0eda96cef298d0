"""Why a chain that fits a pattern must not be fused all the same."""

from torch import Tensor, nn

from qcore import Match, Step

__all__ = ["unfit"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def unfit(match: Match) -> str | None:
    """The reason against fusing ``match``; None if there is none."""
    for before, step in zip(match.steps, match.steps[1:], strict=False):
        if step.op == "batch_norm":
            reason = _batch_norm(before, step)
        elif step.op == "add":
            reason = _add(step)
        else:
            reason = None
        if reason is not None:
            return reason
    return None


def _batch_norm(before: Step, step: Step) -> str | None:
    bn = step.module
    if not isinstance(bn, _BATCH_NORMS) or bn.running_var is None:
        return "it has no running statistics, so it normalizes with each batch"
    value = before.node.meta.get("val")
    weight = getattr(before.module, "weight", None)
    if not isinstance(value, Tensor) or not isinstance(weight, Tensor):
        return None
    if before.op != "linear" and value.ndim != weight.ndim:
        return "the layer before it has no batch, so it normalizes another dimension"
    if before.op == "linear" and value.ndim != 2:
        return "it normalizes another dimension than the linear layer's outputs"
    return None


def _add(step: Step) -> str | None:
    if step.arguments.get("alpha", 1) != 1:
        return "alpha is not 1"
    values = [node.meta.get("val") for node in step.node.all_input_nodes]
    if len(values) != 2:
        return "it adds a number"
    shapes = [list(map(str, v.shape)) for v in values if isinstance(v, Tensor)]
    if len(shapes) != 2 or shapes[0] != shapes[1]:
        return "the shapes differ, so one side is broadcast"
    return None
