"""Forwards of a calibrated QFloat model, as algorithms without training make them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from qcore import QuantizationError, disable_observer, enable_fake_quant, info_of, quantizers

__all__ = ["Call", "calls_of", "evaluating", "require_calibrated"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a forward."""


def require_calibrated(model: nn.Module, *, stage: str, lacks: str) -> None:
    """Refuses a model in which a quantizer has no scale.

    Args:
        model: any.
        stage: who asks.
        lacks: what the layer has none of, in words.

    Raises:
        QuantizationError: it is no QFloat model, or not calibrated; names the first layer.
    """
    info_of(model)
    unready = [q.where for _, q in quantizers(model) if not q.calibrated]
    if unready:
        raise QuantizationError(
            f"{stage}: layer {unready[0]!r} is not calibrated, so there is no {lacks}; run "
            "qcore.calibrate first"
        )


def calls_of(model: nn.Module, batches: Sequence[Any], *, stage: str) -> list[Call]:
    """The arguments of each batch, which is one as for :func:`qcore.calibrate`.

    Raises:
        QuantizationError: there is none.
    """
    if not len(batches):
        raise QuantizationError(f"{stage}: no batch was given; give a list that is not empty")
    arity = info_of(model).arity

    def arguments(batch: Any) -> Call:
        if isinstance(batch, Mapping):
            return (), dict(batch)
        return (tuple(batch[:arity]) if isinstance(batch, tuple | list) else (batch,)), {}

    return [arguments(batch) for batch in batches]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no observers; then the mode of each module again, and fake quantizers on."""
    modes = {module: module.training for module in model.modules()}
    disable_observer(model)
    model.eval()
    try:
        yield
    finally:
        enable_fake_quant(model)
        for module, mode in modes.items():
            module.training = mode
