"""Calibration: shows data to the observers of a QFloat model and fixes its scales."""

import itertools
from collections.abc import Iterable, Sized
from contextlib import ExitStack, closing
from typing import Any

import torch
from torch import nn

from .distributed import synchronize_observers
from .dynamic_quantize import DynamicQuantize
from .errors import QuantizationError
from .fake_quantize import FakeQuantize, refresh_together
from .observer import Observer
from .preparation import positional
from .progressbar import progress
from .qfloat_model import info_of, qfloat_ops, quantizers, set_switches
from .ranks import failing_together, rank, world_size

__all__ = ["calibrate"]


def calibrate(
    model: nn.Module, batches: Iterable[Any] = (), *, limit: int | None = None
) -> nn.Module:
    """Runs data through a QFloat model and sets every scale; in place.

    The model runs in eval mode, in float with BatchNorm folded, while the observers look on. Each
    weight is observed once. Then observers are switched off and fake quantizers on, and the model
    is back in the mode (train or eval) it was in.

    Where :mod:`torch.distributed` has a process group, as under ``torchrun``, every process calls
    it with its own share of the data, and all end with the scales of the whole; see
    :func:`qcore.synchronize_observers`.

    Args:
        model: from :func:`qcore.prepare`.
        batches: each one a tensor, a tuple of positional arguments (labels may follow; they are
            left out), or a dict of keyword arguments. None is needed where activations stay float
            or are quantized at run time: then only weights are observed.
        limit: at most so many batches.

    Returns:
        ``model``.

    Raises:
        QuantizationError: no batch at all; NaN or Inf reaches a layer; a layer was never reached.
            The scales, statistics and switches are then as before. Of several processes all
            raise where one of them does.
    """
    info = info_of(model)
    modes = {module: module.training for module in model.modules()}
    before = [
        (module, _state(module))
        for module in model.modules()
        if isinstance(module, FakeQuantize | DynamicQuantize)
    ]
    parted: list[Observer] = []
    try:
        model.eval()
        set_switches(model, observer=True, fake_quant=False)
        parted = _part_observers(model)
        of_weights: set[FakeQuantize] = set()
        for _, op in qfloat_ops(model):
            for quantizer, weight in op.weight_quantizers():
                of_weights.add(quantizer)
                quantizer.observer.reset()
                quantizer.observe(weight)
                quantizer.observer_enabled = False
        with failing_together("calibration"):
            seen = _show(model, batches, limit, info.arity)
        synchronize_observers(model)
        if (
            not seen
            and world_size() == 1
            and any(q not in of_weights for _, q in quantizers(model))
        ):
            raise QuantizationError(
                "calibration got no batch; give an iterable of inputs that is not empty (a "
                "generator can be used only once)"
            )
        missing = [q.where for _, q in quantizers(model) if not q.calibrated]
        if missing:
            raise QuantizationError(
                f"calibration reached no value of layer {', '.join(map(repr, missing))}; give data "
                "that reaches it, or leave it in float with an override quantize = false"
            )
        refresh_together([quantizer for _, quantizer in quantizers(model)])
    except BaseException:
        for switched, state in before:
            switched.load_state_dict(state)
        for observer in parted:
            observer.synchronized = True
        raise
    else:
        set_switches(model, observer=False, fake_quant=True)
    finally:
        for module, mode in modes.items():
            if module.training != mode:
                module.training = mode
    return model


@torch.no_grad()
def _show(model: nn.Module, batches: Iterable[Any], limit: int | None, arity: int) -> int:
    """Runs the batches; how many there were."""
    seen = 0
    with ExitStack() as stack:
        chosen = _first(batches, limit)
        if rank() == 0:
            shown = progress(chosen, label="calibrate", total=_count(batches, limit))
            chosen = stack.enter_context(closing(shown))
        for batch in chosen:
            args, kwargs = positional(batch, arity)
            model(*args, **kwargs)
            seen += 1
    return seen


def _part_observers(model: nn.Module) -> list[Observer]:
    """Lets observers that have the statistics of all processes see their own data again.

    Rank 0 keeps the statistics and others start anew, so that what was seen in an earlier
    calibration is not counted once for each process.
    """
    parted = [q.observer for _, q in quantizers(model) if q.observer.synchronized]
    for observer in parted:
        observer.synchronized = False
        if rank() > 0:
            observer.reset()
    return parted


def _state(quantizer: nn.Module) -> dict[str, Any]:
    """Scale, statistics and switches of a quantizer, to be put back."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in quantizer.state_dict().items()
    }


def _count(batches: Iterable[Any], limit: int | None) -> int | None:
    """Number of batches, where it is known before."""
    if not isinstance(batches, Sized):
        return limit
    return len(batches) if limit is None else min(limit, len(batches))


def _first(batches: Iterable[Any], limit: int | None) -> Iterable[Any]:
    return batches if limit is None else itertools.islice(batches, max(limit, 0))
