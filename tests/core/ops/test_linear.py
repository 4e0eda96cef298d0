"""qlinear against the oracle, in every value."""

import attrs
import numpy as np
import pytest
import torch

from qcore import BackendError, QuantizationError

from . import oracle
from .cases import CONTRACTS, Activation, Linear, Target, assert_equal, ints


def make(rows: tuple[int, ...] = (7,), columns: int = 24, **changes: object) -> Linear:
    """int8, odd zero points, per-channel weights, int32 bias."""
    values: dict[str, object] = {
        "x": Activation(q=ints((*rows, columns)), scale=0.0213, zero_point=-9),
        "w": ints((5, columns), low=-127, seed=1),
        "w_scale": torch.linspace(0.004, 0.011, 5),
        "bias": ints((5,), torch.int32, low=-9000, high=9000),
        "y": Target(scale=0.21, zero_point=13),
    }
    return Linear(**{**values, **changes})


@pytest.mark.parametrize("rows", [(), (1,), (7,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("columns", [1, 24])
def test_shapes(rows: tuple[int, ...], columns: int) -> None:
    """Any leading dimensions, also none and empty ones."""
    assert_equal(make(rows, columns))


@pytest.mark.parametrize("zero_point", ["lowest", "odd", "highest"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16], ids=str)
def test_activation_dtypes(dtype: torch.dtype, zero_point: str) -> None:
    """int8, uint8 and int16, with zero points at both ends and in between."""
    info = torch.iinfo(dtype)
    at = {"lowest": info.min, "odd": info.min // 2 + info.max // 2 + 13, "highest": info.max}
    x = Activation(q=ints((7, 24), dtype), scale=5 / info.max, zero_point=at[zero_point])
    y = Target(scale=0.2, zero_point=info.min + 7, low=info.min, high=info.max, dtype=dtype)
    assert_equal(make(x=x, y=y))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (5, 24)], ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["symmetric", "affine"])
def test_weight_granularity(shape: tuple[int, ...], affine: bool, dtype: torch.dtype) -> None:
    """One weight scale a tensor, a channel or a group along K; with and without zero points."""
    w_scale = torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 0.01 + 0.001
    zero_point = ints(shape, dtype, seed=4).to(torch.int32) if affine else None
    bias = torch.linspace(-1, 1, 5)
    w = ints((5, 24), dtype, seed=2)
    y = Target(scale=0.4, zero_point=3, numerics="half_even.multiplier.float32.after.int32")
    assert_equal(make(w=w, w_scale=w_scale, w_zero_point=zero_point, bias=bias, y=y))
    float_y = Target(dtype=torch.float32)
    assert_equal(make(w=w, w_scale=w_scale, w_zero_point=zero_point, bias=bias, y=float_y))


def test_one_channel_zero_point_with_groups() -> None:
    """Groups of scales may share one zero point a channel."""
    w_scale = torch.linspace(0.001, 0.01, 15).reshape(5, 3)
    zero_point = ints((5,)).to(torch.int32)
    assert_equal(make(w_scale=w_scale, w_zero_point=zero_point, bias=None))


def test_groups_are_added_in_their_order() -> None:
    """Float32 sums depend on the order; the definition's is the first group first."""
    w_scale = torch.rand((5, 24), generator=torch.Generator().manual_seed(3)) * 0.01
    case = make(w_scale=w_scale, bias=None, y=Target(dtype=torch.float32))
    expected = assert_equal(case)
    reverse = attrs.evolve(
        case,
        x=attrs.evolve(case.x, q=case.x.q.flip(-1)),
        w=case.w.flip(-1),
        w_scale=w_scale.flip(-1),
    )
    assert (reverse.expected() != expected).any()


@pytest.mark.parametrize(
    ("numerics", "groups"),
    [(c, 1) for c in CONTRACTS] + [(c, 4) for c in CONTRACTS if "fixed_point" not in c],
)
def test_every_contract_on_ties(numerics: str, groups: int) -> None:
    """Each contract where many outputs are ties and the zero point is odd."""
    float_bias = torch.tensor([0.5, -0.25, 1.0, 7.0, 0.75])
    integer = ".int32.after" in numerics or ".int32.before" in numerics
    scale = torch.tensor([0.25, 0.125, 0.5, 0.25, 0.5])
    bias = (float_bias * 8).int() if integer else float_bias
    case = make(
        x=Activation(q=ints((7, 24), torch.uint8, low=100), scale=0.5, zero_point=177),
        w_scale=scale if groups == 1 else scale.unsqueeze(1).repeat(1, groups),
        bias=float_bias if groups > 1 else bias,
        y=Target(scale=0.5, zero_point=-5, low=-(2**15), high=2**15 - 1, dtype=torch.int16,
                 numerics=numerics),
    )  # fmt: skip
    expected = assert_equal(case)
    assert len(np.unique(expected)) > 20
    if groups == 1:
        bias_steps = case.bias.numpy() * (scale.numpy() * 0.5 if integer else 1.0)
        real = case._sums(slice(None)) * (scale.numpy() * 0.5) + bias_steps
        assert oracle.is_tie(real / 0.5).mean() > 0.1


@pytest.mark.parametrize("groups", [1, 3], ids=["channel", "groups"])
@pytest.mark.parametrize("numerics", [c for c in CONTRACTS if ".float32." in c])
def test_every_float32_step(numerics: str, groups: int) -> None:
    """Outputs so large that the last bit of each step shows."""
    w_scale = torch.linspace(0.003, 0.011, 60 * groups).reshape(60, groups)
    y = Target(
        scale=3.1e-6,
        zero_point=13,
        low=-(2**23),
        high=2**23,
        dtype=torch.int32,
        numerics=numerics,
    )
    case = make(
        w=ints((60, 24), low=-127, seed=1),
        w_scale=w_scale if groups > 1 else w_scale[:, 0],
        bias=torch.linspace(-5, 7, 60),
        y=y,
    )
    assert len(np.unique(assert_equal(case))) > 300


@pytest.mark.parametrize("groups", [0, 2], ids=["channel", "groups"])
def test_int16_pairs(groups: int) -> None:
    """The saturating accumulator, whole and in each group; the zero point is taken off after."""
    numerics = "half_even.multiplier.float32.after.int16_pairs"
    y = Target(scale=6.0, zero_point=5, numerics=numerics)
    w_scale = torch.linspace(0.01, 0.02, 5)
    for dtype in (torch.uint8, torch.int8):
        x = Activation(q=ints((6, 18), dtype, low=90), scale=0.05, zero_point=101)
        case = make(
            x=x,
            w=ints((5, 18), low=60) * ints((5, 18), seed=8).sign(),
            w_scale=w_scale.unsqueeze(1).repeat(1, groups) if groups else w_scale,
            bias=torch.linspace(-1, 1, 5),
            y=y,
        )
        saturated = assert_equal(case)
        plain = attrs.evolve(
            case, y=attrs.evolve(y, numerics=numerics.replace("int16_pairs", "int32"))
        )
        if dtype == torch.uint8:
            assert (plain.expected() != saturated).any()


@pytest.mark.parametrize("low", [-128, 13])
@pytest.mark.parametrize("columns", [24, 3000], ids=["short", "long"])
def test_large_bias(columns: int, low: int) -> None:
    """An int32 bias at the ends of its range, with sums in one part and in many."""
    bias = torch.tensor([2**30, -(2**30), 2**31 - 1, -(2**31) + 1, 2**24 + 1], dtype=torch.int32)
    x = Activation(q=ints((4, columns), low=90), scale=0.5, zero_point=-127)
    w = ints((5, columns), low=70)
    y = Target(scale=2.0**16, zero_point=13, low=low)
    scale = torch.tensor([0.01, 0.011, 0.005, 0.004, 0.9])
    assert_equal(make(x=x, w=w, w_scale=scale, bias=bias, y=y))
    assert_equal(make(x=x, w=w, w_scale=scale, bias=bias, y=Target(dtype=torch.float32)))


def test_non_contiguous_operands() -> None:
    """Transposed activations and weights are read as what they show; the output is contiguous."""
    q = ints((24, 3, 2)).permute(2, 1, 0)
    w = ints((24, 10), low=-127).t()[::2]
    case = make(x=Activation(q=q, zero_point=3), w=w)
    assert_equal(case)
    assert case.actual().is_contiguous()


def test_slices_of_many_rows(small_slices: int) -> None:
    """A product that is computed by slices of rows gives what each row gives."""
    w = ints((30, 16), low=-127)
    q = ints((800, 16))
    case = make(x=Activation(q=q, zero_point=3), w=w, w_scale=torch.tensor(0.01), bias=None)
    whole = case.actual()
    assert whole.numel() > 4 * small_slices
    for row in range(0, 800, 15):
        one = attrs.evolve(case, x=attrs.evolve(case.x, q=q[row]))
        assert torch.equal(whole[row], one.actual())


def test_refusals() -> None:
    """What does not fit is refused, by name."""
    with pytest.raises(QuantizationError, match=r"\[N, K\]"):
        make(w=ints((5, 23))).actual()
    with pytest.raises(QuantizationError, match="7 groups"):
        make(w_scale=torch.ones(5, 7)).actual()
    with pytest.raises(QuantizationError, match="int32 bias"):
        make(w_scale=torch.ones(5, 3)).actual()
    fixed = "half_even.fixed_point.int32.after.int32"
    with pytest.raises(BackendError, match="group-wise"):
        make(w_scale=torch.ones(5, 3), bias=None, y=Target(numerics=fixed)).actual()
    with pytest.raises(BackendError, match="float32 bias"):
        make(bias=torch.ones(5), y=Target(numerics=fixed)).actual()
    with pytest.raises(BackendError, match="8-bit"):
        make(
            x=Activation(q=ints((3, 24), torch.int16)),
            y=Target(numerics="half_even.multiplier.int32.after.int16_pairs"),
        ).actual()
