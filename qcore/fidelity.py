"""Counts the integers at which a QFloat model and its program differ, layer by layer."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from itertools import zip_longest
from typing import Any

import attrs
from torch import Tensor, nn

from .errors import QuantizationError
from .preparation import positional
from .progressbar import progress
from .qfloat_model import info_of
from .watching import watch as watched

__all__ = ["Fidelity", "count_differences", "layer_values"]


@attrs.frozen(kw_only=True)
class Fidelity:
    """The outcome of a comparison.

    Args:
        compared: number of values compared; integers, and floats where a layer leaves them.
        differing: number of those that differ.
        layers: both numbers by layer.
    """

    compared: int
    differing: int
    layers: Mapping[str, tuple[int, int]]


def layer_values(model: nn.Module, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The result of each quantized layer of a QFloat model or a program for one batch.

    Args:
        model: from :func:`qcore.prepare` (its mode is used as it is) or :func:`qcore.convert`.

    Returns:
        By layer, integers (in float32 for QFloat, in their storage dtype for Q), or the float
        result of a layer that is not quantized again. A layer of a module that is called several
        times within a model that was not captured whole keeps the values of the last call.
    """
    return {name: calls[-1] for name, calls in watched(model)(args, kwargs)[1].items()}


def count_differences(
    qfloat: nn.Module,
    q: nn.Module,
    batches: Iterable[Any],
    *,
    watch: Callable[[Any, Any, Any], None] | None = None,
) -> Fidelity:
    """Compares every value of every quantized layer of QFloat in eval mode and Q.

    Args:
        qfloat: calibrated, from :func:`qcore.prepare`; put into eval mode for the comparison.
        q: its program.
        batches: as for :func:`qcore.calibrate`.
        watch: called with each batch and the outputs of QFloat and Q.

    Returns:
        Fidelity; ``differing == 0`` is what qcore promises.

    Raises:
        QuantizationError: no batch at all, so that nothing was compared.
    """
    info = info_of(qfloat)
    layers: dict[str, tuple[int, int]] = {}
    watched_qfloat, watched_q = watched(qfloat), watched(q)
    modes = {module: module.training for module in qfloat.modules()}
    qfloat.eval()
    try:
        with closing(progress(batches, label="compare QFloat and Q")) as shown:
            for batch in shown:
                args, kwargs = positional(batch, info.arity)
                left_output, left = watched_qfloat(args, kwargs)
                right_output, right = watched_q(args, kwargs)
                if watch is not None:
                    watch(batch, left_output, right_output)
                for name in left.keys() | right.keys():
                    compared, differing = layers.get(name, (0, 0))
                    for a, b in zip_longest(left.get(name, ()), right.get(name, ())):
                        n, different = _difference(a, b)
                        compared, differing = compared + n, differing + different
                    layers[name] = (compared, differing)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not layers:
        raise QuantizationError(
            "the comparison got no batch; give an iterable of inputs that is not empty (a "
            "generator can be used only once)"
        )
    return Fidelity(
        compared=sum(c for c, _ in layers.values()),
        differing=sum(d for _, d in layers.values()),
        layers=dict(sorted(layers.items())),
    )


def _difference(a: Tensor | None, b: Tensor | None) -> tuple[int, int]:
    """Number of values of a layer, and how many differ: all if one side lacks it."""
    if a is None or b is None:
        missing = (a if a is not None else b).numel()  # type: ignore[union-attr]
        return missing, missing
    return a.numel(), int((a != b.to(a.dtype)).sum())
