"""The arithmetic against oracles in exact fractions and Python integers."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcore import (
    INT4,
    INT8,
    INT16,
    INT32,
    UINT8,
    BackendError,
    Granularity,
    Numerics,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QDtype,
    QParams,
    QScheme,
    dequantize_tensor,
    quantize_tensor,
    round_to_int,
)
from qcore.numerics import fixed_point, fma, requantize

ROUNDINGS = ["half_even", "half_away"]
INF, NAN = float("inf"), float("nan")


def rounded(x: Fraction, rounding: str) -> int:
    """The nearest integer of an exact number."""
    if rounding == "half_even":
        return round(x)
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


def to_float32(x: Fraction) -> float:
    """An exact number rounded to float32 once, half to even, subnormals and overflow included."""
    if x == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(x)))
    exponent += (abs(x) >= Fraction(2) ** (exponent + 1)) - (abs(x) < Fraction(2) ** exponent)
    ulp = Fraction(2) ** (max(exponent, -126) - 23)
    result = round(x / ulp) * ulp
    limit = Fraction(2) ** 128
    return math.copysign(INF, x) if abs(result) >= limit else float(result)


def quantized(x: float, scale: float, zero_point: int, dtype: QDtype, rounding: str) -> int:
    """The formula, one step at a time; the division is rounded to float32 as IEEE 754 says."""
    if math.isnan(x):
        return zero_point
    if math.isinf(x):
        return dtype.quant_max if x > 0 else dtype.quant_min
    quotient = to_float32(Fraction(x) / Fraction(scale))
    if math.isinf(quotient):
        return dtype.quant_max if x > 0 else dtype.quant_min
    q = rounded(Fraction(quotient), rounding) + zero_point
    return min(max(q, dtype.quant_min), dtype.quant_max)


def qparams(scale: Tensor, zero_point: Tensor, scheme: QScheme) -> QParams:
    return QParams(
        scale=scale.to(torch.float32), zero_point=zero_point.to(torch.int32), scheme=scheme
    )


def one(scale: float, zero_point: int, dtype: QDtype = INT8) -> QParams:
    """Qparams of a whole tensor."""
    return qparams(
        torch.tensor(scale), torch.tensor(zero_point), QScheme(dtype=dtype, symmetric=False)
    )


# Rounding


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding_of_ties_and_their_neighbours(rounding: str) -> None:
    """Ties, and the floats next to them, 0.49999997 among them, round as the exact numbers do."""
    ties = torch.arange(-9, 10) / 2
    below, above = (
        torch.nextafter(ties, -torch.ones(19) * INF),
        torch.nextafter(ties, torch.ones(19) * INF),
    )
    x = torch.cat([ties, below, above, torch.tensor([0.49999997, -0.49999997, 8388607.5, 2.0**24])])
    assert round_to_int(x, rounding).tolist() == [
        rounded(Fraction(value), rounding) for value in x.tolist()
    ]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(max_examples=200, deadline=None)
@given(x=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_rounding_of_any_number(rounding: str, x: float) -> None:
    """Every float32 rounds as the exact number does."""
    assert round_to_int(torch.tensor(x), rounding).item() == rounded(Fraction(x), rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_rounding_keeps_infinities_and_nan(rounding: str) -> None:
    """What is no number stays none."""
    assert round_to_int(torch.tensor([INF, -INF]), rounding).tolist() == [INF, -INF]
    assert round_to_int(torch.tensor(NAN), rounding).isnan()


# Quantization


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("zero_point", [-3, 0, 1, 4])
def test_the_zero_point_is_added_after_rounding(zero_point: int, rounding: str) -> None:
    """At ties an odd zero point must not change which integer is the even one."""
    x = torch.arange(-20, 21) * 0.25
    p = one(0.5, zero_point)
    assert quantize_tensor(x, p, rounding=rounding).tolist() == [
        quantized(value, 0.5, zero_point, INT8, rounding) for value in x.tolist()
    ]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@settings(max_examples=300, deadline=None)
@given(
    x=st.floats(width=32),
    scale=st.floats(2.0**-40, 2.0**100, width=32),
    zero_point=st.integers(-128, 127),
)
def test_quantizing_any_number(rounding: str, x: float, scale: float, zero_point: int) -> None:
    """Every float32, NaN and infinities included, for any scale and zero point."""
    q = quantize_tensor(torch.tensor(x), one(scale, zero_point), rounding=rounding)
    assert q.item() == quantized(x, scale, zero_point, INT8, rounding)


def test_nan_becomes_the_zero_point_and_infinities_saturate() -> None:
    """No input escapes the dtype."""
    x = torch.tensor([NAN, INF, -INF, 3e38, -3e38])
    assert quantize_tensor(x, one(2.0**-40, 5, UINT8)).tolist() == [5, 255, 0, 255, 0]


GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(1),
    PerChannel(-1),
    PerGroup(3),
    PerToken(),
    PerBlock((2, 2, 3)),
]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "empty"])
def test_every_granularity_and_layout(granularity: Granularity, layout: str) -> None:
    """Each value is quantized with the scale of its block, however the tensor lies in memory."""
    generator = torch.Generator().manual_seed(0)
    shape = (0, 4, 6) if layout == "empty" else (2, 4, 6)
    x = torch.randn(shape, generator=generator) * 3
    if layout == "transposed":
        x = torch.randn(6, 4, 2, generator=generator).permute(2, 1, 0)
    elif layout == "expanded":
        x = torch.randn(2, 1, 6, generator=generator).expand(2, 4, 6)
    scheme = QScheme(dtype=INT4, granularity=granularity, symmetric=False)
    scale_shape = granularity.scale_shape(x.shape)
    p = qparams(
        torch.rand(scale_shape, generator=generator) + 0.1,
        torch.randint(-8, 8, scale_shape, generator=generator),
        scheme,
    )
    q = quantize_tensor(x, p)
    back = dequantize_tensor(q, p)
    assert q.shape == back.shape == x.shape
    assert (q.dtype, back.dtype) == (torch.int8, torch.float32)
    block = granularity.block_shape(x.shape)
    for index in itertools.product(*map(range, x.shape)):
        where: tuple[int, ...] = tuple(i // b for i, b in zip(index, block, strict=True))
        if isinstance(granularity, PerTensor):
            where = ()
        elif isinstance(granularity, PerChannel):
            where = (index[granularity.axis(3)],)
        scale, zero_point = p.scale[where].item(), int(p.zero_point[where])
        wanted = quantized(x[index].item(), scale, zero_point, INT4, "half_even")
        assert q[index].item() == wanted
        assert back[index].item() == to_float32((wanted - zero_point) * Fraction(scale))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """A float16 or bfloat16 tensor gives the integers of the same numbers in float32."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)
    p = one(0.013, 7)
    assert torch.equal(quantize_tensor(x, p), quantize_tensor(x.float(), p))


