"""EasyQuant: scales that keep the direction of every layer's output; the stage ``easyquant``.

Layer after layer, in the order of execution, the scale of the weight and that of the output are
multiplied in turn with the factor of a grid for which the output points most nearly where that of
the float model does:

    cos(y, y_hat) = <y, y_hat> / (|y| |y_hat|)

with ``y`` of the float model and ``y_hat`` of the layer on the quantized values that the layers
before it, whose scales are found already, give it. A layer's float input that is quantized first
has a search of its own. No labels and no gradients are needed.

References:
    Wu et al., 2020, EasyQuant: Post-training Quantization via Scale Optimization
    <https://arxiv.org/abs/2006.16669>
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qcore import (
    SCALE_MIN,
    Dataset,
    FakeQuantize,
    QFloatOp,
    RecipeError,
    disable_fake_quant,
    enable_fake_quant,
    progress,
    qfloat_ops,
    quantizers,
)

from .passes import Call, calls_of, evaluating, require_calibrated

__all__ = ["cosine", "easyquant", "search_scales"]


def cosine(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Cosine of the angle between two vectors that come in parts.

    Args:
        pairs: parts of the one and of the other, of one shape each.

    Returns:
        -1 to 1; 0 where one of them is zero everywhere.

    >>> one = torch.tensor([3.0, 0.0])
    >>> round(cosine([(one, one), (one, torch.tensor([0.0, 3.0]))]), 3)
    0.5
    """
    product = left = right = 0.0
    for a, b in pairs:
        a, b = a.double().flatten(), b.double().flatten()
        product += (a @ b).item()
        left += (a @ a).item()
        right += (b @ b).item()
    return product / (left * right) ** 0.5 if left * right > 0 else 0.0


def easyquant(
    model: nn.Module,
    *,
    dataset: Dataset,
    seed: int = 0,
    start: float = 0.8,
    stop: float = 1.2,
    num: int = 40,
    rounds: int = 2,
    samples: int = 64,
    batch_size: int = 32,
) -> nn.Module:
    """:func:`search_scales` on examples of the training split.

    Args:
        model: QFloat, calibrated; changed in place.
        dataset: labels don't matter.
        seed: of the choice of examples.
        start, stop, num, rounds: see :func:`search_scales`.
        samples: how many examples.
        batch_size: examples in a batch.

    Returns:
        ``model``.
    """
    batches = dataset.batches("train", batch_size, shuffle=True, seed=seed, limit=samples)
    return search_scales(
        model,
        [inputs for inputs, _ in batches],
        start=start,
        stop=stop,
        num=num,
        rounds=rounds,
    )


def search_scales(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    start: float = 0.8,
    stop: float = 1.2,
    num: int = 40,
    rounds: int = 2,
) -> nn.Module:
    """Searches the scales of a calibrated QFloat model, layer by layer; in place.

    A tensor with several scales gets one factor for all of them. Zero points stay. A scale that
    would do no better stays too, and so does one that must be a power of two.

    Args:
        model: from :func:`qcore.prepare`, calibrated.
        batches: as for :func:`qcore.calibrate`; kept in memory with the inputs and outputs of one
            layer at a time.
        start, stop: smallest and largest factor.
        num: number of factors between them, evenly spaced.
        rounds: how often weight and output take their turns in a layer.

    Returns:
        ``model``, with observers off and fake quantizers on, in the mode that it was in.

    Raises:
        RecipeError: an option is out of range.
        QuantizationError: the model is not calibrated, or no batch is given.
    """
    _check(start=start, stop=stop, num=num, rounds=rounds)
    require_calibrated(model, stage="easyquant", lacks="scale to start from")
    factors = torch.linspace(start, stop, num, dtype=torch.float64).tolist()
    calls = calls_of(model, batches, stage="easyquant")
    with torch.no_grad(), evaluating(model):
        owners = _in_order(model, calls[0])
        with closing(progress(owners, label="easyquant")) as shown:
            for owner in shown:
                disable_fake_quant(model)
                wanted = [_at(model, owner, call)[1] for call in calls]
                enable_fake_quant(model)
                given = [_at(model, owner, call)[0] for call in calls]
                _Search(owner, given, wanted, factors).run(rounds)
    return model


def _check(*, start: float, stop: float, num: int, rounds: int) -> None:
    if not 0 < start <= stop:
        raise RecipeError(f"easyquant: start={start}, stop={stop}; use 0 < start <= stop")
    for name, value in (("num", num), ("rounds", rounds)):
        if value < 1:
            raise RecipeError(f"easyquant: {name}={value}; use 1 or more")


class _ReachedError(Exception):
    """Ends a forward at the layer that is looked at."""


def _in_order(model: nn.Module, call: Call) -> list[nn.Module]:
    """The operations, and the quantizers of float inputs, in the order of execution."""
    operations = [op for _, op in qfloat_ops(model)]
    inside = {module for op in operations for module in op.modules()}
    stubs = [quantizer for _, quantizer in quantizers(model) if quantizer not in inside]
    found: dict[nn.Module, None] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, _: found.setdefault(m))
        for module in (*operations, *stubs)
    ]
    try:
        model(*call[0], **call[1])
    finally:
        for hook in hooks:
            hook.remove()
    return list(found)


def _at(model: nn.Module, owner: nn.Module, call: Call) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and output of a layer in a forward of the model."""
    seen: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((tuple(x.clone() for x in inputs), output.clone()))
        raise _ReachedError

    hook = owner.register_forward_hook(look)
    try:
        model(*call[0], **call[1])
    except _ReachedError:
        pass
    finally:
        hook.remove()
    return seen[0]


@attrs.frozen
class _Search:
    """The search of one layer's scales.

    Args:
        owner: an operation, or the quantizer of a float input.
        given: its inputs in the quantized model, a batch each.
        wanted: its outputs in the float model.
        factors: the grid.
    """

    owner: nn.Module
    given: Sequence[tuple[Tensor, ...]]
    wanted: Sequence[Tensor]
    factors: Sequence[float]

    def run(self, rounds: int) -> None:
        owner = self.owner
        if isinstance(owner, FakeQuantize):
            self._improve(owner, lambda: [owner(x) for (x,) in self.given])
            return
        assert isinstance(owner, QFloatOp)
        after = owner.output_quantizer

        def outputs() -> list[Tensor]:
            return [owner.compute(*xs) for xs in self.given]

        for _ in range(rounds):
            for quantizer, _ in owner.weight_quantizers():
                self._improve(
                    quantizer, lambda: [y if after is None else after(y) for y in outputs()]
                )
            if after is not None:
                # What is rounded does not change while the scale of the rounding does.
                exact = outputs()
                self._improve(after, lambda exact=exact: [after(y) for y in exact])  # type: ignore[misc]

    def _improve(self, quantizer: FakeQuantize, outputs: Callable[[], list[Tensor]]) -> None:
        """Multiplies the quantizer's scale with the best factor."""
        if quantizer.scheme.power_of_two:
            return
        first = best = quantizer.qparams()
        highest = self._similarity(outputs())
        for factor in self.factors:
            scale = (first.scale * factor).clamp(min=SCALE_MIN)
            quantizer.set_qparams(attrs.evolve(first, scale=scale))
            similarity = self._similarity(outputs())
            if similarity > highest:
                best, highest = quantizer.qparams(), similarity
        quantizer.set_qparams(best)

    def _similarity(self, outputs: Sequence[Tensor]) -> float:
        return cosine(zip(self.wanted, outputs, strict=True))
