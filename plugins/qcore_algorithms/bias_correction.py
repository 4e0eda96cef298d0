"""Bias correction: outputs of layers with the mean and the spread that they have in float; the
stage ``bias_correction``.

Rounding shifts the mean of a layer's output channels and changes their magnitude, and the layers
behind add it up: at few bits, where the scales of least error clip the largest weights, every
layer's output is too small. Here each channel of a layer's output, before anything is added and
before the activation function, is multiplied and shifted by

    gain  = std(y) / std(y_hat)
    shift = mean(y) - gain * mean(y_hat)

with ``y`` of the float model and ``y_hat`` of the layer on the quantized values that the corrected
layers before it give it. The gain goes into the scales of the weight and the shift into the bias,
so Q has no operation more and no integer of a weight changes. No labels and no gradients are
needed.

References:
    Nagel et al., 2019, section 4.2 (the mean of outputs) <https://arxiv.org/abs/1906.04721>
    Banner et al., 2019 (mean and variance, of weights) <https://arxiv.org/abs/1810.05723>
    Finkelstein et al., 2019 <https://arxiv.org/abs/1906.03193>
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qcore import (
    ChannelOp,
    Dataset,
    FakeQuantize,
    disable_fake_quant,
    enable_fake_quant,
    progress,
    qfloat_ops,
)

from .passes import calls_of, evaluating, require_calibrated

__all__ = ["bias_correction", "correct_biases"]

_LARGEST_GAIN = 4.0
"""What is smaller than a quarter of float's has lost its weights, and amplifying it is no cure."""


def bias_correction(
    model: nn.Module,
    *,
    dataset: Dataset,
    seed: int = 0,
    gain: bool = True,
    samples: int = 512,
    batch_size: int = 128,
) -> nn.Module:
    """:func:`correct_biases` on examples of the training split.

    Args:
        model: QFloat, calibrated; changed in place.
        dataset: labels don't matter.
        seed: of the choice of examples.
        gain: see :func:`correct_biases`.
        samples: how many examples.
        batch_size: examples in a batch.

    Returns:
        ``model``.
    """
    batches = dataset.batches("train", batch_size, shuffle=True, seed=seed, limit=samples)
    return correct_biases(model, [inputs for inputs, _ in batches], gain=gain)


def correct_biases(model: nn.Module, batches: Sequence[Any], *, gain: bool = True) -> nn.Module:
    """Gives the output channels of every layer the statistics that they have in float; in place.

    All batches go through the model without rounding, then with it: each one corrects the layers in
    their order by what it and those before it have shown, so a first batch should not be small.

    Args:
        model: from :func:`qcore.prepare`, calibrated. What it computes without rounding is what it
            is corrected to.
        batches: as for :func:`qcore.calibrate`.
        gain: correct the spread too, and not only the mean.

    Returns:
        ``model``, with observers off and fake quantizers on, in the mode that it was in.

    Raises:
        QuantizationError: the model is not calibrated, or no batch is given.

    Warns:
        UserWarning: a layer can't be corrected, or its spread can't; names it and says why.
    """
    require_calibrated(model, stage="bias_correction", lacks="rounding to correct")
    calls = calls_of(model, batches, stage="bias_correction")
    corrections = _corrections(model, gain=gain)

    def look(op: ChannelOp, x: Tensor) -> None:
        corrections[op].wanted.add(_Moments.of(op, x))

    def correct(op: ChannelOp, x: Tensor) -> None:
        corrections[op].improve(_Moments.of(op, x))

    with torch.no_grad(), evaluating(model):
        disable_fake_quant(model)
        with closing(progress([*calls, *calls], label="bias_correction")) as shown:
            for done, (args, kwargs) in enumerate(shown):
                if done == len(calls):
                    enable_fake_quant(model)
                with _before(corrections, look if done < len(calls) else correct):
                    model(*args, **kwargs)
    return model


