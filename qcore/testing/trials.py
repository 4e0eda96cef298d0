"""An example of a converter or a fusion, taken through the pipeline; and inputs to try it with."""

import copy
from collections.abc import Iterable, Iterator
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
from ..host import PluginHost
from ..op import Island, QFloatOp
from ..planning import PlanRow
from ..preparation import prepare
from ..qfloat_model import info_of, qfloat_ops
from ..recipe import Recipe
from ..specs import CheckedSpec
from .contract import ContractViolation, NotApplicable, Subject
from .networks import QCONFIGS

__all__ = [
    "Inputs",
    "Trial",
    "batches",
    "examples_of",
    "has_part",
    "lively",
    "results",
    "trial_if_taken",
    "trial_of",
    "trials",
]

Inputs = tuple[Tensor, ...]


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
