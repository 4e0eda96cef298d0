"""What a run gives its stages and its calibration. This module is also the plug-in that it runs."""

import sys

import pytest
import torch
from torch import nn

import qcore
from qcore import AlgorithmSpec, Dataset, DatasetSpec, ModelSpec, Recipe, Stage, hookimpl
from qcore.running import recipe_phases

GOT: list[int] = []


def net():
    return nn.Linear(4, 2)


def rows():
    x = torch.arange(32.0).reshape(8, 4)
    y = torch.zeros(8, dtype=torch.int64)
    return Dataset(
        name="rows", train_inputs=x, train_labels=y, test_inputs=x, test_labels=y, num_classes=2
    )


def note(model, *, dataset, seed):
    GOT.append(seed)
    return model


@hookimpl
def qcore_models():
    yield ModelSpec(name="small_net", target=f"{__name__}:net")


@hookimpl
def qcore_datasets():
    yield DatasetSpec(name="rows", target=f"{__name__}:rows")


@hookimpl
def qcore_algorithms():
    yield AlgorithmSpec(name="note", phase="calibrated", target=f"{__name__}:note")


@pytest.fixture
def phases():
    """Runs a recipe on the network of this module, and forgets what stages got before."""
    host = qcore.PluginHost()
    host.register(sys.modules[__name__], name="parts")
    GOT.clear()

    def run(**fields):
        recipe = Recipe(model={"name": "small_net"}, data={"name": "rows"}, **fields)
        return recipe_phases(recipe, use_cache=False, host=host)

    return run


def test_seed_of_a_stage(phases):
    """A stage gets the seed of the recipe, or its own."""
    phases(seed=3, algorithms=(Stage(name="note"), Stage(name="note", options={"seed": 5})))
    assert GOT == [3, 5]


def test_seed_of_calibration(phases):
    """Another seed of calibration draws other examples, and changes nothing else."""

    def scale(seed):
        made = phases(calibration={"samples": 1, "seed": seed})
        (activation,) = [q for n, q in qcore.quantizers(made.qfloat) if not q.of_weight]
        return activation.qparams().scale.item()

    assert len({scale(seed) for seed in range(6)}) > 1
    assert scale(1) == scale(1)
