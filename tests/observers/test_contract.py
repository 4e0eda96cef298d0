"""What every observer that looks at values must do; a new one is one more row of ``KINDS``."""

import copy
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
    QcoreError,
    QScheme,
    QuantizationError,
    dequantize_tensor,
    quantize_tensor,
)
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
    "mse_binned": (MseObserver, {"bins": 16}),
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


def test_merging_is_associative(kind: str) -> None:
    """Ranks may be reduced pair by pair, in any grouping."""
    a, b, c = (after(kind, random(i, 200)) for i in range(3))
    assert_same(a.merge(b).merge(c), a.merge(b.merge(c)), to_rounding=kind == "ema")


def test_the_order_of_batches_does_not_matter(kind: str) -> None:
    """But for the moving average, whose purpose it is."""
    batches = [random(i, 200) * (i + 1) for i in range(4)]
    a, b = after(kind, *batches), after(kind, *reversed(batches))
    if kind == "ema":
        assert a.range()[1] != b.range()[1]
    else:
        assert_same(a, b)


def test_merging_does_not_change_its_sources(kind: str) -> None:
    """Both can be used on."""
    a, b = after(kind, random(0, 300)), after(kind, random(1, 300))
    kept = copy.deepcopy(a), copy.deepcopy(b)
    a.merge(b)(random(2, 300))
    assert_same(a, kept[0])
    assert_same(b, kept[1])


def test_observing_is_deterministic(kind: str) -> None:
    """The same batches give the same state and answer, bit for bit."""
    batches = [random(i, 3, 500) for i in range(3)]
    assert_same(after(kind, *batches), after(kind, *batches))


def test_channels_are_observed_each_by_itself(kind: str) -> None:
    """A row per channel answers as an observer of that channel alone."""
    batches = [random(i, 3, 150) * torch.tensor([[0.01], [1.0], [50.0]]) for i in range(2)]
    rows = after(kind, *batches, scheme=CHANNEL).calculate_qparams()
    for channel in range(3):
        alone = make(kind, QScheme(dtype=INT8_NARROW))
        for batch in batches:
            alone(batch[channel])
        assert rows.scale[channel] == alone.calculate_qparams().scale


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


# State


@pytest.mark.parametrize("scheme", [AFFINE, CHANNEL], ids=QScheme.describe)
def test_a_state_dict_restores_a_fresh_observer_that_goes_on(kind: str, scheme: QScheme) -> None:
    """The answer is the same, and so is the state after more values."""
    old, new = after(kind, random(0, 3, 100), random(1, 3, 200), scheme=scheme), make(kind, scheme)
    new.load_state_dict(old.state_dict())
    assert_same(old, new)
    for observer in (old, new):
        observer(random(2, 3, 100) * 5)
    assert_same(old, new)


def test_a_fresh_state_dict_restores_to_unseen(kind: str) -> None:
    """Loading "has seen nothing" forgets."""
    observer = after(kind, random(0, 300))
    observer.load_state_dict(make(kind).state_dict())
    assert not observer.seen
    observer(random(1, 300))
    assert_same(observer, after(kind, random(1, 300)))


def test_a_deep_copy_is_independent(kind: str) -> None:
    """A copy has seen the same and goes its own way."""
    a = after(kind, random(0, 300))
    b = copy.deepcopy(a)
    assert_same(a, b)
    b(random(1, 300) * 10)
    assert_same(a, after(kind, random(0, 300)))


def test_reset_forgets(kind: str) -> None:
    """Afterwards it is as new."""
    observer = after(kind, random(0, 300))
    observer.reset()
    assert not observer.seen
    observer(random(1, 500))
    assert_same(observer, after(kind, random(1, 500)))


def test_the_state_is_bounded(kind: str) -> None:
    """A hundred batches take no more memory than ten."""

    def size(observer: Any) -> int:
        waiting = getattr(observer, "_pending", [])
        return sum(t.numel() for t in observer.state_dict().values()) + len(waiting)

    batches = [random(i, 400) for i in range(10)]
    observer = after(kind, *batches)
    before = size(observer)
    for _ in range(9):
        for batch in batches:
            observer(batch)
    assert size(observer) <= max(before, 20000)


# Inputs


def test_the_input_passes_unchanged(kind: str) -> None:
    """The very tensor comes back, its values as they were, and may be changed afterwards."""
    x = random(0, 20, 20)
    before, observer = x.clone(), make(kind)
    assert observer(x) is x
    assert torch.equal(x, before)
    x.fill_(1e6)
    assert_same(observer, after(kind, before))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_dtypes_are_as_good(kind: str, dtype: torch.dtype) -> None:
    """The same numbers in another dtype give the same state."""
    x = random(0, 300).to(dtype)
    assert_same(after(kind, x), after(kind, x.float()))