@attrs.define(eq=False)
class _Moments:
    """Sums over the values of each channel, float64 ``[N]``."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    @classmethod
    def of(cls, op: ChannelOp, x: Tensor) -> "_Moments":
        """Of what an operation computes for an input, before clamp and additions."""
        y = op.preactivation(x)
        channel = op.channel_dim % y.ndim
        dims = [i for i in range(y.ndim) if i != channel]
        count = y.numel() // max(y.shape[channel], 1)
        if not count:
            return cls()
        var, mean = (t.double() for t in torch.var_mean(y, dims, correction=0))
        return cls(count, count * mean, count * (var + mean**2))

    def add(self, other: "_Moments") -> None:
        self.count += other.count
        self.total = self.total + other.total
        self.squares = self.squares + other.squares

    def undo(self, gain: Tensor, shift: Tensor) -> "_Moments":
        """Those of ``(y - shift) / gain``."""
        total = (self.total - self.count * shift) / gain
        squares = (self.squares - 2 * shift * self.total + self.count * shift**2) / gain**2
        return _Moments(self.count, total, squares)

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self.total / self.count)

    @property
    def std(self) -> Tensor:
        return (self.squares / self.count - self.mean**2).clamp(min=0).sqrt()


class _Correction:
    """What was done to an operation so far, and the statistics that ask for it.

    Attributes:
        wanted: of the float model.
        uncorrected: of the operation as it was, on the values that it gets now.
        gain, shift: what it has.
    """

    def __init__(self, op: ChannelOp, *, gain: bool) -> None:
        self.op = op
        self.with_gain = gain and op.why_no_gain is None
        self.with_shift = op.why_no_shift is None
        self.wanted, self.uncorrected = _Moments(), _Moments()
        self.gain, self.shift = torch.tensor(1.0), torch.tensor(0.0)

    def improve(self, found: _Moments) -> None:
        """Corrects by all that was seen, these included."""
        self.uncorrected.add(found.undo(self.gain, self.shift))
        if not (self.wanted.count and self.uncorrected.count):
            return
        mean, std = self.uncorrected.mean, self.uncorrected.std
        gain, shift = torch.ones_like(mean), torch.zeros_like(mean)
        if self.with_gain:
            ratio = self.wanted.std / std
            # A channel that is constant, in float or rounded, has no spread to correct.
            usable = ratio.isfinite() & (ratio > 0)
            gain = torch.where(usable, ratio, 1.0).clamp(1 / _LARGEST_GAIN, _LARGEST_GAIN)
        if self.with_shift:
            shift = self.wanted.mean - gain * mean
        # From what the operation has to what it is to have.
        more = gain / self.gain
        self.op.correct(more.float(), (shift - more * self.shift).float())
        self.gain, self.shift = gain, shift


def _corrections(model: nn.Module, *, gain: bool) -> Mapping[nn.Module, _Correction]:
    """One for each operation that can be corrected; warns of the others."""
    ops = qfloat_ops(model)
    inside = {module for _, op in ops for module in op.modules()}
    outside = [module for module in model.modules() if module not in inside]
    owners = Counter(key for _, op in ops for key in _tensors(*op.modules()))
    owners.update(_tensors(*outside))
    found: dict[nn.Module, _Correction] = {}
    left: dict[str, list[str]] = defaultdict(list)
    for name, op in ops:
        if not isinstance(op, ChannelOp):
            if any(True for _ in op.weight_quantizers()):
                left[f"{type(op).__name__} is no qcore.ChannelOp"].append(name)
        elif any(owners[key] > 1 for key in _tensors(*op.modules())):
            left["its parameters are those of another layer too"].append(name)
        else:
            found[op] = _Correction(op, gain=gain)
            for reason in (op.why_no_shift, op.why_no_gain if gain else None):
                if reason is not None:
                    left[reason].append(name)
    if left:
        words = "; ".join(f"{', '.join(map(repr, names))}: {why}" for why, names in left.items())
        warnings.warn(f"bias_correction left out, or did half, at {words}", stacklevel=3)
    return found


def _tensors(*modules: nn.Module) -> set[int]:
    """Identities of parameters and buffers, but for those of quantizers."""
    quantizers = [module for module in modules if isinstance(module, FakeQuantize)]
    quantizing = {part for quantizer in quantizers for part in quantizer.modules()}
    return {
        id(tensor)
        for module in modules
        if module not in quantizing
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    }


@contextmanager
def _before(
    ops: Mapping[nn.Module, _Correction], act: Callable[[ChannelOp, Tensor], None]
) -> Iterator[None]:
    """Acts on each operation and its first input, before the operation runs."""
    hooks = [op.register_forward_pre_hook(lambda op, xs: act(op, xs[0])) for op in ops]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
