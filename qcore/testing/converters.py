"""The contracts of converters, tried on the examples that their records name."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..artifact import load, save
from ..config import QConfig
from ..conversion import convert
from ..errors import QuantizationError
from ..op import ChannelOp, QFloatOp
from ..preparation import prepare
from ..qfloat_model import disable_observer, quantizers
from ..recipe import Recipe
from .agreement import check_correction, check_emit, check_float, check_integers
from .contract import Contract, ContractViolation, NotApplicable, Subject
from .networks import PER_TOKEN, QCONFIGS, WEIGHT_ONLY
from .trials import (
    Trial,
    batches,
    examples_of,
    results,
    trial_if_taken,
    trials,
)

__all__ = ["CONTRACTS"]


def _takes_its_examples(subject: Subject) -> int:
    count = 0
    for trial in trials(subject):
        for row in trial.rows:
            if row.status == "float" and not row.reason:
                raise ContractViolation(
                    f"{trial.what}: the plan's row of {row.name!r} does not say why it stays float"
                )
            if row.status == "quantized" and not row.kernel:
                raise ContractViolation(
                    f"{trial.what}: the plan's row of {row.name!r} names no kernel; due is "
                    "QFloatOp.program_op, the operation of Q that it becomes"
                )
        count += 1
    return count


def _qfloat_equals_q(subject: Subject) -> int:
    return sum(check_integers(t) for config in QCONFIGS for t in trials(subject, config))


def _runs_without_activation_scales(subject: Subject) -> int:
    target = subject.load()
    if not (issubclass(target, QFloatOp) and target.anchor):
        raise NotApplicable("it is no anchor, so its inputs are integers or it stays float")
    count = 0
    others: dict[str, QConfig] = {"weights only": WEIGHT_ONLY, "a scale a token": PER_TOKEN}
    for words, qconfig in others.items():
        for number, (model, inputs) in enumerate(examples_of(subject), start=1):
            trial = trial_if_taken(
                f"example {number} with {words}",
                model,
                inputs,
                subject,
                host=subject.host,
                qconfig=qconfig,
            )
            if trial is not None:
                count += check_integers(trial) + check_emit(trial)
    if not count:
        raise NotApplicable("its why_not refuses float inputs and inputs quantized at run time")
    return count


def _computes_the_float_operation(subject: Subject) -> int:
    return sum(map(check_float, trials(subject)))


def _emit_agrees_with_compute(subject: Subject) -> int:
    configs = ("int8", "int4 weights")
    count = sum(check_emit(trial) for config in configs for trial in trials(subject, config))
    if not count:
        raise NotApplicable("it has no computation of its own beside the integers")
    return count


def _corrects_channels(subject: Subject) -> int:
    if not issubclass(subject.load(), ChannelOp):
        raise NotApplicable("it is no qcore.ChannelOp")
    configs = ("int8", "int4 weights")
    return sum(check_correction(trial) for config in configs for trial in trials(subject, config))


def _keeps_names_and_hooks(subject: Subject) -> int:
    count = 0
    for trial in trials(subject):
        model = copy.deepcopy(trial.model)
        layers = dict(model.named_modules())
        names = [row.name for row in trial.rows if row.name in layers]
        seen: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            calls = seen[name]
            layers[name].register_forward_pre_hook(lambda *_, calls=calls: calls.append("before"))
            layers[name].register_forward_hook(lambda *_, calls=calls: calls.append("after"))
        qfloat = prepare(model, trial.inputs, _recipe(), host=subject.host)
        qfloat.load_state_dict(trial.qfloat.state_dict())
        for calls in seen.values():
            calls.clear()
        qfloat.eval()(*trial.inputs)
        for name in names:
            if name not in dict(qfloat.named_modules()):
                raise ContractViolation(f"{trial.what}: QFloat has no layer {name!r} any more")
            if "before" not in seen[name] or "after" not in seen[name]:
                raise ContractViolation(
                    f"{trial.what}: layer {name!r} has a forward hook and a pre-hook, and calling "
                    f"QFloat ran {seen[name] or 'neither'}"
                )
            count += 1
        kept = list(qfloat.parameters())
        for name, parameter in model.named_parameters():
            if not any(p.shape == parameter.shape and torch.equal(p, parameter) for p in kept):
                raise ContractViolation(
                    f"{trial.what}: parameter {name!r} of the float model is no parameter of QFloat"
                )
            count += 1
    return count


def _leaves_the_model_alone(subject: Subject) -> int:
    count = 0
    for trial in trials(subject):
        model = copy.deepcopy(trial.model).train()
        before = copy.deepcopy(model)
        qfloat = prepare(model, trial.inputs, _recipe(), host=subject.host)
        qfloat(*trial.inputs)
        state = before.state_dict()
        changed = [k for k, v in model.state_dict().items() if not torch.equal(v, state[k])]
        changed += [
            name
            for (name, a), b in zip(model.named_modules(), before.modules(), strict=True)
            if a.training != b.training or type(a) is not type(b)
        ]
        own = {p.data_ptr() for p in model.parameters() if p.numel()}
        changed += [name for name, p in qfloat.named_parameters() if p.data_ptr() in own]
        if changed:
            raise ContractViolation(
                f"{trial.what}: preparing the model and training QFloat changed the given model, "
                f"or shares memory with it: {', '.join(changed)}"
            )
        count += 1
    return count


def _modes_leave_switches(subject: Subject) -> int:
    count = 0
    for trial in trials(subject):
        qfloat = copy.deepcopy(trial.qfloat)
        before = _switches(qfloat)
        for training in (True, False, True):
            qfloat.train(training)
            qfloat(*trial.inputs)
            if _switches(qfloat) != before:
                raise ContractViolation(f"{trial.what}: train() or eval() moved a switch")
            wrong = [n for n, op in trial.ops(qfloat).items() if op.training != training]
            if wrong:
                raise ContractViolation(f"{trial.what}: train({training}) did not reach {wrong}")
            count += 1
    return count


def _switches(model: nn.Module) -> list[tuple[str, bool, bool]]:
    return [(n, q.observer_enabled, q.fake_quant_enabled) for n, q in quantizers(model)]


def _state_dict_round_trip(subject: Subject) -> int:
    for trial in trials(subject):
        fresh = copy.deepcopy(trial.fresh)
        # What a checkpoint keeps: tensors alone.
        fresh.load_state_dict({k: v.clone() for k, v in trial.qfloat.state_dict().items()})
        _same(
            f"{trial.what}: QFloat and one that loaded its state_dict", trial.qfloat, fresh, trial
        )
        _same(f"{trial.what}: Q and that of the loaded QFloat", trial.q, convert(fresh), trial)
    return len(trials(subject))


def _deepcopy_is_whole(subject: Subject) -> int:
    for trial in trials(subject):
        twin = copy.deepcopy(trial.qfloat)
        shared = {id(op) for op in trial.ops().values()} & {id(m) for m in twin.modules()}
        if shared:
            raise ContractViolation(f"{trial.what}: deepcopy keeps an operation instead of copying")
        _same(f"{trial.what}: QFloat and its deepcopy", trial.qfloat, twin, trial)
        _same(f"{trial.what}: Q and that of a deepcopy of QFloat", trial.q, convert(twin), trial)
        before = [results(trial.q, trial.inputs)[0].clone()]
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        after = results(convert(trial.qfloat), trial.inputs)[0]
        if not torch.equal(before[0], after):
            raise ContractViolation(f"{trial.what}: changing a deepcopy changed the original")
    return len(trials(subject))


def _artifact_round_trip(subject: Subject) -> int:
    count = 0
    for trial in trials(subject):
        with tempfile.TemporaryDirectory() as folder:
            loaded = load(save(trial.q, Path(folder) / "artifact", golden_inputs=trial.inputs))
        for batch in batches(trial.inputs):
            for a, b in zip(results(loaded, batch), results(trial.q, batch), strict=True):
                if not torch.equal(a.nan_to_num(), b.nan_to_num()):
                    raise ContractViolation(
                        f"{trial.what}: a saved and loaded Q gives other values"
                    )
            count += 1
    return count


def _refuses_without_calibration(subject: Subject) -> int:
    count = 0
    for trial in trials(subject):
        for what, call in (("converting", convert), ("calling", lambda m, t=trial: m(*t.inputs))):
            qfloat = copy.deepcopy(trial.fresh).eval()
            disable_observer(qfloat)
            places = [q.where for _, q in quantizers(qfloat)]
            try:
                call(qfloat)
            except QuantizationError as error:
                if not any(repr(place) in str(error) for place in places):
                    raise ContractViolation(
                        f"{trial.what}: {what} QFloat that was never calibrated raised an error "
                        f"that names none of its layers: {error}"
                    ) from error
            else:
                raise ContractViolation(
                    f"{trial.what}: {what} QFloat that was never calibrated raised nothing"
                )
            count += 1
    return count


def _gradients_reach_parameters(subject: Subject) -> int:
    count = 0
    for trial in trials(subject):
        given = _gradients(copy.deepcopy(trial.model), trial)
        found = _gradients(copy.deepcopy(trial.qfloat), trial)
        for shape, name in sorted((tuple(g.shape), name) for name, g in given.items()):
            # A model may have several parameters of a shape: as many of each need a gradient.
            due = sum(g.shape == shape for g in given.values())
            got = sum(g.shape == shape for g in found.values())
            if got < due:
                raise ContractViolation(
                    f"{trial.what}: in training, parameter {name!r} {list(shape)} of the float "
                    "model gets a gradient, and that of QFloat gets none, or one that is not finite"
                )
            count += 1
    if not count:
        raise NotApplicable("its examples have no parameters")
    return count


def _gradients(model: nn.Module, trial: Trial) -> dict[str, Tensor]:
    """The gradients of a forward in training that are finite and not all 0."""
    loss = sum(y.square().sum() for y in results(model.train(), trial.inputs))
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
        and bool(parameter.grad.isfinite().all())
        and bool(parameter.grad.any())
    }


def _same(what: str, left: nn.Module, right: nn.Module, trial: Trial) -> None:
    left.eval()
    right.eval()
    with torch.no_grad():
        for batch in batches(trial.inputs):
            for a, b in zip(results(left, batch), results(right, batch), strict=True):
                if not torch.equal(a.nan_to_num(), b.nan_to_num()):
                    raise ContractViolation(f"{what} give other values")


def _recipe() -> Recipe:
    return Recipe(qconfig=QCONFIGS["int8"])


def _contract(name: str, check: Callable[[Subject], int], protects: str) -> Contract:
    return Contract(kind="converter", name=name, protects=protects, check=check)


CONTRACTS: tuple[Contract, ...] = (
    _contract(
        "takes_its_examples",
        _takes_its_examples,
        "The plan has a row for each operation, which names the converter and what will run; one "
        "that never applies would go unnoticed.",
    ),
    _contract(
        "qfloat_equals_q",
        _qfloat_equals_q,
        "The accuracy that is simulated is the accuracy that is deployed only if every integer is "
        "the same: for signed and unsigned activations, 8-bit and 4-bit weights, any batch, ties "
        "and values beyond the range.",
    ),
    _contract(
        "runs_without_activation_scales",
        _runs_without_activation_scales,
        "Weight-only recipes and scales found at run time are offered for every anchor: it takes "
        "them rightly, or its why_not refuses them.",
    ),
    _contract(
        "computes_the_float_operation",
        _computes_the_float_operation,
        "Calibration and training run `compute`; what it leaves out or changes (padding, clamp, "
        "statistics) is calibrated and learned wrong.",
    ),
    _contract(
        "emit_agrees_with_compute",
        _emit_agrees_with_compute,
        "Training goes through `compute` and deployment through `emit`; if they are two "
        "operations, training improves another model.",
    ),
    _contract(
        "corrects_channels",
        _corrects_channels,
        "Algorithms that correct the statistics of a layer do it by `correct`, for all layers "
        "alike; one that does something else makes the model worse unseen.",
    ),
    _contract(
        "keeps_names_and_hooks",
        _keeps_names_and_hooks,
        "Users address layers by name, in recipes and checkpoints, and watch them with hooks.",
    ),
    _contract(
        "leaves_the_model_alone",
        _leaves_the_model_alone,
        "The float model is the reference of every comparison and the start of the next arm.",
    ),
    _contract(
        "modes_leave_switches",
        _modes_leave_switches,
        "train() and eval() choose the mode; observers and fake quantizers are the user's to "
        "switch.",
    ),
    _contract(
        "state_dict_round_trip",
        _state_dict_round_trip,
        "A checkpoint that forgets a scale resumes another training.",
    ),
    _contract(
        "deepcopy_is_whole",
        _deepcopy_is_whole,
        "Ablations, averaging and every check work on copies; state that is lost or shared spoils "
        "them.",
    ),
    _contract(
        "artifact_round_trip",
        _artifact_round_trip,
        "What is shipped is the artifact: it loads everywhere, and gives the integers that were "
        "saved.",
    ),
    _contract(
        "refuses_without_calibration",
        _refuses_without_calibration,
        "A scale that nobody found is an error that names the layer, never a default.",
    ),
    _contract(
        "gradients_reach_parameters",
        _gradients_reach_parameters,
        "Quantization-aware training reaches every parameter that float training does.",
    ),
)
