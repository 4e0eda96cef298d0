"""Bias correction: what rounding the weights adds to a layer's output on average is taken off.

With the weight error ``e = W_q - W`` the output moves by ``E[e x] = e E[x]``, a constant for each
output channel, which the bias can carry at no cost:

    b <- b - e E[x]

``E[x]`` is measured on training data in the float model: with all layers corrected it is also what
a layer of the quantized model gets. A convolution adds ``e`` up over its kernel, which leaves out
the zeros of the padding.

References:
    Nagel et al., 2019, Data-free quantization through weight equalization and bias correction,
    section 4.2 <https://arxiv.org/abs/1906.04721>
    Finkelstein et al., 2019, Fighting quantization bias with bias
    <https://arxiv.org/abs/1906.03193>
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qcore import (
    Dataset,
    QFloatOp,
    QuantizationError,
    RecipeError,
    dequantize_tensor,
    disable_fake_quant,
    disable_observer,
    info_of,
    qfloat_ops,
    quantize_tensor,
    quantizers,
)

__all__ = ["correct_biases", "output_shift"]

_OPS = ("qlinear", "qconv")
_SWITCHES = ("observer_enabled", "fake_quant_enabled")


def output_shift(error: Tensor, mean: Tensor) -> Tensor:
    """What a weight error adds to the mean of each output channel.

    Args:
        error: ``[N, K / groups, ...]``, quantized less float weight of a linear layer or a
            convolution.
        mean: ``[K]``, the mean input of each channel.

    Returns:
        ``[N]``.

    >>> output_shift(torch.tensor([[0.1, 0.0], [-0.1, 0.2]]), torch.tensor([2.0, 5.0]))
    tensor([0.2000, 0.8000])
    """
    summed = error.flatten(2).sum(2) if error.ndim > 2 else error
    groups = mean.numel() // summed.shape[1]
    parts = summed.reshape(groups, -1, summed.shape[1]) @ mean.reshape(groups, -1, 1)
    return parts.reshape(-1)


@torch.no_grad()
def correct_biases(
    model: nn.Module,
    *,
    dataset: Dataset,
    seed: int,
    samples: int = 512,
    batch_size: int = 128,
) -> nn.Module:
    """Corrects the bias of every convolution and linear layer of a calibrated QFloat model.

    A layer without a bias gets one; with BatchNorm it is that of BatchNorm.

    Args:
        model: QFloat, calibrated; changed in place.
        dataset: its training split gives the mean inputs; labels are not looked at.
        seed: which examples.
        samples: how many of them.
        batch_size: examples in a batch.

    Returns:
        ``model``.

    Raises:
        RecipeError: ``samples`` or ``batch_size`` is below 1.
        QuantizationError: the model is no calibrated QFloat model.
    """
    for option, value in (("samples", samples), ("batch_size", batch_size)):
        if not value >= 1:
            raise RecipeError(f"acme_bias_correction: {option}={value}; use 1 or more")
    info_of(model)
    unready = [q.where for _, q in quantizers(model) if not q.calibrated]
    if unready:
        raise QuantizationError(
            f"acme_bias_correction: layer {unready[0]!r} is not calibrated, so its rounding error "
            "is not known; run qcore.calibrate first"
        )
    ops = [
        op
        for _, op in qfloat_ops(model)
        if op.program_op in _OPS and len(list(op.weight_quantizers())) == 1
    ]
    batches = dataset.batches("train", batch_size, shuffle=True, seed=seed, limit=samples)
    means = _mean_inputs(model, ops, [inputs for inputs, _ in batches])
    shifts: dict[int, tuple[QFloatOp, list[Tensor]]] = {}
    for op, mean in means.items():
        for quantizer, weight in op.weight_quantizers():
            qparams = quantizer.qparams()
            error = dequantize_tensor(quantize_tensor(weight, qparams), qparams) - weight
            # Layers that share a bias share its correction: the mean of theirs.
            shared = getattr(op, "bias", None)
            key = id(op if shared is None else shared)
            shifts.setdefault(key, (op, []))[1].append(output_shift(error, mean))
    for op, found in shifts.values():
        _shift(op, -torch.stack(found).mean(0))
    return model


def _mean_inputs(
    model: nn.Module, ops: list[QFloatOp], batches: list[Any]
) -> dict[QFloatOp, Tensor]:
    """The mean of each channel of the input of each operation that runs, ``[K]``, in float."""
    total: dict[QFloatOp, Tensor] = {}
    count: dict[QFloatOp, int] = {}

    def note(op: QFloatOp, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        ((_, weight),) = op.weight_quantizers()
        # Behind the channels a convolution has as many dimensions as its kernel.
        rows = x.movedim(-1 if weight.ndim == 2 else 1 - weight.ndim, 0).flatten(1)
        total[op] = total.get(op, 0) + rows.double().sum(1)
        count[op] = count.get(op, 0) + rows.shape[1]

    handles = [op.register_forward_pre_hook(note) for op in ops]
    try:
        with _in_float(model):
            for inputs in batches:
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {op: (total[op] / count[op]).float() for op in total}


@contextmanager
def _in_float(model: nn.Module) -> Iterator[None]:
    """While it holds nothing is rounded or observed; then modes and switches are as before."""
    before = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in ("training", *_SWITCHES)
        if hasattr(module, name)
    ]
    try:
        disable_fake_quant(model.eval())
        disable_observer(model)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _shift(op: Any, shift: Tensor) -> None:
    """Adds to the output of a layer, by the parameters that it took over from the float model."""
    bn = getattr(op, "bn", None)
    if bn is None and op.bias is None:
        op.bias = nn.Parameter(shift)
    elif bn is None:
        op.bias += shift
    elif bn.bias is not None:
        bn.bias += shift
    else:
        bn.running_mean -= shift * (bn.running_var + bn.eps).sqrt()