def test_float64_is_computed_in_float64() -> None:
    """A quotient that only float32 would round to a tie does not become one."""
    x = torch.tensor([0.25 - 2.0**-40, 0.75 + 2.0**-40], dtype=torch.float64)
    assert quantize_tensor(x, one(0.5, 0)).tolist() == [0, 2]
    assert quantize_tensor(x.float(), one(0.5, 0)).tolist() == [0, 2]
    x = torch.tensor([0.25 + 2.0**-40], dtype=torch.float64)
    assert quantize_tensor(x, one(0.5, 0)).tolist() == [1]
    assert quantize_tensor(x.float(), one(0.5, 0)).tolist() == [0]


def test_dtypes_wider_than_float32_keep_every_bit() -> None:
    """32-bit integers are rounded and clamped in float64; the ends of the range are reached."""
    p = one(1.0, 0, INT32)
    x = torch.tensor([2.0**31, -(2.0**31), 16777217.0, 2.0**30 + 128])
    assert quantize_tensor(x, p).tolist() == [2**31 - 1, -(2**31), 16777216, 2**30 + 128]
    assert quantize_tensor(torch.tensor([40000.0, -40000.0]), one(1.0, 0, INT16)).tolist() == [
        32767,
        -32768,
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    st.floats(2.0**-10, 2.0, width=32),
    st.integers(-128, 127),
)
def test_quantizing_is_idempotent_monotone_and_within_half_a_step(
    values: list[float], scale: float, zero_point: int
) -> None:
    """The laws of a quantizer."""
    p = one(scale, zero_point)
    x = torch.tensor(sorted(values))
    q = quantize_tensor(x, p)
    assert (q[1:] >= q[:-1]).all()
    back = dequantize_tensor(q, p)
    assert torch.equal(quantize_tensor(back, p), q)
    inside = (q > -128) & (q < 127)
    off = (back.double() - x.double()).abs()[inside]
    assert (off <= scale * 0.5 * (1 + 1e-4)).all()


# The contract


def test_a_contract_is_its_key() -> None:
    """Every allowed combination survives being written and read."""
    for values in itertools.product(*Numerics.ALLOWED.values()):
        settings_ = dict(zip(Numerics.ALLOWED, values, strict=True))
        fixed = settings_["requantization"] == "fixed_point"
        if fixed and (settings_["bias"], settings_["zero_point"]) != ("int32", "after"):
            with pytest.raises(BackendError, match="fixed_point"):
                Numerics(**settings_)
            continue
        numerics = Numerics(**settings_)
        assert Numerics.parse(numerics.key) == numerics


