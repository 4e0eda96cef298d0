"""What the base class of observers does for every author of one."""

import copy
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from qcore import (
    INT8,
    Granularity,
    Observer,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QcoreError,
    QScheme,
    QuantizationError,
)

SCHEME = QScheme(dtype=INT8)
INF, NAN = float("inf"), float("nan")


class Spy(Observer):
    """Keeps the extremes of all rows, and remembers what it was shown."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("ends", None)
        self.shown: list[Tensor] = []
        self.settled = 0

    def update(self, rows: Tensor, min_val: Tensor, max_val: Tensor) -> None:
        self.shown.append(rows)
        self.include(torch.stack([min_val, max_val]))

    def combine(self, other: Self) -> None:
        self.include(other.ends)

    def include(self, ends: Tensor) -> None:
        if self.ends is not None:
            ends = torch.stack(
                [torch.minimum(self.ends[0], ends[0]), torch.maximum(self.ends[1], ends[1])]
            )
        self.ends = ends

    def range(self) -> tuple[Tensor, Tensor]:
        return self.ends[0], self.ends[1]

    def settle(self) -> None:
        self.settled += 1


@pytest.mark.parametrize(
    ("granularity", "rows"),
    [
        (PerTensor(), [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (PerChannel(0), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (PerChannel(1), [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (PerChannel(-1), [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (PerGroup(2), [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (PerToken(), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (PerBlock((2, 1, 2)), [[0, 1, 4, 5], [2, 3, 6, 7]]),
    ],
    ids=str,
)
def test_an_author_sees_one_row_for_each_scale(
    granularity: Granularity, rows: list[list[float]]
) -> None:
    """Every granularity arrives as float32 rows, and the answer has the shape of the scale."""
    spy = Spy(scheme=QScheme(dtype=INT8, granularity=granularity))
    x = torch.arange(8.0).reshape(2, 1, 4)
    assert spy(x) is x
    assert [sorted(row) for row in spy.shown[0].tolist()] == rows
    qparams = spy.calculate_qparams()
    assert qparams.scale.shape == granularity.scale_shape(x.shape)
    assert torch.allclose(
        qparams.scale.flatten() * 127.5, torch.tensor([row[-1] for row in rows]).float()
    )


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32], ids=str
)
def test_any_dtype_arrives_as_float32(dtype: torch.dtype) -> None:
    """Half precision, double and integers are all shown as float32."""
    spy = Spy(scheme=SCHEME)
    spy(torch.tensor([-3, 2], dtype=dtype))
    assert spy.shown[0].dtype == torch.float32
    assert spy.ends.flatten().tolist() == [-3.0, 2.0]


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(24.0).reshape(2, 3, 4)[:, :, ::2],
        torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        torch.arange(3.0)[:, None].expand(3, 5),
        torch.arange(120.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        torch.tensor(3.0),
    ],
    ids=["strided", "transposed", "expanded", "channels_last", "scalar"],
)
def test_any_memory_layout_shows_the_same_values(x: Tensor) -> None:
    """No value is lost or doubled because of how a tensor lies in memory."""
    spy = Spy(scheme=SCHEME)
    spy(x)
    assert sorted(spy.shown[0][0].tolist()) == sorted(x.flatten().tolist())


def test_gradients_do_not_flow_into_statistics() -> None:
    """An observed tensor that needs a gradient passes with it; the statistics have none."""
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    spy = Spy(scheme=SCHEME)
    assert spy(x) is x
    assert not spy.ends.requires_grad


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)], ids=str)
def test_nan_and_infinity_are_refused_and_counted(bad: float, granularity: Granularity) -> None:
    """The error names the layer and says how many values are bad; the statistics stay."""
    spy = Spy(scheme=QScheme(dtype=INT8, granularity=granularity), where="encoder.fc1")
    spy(torch.ones(2, 3))
    x = torch.ones(2, 3)
    x[1, :2] = bad
    with pytest.raises(QuantizationError, match="2 of 6 values are NaN or Inf") as caught:
        spy(x)
    assert "layer 'encoder.fc1', Spy" in str(caught.value)
    assert isinstance(caught.value, QcoreError)
    assert len(spy.shown) == 1
    assert spy.ends.max() == 1.0


def test_a_double_beyond_float32_is_refused() -> None:
    """1e300 would be infinite in float32."""
    with pytest.raises(QuantizationError, match="beyond float32"):
        Spy(scheme=SCHEME)(torch.tensor([1e300], dtype=torch.float64))


def test_the_widest_finite_range_is_fine() -> None:
    """Finite values whose difference overflows are not mistaken for infinities."""
    huge = torch.finfo(torch.float32).max
    spy = Spy(scheme=SCHEME)
    spy(torch.tensor([-huge, huge]))
    assert spy.calculate_qparams().scale.isfinite()


def test_an_empty_batch_changes_nothing() -> None:
    """It passes, and the observer still has seen nothing."""
    spy = Spy(scheme=SCHEME)
    x = torch.empty(0, 4)
    assert spy(x) is x
    assert not spy.seen
    assert spy.scale_shape is None


def test_asking_before_seeing_names_the_layer_and_the_cure() -> None:
    """The error of an unreached layer."""
    with pytest.raises(QuantizationError, match="layer 'head', Spy: the observer has seen no") as e:
        Spy(scheme=SCHEME, where="head").calculate_qparams()
    assert "qcore.calibrate" in str(e.value)


def test_another_number_of_channels_is_an_error() -> None:
    """A layer can't change its channels between batches; other sizes may."""
    spy = Spy(scheme=QScheme(dtype=INT8, granularity=PerChannel(1)), where="stem")
    spy(torch.ones(2, 3, 4))
    spy(torch.ones(5, 3))
    with pytest.raises(QuantizationError, match=r"layer 'stem'.*\[4\].*were \[3\] before"):
        spy(torch.ones(2, 4))


