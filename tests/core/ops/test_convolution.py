"""qconv against the oracle, in every value."""

import attrs
import numpy as np
import pytest
import torch

from qcore import BackendError, QuantizationError

from . import oracle
from .cases import CONTRACTS, Activation, Conv, Target, assert_equal, ints

SHAPES = {
    "1d": ((2, 4, 11), (6, 4, 3), (1,), (0,), (1,), 1),
    "1d-strided-padded-dilated": ((2, 4, 11), (6, 4, 3), (2,), (3,), (2,), 1),
    "1d-depthwise": ((2, 6, 9), (6, 1, 3), (1,), (1,), (1,), 6),
    "2d": ((2, 3, 7, 6), (5, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "2d-pointwise": ((3, 8, 4, 4), (5, 8, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "2d-uneven": ((2, 3, 9, 8), (4, 3, 3, 2), (2, 1), (0, 2), (1, 3), 1),
    "2d-groups": ((2, 6, 6, 6), (4, 3, 3, 3), (1, 2), (1, 1), (1, 1), 2),
    "2d-depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), (1, 1), (1, 1), (1, 1), 5),
    "2d-depthwise-multiplier": ((2, 3, 6, 6), (6, 1, 3, 3), (2, 2), (1, 1), (1, 1), 3),
    "2d-larger-than-the-image": ((1, 2, 3, 3), (3, 2, 5, 5), (1, 1), (2, 2), (1, 1), 1),
    "3d": ((2, 3, 4, 5, 4), (4, 3, 2, 3, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
    "3d-everything": ((1, 4, 6, 5, 5), (4, 2, 2, 3, 2), (2, 1, 2), (1, 2, 0), (1, 2, 1), 2),
    "one-element": ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1),
}


def make(shape: str = "2d", **changes: object) -> Conv:
    """A case of a shape: int8, odd zero points, per-channel weights, int32 bias."""
    x, w, stride, padding, dilation, groups = SHAPES[shape]
    channels = w[0]
    values: dict[str, object] = {
        "x": Activation(q=ints(x), scale=0.0213, zero_point=3),
        "w": ints(w, low=-127, seed=1),
        "w_scale": torch.linspace(0.004, 0.011, channels),
        "bias": ints((channels,), torch.int32, low=-9000, high=9000),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "y": Target(scale=0.31, zero_point=-7),
    }
    return Conv(**{**values, **changes})


def padded_shape(case: Conv) -> tuple[int, ...]:
    return tuple(case.accumulator().shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str) -> None:
    """Every dimension, stride, padding, dilation and group gives the oracle's integers."""
    expected = assert_equal(make(shape))
    assert expected.size < 8 or len(np.unique(expected)) > 5


@pytest.mark.parametrize("zero_point", ["lowest", "odd", "highest"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16], ids=str)
def test_activation_dtypes(dtype: torch.dtype, zero_point: str) -> None:
    """int8, uint8 and int16 activations, with zero points at both ends and in between."""
    info = torch.iinfo(dtype)
    at = {"lowest": info.min, "odd": info.min // 2 + info.max // 2 + 13, "highest": info.max}
    scale = 0.02 * 255 / (info.max - info.min)
    x = Activation(q=ints((2, 3, 7, 6), dtype), scale=scale, zero_point=at[zero_point])
    y = Target(scale=0.3, zero_point=info.min + 101, low=info.min, high=info.max, dtype=dtype)
    assert_equal(make(x=x, y=y))


@pytest.mark.parametrize("w_dtype", [torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("shape", ["2d", "2d-groups", "1d-depthwise", "3d"])
def test_affine_weights(shape: str, per_channel: bool, w_dtype: torch.dtype) -> None:
    """Weights may have zero points, one for the tensor or one a channel."""
    w = SHAPES[shape][1]
    zero_point = ints((w[0],), w_dtype, seed=3).to(torch.int32)
    w_scale = torch.linspace(0.004, 0.011, w[0])
    assert_equal(
        make(
            shape,
            w=ints(w, w_dtype, seed=2),
            w_scale=w_scale if per_channel else w_scale[0],
            w_zero_point=zero_point if per_channel else zero_point[0],
        )
    )


@pytest.mark.parametrize(
    "bias",
    [None, [0, 1, -1, 5000, -5000], [2**30, -(2**30), 2**31 - 1, -(2**31) + 1, 2**24 + 1]],
    ids=["none", "small", "large"],
)
def test_int32_bias(bias: list[int] | None) -> None:
    """An int32 bias joins the accumulator exactly, up to the ends of its range."""
    values = None if bias is None else torch.tensor(bias, dtype=torch.int32)
    # A step so small that the large biases do not all saturate.
    y = Target(scale=2.0**20, zero_point=5, low=-(2**15), high=2**15 - 1, dtype=torch.int16)
    scale = torch.tensor([256.0, 128.0, 64.0, 0.01, 3.0]) * 2**3
    assert_equal(make(bias=values, w_scale=scale, y=y))
    assert_equal(make(bias=values))


@pytest.mark.parametrize("numerics", [c for c in CONTRACTS if ".float32." in c])
def test_float32_bias(numerics: str) -> None:
    """A float32 bias is added after the scale, in the order of the contract."""
    bias = torch.tensor([0.1, -3.3, 1e-3, 7.7, -0.05])
    assert_equal(make(bias=bias, y=Target(scale=0.31, zero_point=-7, numerics=numerics)))


def with_ties(numerics: str) -> Conv:
    """Scales are powers of two, so every step is exact and halves abound; the zero point is odd."""
    y = Target(
        scale=0.5,
        zero_point=-5,
        low=-(2**15),
        high=2**15 - 1,
        dtype=torch.int16,
        numerics=numerics,
    )
    float_bias = torch.tensor([0.25, -0.5, 3.0, 0.75, 1.25])
    int_bias = torch.tensor([1, -3, 1000, 77, -20001], dtype=torch.int32)
    return make(
        x=Activation(q=ints((2, 3, 7, 6), torch.uint8), scale=0.5, zero_point=77),
        w_scale=torch.tensor([0.25, 0.125, 0.5, 0.25, 0.5]),
        bias=float_bias if ".float32." in numerics else int_bias,
        other=Activation(q=ints((2, 5, 7, 6), seed=5), scale=0.25, zero_point=-3),
        y=y,
    )


@pytest.mark.parametrize("numerics", CONTRACTS)
def test_every_contract_on_ties(numerics: str) -> None:
    """Each contract, with a residual and an odd zero point, where many outputs are ties."""
    case = with_ties(numerics)
    expected = assert_equal(case)
    bias = case.bias.numpy().reshape(-1, 1, 1).astype(np.float64)
    steps = bias if case.bias.is_floating_point() else bias * case.scale()
    exact = (case.accumulator() * case.scale() + steps + case.other.centred() * 0.25) / 0.5
    assert oracle.is_tie(exact).mean() > 0.1
    assert len(np.unique(expected)) > 50


@pytest.mark.parametrize("numerics", CONTRACTS)
def test_every_float32_step(numerics: str) -> None:
    """Outputs so large that the last bit of each step shows: order, divisions, residual."""
    float_bias = torch.tensor([0.1, -3.3, 1e-3, 7.7, -0.05])
    int_bias = torch.tensor([1, -3, 1000, 77, -20001], dtype=torch.int32)
    case = make(
        bias=float_bias if ".float32." in numerics else int_bias,
        other=Activation(q=ints((2, 5, 7, 6), torch.int16), scale=0.00073, zero_point=-3),
        y=Target(
            scale=4.7e-6,
            zero_point=-5,
            low=-(2**23),
            high=2**23,
            dtype=torch.int32,
            numerics=numerics,
        ),
    )
    assert len(np.unique(assert_equal(case))) > 400


def test_contracts_differ_on_ties() -> None:
    """Those ties tell the roundings and the places of the zero point apart."""
    even = with_ties("half_even.multiplier.int32.after.int32").actual()
    away = with_ties("half_away.multiplier.int32.after.int32").actual()
    before = with_ties("half_even.multiplier.int32.before.int32").actual()
    pairs = with_ties("half_even.multiplier.int32.after.int16_pairs").actual()
    for other in (away, before, pairs):
        assert (other != even).float().mean() > 0.03
    assert (away - even).abs().max() == 1
    assert (before - even).abs().max() == 1


@pytest.mark.parametrize("low", [-7, 0, 12])
def test_relu_is_the_clamp(low: int) -> None:
    """A narrower clamp is a fused activation."""
    case = make(y=Target(scale=0.31, zero_point=-7, low=low, high=20))
    expected = assert_equal(case)
    assert {expected.min(), expected.max()} == {low, 20}


@pytest.mark.parametrize("shape", ["1d", "2d-groups", "3d"])
@pytest.mark.parametrize(
    "numerics",
    ["half_even.multiplier.int32.after.int32", "half_even.scale_bias_rescale.float32.after.int32"],
)
def test_residual(shape: str, numerics: str) -> None:
    """A residual with its own scale and zero point is added before the only rounding."""
    case = make(shape)
    other = Activation(q=ints(padded_shape(case), torch.uint8), scale=0.173, zero_point=131)
    assert_equal(make(shape, other=other, y=Target(scale=0.4, zero_point=1, numerics=numerics)))


@pytest.mark.parametrize("bias", ["none", "int32", "float32"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_float_output(bias: str, residual: bool) -> None:
    """y_dtype=float32 gives float32(acc) * float32(sx * sw), then bias, then residual."""
    values = {
        "none": None,
        "int32": ints((5,), torch.int32, low=-(2**25), high=2**25),
        "float32": torch.linspace(-1, 1, 5),
    }
    case = make(bias=values[bias], y=Target(dtype=torch.float32))
    other = Activation(q=ints(padded_shape(case)), scale=0.3, zero_point=9) if residual else None
    assert_equal(make(bias=values[bias], other=other, y=Target(dtype=torch.float32)))


@pytest.mark.parametrize("shape", ["2d", "2d-groups", "2d-pointwise", "3d"])
def test_channels_last_input(shape: str) -> None:
    """The memory format changes where the output lies, not what it is."""
    case = make(shape)
    fmt = torch.channels_last if case.x.q.ndim == 4 else torch.channels_last_3d
    q = case.x.q.contiguous(memory_format=fmt)
    other = Activation(q=ints(padded_shape(case)), scale=0.2, zero_point=1)
    last = make(shape, x=attrs.evolve(case.x, q=q), other=other)
    assert_equal(last)
    assert last.actual().is_contiguous(memory_format=fmt)
    assert not last.actual().is_contiguous()
    assert case.actual().is_contiguous()


def test_non_contiguous_operands() -> None:
    """Slices and transposes are read as what they show."""
    case = make()
    q = ints((6, 7, 2, 6)).permute(2, 3, 1, 0)[:, ::2]
    w = ints((3, 3, 3, 10), low=-127).permute(3, 0, 2, 1)[::2]
    assert q.shape == case.x.q.shape
    assert w.shape == case.w.shape
    assert_equal(make(x=attrs.evolve(case.x, q=q), w=w))


def test_batches(small_slices: int) -> None:
    """An empty batch, a batch of one and a batch that is computed in slices."""
    case = make()
    empty = make(x=attrs.evolve(case.x, q=case.x.q[:0])).actual()
    assert empty.shape == (0, 5, 7, 6)
    assert empty.dtype == torch.int8
    many = ints((23, 3, 16, 16))
    other = Activation(q=ints((23, 5, 16, 16), seed=1), scale=0.2, zero_point=1)
    whole = make(x=attrs.evolve(case.x, q=many), other=other).actual()
    assert many.numel() > 4 * small_slices
    for i in range(23):
        one = make(
            x=attrs.evolve(case.x, q=many[i : i + 1]),
            other=attrs.evolve(other, q=other.q[i : i + 1]),
        )
        assert torch.equal(whole[i : i + 1], one.actual())


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ("2d", torch.uint8),
        ("2d-uneven", torch.int8),
        ("2d-groups", torch.uint8),
        ("1d-depthwise", torch.uint8),
        ("3d", torch.uint8),
    ],
)
def test_int16_pairs(shape: str, dtype: torch.dtype) -> None:
    """Pairs run over taps, then channels; they saturate; odd reductions end in half a pair."""
    x, w = SHAPES[shape][:2]
    info = torch.iinfo(dtype)
    q = ints(x, dtype, low=info.max - 90)
    weights = ints(w, seed=4).sign() * ints(w, low=90, seed=5)
    numerics = "half_even.multiplier.int32.after.int16_pairs"
    y = Target(scale=8.0, zero_point=3, numerics=numerics)
    case = make(shape, x=Activation(q=q, zero_point=101, scale=0.02), w=weights, y=y)
    assert_equal(case)
    if dtype == torch.uint8:
        whole = make(shape, x=case.x, w=weights).accumulator()
        changed = (whole != case.accumulator()).mean()
        assert changed > (0.1 if shape != "1d-depthwise" else 0.0)


def test_refusals() -> None:
    """Operands that do not belong together are refused, by name."""
    case = make()
    with pytest.raises(QuantizationError, match="x must be"):
        make(w=ints((5, 4, 3, 3))).actual()
    with pytest.raises(QuantizationError, match="groups=2 does not divide 5"):
        make(groups=2).actual()
    with pytest.raises(QuantizationError, match="stride"):
        make(stride=(1,)).actual()
    with pytest.raises(QuantizationError, match="smaller than the kernel"):
        make(padding=(0, 0), dilation=(4, 4)).actual()
    with pytest.raises(QuantizationError, match="residual"):
        make(other=Activation(q=case.x.q)).actual()
    with pytest.raises(BackendError, match="8-bit"):
        make(
            x=Activation(q=ints((2, 3, 7, 6), torch.int16)),
            y=Target(numerics="half_even.multiplier.int32.after.int16_pairs"),
        ).actual()
    with pytest.raises(BackendError, match="fixed_point"):
        make(
            bias=torch.ones(5), y=Target(numerics="half_even.fixed_point.int32.after.int32")
        ).actual()