@pytest.mark.parametrize("scheme", [AFFINE, CHANNEL], ids=QScheme.describe)
def test_memory_layout_does_not_matter(kind: str, scheme: QScheme) -> None:
    """Strided, transposed and channels-last tensors; a sample may differ, extremes may not."""
    x = random(0, 4, 3, 5, 6)
    layouts = [
        x.contiguous(memory_format=torch.channels_last),
        torch.stack([x, x + 1e9], dim=-1)[..., 0],
        x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
    ]
    one = after(kind, x, scheme=scheme)
    for other in layouts:
        assert torch.equal(other, x)
        if kind.endswith("_sampled"):
            low, high = after(kind, other, scheme=scheme).range()
            widest = x.abs().max() * (1 + 1 / 250)
            assert (low >= -widest).all()
            assert (high <= widest).all()
        else:
            p, q = one.calculate_qparams(), after(kind, other, scheme=scheme).calculate_qparams()
            torch.testing.assert_close(p.scale, q.scale, rtol=1e-5, atol=0)


def test_an_empty_batch_does_not_count(kind: str) -> None:
    """Before and between others."""
    empty = torch.empty(0, 5)
    observer = after(kind, empty)
    assert not observer.seen
    observer = after(kind, random(0, 50), empty, random(1, 50))
    assert_same(observer, after(kind, random(0, 50), random(1, 50)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("size", [10, 1000])
def test_nan_and_infinity_are_refused_without_a_trace(kind: str, bad: float, size: int) -> None:
    """The error names the layer; what was seen before still counts, and what comes after too."""
    observer = make(kind, where="block.conv")
    observer(random(0, 50))
    x = random(1, size)
    x[size // 2] = bad
    with pytest.raises(QuantizationError, match=rf"'block\.conv'.*1 of {size} values") as caught:
        observer(x)
    assert isinstance(caught.value, QcoreError)
    observer(random(2, 50))
    assert_same(observer, after(kind, random(0, 50), random(2, 50)))


def test_asking_before_seeing_names_the_layer(kind: str) -> None:
    """No default range."""
    with pytest.raises(QuantizationError, match=r"'block\.conv'"):
        make(kind, where="block.conv").calculate_qparams()


EXTREME = {
    "one": torch.tensor([0.7]),
    "negative": torch.tensor([-0.7]),
    "scalar": torch.tensor(0.7),
    "zeros": torch.zeros(100),
    "negative_zero": torch.tensor([-0.0]),
    "constant": torch.full((200,), 3.3),
    "huge": torch.tensor([-3.4e38, 3.4e38, 1e38, 1.0]),
    "huge_positive": torch.linspace(0, 3.4e38, 500),
    "denormal": torch.tensor([1e-45, -1e-42, 5e-40]),
    "huge_and_denormal": torch.tensor([3e38, -1e-45, 1e-45]),
    "small": torch.full((200,), 1e-8),
    "relu6": random(0, 2000).clamp(0, 6),
    "spike": torch.cat([torch.zeros(999), torch.tensor([1000.0])]),
    "far_from_zero": 1000 + random(1, 300),
}


@pytest.mark.parametrize("values", EXTREME)
@pytest.mark.parametrize("scheme", [AFFINE, SYMMETRIC, QScheme(dtype=INT4)], ids=QScheme.describe)
def test_extreme_values_have_a_usable_answer(kind: str, values: str, scheme: QScheme) -> None:
    """A finite positive scale; 0 stays 0; nothing is off by more than the values are large."""
    x = EXTREME[values]
    qparams = after(kind, x, x, scheme=scheme).calculate_qparams()
    back = dequantize_tensor(quantize_tensor(x, qparams), qparams)
    assert (back[x == 0] == 0).all()
    assert ((back.double() - x.double()).abs() <= x.double().abs() * 1.01 + 2.0**-39).all()


@pytest.mark.parametrize("values", ["one", "negative", "constant", "far_from_zero"])
def test_values_on_one_side_of_zero_keep_it_in_range(kind: str, values: str) -> None:
    """Padding and relu need an exact 0, whatever was seen."""
    qparams = after(kind, EXTREME[values]).calculate_qparams()
    zero = torch.zeros(1)
    assert dequantize_tensor(quantize_tensor(zero, qparams), qparams).item() == 0.0


GROUPED = [
    QScheme(dtype=INT4, granularity=PerGroup(8)),
    QScheme(dtype=INT4, granularity=PerToken()),
    QScheme(dtype=INT4, granularity=PerBlock((2, 4)), symmetric=False),
]


@pytest.mark.parametrize("scheme", GROUPED, ids=QScheme.describe)
def test_groups_tokens_and_blocks(kind: str, scheme: QScheme) -> None:
    """Observers of small statistics serve every granularity; histograms say that they don't."""
    x = random(0, 4, 16)
    if kind.split("_")[0] not in ("minmax", "ema", "mse"):
        with pytest.raises(
            QuantizationError, match=r"too many rows.*use per_tensor or per_channel"
        ):
            make(kind, scheme)
        return
    observer = after(kind, x, scheme=scheme)
    qparams = observer.calculate_qparams()
    assert qparams.scale.shape == scheme.granularity.scale_shape(x.shape)
    fresh = make(kind, scheme)
    fresh.load_state_dict(observer.state_dict())
    assert_same(fresh, observer)
    assert (dequantize_tensor(quantize_tensor(x, qparams), qparams) - x).abs().max() < x.abs().max()


def test_an_observer_shows_its_options(kind: str) -> None:
    """repr names the scheme and every option."""
    shown = repr(make(kind))
    assert "uint8 affine per_tensor" in shown
    for option, value in KINDS[kind][1].items():
        assert f"{option}={value:g}" in shown