def test_another_layout_of_as_many_groups_is_an_error() -> None:
    """Six groups are not the same six groups in another arrangement."""
    spy = Spy(scheme=QScheme(dtype=INT8, granularity=PerGroup(2)))
    spy(torch.ones(2, 6))
    with pytest.raises(QuantizationError, match=r"\[3, 2\], but they were \[2, 3\]"):
        spy(torch.ones(3, 4))


def test_merging_leaves_both_as_they_were() -> None:
    """merge answers with a third observer, settled, in the place of the first."""
    a, b = Spy(scheme=SCHEME, where="a"), Spy(scheme=SCHEME, where="b")
    a(torch.tensor([1.0]))
    b(torch.tensor([-2.0]))
    merged = a.merge(b)
    assert merged.ends.flatten().tolist() == [-2.0, 1.0]
    assert merged.where == "a"
    assert (a.ends.tolist(), b.ends.tolist()) == ([[1.0], [1.0]], [[-2.0], [-2.0]])
    assert a.settled
    assert b.settled


def test_merging_with_one_that_has_seen_nothing_is_a_copy() -> None:
    """Nothing is neutral, on both sides; and the result is independent of its sources."""
    a, empty = Spy(scheme=SCHEME, where="a"), Spy(scheme=SCHEME, where="empty")
    a(torch.tensor([1.0]))
    for merged, where in ((a.merge(empty), "a"), (empty.merge(a), "empty")):
        assert torch.equal(merged.ends, a.ends)
        assert merged.where == where
        merged(torch.tensor([5.0]))
    assert a.ends.max() == 1.0
    assert not empty.merge(Spy(scheme=SCHEME)).seen


