"""An example of a converter or a fusion, taken through the pipeline; and inputs to try it with."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import cast

import attrs
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..calibration import calibrate
from ..config import QConfig
from ..conversion import convert
from ..errors import QuantizationError
from ..fidelity import count_differences
from ..host import PluginHost
from ..op import Island, QFloatOp
from ..planning import PlanRow
from ..preparation import prepare
from ..qfloat_model import info_of, qfloat_ops, set_switches
from ..recipe import Recipe
from ..specs import CheckedSpec
from .contract import ContractViolation, NotApplicable, Subject
from .networks import QCONFIGS

__all__ = [
    "Inputs",
    "Trial",
    "batches",
    "check_emit",
    "check_float",
    "check_integers",
    "examples_of",
    "has_part",
    "lively",
    "results",
    "trial_if_taken",
    "trial_of",
    "trials",
]

Inputs = tuple[Tensor, ...]

_FLOAT_TOLERANCE = 1e-4
"""Of two float computations of one value in another order, as a share of the largest value."""


@attrs.frozen(kw_only=True, eq=False)
class Trial:
    """What the pipeline made of an example; checks work on copies of its models.

    Args:
        what: the example in words.
        model: the float model, in eval mode.
        inputs: the author's.
        fresh: QFloat before calibration.
        qfloat: calibrated, in eval mode.
        q: its program.
        rows: rows of the plan that the contribution has a part in.
        plan: the whole plan, for messages.
    """

    what: str
    model: nn.Module
    inputs: Inputs
    fresh: nn.Module
    qfloat: nn.Module
    q: nn.Module
    rows: tuple[PlanRow, ...]
    plan: str

    def ops(self, model: nn.Module | None = None) -> dict[str, QFloatOp]:
        """The quantized operations of the contribution, in ``qfloat`` or in a copy of it."""
        found = dict(qfloat_ops(model if model is not None else self.qfloat))
        return {row.name: found[row.name] for row in self.rows if row.name in found}


def examples_of(subject: Subject) -> tuple[tuple[nn.Module, Inputs], ...]:
    """The author's examples, in eval mode.

    Raises:
        ContractViolation: there are none.
        NotApplicable: they need a package that is not installed.
    """
    if getattr(subject.spec, "examples", None) is None:
        raise ContractViolation(
            f"{subject.kind} {subject.name!r} names no examples to try it on; give the record "
            "examples='package.module:function', a function without arguments that yields pairs "
            "of a float module and a tuple of tensors to call it with"
        )
    try:
        found = tuple((lively(module), inputs) for module, inputs in subject.examples())
    except ModuleNotFoundError as error:
        raise NotApplicable(f"its examples need {error.name!r}, which is not installed") from error
    if not found:
        raise ContractViolation("its examples function yields nothing; give at least one pair")
    return found


def lively(model: nn.Module) -> nn.Module:
    """``model`` in eval mode, with statistics and factors of BatchNorm that do something."""
    for part in model.modules():
        mean, var = (getattr(part, name, None) for name in ("running_mean", "running_var"))
        if isinstance(mean, Tensor) and isinstance(var, Tensor):
            mean.uniform_(-0.5, 0.5)
            var.uniform_(0.5, 2.0)
            for parameter in part.parameters(recurse=False):
                nn.init.uniform_(parameter, 0.4, 1.2)
    return model.eval()


def has_part(subject: Subject, row: PlanRow) -> bool:
    """Whether a row of a plan is the work of a converter or a fusion."""
    if subject.kind == "fusion":
        return row.fusion == subject.name and row.status != "float"
    target = subject.load()
    island = isinstance(target, type) and issubclass(target, Island)
    return row.converter == subject.name and (row.status != "float" or island)


def trial_of(
    what: str,
    model: nn.Module,
    inputs: Inputs,
    subject: Subject,
    *,
    host: PluginHost,
    qconfig: QConfig,
) -> Trial:
    """Takes a float model in eval mode through prepare, calibrate and convert.

    Raises:
        ContractViolation: the subject has no part in the plan.
    """
    found, plan = _trial(what, model, inputs, subject, host=host, qconfig=qconfig)
    if found is None:
        raise ContractViolation(
            f"{what}: {subject.kind} {subject.name!r} has no part in the plan of its own example\n"
            f"{plan}"
        )
    return found


def trial_if_taken(
    what: str,
    model: nn.Module,
    inputs: Inputs,
    subject: Subject,
    *,
    host: PluginHost,
    qconfig: QConfig,
) -> Trial | None:
    """As :func:`trial_of`; None where the subject has no part, or nothing can be quantized."""
    try:
        return _trial(what, model, inputs, subject, host=host, qconfig=qconfig)[0]
    except QuantizationError as error:
        if "nothing in the model can be quantized" in str(error):
            return None
        raise


def _trial(
    what: str,
    model: nn.Module,
    inputs: Inputs,
    subject: Subject,
    *,
    host: PluginHost,
    qconfig: QConfig,
) -> tuple[Trial | None, str]:
    fresh = prepare(model, inputs, Recipe(qconfig=qconfig), host=host)
    plan = info_of(fresh).plan
    rows = tuple(row for row in plan.rows if has_part(subject, row))
    if not rows:
        return None, str(plan)
    qfloat = copy.deepcopy(fresh)
    calibrate(qfloat, [sized(inputs, 4), *batches(inputs, sizes=(4, 3), kinds=("plain",))])
    trial = Trial(
        what=what,
        model=model,
        inputs=inputs,
        fresh=fresh,
        qfloat=qfloat,
        q=convert(qfloat),
        rows=rows,
        plan=str(plan),
    )
    return trial, trial.plan


def trials(subject: Subject, config: str = "int8") -> tuple[Trial, ...]:
    """Each example of a converter, quantized by one of the configurations of the kit.

    Raises:
        ContractViolation: an example in which it has no part.
    """
    return _kept_trials(subject.host, subject.kind, subject.name, config)


@lru_cache(maxsize=6)
def _kept_trials(host: PluginHost, kind: str, name: str, config: str) -> tuple[Trial, ...]:
    """The last ones are kept: the contracts of one contribution are checked one after another."""
    subject = Subject(host=host, spec=cast(CheckedSpec, host.find(kind, name)))
    return tuple(
        trial_of(
            f"example {number} with {config}",
            model,
            inputs,
            subject,
            host=host,
            qconfig=QCONFIGS[config],
        )
        for number, (model, inputs) in enumerate(examples_of(subject), start=1)
    )


def sized(inputs: Inputs, size: int) -> Inputs:
    """Inputs repeated or cut to a batch of ``size``."""
    return tuple(torch.cat([x] * -(-size // max(1, x.shape[0])))[:size] for x in inputs)


def batches(
    inputs: Inputs,
    *,
    sizes: Iterable[int] = (1, 2, 5),
    kinds: Iterable[str] = ("plain", "ties", "beyond"),
) -> Iterator[Inputs]:
    """Batches like the example's inputs; what is no float tensor keeps its values.

    Args:
        inputs: whose ranges to stay in.
        sizes: of the batches.
        kinds: ``"plain"``: evenly spread over the range of the example; ``"ties"``: halfway between
            the values that an 8-bit quantizer of the range gives; ``"beyond"``: up to ten times the
            range, and zeros.
    """
    for kind in kinds:
        for size in sizes:
            yield tuple(
                _values(x, like, kind) if x.is_floating_point() else x
                for x, like in zip(sized(inputs, size), inputs, strict=True)
            )


def _values(x: Tensor, like: Tensor, kind: str) -> Tensor:
    low, high = min(float(like.min()), 0.0), max(float(like.max()), 0.0)
    spread = low + (high - low) * torch.rand(x.shape)
    if kind == "ties":
        step = max((high - low) / 255, 1e-9)
        return ((spread / step).floor() + 0.5) * step
    if kind == "beyond":
        factor = torch.tensor([0.0, 1.0, 10.0])[torch.randint(0, 3, x.shape)]
        return spread * factor
    return spread


def results(model: nn.Module, inputs: Inputs) -> tuple[Tensor, ...]:
    """The tensors that a model gives."""
    output = model(*inputs)
    return tuple(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))


def check_integers(
    trial: Trial, qfloat: nn.Module | None = None, q: nn.Module | None = None
) -> int:
    """Compares every integer of QFloat in eval mode and Q, and their results.

    Returns:
        How many values were compared.

    Raises:
        ContractViolation: one differs.
    """
    qfloat, q = qfloat or trial.qfloat, q or trial.q
    given = list(batches(trial.inputs))
    fidelity = count_differences(qfloat, q, given)
    if fidelity.differing:
        wrong = {k: f"{d} of {n}" for k, (n, d) in fidelity.layers.items() if d}
        raise ContractViolation(
            f"{trial.what}: QFloat in eval mode and Q differ in {wrong} values\n{trial.plan}"
        )
    with torch.no_grad():
        for batch in given:
            qfloat.eval()
            _close(
                f"{trial.what}: results of QFloat and Q", results(q, batch), results(qfloat, batch)
            )
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
        seen: list[Inputs] = []
        handle = op.register_forward_pre_hook(lambda _, xs, seen=seen: seen.append(xs))
        try:
            with torch.no_grad():
                for batch in batches(trial.inputs, kinds=("plain", "beyond")):
                    trial.qfloat(*batch)
                pairs = [
                    pair
                    for xs in seen
                    for pair in zip(
                        pytree.tree_leaves(op._exact(*xs)),
                        pytree.tree_leaves(op._simulate(*xs)),
                        strict=True,
                    )
                ]
        finally:
            handle.remove()
        for exact, simulated in pairs:
            for a, b in zip(pytree.tree_leaves(exact), pytree.tree_leaves(simulated), strict=True):
                _near(f"{trial.what}: layer {name!r}", op, a, b)
                count += a.numel()
    return count


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
