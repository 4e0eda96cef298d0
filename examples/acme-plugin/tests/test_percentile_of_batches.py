"""The observer ``acme_percentile_of_batches``, and the plug-in that brings it."""

import math
from pathlib import Path

import pytest
import torch
from qcore_acme.percentile_of_batches import PercentileOfBatchesObserver, percentile_range

import qcore

AFFINE = qcore.QScheme(dtype=qcore.INT8, symmetric=False)
SYMMETRIC = qcore.QScheme(dtype=qcore.INT8)
PER_CHANNEL = qcore.QScheme(dtype=qcore.INT8, granularity=qcore.PerChannel(0))


def batches(count: int, *shape: int) -> list[torch.Tensor]:
    """Batches of normal values, each with a scale of its own."""
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator) * 2.0 ** (i % 7) for i in range(count)]


def seen(scheme: qcore.QScheme, data: list[torch.Tensor], **options: float):
    """An observer that has seen the batches."""
    observer = PercentileOfBatchesObserver(scheme=scheme, where="layer", **options)
    for batch in data:
        observer(batch)
    return observer


@pytest.mark.parametrize("size", [1, 2, 9, 10, 1000, 1001])
@pytest.mark.parametrize("percentile", [50.5, 90.0, 99.0, 99.9, 100.0])
def test_bounds_are_nearest_ranks(size, percentile):
    """The bounds are the values that a sorted list holds at the nearest rank."""
    row = torch.randn(size, generator=torch.Generator().manual_seed(size))
    values, magnitudes = sorted(row.tolist()), sorted(row.abs().tolist())
    rank = math.ceil(round(percentile * 10) * size / 1000)
    low, high = percentile_range(row.reshape(1, -1), percentile, symmetric=False)
    assert (low.item(), high.item()) == (values[-rank], values[rank - 1])
    low, high = percentile_range(row.reshape(1, -1), percentile, symmetric=True)
    assert (low.item(), high.item()) == (-magnitudes[rank - 1], magnitudes[rank - 1])


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC, PER_CHANNEL], ids=lambda s: s.describe())
def test_range_is_the_mean_of_the_batches(scheme):
    """Each batch's bounds count the same, row by row."""
    data = batches(5, 4, 50)
    single = [torch.stack(seen(scheme, [batch]).range()) for batch in data]
    expected = torch.stack(single).double().mean(0).float()
    assert torch.equal(torch.stack(seen(scheme, data).range()), expected)


def test_one_wild_batch_has_one_say():
    """A batch of huge values moves the range by its share, not to itself."""
    data = [torch.linspace(-1, 1, 1001) for _ in range(99)]
    low, high = seen(AFFINE, [*data, 100 * data[0]], percentile=100.0).range()
    assert (low.item(), high.item()) == pytest.approx((-1.99, 1.99))


@pytest.mark.parametrize("cut", [1, 20, 39])
@pytest.mark.parametrize("scheme", [AFFINE, PER_CHANNEL], ids=lambda s: s.describe())
def test_merge_equals_having_seen_both(scheme, cut):
    """Merging equals having seen both, in either order, bit for bit."""
    data = batches(40, 3, 64)
    left, right = seen(scheme, data[:cut]), seen(scheme, data[cut:])
    both = seen(scheme, data).calculate_qparams()
    for merged in (left.merge(right), right.merge(left)):
        assert torch.equal(merged.calculate_qparams().scale, both.scale)
        assert torch.equal(merged.calculate_qparams().zero_point, both.zero_point)


def test_merge_refuses_another_percentile():
    """Sums of different percentiles have no common meaning."""
    data = batches(1, 8)
    with pytest.raises(qcore.QuantizationError, match=r"percentile 99 and 99\.9"):
        seen(AFFINE, data, percentile=99.0).merge(seen(AFFINE, data))


@pytest.mark.parametrize("percentile", [50, 100.1, -1, math.nan])
def test_percentile_out_of_range(percentile):
    """The error names the layer, the value and what is allowed."""
    with pytest.raises(qcore.QuantizationError, match=r"layer 'layer'.*above 50, at most 100"):
        seen(AFFINE, [], percentile=percentile)


def test_state_dict_restores_the_statistics():
    """A fresh observer that loads the state goes on where the other one stopped."""
    data = batches(4, 3, 16)
    fresh = PercentileOfBatchesObserver(scheme=PER_CHANNEL)
    fresh.load_state_dict(seen(PER_CHANNEL, data[:2]).state_dict())
    for batch in data[2:]:
        fresh(batch)
    expected = seen(PER_CHANNEL, data).calculate_qparams().scale
    assert torch.equal(fresh.calculate_qparams().scale, expected)


def test_the_installed_plugin_brings_it():
    """qcore finds the observer by name, and says which distribution it came from."""
    host = qcore.default_host()
    spec = host.find("observer", "acme_percentile_of_batches")
    assert spec.origin is not None
    assert spec.origin.describe() == "acme (qcore-acme 0.1.0)"
    assert host.load(spec) is PercentileOfBatchesObserver


def test_a_recipe_uses_it():
    """The recipe of this folder puts the observer, with its option, on every activation."""
    recipe = qcore.Recipe.load(Path(__file__).parents[1] / "recipe.toml")
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    qfloat = qcore.prepare(model, torch.zeros(2, 8), recipe)
    activations = [q for name, q in qcore.quantizers(qfloat) if "weight" not in name]
    assert len(activations) == 2
    for quantizer in activations:
        assert isinstance(quantizer.observer, PercentileOfBatchesObserver)
        assert quantizer.observer.percentile == 99.9
