"""Each contract of fusions catches what breaks it, and lets the right ones pass."""

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

import qcore
from qcore import Builder, ConverterSpec, FusionSpec, Match, QFloatOp, Quantizers
from qcore.testing import Subject, check_contract, check_subject, contracts
from qcore_converters.activation import Clamp
from qcore_converters.convolution import QFloatConv
from qcore_converters.linear import QFloatLinear

CLAMPS = ("relu", "relu6", "hardtanh")


@attrs.frozen(kw_only=True)
class Plugin:
    """A fusion with a converter of its own."""

    fusion: FusionSpec
    target: type[QFloatOp]

    @qcore.hookimpl
    def qcore_fusion_patterns(self) -> tuple[FusionSpec, ...]:
        return (self.fusion,)

    @qcore.hookimpl
    def qcore_module_converters(self) -> tuple[ConverterSpec, ...]:
        globals()["Chosen"] = self.target
        return (ConverterSpec(name="own", op="own", target=f"{__name__}:Chosen"),)


def plugin(*pattern: Any, target: type[QFloatOp], **options: Any) -> Plugin:
    """A fusion that comes before the built-in ones."""
    given = {"op": "own", "priority": 1, "check": "qcore_fusions.checks:unfit", **options}
    return Plugin(fusion=FusionSpec(name="own", pattern=pattern, **given), target=target)


def subject(plugin: Plugin) -> Subject:
    host = qcore.PluginHost()
    host.register(plugin, name="acme")
    return Subject(host=host, spec=host.find("fusion", "acme:own"))


class NoClamp(QFloatLinear):
    """Drops the activation that it took in."""

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> QFloatOp:
        op = super().from_match(match, quantizers)
        op.clamp = Clamp()
        return op


class ReluForAll(QFloatLinear):
    """Takes any clamp for relu."""

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> QFloatOp:
        op = super().from_match(match, quantizers)
        op.clamp = Clamp(0.0)
        return op


class NoClampInQ(QFloatLinear):
    """Clamps in float alone."""

    def emit(self, b: Builder, *xs: Any) -> Any:
        clamp, self.clamp = self.clamp, Clamp()
        try:
            return super().emit(b, *xs)
        finally:
            self.clamp = clamp


class PadsWithZeros(QFloatConv):
    """Ignores the padding mode."""

    def __init__(self, conv: nn.Conv2d, **options: Any) -> None:
        super().__init__(conv, **options)
        self.padding_mode = "zeros"


class OneEps(QFloatLinear):
    """Folds every BatchNorm with the same eps."""

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> QFloatOp:
        op = super().from_match(match, quantizers)
        op.bn.eps = 1e-5
        return op


class FrozenStatistics(QFloatLinear):
    """Does not learn the statistics of BatchNorm."""

    @classmethod
    def from_match(cls, match: Match, quantizers: Quantizers) -> QFloatOp:
        op = super().from_match(match, quantizers)
        op.batch_norm_frozen = True
        return op


def refuses(match: Match) -> str:
    return "not today"


def broken(match: Match) -> str:
    raise KeyError("padding")


def all_but_alpha(match: Match) -> str | None:
    return "alpha is not 1" if match.steps[-1].arguments.get("alpha", 1) != 1 else None


CALLS: list[Match] = []


def now_and_then(match: Match) -> str | None:
    CALLS.append(match)
    return None if len(CALLS) % 2 else "not now"


def check(name: str) -> str:
    return f"{__name__}:{name}"


def examples() -> Iterator[tuple[nn.Module, tuple[Tensor, ...]]]:
    layers = (nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
    yield nn.Sequential(*layers), (torch.randn(3, 4),)


RIGHT: dict[str, Plugin] = {
    "linear-clamp": plugin("linear", CLAMPS, target=QFloatLinear),
    "linear-bn": plugin("linear", "batch_norm", target=QFloatLinear),
    "conv-add": plugin("conv2d", "add", target=QFloatConv),
    "author's examples": plugin(
        "linear", CLAMPS, target=QFloatLinear, examples=check("examples"), check=None
    ),
}

WRONG: dict[str, tuple[Plugin, str]] = {
    "drops its relu": (plugin("linear", "relu", target=NoClamp), "equals_the_unfused"),
    "takes relu6 for relu": (plugin("linear", CLAMPS, target=ReluForAll), "equals_the_unfused"),
    "freezes statistics": (
        plugin("linear", "batch_norm", target=FrozenStatistics),
        "equals_the_unfused",
    ),
    "drops its relu in Q": (
        plugin("linear", "relu", target=NoClampInQ),
        "emit_agrees_with_compute",
    ),
    "ignores the padding mode": (
        plugin("conv2d", "relu", target=PadsWithZeros),
        "computes_near_misses",
    ),
    "ignores eps": (plugin("linear", "batch_norm", target=OneEps), "computes_near_misses"),
    "ignores alpha": (
        plugin("conv2d", "add", target=QFloatConv, check=None),
        "computes_near_misses",
    ),
    "takes a broadcast": (
        plugin("conv2d", "add", target=QFloatConv, check=check("all_but_alpha")),
        "computes_near_misses",
    ),
    "folds what has no statistics": (
        plugin("conv2d", "batch_norm", target=QFloatConv, check=None),
        "computes_near_misses",
    ),
    "refuses every match": (
        plugin("linear", "relu", target=QFloatLinear, check=check("refuses")),
        "matches_its_examples",
    ),
    "a check that fails": (
        plugin("linear", "relu", target=QFloatLinear, check=check("broken")),
        "matches_its_examples",
    ),
    "a misspelt operation": (
        plugin("linear", "rleu", target=QFloatLinear),
        "matches_its_examples",
    ),
    "behind another fusion": (
        plugin("linear", "relu", target=QFloatLinear, priority=-1),
        "matches_its_examples",
    ),
    "now and then": (
        plugin("linear", "relu", target=QFloatLinear, check=check("now_and_then")),
        "plans_are_stable",
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_fusion_fulfils_every_contract(name: str) -> None:
    """The originals of the wrong ones."""
    assert [o for o in check_subject(subject(RIGHT[name])) if o.status != "passed"] == []


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_fusion_is_caught(name: str) -> None:
    """By the contract that names its fault."""
    wrong, wanted = WRONG[name]
    contract = next(c for c in contracts("fusion") if c.name == wanted)
    outcome = check_contract(subject(wrong), contract)
    assert outcome.status == "failed", outcome
    assert outcome.message
