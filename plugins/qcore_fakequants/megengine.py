"""The configurations of MegEngine's guide, as presets with the same parts.

All are symmetric and per tensor. Weights are int8 from -127 to 127 and seen by min-max, activations
int8 from -128 to 127.

=========================== ================== ============= =====================================
preset                      activation         fake quantize there
=========================== ================== ============= =====================================
``megengine_min_max``       min-max            affine        ``min_max_fakequant_qconfig``
``megengine_ema``           EMA, momentum 0.9  affine        ``ema_fakequant_qconfig``, the default
``megengine_sync_ema``      EMA, momentum 0.9  affine        ``sync_ema_fakequant_qconfig``
``megengine_ema_lowbit``    EMA, momentum 0.9  affine, int4  ``ema_lowbit_fakequant_qconfig``
``megengine_calibration``   histogram          affine        ``calibration_qconfig``
``megengine_tqt``           EMA, momentum 0.9  TQT           ``tqt_qconfig``
``megengine_passive``       given              affine        ``passive_qconfig``
``megengine_easyquant``     histogram          affine        ``easyquant_qconfig``
=========================== ================== ============= =====================================

What differs, on purpose: every observer, not only that of ``sync_ema``, works in several processes
(:func:`qcore.synchronize_observers`). Calibration runs without fake quantization whatever the
preset is. A scale is at least 2**-40, where MegEngine's is at least 1e-5, which rounds small values
away. ``megengine_easyquant`` finds the scales that its search starts from by itself; MegEngine
takes them from a calibration under another configuration.
"""

from qcore import PresetSpec, QConfig, QuantizerConfig

__all__ = ["MEGENGINE_PRESETS"]


def _weight(
    scheme: str = "int8_narrow", observer: str = "minmax", fake_quant: str = "affine"
) -> QuantizerConfig:
    return QuantizerConfig(scheme=scheme, observer=observer, fake_quant=fake_quant)


def _activation(observer: str, scheme: str = "int8", fake_quant: str = "affine") -> QuantizerConfig:
    options = {"momentum": 0.9} if observer == "ema" else {}
    return QuantizerConfig(
        scheme=scheme, observer=observer, fake_quant=fake_quant, observer_options=options
    )


def _preset(
    name: str, summary: str, weight: QuantizerConfig, activation: QuantizerConfig
) -> PresetSpec:
    return PresetSpec(
        name=f"megengine_{name}",
        summary=f"MegEngine's {summary}",
        qconfig=QConfig(weight=weight, activation=activation),
    )


MEGENGINE_PRESETS: tuple[PresetSpec, ...] = (
    _preset("min_max", "min_max_fakequant_qconfig", _weight(), _activation("minmax")),
    _preset("ema", "ema_fakequant_qconfig, its default", _weight(), _activation("ema")),
    _preset("sync_ema", "sync_ema_fakequant_qconfig", _weight(), _activation("ema")),
    _preset(
        "ema_lowbit",
        "ema_lowbit_fakequant_qconfig, 4 bits",
        _weight("int4"),
        _activation("ema", "int4"),
    ),
    _preset("calibration", "calibration_qconfig", _weight(), _activation("histogram")),
    _preset(
        "tqt",
        "tqt_qconfig, learned steps",
        _weight(fake_quant="tqt"),
        _activation("ema", fake_quant="tqt"),
    ),
    _preset(
        "passive",
        "passive_qconfig, qparams from outside",
        _weight(observer="passive"),
        _activation("passive"),
    ),
    _preset(
        "easyquant", "easyquant_qconfig, for a scale search", _weight(), _activation("histogram")
    ),
)
