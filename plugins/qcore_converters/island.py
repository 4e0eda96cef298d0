"""Operations that stay float by policy: a converter that says why.

Each runs in float between a dequantize and a quantize. What it would lose on integers of one scale
is more than what two conversions cost.
"""

from typing import ClassVar

from qcore import Island, Step

__all__ = ["FloatIsland"]

_NORM = (
    "float by policy: mean and variance come from squares, which need more bits than the integers "
    "have"
)
_WIDE = (
    "float by policy: its values span many orders of magnitude, of which one scale keeps the "
    "largest only"
)


class FloatIsland(Island):
    """Never quantized; the plan shows the reason."""

    reasons: ClassVar[dict[str, str]] = {
        "layer_norm": _NORM,
        "group_norm": _NORM,
        "instance_norm": _NORM,
        "local_response_norm": _NORM,
        "softmax": _WIDE,
        "exp": _WIDE,
        "log": _WIDE,
        "pow": _WIDE,
        "reciprocal": _WIDE,
    }

    @staticmethod
    def reason(step: Step) -> str:
        return FloatIsland.reasons[step.op]