@pytest.mark.parametrize("field", Numerics.ALLOWED)
def test_an_unknown_setting_names_the_allowed_ones(field: str) -> None:
    """The error lists what can be written."""
    with pytest.raises(
        BackendError, match=rf"{field}='odd'; use one of {Numerics.ALLOWED[field][0]}"
    ):
        Numerics(**{field: "odd"})


@pytest.mark.parametrize("key", ["", "half_even", "half_even.multiplier.int32.after.int32.more"])
def test_a_key_with_other_than_five_settings_is_refused(key: str) -> None:
    """The error shows how a key is written."""
    with pytest.raises(BackendError, match=r"half_even\.multiplier\.int32\.after\.int32"):
        Numerics.parse(key)


# Fused multiply-add


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=500, deadline=None)
@given(FLOATS, FLOATS, FLOATS)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    """a * b + c is the exact value rounded to float32, subnormals and overflow included."""
    result = fma(torch.tensor(a), torch.tensor(b), torch.tensor(c)).item()
    assert result == to_float32(Fraction(a) * Fraction(b) + Fraction(c))


@pytest.mark.parametrize(("sign", "wanted"), [(1.0, 1.0 + 2.0**-23), (-1.0, 1.0)])
def test_fma_beside_a_tie(sign: float, wanted: float) -> None:
    """1 + 2**-24 is a tie of float32; a speck beside it, below float64's precision, decides."""
    a, b = torch.tensor(2.0**-12 * (1 + sign * 2.0**-23)), torch.tensor(2.0**-12)
    assert fma(a, b, torch.tensor(1.0)).item() == wanted
    far = torch.tensor([[2.0**-60], [2.0**-60]]) * torch.tensor([sign, -sign])
    assert fma(far[0], far[1], torch.tensor(1.0)).tolist() == [1.0, 1.0]


def test_fma_of_what_is_no_number() -> None:
    """Infinities and NaN come out as IEEE 754 says."""
    a, b, c = (
        torch.tensor([INF, -INF, INF, NAN, 1.0]),
        torch.ones(5),
        torch.tensor([0, 0, -INF, 0, -INF]),
    )
    out = fma(a, b, c)
    assert out[:2].tolist() == [INF, -INF]
    assert out[2:4].isnan().all()
    assert out[4].item() == -INF


# Requantization


ACCUMULATORS = st.integers(-(2**31), 2**31 - 1)
SCALES = st.floats(2.0**-30, 4.0, width=32)
ZERO_POINTS = st.integers(-128, 127)


def f32(x: object) -> np.float32:
    return np.float32(x)  # type: ignore[arg-type]


def oracle(
    acc: int,
    scale: float,
    y_scale: float,
    y_zero_point: int,
    numerics: Numerics,
    bias: float | None,
    other: int | None,
    other_scale: float,
) -> int:
    """The contract in scalars: numpy float32 steps and exact fractions."""
    s, y, so = f32(scale), f32(y_scale), f32(other_scale)
    if numerics.requantization == "fixed_point":
        total = 0
        for value, ratio in ((acc, s / y), (other, so / y)):
            if value is None:
                continue
            mantissa, exponent = math.frexp(float(ratio))
            multiplier = round(mantissa * 2**31)
            total += rounded(
                Fraction(value * multiplier) / Fraction(2) ** (31 - exponent), numerics.rounding
            )
        return min(max(total + y_zero_point, -128), 127)
    if numerics.requantization == "multiplier":
        t = f32(acc) * (s / y)
        if bias is not None:
            t = t + f32(bias) / y
        if other is not None:
            t = t + f32(other) * (so / y)
    else:
        t = f32(acc) * s
        if bias is not None:
            t = t + f32(bias)
        if other is not None:
            t = f32(to_float32(Fraction(other) * Fraction(float(so)) + Fraction(float(t))))
        t = t * (f32(1) / y)
    if numerics.zero_point == "before":
        result = rounded(Fraction(float(t + f32(y_zero_point))), numerics.rounding)
    else:
        result = rounded(Fraction(float(t)), numerics.rounding) + y_zero_point
    return min(max(result, -128), 127)


CONTRACTS = [
    Numerics(rounding=rounding, requantization=requantization, zero_point=zero_point)
    for rounding, requantization, zero_point in itertools.product(
        ROUNDINGS, Numerics.ALLOWED["requantization"], ("after", "before")
    )
    if requantization != "fixed_point" or zero_point == "after"
]


