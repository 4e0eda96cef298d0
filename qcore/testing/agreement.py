"""What a converter or a fusion made of an example, against what it stands for.

Four comparisons: QFloat and Q, integer for integer; QFloat without quantization and the float
model; the two sides of each operation, ``compute`` and ``emit``; and what a :class:`ChannelOp`
computes before and after a correction of its channels.
"""

import copy
from collections.abc import Iterable, Mapping

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..conversion import convert
from ..fidelity import count_differences
from ..numerics import quantize_tensor
from ..op import ChannelOp, QFloatOp
from ..qfloat_model import set_switches
from .contract import ContractViolation
from .trials import Inputs, Trial, batches, results

__all__ = ["check_correction", "check_emit", "check_float", "check_integers"]

_FLOAT_TOLERANCE = 1e-4
"""Of two float computations of one value in another order, as a share of the largest value."""


def check_integers(trial: Trial) -> int:
    """Compares every integer of QFloat in eval mode and Q, and their results.

    Returns:
        How many values were compared.

    Raises:
        ContractViolation: one differs.
    """
    qfloat, q = trial.qfloat.eval(), trial.q
    given = list(batches(trial.inputs))
    fidelity = count_differences(qfloat, q, given)
    if fidelity.differing:
        wrong = {k: f"{d} of {n}" for k, (n, d) in fidelity.layers.items() if d}
        raise ContractViolation(
            f"{trial.what}: QFloat in eval mode and Q differ in {wrong} values\n{trial.plan}"
        )
    with torch.no_grad():
        for batch in given:
            found, wanted = results(q, batch), results(qfloat, batch)
            _close(f"{trial.what}: results of QFloat and Q", found, wanted)
    return fidelity.compared


def _close(
    what: str,
    found: tuple[Tensor, ...],
    wanted: tuple[Tensor, ...],
    tolerance: float = _FLOAT_TOLERANCE,
) -> None:
    if [x.shape for x in found] != [x.shape for x in wanted]:
        raise ContractViolation(
            f"{what}: shapes {[list(x.shape) for x in found]}; due are "
            f"{[list(x.shape) for x in wanted]}"
        )
    for a, b in zip(found, wanted, strict=True):
        size = float(b.abs().max()) if b.numel() else 0.0
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance * size, equal_nan=True):
            raise ContractViolation(
                f"{what} differ by up to {float((a - b).abs().max()):g}, and the largest value is "
                f"{size:g}; due is no more than {tolerance:g} of it"
            )


def check_float(trial: Trial) -> int:
    """Compares QFloat without quantization and the float model, in eval mode and in training.

    Raises:
        ContractViolation: results, or what training leaves in the buffers, differ.
    """
    count = 0
    for training in (False, True):
        model, qfloat = copy.deepcopy(trial.model), copy.deepcopy(trial.qfloat)
        set_switches(qfloat, observer=False, fake_quant=False)
        model.train(training)
        qfloat.train(training)
        mode = "training" if training else "eval mode"
        for batch in batches(trial.inputs, sizes=(2, 5), kinds=("plain",)):
            found, wanted = (_seeded(one, batch) for one in (qfloat, model))
            what = f"{trial.what}: results of the float model and of QFloat without quantization"
            _close(f"{what} in {mode}", found, wanted)
            count += 1
        if training:
            _check_buffers(trial.what, model, qfloat)
    return count


def _seeded(model: nn.Module, batch: Inputs) -> tuple[Tensor, ...]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return results(model, batch)


def _check_buffers(what: str, model: nn.Module, qfloat: nn.Module) -> None:
    """Every BatchNorm of the float model has its counterpart with the same statistics."""

    def statistics(root: nn.Module) -> Mapping[str, list[Tensor]]:
        names = ("running_mean", "running_var")
        return {
            name: [b for n, b in root.named_buffers() if n.rpartition(".")[2] == name]
            for name in names
        }

    left, right = statistics(model), statistics(qfloat)
    for name, wanted in left.items():
        for one in wanted:
            same = [x for x in right[name] if x.shape == one.shape]
            if not any(torch.allclose(x, one, rtol=1e-3, atol=1e-4) for x in same):
                raise ContractViolation(
                    f"{what}: after training, no BatchNorm of QFloat has the {name} of the float "
                    "model's"
                )


