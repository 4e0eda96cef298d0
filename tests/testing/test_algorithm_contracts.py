"""Each contract of algorithms catches what breaks it, and lets the right ones pass."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcore
from qcore import AlgorithmSpec, Dataset, RecipeError
from qcore.testing import Subject, check_contract, check_subject, contracts


def checked(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise RecipeError(f"shrink: strength={strength}; use 0 to 1")


def shrink_float(
    model: nn.Module, *, dataset: Dataset, seed: int = 0, strength: float = 0.1
) -> nn.Module:
    """Right: a copy with smaller weights."""
    checked(strength)
    result = copy.deepcopy(model)
    _shrink(result, strength)
    return result


def shrink(
    model: nn.Module, *, dataset: Dataset, seed: int = 0, strength: float = 0.1
) -> nn.Module:
    """Right: smaller weights of the calibrated model, in place."""
    checked(strength)
    if not all(q.calibrated for _, q in qcore.quantizers(model)) or not qcore.info_of(model):
        raise RecipeError("shrink: the model is not calibrated; run qcore.calibrate first")
    _shrink(model, strength)
    return model


def _shrink(model: nn.Module, strength: float) -> None:
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and "quantizer" not in name:
                factor = 1 - strength * torch.rand(parameter.shape, generator=noise)
                parameter.mul_(factor)


def in_place(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    _shrink(model, 0.1)
    return model


def also_scales(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    result = shrink(model, dataset=dataset, seed=seed)
    for _, quantizer in qcore.quantizers(result):
        quantizer.scale *= 1.5
    return result


def also_statistics(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    result = shrink_float(model, dataset=dataset, seed=seed)
    result.train()(dataset.train_inputs)
    return result.eval()


def also_structure(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    return nn.Sequential(shrink_float(model, dataset=dataset, seed=seed), nn.Identity())


def by_chance(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    result = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return result


def anything(model: nn.Module, *, dataset: Dataset, seed: int = 0, **options: Any) -> nn.Module:
    return shrink_float(model, dataset=dataset, seed=seed)


def careless(
    model: nn.Module, *, dataset: Dataset, seed: int = 0, strength: float = 0.1
) -> nn.Module:
    return shrink_float(model, dataset=dataset, seed=seed)


def to_nan(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    result = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(reversed(list(result.parameters())))).fill_(float("nan"))
    return result


def of_another_shape(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    result = copy.deepcopy(model)
    result[-1] = nn.Linear(8, 7)
    return result


def nothing(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> None:
    _shrink(copy.deepcopy(model), 0.1)


def of_any_phase(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    _shrink(model, 0.1)
    return model


def of_attributes(model: nn.Module, *, dataset: Dataset, seed: int = 0) -> nn.Module:
    _shrink(model, 0.1)
    return model.meta["qcore"].plan and model


def regression() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    yield nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(0)), (torch.randn(3, 4),)


WRONG: dict[str, tuple[Callable[..., Any], str, str]] = {
    "changes the given model": (in_place, "float", "leaves_the_given_model"),
    "changes scales too": (also_scales, "calibrated", "changes_what_it_declares"),
    "changes statistics too": (also_statistics, "float", "changes_what_it_declares"),
    "changes the structure too": (also_structure, "float", "changes_what_it_declares"),
    "by chance": (by_chance, "float", "repeats_itself"),
    "swallows options": (anything, "float", "refuses_unknown_options"),
    "takes any value": (careless, "float", "refuses_wrong_values"),
    "gives NaN": (to_nan, "float", "leaves_the_model_valid"),
    "gives another shape": (of_another_shape, "float", "leaves_the_model_valid"),
    "gives nothing": (nothing, "float", "leaves_the_model_valid"),
    "takes any phase": (of_any_phase, "calibrated", "refuses_impossible_order"),
    "fails in another phase": (of_attributes, "calibrated", "refuses_impossible_order"),
}


def subject(stage: Callable[..., Any], phase: str, **changes: Any) -> Subject:
    """The stage as a plug-in of this process beside those installed."""

    class Plugin:
        @qcore.hookimpl
        def qcore_algorithms(self) -> tuple[AlgorithmSpec, ...]:
            record = {"phase": phase, "writes": ("weights",), **changes}
            return (AlgorithmSpec(name="own", target=f"{__name__}:Chosen", **record),)

    globals()["Chosen"] = stage
    host = qcore.PluginHost()
    host.register(Plugin(), name="acme")
    return Subject(host=host, spec=host.find("algorithm", "acme:own"))


@pytest.mark.parametrize(
    ("stage", "phase", "left_out"),
    [(shrink_float, "float", []), (shrink, "calibrated", ["leaves_the_given_model"])],
)
def test_the_right_algorithm_fulfils_every_contract(
    stage: Callable[..., Any], phase: str, left_out: list[str]
) -> None:
    """The originals of the wrong ones."""
    outcomes = check_subject(subject(stage, phase))
    assert [o for o in outcomes if not o.ok] == []
    assert [o.contract for o in outcomes if not o.examined] == left_out


def test_what_it_reads_must_be_written_before() -> None:
    """A recipe with the stage alone is refused, and the kit sees that it is."""
    outcomes = check_subject(subject(shrink_float, "float", reads=("thresholds",)))
    cases = {o.contract: o.cases for o in outcomes if o.status == "passed"}
    assert len(cases) == len(outcomes)
    assert cases["refuses_impossible_order"] == 2


def test_an_example_that_is_no_classifier_is_refused() -> None:
    """A stage gets a data set of classes; the message says what to give."""
    wrong = subject(shrink_float, "float", examples=f"{__name__}:regression")
    outcome = check_contract(wrong, contracts("algorithm")[0])
    assert outcome.status == "failed"
    assert "give examples of classifiers" in outcome.message


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_algorithm_is_caught(name: str) -> None:
    """By the contract that names its fault."""
    stage, phase, wanted = WRONG[name]
    contract = next(c for c in contracts("algorithm") if c.name == wanted)
    outcome = check_contract(subject(stage, phase), contract)
    assert outcome.status == "failed", outcome
    assert outcome.message
