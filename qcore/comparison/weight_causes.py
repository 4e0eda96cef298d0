"""Causes that are read off weights, scales and biases: what differs, and in which pattern."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .evidence import Case
from .hypothesis import Candidate, channels_in_words, range_in_words, substituted

__all__ = ["changed_weights"]

_WEIGHT = ("w", "w_scale", "w_zero_point", "bias", "q")

_RATIO_TOLERANCE = 0.05
"""How far the ratio of two quantized weights may lie from that of their channel: both were
rounded."""


def changed_weights(case: Case, changed: Mapping[str, Any]) -> Candidate | None:
    """What differs in weight, scales and bias, named by the pattern of it.

    Args:
        case: with data of both sides.
        changed: the suspect's arguments that are others.
    """
    mine = {key: changed[key] for key in _WEIGHT if key in changed}
    if not mine:
        return None
    if set(mine) == {"bias"}:
        return substituted(case, "bias", _bias_reason(case, mine["bias"]), mine)
    if set(mine) == {"w_scale"}:
        return substituted(case, "channel-scale", _scale_reason(case, mine["w_scale"]), mine)
    if set(mine) <= {"w", "q"}:
        ((key, weight),) = mine.items()
        return substituted(case, "weight", _weight_reason(case, case.given[key], weight), mine)
    ratios = _channel_ratios(case)
    if ratios is None:
        return substituted(case, "weight", f"{case.suspect} has other {', '.join(mine)}", mine)
    said = (
        f"the weights of {channels_in_words(ratios != 1)} are those of {case.reference} times "
        f"{range_in_words(ratios)}"
    )
    said += ", and the bias differs" if "bias" in mine else ""
    said += ", as folding BatchNorm with other statistics gives"
    return substituted(case, "batch-norm", said, mine)


def _bias_reason(case: Case, theirs: Tensor | None) -> str:
    ours = case.given["bias"]
    if ours is None or theirs is None:
        which = "no bias" if theirs is None else "a bias"
        return f"{case.suspect} has {which}"
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return (
            f"the bias is {theirs.dtype} {list(theirs.shape)} rather than {ours.dtype} "
            f"{list(ours.shape)}"
        )
    delta = theirs.double() - ours.double()
    unit = "in real values" if theirs.is_floating_point() else "steps of the accumulator"
    return (
        f"the bias of {channels_in_words(delta != 0)} is off in {case.suspect}, by "
        f"{range_in_words(delta[delta != 0])} {unit}"
    )


def _scale_reason(case: Case, theirs: Tensor) -> str:
    ours = case.given["w_scale"]
    if ours.shape != theirs.shape:
        return f"w_scale has the shape {list(theirs.shape)} rather than {list(ours.shape)}"
    which = channels_in_words(
        (ours != theirs).reshape(ours.shape[0] if ours.ndim else 1, -1).any(1)
    )
    if torch.equal(ours.flatten().sort().values, theirs.flatten().sort().values):
        return f"the scales of {which} are exchanged"
    ratio = (theirs.double() / ours.double())[ours != theirs]
    return f"the scales of {which} are those of {case.reference} times {range_in_words(ratio)}"


def _weight_reason(case: Case, ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return (
            f"the weight is {theirs.dtype} {list(theirs.shape)} rather than {ours.dtype} "
            f"{list(ours.shape)}"
        )
    different = ours != theirs
    n = int(different.sum())
    text = f"{n} of {ours.numel()} weights are others in {case.suspect}"
    if n == 1:
        index = different.nonzero()[0].tolist()
        new, old = theirs[different].item(), ours[different].item()
        text = f"weight {index} is {new} in {case.suspect} rather than {old}"
    return text


def _channel_ratios(case: Case) -> Tensor | None:
    """Factor of each channel's real weights, if they are those of the right side times one."""
    other = case.other
    assert other is not None
    ours, theirs = case.given, other.given
    axis = 1 if case.operation == "qconv_transpose" else 0
    if not {"w", "w_scale", "w_zero_point"} <= ours.keys():
        return None
    if ours["w"].shape != theirs["w"].shape:
        return None
    # Weights in groups have no one scale for a channel.
    if ours["w_scale"].ndim > 1 or ours["w_scale"].shape != theirs["w_scale"].shape:
        return None
    a, b = (
        (given["w"].double() - _column(given["w_zero_point"], given["w"], axis))
        * _column(given["w_scale"], given["w"], axis)
        for given in (ours, theirs)
    )
    a, b = (t.movedim(axis, 0).flatten(1) for t in (a, b))
    norm = a.square().sum(1)
    ratio = torch.where(norm > 0, (a * b).sum(1) / norm, torch.ones_like(norm))
    error = (b - ratio[:, None] * a).norm(dim=1)
    fits = error <= _RATIO_TOLERANCE * b.norm(dim=1)
    return ratio if bool(fits.all()) else None


def _column(values: Tensor | None, weight: Tensor, axis: int) -> Tensor | float:
    """A value a channel, to broadcast against a weight."""
    if values is None:
        return 0.0
    if values.ndim == 0:
        return values.double()
    shape = [1] * weight.ndim
    shape[axis] = -1
    return values.double().reshape(shape)