def check_emit(trial: Trial) -> int:
    """Compares what each operation of the contribution computes in float and in integers.

    On the same inputs ``compute``, rounded by the output quantizer, and ``emit`` may be one step
    apart, where a rounding on the way tips over. A float result may be off by 2 % of the largest.

    Raises:
        ContractViolation: they are further apart.
    """
    count = 0
    for name, op in trial.ops().items():
        with torch.no_grad():
            seen = _inputs(trial.qfloat, op, batches(trial.inputs, kinds=("plain", "beyond")))
            pairs = [(op._exact(*xs), op._simulate(*xs)) for xs in seen]
        for exact, simulated in pairs:
            for a, b in zip(pytree.tree_leaves(exact), pytree.tree_leaves(simulated), strict=True):
                _near(f"{trial.what}: layer {name!r}", op, a, b)
                count += a.numel()
    return count


def check_correction(trial: Trial) -> int:
    """Compares each channel operation before and after its channels are scaled and shifted.

    Raises:
        ContractViolation: the result is not the one that was asked for, a weight has other
            integers, or Q does not follow.
    """
    count = 0
    qfloat = copy.deepcopy(trial.qfloat).eval()
    ops = {name: op for name, op in trial.ops(qfloat).items() if isinstance(op, ChannelOp)}
    for name, op in ops.items():
        what = f"{trial.what}: layer {name!r}"
        with torch.no_grad():
            x = _inputs(qfloat, op, [trial.inputs])[0][0]
            before, integers = op.preactivation(x), _integers(op)
            channel = op.channel_dim % before.ndim
            # Powers of two, by which nothing is rounded.
            gain = torch.exp2(torch.arange(before.shape[channel]) % 3 - 1.0)
            shift = gain.flip(0) - 0.75
            if op.why_no_gain:
                gain = torch.ones_like(gain)
            if op.why_no_shift:
                shift = torch.zeros_like(gain)
            op.correct(gain, shift)
            shape = [-1 if i == channel else 1 for i in range(before.ndim)]
            due = before * gain.reshape(shape) + shift.reshape(shape)
            _close(
                f"{what}: preactivation after correct and what is due",
                (op.preactivation(x),),
                (due,),
            )
        moved = sum(int((a != b).sum()) for a, b in zip(_integers(op), integers, strict=True))
        if moved:
            raise ContractViolation(
                f"{what}: after correct, {moved} integers of its weight are others; multiply the "
                "scale with the weight, or say in why_no_gain why that can't be"
            )
        count += before.numel()
    if ops:
        what = f"{trial.what}, after correct"
        count += check_integers(attrs.evolve(trial, what=what, qfloat=qfloat, q=convert(qfloat)))
    return count


def _inputs(qfloat: nn.Module, op: QFloatOp, given: Iterable[Inputs]) -> list[Inputs]:
    """What an operation of a QFloat model gets in a forward with each of some inputs."""
    seen: list[Inputs] = []
    handle = op.register_forward_pre_hook(lambda _, xs: seen.append(xs))
    try:
        for inputs in given:
            qfloat(*inputs)
    finally:
        handle.remove()
    return seen


def _integers(op: QFloatOp) -> list[Tensor]:
    with torch.no_grad():
        return [quantize_tensor(weight, q.qparams()) for q, weight in op.weight_quantizers()]


def _near(what: str, op: QFloatOp, exact: Tensor, simulated: Tensor) -> None:
    """Compares one result of an operation by ``emit`` and by ``compute``."""
    off = float((exact - simulated).abs().max())
    quantizer = op.output_quantizer
    if quantizer is not None:
        allowed = float(quantizer.qparams().scale) * 1.01
    else:
        allowed = 0.02 * float(simulated.abs().max()) + 1e-6
    if not off <= allowed:
        raise ContractViolation(
            f"{what}: emit and compute are {off:g} apart on the same inputs; due is no more than "
            f"{allowed:g}" + (", one step of the output" if quantizer is not None else "")
        )
