"""Stages of a recipe: their order and their options are checked before anything runs."""

from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore import AlgorithmSpec, PluginError, RecipeError, Stage
from qcore.stages import checked_stages, run_stage

RAN: list[str] = []


def stage(model: nn.Module, *, dataset: Any, seed: int = 0, strength: float = 0.1) -> nn.Module:
    RAN.append(f"{seed} {strength}")
    if not isinstance(strength, float):
        raise TypeError("strength must be a float")
    return model


def loose(model: nn.Module, *, dataset: Any, **options: Any) -> nn.Module:
    return model


@pytest.fixture
def host() -> qcore.PluginHost:
    """Stages of three phases, one of which needs what another makes."""

    def record(name: str, phase: str, **fields: Any) -> AlgorithmSpec:
        target = f"{__name__}:{fields.pop('function', 'stage')}"
        return AlgorithmSpec(name=name, phase=phase, target=target, **fields)

    class Plugin:
        @qcore.hookimpl
        def qcore_algorithms(self) -> tuple[AlgorithmSpec, ...]:
            return (
                record("first", "float", writes=("weights", "ranges")),
                record("second", "calibrated", reads=("ranges",)),
                record("last", "q"),
                record("loose", "float", function="loose"),
            )

    host = qcore.PluginHost([])
    host.register(Plugin(), name="acme")
    RAN.clear()
    return host


def test_a_possible_order(host: qcore.PluginHost) -> None:
    """Stages come with their records, and nothing runs."""
    found = checked_stages([Stage(name="first"), Stage(name="second"), Stage(name="last")], host)
    assert [spec.phase for _, spec in found] == ["float", "calibrated", "q"]
    assert RAN == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["last", "first"], "'first' works on the float model.*put it before that"),
        (["second"], "'second' needs ranges, which no stage before it makes"),
    ],
)
def test_an_impossible_order(host: qcore.PluginHost, names: list[str], words: str) -> None:
    """A later phase first, or something that nobody made."""
    with pytest.raises(RecipeError, match=words):
        checked_stages([Stage(name=name) for name in names], host)


def test_an_unknown_stage(host: qcore.PluginHost) -> None:
    """There is no such algorithm."""
    with pytest.raises(PluginError, match="third"):
        checked_stages([Stage(name="third")], host)


@pytest.mark.parametrize("key", ["strenght", "model", "dataset"])
def test_an_unknown_option(host: qcore.PluginHost, key: str) -> None:
    """A misspelt one, or one that is the run's, is refused by name."""
    given = Stage(name="first", options={key: 1.0})
    with pytest.raises(RecipeError, match=f"algorithm 'first' has no option '{key}'.*strength"):
        checked_stages([given], host)
    assert RAN == []


def test_a_stage_that_takes_any_option(host: qcore.PluginHost) -> None:
    """Its own errors are its own."""
    assert checked_stages([Stage(name="loose", options={"anything": 1})], host)


def test_a_stage_runs_with_its_own_seed_first() -> None:
    """The recipe's seed, unless the stage's options have one."""
    model = nn.Linear(1, 1)
    RAN.clear()
    for options in ({}, {"seed": 4, "strength": 0.5}):
        assert run_stage(stage, model, name="a", dataset=None, seed=3, options=options) is model
    assert RAN == ["3 0.1", "4 0.5"]


def test_a_wrong_value_is_an_error_of_the_recipe() -> None:
    """With the stage and its options."""
    with pytest.raises(RecipeError, match=r"algorithm 'a' with options \{'strength': 1\}.*float"):
        run_stage(
            stage, torch.nn.Identity(), name="a", dataset=None, seed=0, options={"strength": 1}
        )


def test_misspelt_options_fail_before_the_run() -> None:
    """A plan of the recipe fails too, so hours of an earlier stage are not lost."""
    recipe = qcore.Recipe(
        model={"name": "resnet20"},
        data={"name": "digits"},
        algorithms=(Stage(name="train", options={"epochs": 1, "learning_rate": 0.1}),),
    )
    with pytest.raises(RecipeError, match="'train' has no option 'learning_rate'"):
        qcore.plan_recipe(recipe)
