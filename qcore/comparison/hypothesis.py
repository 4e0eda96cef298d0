"""What a hypothesis about a difference says and predicts, and the words for it."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor

from .evidence import Case

__all__ = [
    "CONTRACT_CAUSES",
    "Candidate",
    "channels_in_words",
    "contract_in_words",
    "possible",
    "range_in_words",
    "substituted",
]

CONTRACT_CAUSES: Mapping[str, str] = {
    "rounding": "rounding",
    "requantization": "requantization",
    "bias": "bias-arithmetic",
    "zero_point": "zero-point-order",
    "accumulator": "saturation",
}
"""Name of the cause where one setting of the contract differs."""

_SAID: Mapping[tuple[str, str], str] = {
    ("rounding", "half_away"): "rounds ties away from zero",
    ("rounding", "half_even"): "rounds ties to even",
    ("zero_point", "before"): "adds the zero point before it rounds",
    ("zero_point", "after"): "adds the zero point after it has rounded",
    ("accumulator", "int16_pairs"): "saturates sums of two products to 16 bits",
    ("accumulator", "int32"): "does not saturate sums of two products to 16 bits",
    ("bias", "float32"): "adds the bias in float32, behind the scale",
    ("bias", "int32"): "rounds the bias to the step of the accumulator",
    ("requantization", "multiplier"): "scales the accumulator by one multiplication",
    ("requantization", "scale_bias_rescale"): "scales to real values first, and then to the output",
    ("requantization", "fixed_point"): "scales by an integer multiplier and a shift",
}
"""What a side does whose contract has a setting."""


@attrs.frozen(kw_only=True, eq=False)
class Candidate:
    """A possible cause.

    Args:
        name: one of a fixed set of words.
        reason: a sentence.
        predict: every value that the suspect must have given if this is the cause.
    """

    name: str
    reason: str
    predict: Callable[[], Tensor]


def substituted(case: Case, name: str, reason: str, changes: Mapping[str, Any]) -> Candidate:
    """The right side's operation with other arguments."""
    return Candidate(name=name, reason=reason, predict=lambda: case.right.run(**changes))


def contract_in_words(settings: Mapping[str, str]) -> str:
    """What a side does that has these settings.

    >>> contract_in_words({"rounding": "half_away", "bias": "float32"})
    'rounds ties away from zero, and adds the bias in float32, behind the scale'
    """
    return ", and ".join(_SAID[item] for item in settings.items())


def possible(settings: Mapping[str, str]) -> bool:
    """Whether there is a contract of these settings.

    >>> possible({"requantization": "fixed_point", "bias": "float32", "zero_point": "after"})
    False
    """
    fixed = settings["requantization"] == "fixed_point"
    return not fixed or (settings["bias"], settings["zero_point"]) == ("int32", "after")


def channels_in_words(mask: Tensor, most: int = 6) -> str:
    """``channel 3``, ``channels 0, 4``, or how many of how many.

    >>> import torch
    >>> channels_in_words(torch.tensor([False, True]))
    'channel 1'
    """
    found = mask.flatten().nonzero().flatten().tolist()
    if len(found) == mask.numel() and len(found) > 1:
        return f"all {len(found)} channels"
    if len(found) > most:
        return f"{len(found)} of {mask.numel()} channels"
    return f"channel{'s' if len(found) != 1 else ''} {', '.join(map(str, found))}"


def range_in_words(values: Tensor) -> str:
    """``0.8 to 1.3``, or the one value.

    >>> import torch
    >>> range_in_words(torch.tensor([1.3, 0.8])), range_in_words(torch.tensor([2.0]))
    ('0.8 to 1.3', '2')
    """
    low, high = f"{float(values.min()):.6g}", f"{float(values.max()):.6g}"
    return low if low == high else f"{low} to {high}"
