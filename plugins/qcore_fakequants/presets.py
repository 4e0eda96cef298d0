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
``int8_dynamic``      int8 a channel, min-max int8 a token, at run time
``int4_dynamic``      int4 a group, mse       int8 a token, at run time
``w8a8``              int8 a channel, min-max int8 affine, histogram
``w4a8``              int4 a channel, mse     int8 affine, histogram
``w4a4``              int4 a channel, mse     uint4 affine, histogram
``w3a3``              int3 a channel, mse     uint3 affine, histogram
``w2a4``              int2 a channel, mse     uint4 affine, histogram
===================== ======================= ================================

The last five have learned steps (LSQ): for training after calibration. Untrained they are what the
observers found, as others are. Below 8 bits the first and the last layer usually stay at 8: a
recipe says so with overrides.
"""

import attrs

from qcore import PresetSpec, QConfig, QuantizerConfig

__all__ = ["PRESETS"]

_INT8_WEIGHT = QuantizerConfig(scheme="int8_channel", observer="minmax")
_INT8_ACTIVATION = QuantizerConfig(scheme="int8_affine", observer="histogram")
_INT8_TOKENS = QuantizerConfig(scheme="int8_token")
_INT4_WEIGHT = QuantizerConfig(scheme="int4_channel", observer="mse")
_INT4_GROUPS = QuantizerConfig(scheme="int4_group32", observer="mse")


def _learned(name: str, weight: QuantizerConfig, activation: str) -> PresetSpec:
    """A preset for training: ``w<bits>a<bits>``, with learned steps."""
    bits = name.removeprefix("w").split("a")
    return PresetSpec(
        name=name,
        summary=f"{bits[0]}-bit weights and {bits[1]}-bit activations with learned steps",
        qconfig=QConfig(
            weight=attrs.evolve(weight, fake_quant="lsq"),
            activation=QuantizerConfig(scheme=activation, observer="histogram", fake_quant="lsq"),
        ),
    )


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
            weight=_INT4_WEIGHT,
            activation=_INT8_ACTIVATION,
        ),
    ),
    PresetSpec(
        name="int4_weight_only",
        summary="4-bit weights in groups of 32, float arithmetic",
        qconfig=QConfig(weight=_INT4_GROUPS, activation=None),
    ),
    PresetSpec(
        name="int8_dynamic",
        summary="8-bit weights; 8-bit inputs of linear layers, quantized at run time",
        qconfig=QConfig(weight=_INT8_WEIGHT, activation=_INT8_TOKENS),
    ),
    PresetSpec(
        name="int4_dynamic",
        summary="4-bit weights in groups of 32; 8-bit inputs of linear layers, at run time",
        qconfig=QConfig(weight=_INT4_GROUPS, activation=_INT8_TOKENS),
    ),
    _learned("w8a8", _INT8_WEIGHT, "int8_affine"),
    _learned("w4a8", _INT4_WEIGHT, "int8_affine"),
    _learned("w4a4", _INT4_WEIGHT, "uint4"),
    _learned("w3a3", QuantizerConfig(scheme="int3_channel", observer="mse"), "uint3"),
    _learned("w2a4", QuantizerConfig(scheme="int2_channel", observer="mse"), "uint4"),
)
