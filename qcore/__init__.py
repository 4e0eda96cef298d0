"""qcore: a plug-in based quantization framework for PyTorch, Float -> QFloat -> Q.

Names are loaded on first use, so that ``import qcore`` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import Backend, Lowered, lower, lowered_info
    from .calibration import calibrate
    from .config import QConfig, QScheme, QuantizerConfig
    from .conversion import Layer, ProgramInfo, convert, programs
    from .dataset import Dataset, DatasetError
    from .dtypes import (
        INT2, INT4, INT8, INT8_NARROW, INT16, INT32, UINT2, UINT4, UINT8, QDtype,
    )
    from .errors import (
        ArtifactError, BackendError, CaptureError, PluginError, QcoreError, QuantizationError,
        RecipeError,
    )
    from .fidelity import Fidelity, count_differences, layer_values
    from .granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor, PerToken
    from .hookspecs import ENTRY_POINT_GROUP, hookimpl
    from .host import PluginHost, default_host
    from .missing import MissingExtraError
    from .plugin_info import PluginInfo
    from .fake_quantize import FakeQuantize, straight_through
    from .match import Match, Step
    from .op import Builder, Eager, Movement, QFloatOp, Quantizers, QValue
    from .ops.storage import pack
    from .planning import Plan, PlanRow
    from .preparation import (
        QFloatInfo, disable_fake_quant, disable_observer, enable_fake_quant, enable_observer,
        info_of, plan, prepare, qfloat_ops, quantizers,
    )
    from .recipe import Override, Recipe, Stage
    from .numerics import Numerics, dequantize, quantize, round_to_int
    from .observer import Observer, as_rows
    from .qparams import QParams, choose_qparams, expand
    from .progressbar import progress
    from .specs import (
        AlgorithmSpec, BackendSpec, ConverterSpec, DatasetSpec, FakeQuantSpec, FusionSpec,
        ModelSpec, ObserverSpec, Origin, PresetSpec, SchemeSpec, Spec,
    )

_EXPORTS = {
    "backend": ("Backend", "Lowered", "lower", "lowered_info"),
    "calibration": ("calibrate",),
    "conversion": ("Layer", "ProgramInfo", "convert", "programs"),
    "fidelity": ("Fidelity", "count_differences", "layer_values"),
    "match": ("Match", "Step"),
    "op": ("Builder", "Eager", "Movement", "QFloatOp", "QValue", "Quantizers"),
    "ops.storage": ("pack",),
    "planning": ("Plan", "PlanRow"),
    "preparation": (
        "QFloatInfo", "disable_fake_quant", "disable_observer", "enable_fake_quant",
        "enable_observer", "info_of", "plan", "prepare", "qfloat_ops", "quantizers",
    ),
    "recipe": ("Override", "Recipe", "Stage"),
    "config": ("QConfig", "QScheme", "QuantizerConfig"),
    "dataset": ("Dataset", "DatasetError"),
    "dtypes": (
        "INT2", "INT4", "INT8", "INT8_NARROW", "INT16", "INT32", "UINT2", "UINT4", "UINT8", "QDtype",
    ),
    "errors": (
        "ArtifactError", "BackendError", "CaptureError", "PluginError", "QcoreError",
        "QuantizationError", "RecipeError",
    ),
    "fake_quantize": ("FakeQuantize", "straight_through"),
    "granularity": ("Granularity", "PerBlock", "PerChannel", "PerGroup", "PerTensor", "PerToken"),
    "hookspecs": ("ENTRY_POINT_GROUP", "hookimpl"),
    "host": ("PluginHost", "default_host"),
    "missing": ("MissingExtraError",),
    "plugin_info": ("PluginInfo",),
    "numerics": ("Numerics", "dequantize", "quantize", "round_to_int"),
    "observer": ("Observer", "as_rows"),
    "qparams": ("QParams", "choose_qparams", "expand"),
    "progressbar": ("progress",),
    "specs": (
        "AlgorithmSpec", "BackendSpec", "ConverterSpec", "DatasetSpec", "FakeQuantSpec",
        "FusionSpec", "ModelSpec", "ObserverSpec", "Origin", "PresetSpec", "SchemeSpec", "Spec",
    ),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
