"""What to quantize to: schemes, and the observer and fake quantizer that serve them.

All of it is data without torch: a plug-in declares schemes and presets in its light module, a
recipe names them, a plan shows them and an artifact stores them.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from .dtypes import QDtype
from .granularity import Granularity, PerTensor

__all__ = ["QConfig", "QScheme", "QuantizerConfig"]


@attrs.frozen(kw_only=True)
class QScheme:
    """A dtype, a granularity, and whether the range is symmetric about zero.

    Args:
        dtype: the integers.
        granularity: what shares a scale.
        symmetric: the zero point is the middle of the dtype (0 if signed) instead of fitted.
        power_of_two: scales are rounded up to powers of two.

    >>> from qcore import INT8, PerChannel
    >>> QScheme(dtype=INT8, granularity=PerChannel(0), symmetric=True).describe()
    'int8 symmetric per_channel(0)'
    """

    dtype: QDtype
    granularity: Granularity = attrs.field(factory=PerTensor)
    symmetric: bool = True
    power_of_two: bool = False

    def describe(self) -> str:
        """One line for plans and error messages."""
        values = attrs.astuple(self.granularity, recurse=False)
        kind = type(self.granularity).__name__
        name = "per_" + kind.removeprefix("Per").lower()
        inside = f"({', '.join(map(str, values))})" if values else ""
        mode = "symmetric" if self.symmetric else "affine"
        power = " power_of_two" if self.power_of_two else ""
        return f"{self.dtype.name} {mode} {name}{inside}{power}"


@attrs.frozen(kw_only=True)
class QuantizerConfig:
    """How one tensor is quantized: a scheme, an observer and a fake quantizer, by name.

    Args:
        scheme: a :class:`QScheme`, or the name of one that a plug-in brings (``"int8"``).
        observer: name of an observer (``"minmax"``).
        fake_quant: name of a fake quantizer (``"affine"``).
        observer_options: keyword arguments of the observer.
        fake_quant_options: keyword arguments of the fake quantizer.
    """

    scheme: QScheme | str
    observer: str = "minmax"
    fake_quant: str = "affine"
    observer_options: Mapping[str, Any] = attrs.field(factory=dict)
    fake_quant_options: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class QConfig:
    """How a layer is quantized: its weight and its activations.

    ``activation=None`` is weight-only: the layer computes in float with a quantized weight.
    ``weight=None`` leaves a layer that has a weight in float.
    """

    weight: QuantizerConfig | None
    activation: QuantizerConfig | None