@pytest.mark.parametrize("numerics", CONTRACTS, ids=lambda numerics: numerics.key)
@settings(max_examples=80, deadline=None)
@given(
    acc=ACCUMULATORS,
    scale=SCALES,
    y_scale=SCALES,
    zero_point=ZERO_POINTS,
    bias=st.none() | st.floats(-100, 100, width=32),
    other=st.none() | st.integers(-255, 255),
    other_scale=SCALES,
)
def test_requantization_is_its_contract(
    numerics: Numerics,
    acc: int,
    scale: float,
    y_scale: float,
    zero_point: int,
    bias: float | None,
    other: int | None,
    other_scale: float,
) -> None:
    """Every variant equals its scalar definition for any accumulator."""
    if numerics.requantization == "fixed_point":
        bias = None
    result = requantize(
        torch.tensor([acc], dtype=torch.int32),
        scale=torch.tensor(scale),
        y_scale=y_scale,
        y_zero_point=zero_point,
        y_min=-128,
        y_max=127,
        numerics=numerics,
        bias=None if bias is None else torch.tensor([bias]),
        other=None if other is None else torch.tensor([other], dtype=torch.int32),
        other_scale=other_scale,
    )
    wanted = oracle(acc, scale, y_scale, zero_point, numerics, bias, other, other_scale)
    assert result.tolist() == [wanted]


@pytest.mark.parametrize("numerics", CONTRACTS, ids=lambda numerics: numerics.key)
def test_requantization_at_ties(numerics: Numerics) -> None:
    """Every accumulator of a ratio of one quarter, a tie at every second, odd zero point."""
    acc = torch.arange(-600, 601)
    result = requantize(
        acc.to(torch.int32),
        scale=torch.tensor(0.25),
        y_scale=1.0,
        y_zero_point=3,
        y_min=-128,
        y_max=127,
        numerics=numerics,
    )
    assert result.tolist() == [
        oracle(a, 0.25, 1.0, 3, numerics, None, None, 1.0) for a in acc.tolist()
    ]


@pytest.mark.parametrize("numerics", CONTRACTS[:3], ids=lambda numerics: numerics.key)
def test_requantization_of_channels_and_of_float_accumulators(numerics: Numerics) -> None:
    """A scale a channel broadcasts; integers in float32 and float64 are as good as int32."""
    acc = torch.randint(-(2**20), 2**20, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([1e-4, 2e-4, 3e-4])[:, None]
    same = {"scale": scale, "y_scale": 0.7, "y_zero_point": 1, "y_min": -128, "y_max": 127}
    results = [
        requantize(acc.to(dtype), numerics=numerics, **same)  # type: ignore[arg-type]
        for dtype in (torch.int32, torch.float32, torch.float64)
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert results[0][1, 2, 3].item() == oracle(
        int(acc[1, 2, 3]), 3e-4, 0.7, 1, numerics, None, None, 1.0
    )


def test_the_clamp_of_a_fused_relu_comes_last() -> None:
    """y_min and y_max bound the result, the residual included."""
    result = requantize(
        torch.tensor([-100, 10, 100], dtype=torch.int32),
        scale=torch.tensor(1.0),
        y_scale=1.0,
        y_zero_point=2,
        y_min=2,
        y_max=50,
        numerics=Numerics(),
        other=torch.tensor([90, -5, 0]),
        other_scale=1.0,
    )
    assert result.tolist() == [2, 7, 50]


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-100, 2.0**60))
def test_fixed_point_is_the_factor_to_31_bits(scale: float) -> None:
    """multiplier * 2**-shift is the factor to 2**-31 of it, or rounds every product to zero."""
    multiplier, shift = (int(t) for t in fixed_point(torch.tensor(scale, dtype=torch.float64)))
    assert shift <= 62
    exact = Fraction(scale)
    if exact >= Fraction(1, 2**31):
        assert 2**30 <= multiplier < 2**31
        assert abs(multiplier * Fraction(2) ** -shift - exact) <= exact / 2**31
    if exact < Fraction(1, 2**32):
        assert 2**31 * multiplier * Fraction(2) ** -shift <= Fraction(1, 2)


def test_fixed_point_of_a_factor_that_rounds_up_to_a_power_of_two() -> None:
    """The multiplier stays below 2**31 when the mantissa rounds up to 1."""
    multiplier, shift = fixed_point(torch.tensor(1 - 2.0**-53, dtype=torch.float64))
    assert (multiplier.item(), shift.item()) == (2**30, 30)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_fixed_point_ratio_beyond_the_accumulator_saturates(rounding: str) -> None:
    """A ratio that overflows 64 bits keeps the sign of the accumulator, with a residual too."""
    result = requantize(
        torch.tensor([1000, -1000, 0], dtype=torch.int32),
        scale=torch.tensor(2.0**60),
        y_scale=2.0**-20,
        y_zero_point=0,
        y_min=-128,
        y_max=127,
        numerics=Numerics(requantization="fixed_point", rounding=rounding),
        other=torch.tensor([255, -255, 0], dtype=torch.int32),
        other_scale=2.0**60,
    )
    assert result.tolist() == [127, -128, 0]