def test_merging_what_does_not_fit_is_an_error() -> None:
    """Another kind, scheme or layout can't be merged."""

    class Other(Spy):
        """A kind of its own."""

    a = Spy(scheme=QScheme(dtype=INT8, granularity=PerChannel(0)), where="conv")
    a(torch.ones(3, 2))
    b = Spy(scheme=a.scheme)
    b(torch.ones(4, 2))
    with pytest.raises(QuantizationError, match=r"layer 'conv'.*scales of shape \[4\] into \[3\]"):
        a.merge(b)
    with pytest.raises(QuantizationError, match=r"can't merge Spy .*per_tensor"):
        a.merge(Spy(scheme=SCHEME))
    with pytest.raises(QuantizationError, match="can't merge Other"):
        a.merge(Other(scheme=a.scheme))


def test_reset_forgets() -> None:
    """Afterwards another layout may come."""
    spy = Spy(scheme=QScheme(dtype=INT8, granularity=PerChannel(0)))
    spy(torch.ones(3, 2))
    spy.reset()
    assert not spy.seen
    spy(torch.ones(4, 2))
    assert spy.calculate_qparams().scale.shape == (4,)


# State


def seen(x: Tensor, **options: Any) -> Spy:
    """An observer that has seen ``x``."""
    spy = Spy(scheme=QScheme(dtype=INT8, granularity=PerChannel(0)), **options)
    spy(x)
    return spy


def test_a_state_dict_restores_a_fresh_observer() -> None:
    """Statistics and shape of the scale come back; the place stays the new one's."""
    old, new = seen(torch.randn(3, 4)), Spy(scheme=QScheme(dtype=INT8, granularity=PerChannel(0)))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.ends, old.ends)
    assert new.scale_shape == (3,)
    assert torch.equal(new.calculate_qparams().scale, old.calculate_qparams().scale)
    new(torch.full((3, 4), 9.0))
    assert old.ends.max() < 9.0


def test_loading_the_state_of_one_that_has_seen_nothing_forgets() -> None:
    """The state "unseen" is restored too."""
    old, new = Spy(scheme=SCHEME), Spy(scheme=SCHEME)
    new(torch.ones(2))
    new.load_state_dict(old.state_dict())
    assert not new.seen
    assert new.scale_shape is None


def test_loading_takes_the_shape_that_was_saved() -> None:
    """Statistics of another number of channels replace the present ones."""
    old, new = seen(torch.randn(3, 4)), seen(torch.randn(5, 4))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.ends, old.ends)


def test_a_checkpoint_of_something_else_does_not_forget() -> None:
    """Float weights leave calibration alone if strict=False, and are an error otherwise."""
    model = nn.ModuleDict({"fc": nn.Linear(2, 2), "observer": seen(torch.randn(3, 4))})
    before = model["observer"].ends.clone()
    weights = {f"fc.{name}": value for name, value in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(RuntimeError, match=r"observer\.ends"):
        model.load_state_dict(weights)
    model.load_state_dict(weights, strict=False)
    assert torch.equal(model["observer"].ends, before)


def test_half_and_double_keep_the_dtype_of_statistics() -> None:
    """The precision of the model is not that of its statistics."""
    model = nn.Sequential(nn.Linear(2, 2), seen(torch.randn(3, 4)))
    before = model[1].ends.clone()
    for convert in (model.half, model.bfloat16, model.double, model.float):
        convert()
        assert model[1].ends.dtype == torch.float32
        assert torch.equal(model[1].ends, before)
    assert model.half()[0].weight.dtype == torch.float16


def test_statistics_are_settled_before_they_leave() -> None:
    """Saving, moving and asking complete what an observer has put off."""
    spy = seen(torch.ones(2, 2))
    for ask in (
        spy.state_dict,
        spy.calculate_qparams,
        spy.float,
        lambda: spy.merge(copy.deepcopy(spy)),
    ):
        before = spy.settled
        ask()
        assert spy.settled > before


def test_a_copy_is_independent() -> None:
    """deepcopy copies the statistics."""
    a = seen(torch.ones(2, 2))
    b = copy.deepcopy(a)
    b(torch.full((2, 2), 4.0))
    assert a.ends.max() == 1.0


def test_an_observer_shows_its_scheme() -> None:
    """repr says what it observes for."""
    assert "int8 symmetric per_tensor" in repr(Spy(scheme=SCHEME))
