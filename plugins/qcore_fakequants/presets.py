"""The presets: a weight and an activation quantizer under one name, where recipes start.

===================== ======================= ================================
preset                weight                  activation
===================== ======================= ================================
``int8``              int8 a channel, min-max int8 affine, histogram
``int8_minmax``       int8 a channel, min-max int8 affine, min-max
``int8_weight_only``  int8 a channel, min-max float
``uint8``             int8 a channel, min-max uint8 affine, histogram
``int4``              int4 a channel, mse     int8 affine, histogram
``int4_weight_only``  int4 a group, mse       float
===================== ======================= ================================
"""

from qcore import PresetSpec, QConfig, QuantizerConfig

__all__ = ["PRESETS"]

_INT8_WEIGHT = QuantizerConfig(scheme="int8_channel", observer="minmax")
_INT8_ACTIVATION = QuantizerConfig(scheme="int8_affine", observer="histogram")

PRESETS: tuple[PresetSpec, ...] = (
    PresetSpec(
        name="int8",
        summary="8-bit weights and activations",
        qconfig=QConfig(weight=_INT8_WEIGHT, activation=_INT8_ACTIVATION),
    ),
    PresetSpec(
        name="int8_minmax",
        summary="8-bit weights and activations, nothing clipped",
        qconfig=QConfig(
            weight=_INT8_WEIGHT,
            activation=QuantizerConfig(scheme="int8_affine", observer="minmax"),
        ),
    ),
    PresetSpec(
        name="int8_weight_only",
        summary="8-bit weights, float arithmetic",
        qconfig=QConfig(weight=_INT8_WEIGHT, activation=None),
    ),
    PresetSpec(
        name="uint8",
        summary="8-bit weights and unsigned activations",
        qconfig=QConfig(
            weight=_INT8_WEIGHT,
            activation=QuantizerConfig(scheme="uint8", observer="histogram"),
        ),
    ),
    PresetSpec(
        name="int4",
        summary="4-bit weights, 8-bit activations",
        qconfig=QConfig(
            weight=QuantizerConfig(scheme="int4_channel", observer="mse"),
            activation=_INT8_ACTIVATION,
        ),
    ),
    PresetSpec(
        name="int4_weight_only",
        summary="4-bit weights in groups of 32, float arithmetic",
        qconfig=QConfig(
            weight=QuantizerConfig(scheme="int4_group32", observer="mse"), activation=None
        ),
    ),
)
