"""What the built-in observers do beyond the contracts of every observer, and those contracts with
options that make small tests go every way.

With their defaults the observers pass :mod:`qcore.testing` in ``tests/testing/test_builtins.py``.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcore import (
    INT4,
    INT8,
    INT8_NARROW,
    UINT8,
    Observer,
    PerBlock,
    PerChannel,
    PerGroup,
    PerToken,
    QScheme,
    QuantizationError,
    default_host,
)
from qcore.testing import ObserverConformance
from qcore_observers.ema import EmaObserver
from qcore_observers.histogram import HistogramObserver
from qcore_observers.kl import KlObserver
from qcore_observers.minmax import MinMaxObserver
from qcore_observers.mse import MseObserver
from qcore_observers.percentile import PercentileObserver

Make = Callable[..., Observer]

KINDS: dict[str, tuple[Make, dict[str, Any]]] = {
    "minmax": (MinMaxObserver, {}),
    "ema": (EmaObserver, {}),
    "histogram": (HistogramObserver, {}),
    # Samples of these sizes and histograms this coarse make small tests go every way.
    "histogram_sampled": (HistogramObserver, {"sample": 64, "bins": 64}),
    "percentile": (PercentileObserver, {}),
    "percentile_sampled": (PercentileObserver, {"sample": 64, "percentile": 90.0}),
    "kl": (KlObserver, {"bins": 2048}),
    "kl_sampled": (KlObserver, {"sample": 64, "bins": 2048}),
    "mse": (MseObserver, {}),
    "mse_binned": (MseObserver, {"bins": 96}),
}

AFFINE = QScheme(dtype=UINT8, symmetric=False)
SYMMETRIC = QScheme(dtype=INT8)
CHANNEL = QScheme(dtype=INT8_NARROW, granularity=PerChannel(0))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str, scheme: QScheme = AFFINE, **options: Any) -> Any:
    """An observer of a kind."""
    cls, defaults = KINDS[kind]
    return cls(scheme=scheme, **{**defaults, **options})


def after(kind: str, *batches: Tensor, scheme: QScheme = AFFINE) -> Any:
    """An observer that has seen some batches."""
    observer = make(kind, scheme)
    for batch in batches:
        observer(batch)
    return observer


def random(seed: int, *shape: int) -> Tensor:
    """Values with a long tail."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) ** 3


def assert_same(a: Observer, b: Observer, *, to_rounding: bool = False) -> None:
    """The states are equal, and so are the answers."""
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, value in left.items():
        if to_rounding and value.is_floating_point():
            torch.testing.assert_close(value, right[name], rtol=1e-9, atol=1e-30)
        else:
            assert torch.equal(value, right[name]), name
    p, q = a.calculate_qparams(), b.calculate_qparams()
    torch.testing.assert_close(p.scale, q.scale, rtol=1e-6 if to_rounding else 0, atol=0)
    assert (p.zero_point - q.zero_point).abs().max() <= (1 if to_rounding else 0)


class Sampled(ObserverConformance):
    """Of a sample the extremes alone do not depend on where values lie in memory."""

    def test_memory_layout_does_not_matter(self) -> None:
        """Whatever is sampled, the range is one of the values."""
        cls = default_host().get("observer", self.subject)
        x = random(0, 4, 3, 5, 6)
        for other in (
            x.contiguous(memory_format=torch.channels_last),
            torch.stack([x, x + 1e9], dim=-1)[..., 0],
            x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
        ):
            observer = cls(scheme=AFFINE, **self.options)
            observer(other)
            low, high = observer.range()
            widest = x.abs().max() * (1 + 1 / 250)
            assert -widest <= low <= high <= widest


class TestHistogramSampled(Sampled):
    subject = "observers:histogram"
    options = KINDS["histogram_sampled"][1]


class TestPercentileSampled(Sampled):
    subject = "observers:percentile"
    options = KINDS["percentile_sampled"][1]


class TestKlSampled(Sampled):
    subject = "observers:kl"
    options = KINDS["kl_sampled"][1]


class TestMseBinned(ObserverConformance):
    subject = "observers:mse"
    options = KINDS["mse_binned"][1]


# Laws


FLOATS = st.floats(-(2.0**127), 2.0**127, width=32)
BATCHES = st.lists(st.lists(FLOATS, min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(BATCHES, BATCHES)
def check_merge(kind: str, first: list[list[float]], second: list[list[float]]) -> None:
    a = after(kind, *map(torch.tensor, first))
    b = after(kind, *map(torch.tensor, second))
    both = after(kind, *map(torch.tensor, first + second))
    # Averages of values of very different size cancel, so they are compared to the largest.
    if kind == "ema":
        largest = max(abs(value) for batch in first + second for value in batch)
        for one, other in zip(a.merge(b).range(), both.range(), strict=True):
            assert abs(one.item() - other.item()) <= 1e-6 * largest
    else:
        assert_same(a.merge(b), both)


def test_merge_equals_having_seen_both(kind: str) -> None:
    """For any batches; of the moving average, the second observer's after the first one's."""
    check_merge(kind)


@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC, CHANNEL], ids=QScheme.describe)
def test_merge_equals_having_seen_both_of_large_batches(kind: str, scheme: QScheme) -> None:
    """Batches that are sampled and binned, of several sizes and growing range, merge as exactly."""
    batches = [random(i, 4, size) * 3**i for i, size in enumerate((1, 100, 333, 100, 1024, 7))]
    a = after(kind, *batches[:3], scheme=scheme)
    b = after(kind, *batches[3:], scheme=scheme)
    assert_same(a.merge(b), after(kind, *batches, scheme=scheme), to_rounding=kind == "ema")


@settings(max_examples=15, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=50), st.sampled_from([AFFINE, SYMMETRIC]))
def check_range(kind: str, values: list[float], scheme: QScheme) -> None:
    x = torch.tensor(values)
    low, high = after(kind, x, scheme=scheme).range()
    # A search may reach half a step beyond, to put the largest value on an integer.
    widest = max(1e-30, x.abs().max().item()) * (1 + 1 / 250)
    assert low <= high
    assert -widest <= low.item()
    assert high.item() <= widest


def test_the_range_is_not_wider_than_the_values(kind: str) -> None:
    """Clipping shrinks; nothing but rounding to the lattice may widen."""
    check_range(kind)


GROUPED = [
    QScheme(dtype=INT4, granularity=PerGroup(8)),
    QScheme(dtype=INT4, granularity=PerToken()),
    QScheme(dtype=INT4, granularity=PerBlock((2, 4)), symmetric=False),
]


@pytest.mark.parametrize("scheme", GROUPED, ids=QScheme.describe)
def test_histograms_are_for_tensors_and_channels(kind: str, scheme: QScheme) -> None:
    """Observers of small statistics serve every granularity; histograms say that they don't."""
    if kind.split("_")[0] in ("minmax", "ema", "mse"):
        make(kind, scheme)
        return
    with pytest.raises(QuantizationError, match=r"too many rows.*use per_tensor or per_channel"):
        make(kind, scheme)


def test_an_observer_shows_its_options(kind: str) -> None:
    """repr names the scheme and every option."""
    shown = repr(make(kind))
    assert "uint8 affine per_tensor" in shown
    for option, value in KINDS[kind][1].items():
        assert f"{option}={value:g}" in shown
