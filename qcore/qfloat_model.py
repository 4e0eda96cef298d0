"""What a QFloat model is asked and told: its plan, its operations and quantizers, its switches."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
from torch import fx, nn

from .capture import Piece
from .dynamic_quantize import DynamicQuantize
from .errors import QuantizationError
from .fake_quantize import FakeQuantize
from .op import QFloatOp
from .planning import Plan
from .recipe import Recipe

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = [
    "QFloatInfo",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "forget_info",
    "info_of",
    "is_qfloat",
    "qfloat_ops",
    "quantizers",
    "set_switches",
]


@attrs.frozen(kw_only=True, eq=False)
class QFloatInfo:
    """What a QFloat model remembers of its making; see :func:`info_of`.

    Args:
        plan: what was done.
        recipe: what was asked.
        host: where its parts came from.
        pieces: path of each captured piece, and the piece.
        arity: number of positional inputs of the model.
        float_model: a copy of the float model that shares its parameters and buffers with the
            QFloat model that ``prepare`` made, but not with copies of that.
        places: for the parameters and buffers of the float model, by name, their names in QFloat.
    """

    plan: Plan
    recipe: Recipe
    host: "PluginHost"
    pieces: Mapping[str, Piece]
    arity: int
    float_model: nn.Module
    places: Mapping[str, str]

    def __deepcopy__(self, memo: dict[int, Any]) -> "QFloatInfo":
        return self


def info_of(model: nn.Module) -> QFloatInfo:
    """Plan, recipe and plug-ins of a QFloat model.

    Raises:
        QuantizationError: the model did not come from :func:`prepare`.
    """
    info = _info(model)
    if info is None:
        raise QuantizationError(
            f"{type(model).__name__} is not a QFloat model; make one with qcore.prepare"
        )
    return info


def forget_info(model: nn.Module) -> None:
    """Makes a copy of a QFloat model, whose parts were replaced, one no more."""
    del model._qcore_info


def is_qfloat(model: nn.Module) -> bool:
    """Whether a model came from :func:`prepare`."""
    return _info(model) is not None


def _info(model: nn.Module) -> QFloatInfo | None:
    if isinstance(model, fx.GraphModule):
        info = model.meta.get("qcore")
    else:
        info = getattr(model, "_qcore_info", None)
    return info if isinstance(info, QFloatInfo) else None


def qfloat_ops(model: nn.Module) -> list[tuple[str, QFloatOp]]:
    """Name and module of each quantized operation of a QFloat model."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, QFloatOp)]


def quantizers(model: nn.Module) -> list[tuple[str, FakeQuantize]]:
    """Name and module of each fake quantizer of a QFloat model."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, FakeQuantize)]


def set_switches(
    model: nn.Module, *, observer: bool | None = None, fake_quant: bool | None = None
) -> None:
    """Switches observing and fake quantization of every quantizer of a model."""
    for module in model.modules():
        if observer is not None and isinstance(module, FakeQuantize):
            module.observer_enabled = observer
        if fake_quant is not None and isinstance(module, FakeQuantize | DynamicQuantize):
            module.fake_quant_enabled = fake_quant


def enable_observer(model: nn.Module) -> None:
    """Makes every quantizer of a QFloat model observe."""
    set_switches(model, observer=True)


def disable_observer(model: nn.Module) -> None:
    """Stops every quantizer of a QFloat model from observing."""
    set_switches(model, observer=False)


def enable_fake_quant(model: nn.Module) -> None:
    """Makes every quantizer of a QFloat model quantize."""
    set_switches(model, fake_quant=True)


def disable_fake_quant(model: nn.Module) -> None:
    """Lets every quantizer of a QFloat model pass values unchanged."""
    set_switches(model, fake_quant=False)
