"""Scale and zero point: how a range chooses them, and what is refused."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore import (
    INT2,
    INT4,
    INT8,
    INT8_NARROW,
    INT16,
    UINT2,
    UINT4,
    UINT8,
    PerChannel,
    PerGroup,
    QcoreError,
    QDtype,
    QParams,
    QScheme,
    QuantizationError,
    choose_qparams,
    dequantize_tensor,
    quantize_tensor,
    token_scale,
)

DTYPES = [INT2, INT4, INT8, INT8_NARROW, INT16, UINT2, UINT4, UINT8]
SCALE_MIN = 2.0**-40


def scheme(dtype: QDtype, *, symmetric: bool, power_of_two: bool = False) -> QScheme:
    return QScheme(dtype=dtype, symmetric=symmetric, power_of_two=power_of_two)


def chosen(low: float, high: float, wanted: QScheme) -> tuple[float, int]:
    """Scale and zero point for a range."""
    qparams = choose_qparams(torch.tensor(low), torch.tensor(high), scheme=wanted)
    return qparams.scale.item(), int(qparams.zero_point.item())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    ("low", "high"), [(-1.5, 3.25), (-3.25, 1.5), (0.0, 6.0), (-6.0, 0.0), (2.0, 5.0), (-5.0, -2.0)]
)
def test_symmetric_scale_is_the_largest_magnitude_over_half_of_the_steps(
    dtype: QDtype, low: float, high: float
) -> None:
    """absmax / ((quant_max - quant_min) / 2), with the zero point in the middle of the dtype."""
    scale, zero_point = chosen(low, high, scheme(dtype, symmetric=True))
    exact = Fraction(max(abs(low), abs(high))) / Fraction(dtype.quant_max - dtype.quant_min, 2)
    assert scale == np.float32(float(exact))
    assert zero_point == (0 if dtype.signed else 2 ** (dtype.bits - 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    ("low", "high"), [(-1.5, 3.25), (-3.25, 1.5), (0.0, 6.0), (-6.0, 0.0), (2.0, 5.0), (-5.0, -2.0)]
)
def test_affine_scale_is_the_range_with_zero_over_the_steps(
    dtype: QDtype, low: float, high: float
) -> None:
    """(max - min) / (quant_max - quant_min) after 0 is let in; the zero point is nearest to 0."""
    scale, zero_point = chosen(low, high, scheme(dtype, symmetric=False))
    low, high = min(low, 0.0), max(high, 0.0)
    exact = (Fraction(high) - Fraction(low)) / (dtype.quant_max - dtype.quant_min)
    assert scale == np.float32(float(exact))
    assert zero_point == round(dtype.quant_min - low / scale)
    assert dtype.quant_min <= zero_point <= dtype.quant_max


def test_the_scale_shape_is_the_range_shape() -> None:
    """Each channel or group gets its own scale, as if it were alone."""
    low = torch.tensor([[-1.0, -2.0], [0.0, -0.5]])
    high = torch.tensor([[2.0, 1.0], [3.0, 0.25]])
    wanted = QScheme(dtype=INT8, granularity=PerGroup(4), symmetric=False)
    qparams = choose_qparams(low, high, scheme=wanted)
    assert qparams.scale.shape == qparams.zero_point.shape == (2, 2)
    assert (qparams.scale.dtype, qparams.zero_point.dtype) == (torch.float32, torch.int32)
    for i in range(2):
        for j in range(2):
            alone = chosen(low[i, j].item(), high[i, j].item(), scheme(INT8, symmetric=False))
            assert (qparams.scale[i, j].item(), qparams.zero_point[i, j].item()) == alone


FINITE = st.floats(min_value=-(2.0**126), max_value=2.0**126, width=32)


@settings(max_examples=200, deadline=None)
@given(st.tuples(FINITE, FINITE), st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_zero_is_exact_and_the_range_is_covered(
    ends: tuple[float, float], dtype: QDtype, symmetric: bool, power_of_two: bool
) -> None:
    """Whatever the range: 0 maps to 0, and no value inside is further off than a step."""
    low, high = sorted(ends)
    wanted = scheme(dtype, symmetric=symmetric, power_of_two=power_of_two)
    qparams = choose_qparams(torch.tensor(low), torch.tensor(high), scheme=wanted)
    scale = qparams.scale.item()
    assert math.isfinite(scale)
    assert scale >= SCALE_MIN
    x = torch.tensor([0.0, low, high, low / 2, high / 2])
    back = dequantize_tensor(quantize_tensor(x, qparams), qparams)
    assert back[0].item() == 0.0
    # Half a step where the lattice reaches; half a step more at an end that it just misses.
    assert (back.double() - x.double()).abs().max().item() <= scale * (1 + 1e-5)
    if power_of_two:
        assert math.frexp(scale)[0] == 0.5


@settings(max_examples=100, deadline=None)
@given(st.floats(0.0, 2.0**99, width=32), st.floats(0.0, 2.0**99, width=32), st.booleans())
def test_a_wider_range_never_has_a_smaller_scale(a: float, b: float, symmetric: bool) -> None:
    """The scale grows with the range."""
    small, large = sorted((a, b))
    wanted = scheme(INT8, symmetric=symmetric)
    assert chosen(-small, small, wanted)[0] <= chosen(-small, large, wanted)[0]


def test_a_power_of_two_scale_is_rounded_up() -> None:
    """Rounding up keeps the range inside; a scale that is one already stays."""
    wanted = scheme(UINT8, symmetric=False, power_of_two=True)
    assert chosen(0.0, 255.0, wanted) == (1.0, 0)
    assert chosen(0.0, 256.0, wanted) == (2.0, 0)


@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-42, 1e-15], ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_an_empty_or_tiny_range_has_a_usable_scale(value: float, symmetric: bool) -> None:
    """The scale never falls below 2**-40, so quotients of scales stay normal numbers."""
    assert chosen(value, value, scheme(INT8, symmetric=symmetric))[0] == SCALE_MIN


def test_the_widest_range_does_not_overflow() -> None:
    """Of float32's extremes neither the scale is infinite nor what any integer stands for."""
    huge = torch.finfo(torch.float32).max
    every = QDtype.custom(bits=1, signed=False)
    for dtype in (*DTYPES, every):
        for low, high in ((-huge, huge), (0.0, huge), (-huge, 0.0), (-huge, 1.0)):
            for symmetric, power_of_two in itertools.product((False, True), repeat=2):
                wanted = scheme(dtype, symmetric=symmetric, power_of_two=power_of_two)
                qparams = choose_qparams(torch.tensor(low), torch.tensor(high), scheme=wanted)
                ends = torch.tensor([dtype.quant_min, dtype.quant_max])
                assert dequantize_tensor(ends, qparams).isfinite().all()


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (float("nan"), 1.0, "not finite"),
        (0.0, float("inf"), "not finite"),
        (float("-inf"), 0.0, "not finite"),
        (1.0, -1.0, "min_val > max_val"),
    ],
)
def test_a_range_that_is_none_is_an_error(low: float, high: float, message: str) -> None:
    """NaN, infinity and swapped bounds are refused, also in one channel of many."""
    wanted = QScheme(dtype=INT8, granularity=PerChannel(0))
    with pytest.raises(QuantizationError, match=message) as caught:
        choose_qparams(torch.tensor([-1.0, low]), torch.tensor([1.0, high]), scheme=wanted)
    assert isinstance(caught.value, QcoreError)


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        (torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int32), r"scale 0.0 at index \[1\]"),
        (torch.tensor(-1.0), torch.zeros((), dtype=torch.int32), "scale -1.0 at the tensor"),
        (torch.tensor(float("nan")), torch.zeros((), dtype=torch.int32), "scale nan"),
        (torch.tensor(float("inf")), torch.zeros((), dtype=torch.int32), "scale inf"),
        (
            torch.ones(2),
            torch.tensor([0, 128], dtype=torch.int32),
            r"zero_point 128 at index \[1\]",
        ),
        (torch.ones(()), torch.tensor(-129, dtype=torch.int32), "zero_point -129 at the tensor"),
        (torch.ones(2), torch.zeros(3, dtype=torch.int32), "must have one shape"),
        (torch.ones(()).double(), torch.zeros((), dtype=torch.int32), "must be float32 and int32"),
        (torch.ones(()), torch.zeros(()), "must be float32 and int32"),
    ],
)
def test_qparams_that_mean_nothing_are_refused(
    scale: torch.Tensor, zero_point: torch.Tensor, message: str
) -> None:
    """A wrong scale, zero point, shape or dtype is an error that says where and what."""
    with pytest.raises(QuantizationError, match=message):
        QParams(scale=scale, zero_point=zero_point, scheme=QScheme(dtype=INT8, symmetric=False))


@pytest.mark.parametrize("dtype", [INT4, INT8, INT8_NARROW, INT16], ids=lambda dtype: dtype.name)
def test_scales_of_tokens_are_those_of_a_symmetric_range(dtype: QDtype) -> None:
    """Found at run time or from a range that was observed: one rule, tiny and huge rows too."""
    x = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    x *= torch.logspace(-45, 38, 50).unsqueeze(1)
    x = x.clamp(-3.4e38, 3.4e38)
    scale = token_scale(x, quant_min=dtype.quant_min, quant_max=dtype.quant_max)
    expected = choose_qparams(x.amin(1), x.amax(1), scheme=scheme(dtype, symmetric=True)).scale
    assert torch.equal(scale, expected.unsqueeze(1))
    assert scale.min() == SCALE_MIN


def test_tokens_without_a_scale() -> None:
    """NaN and infinities make the scale of their own token NaN; no values have the smallest."""
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0], [255.0, 0.0]])
    scale = token_scale(x, quant_min=-128, quant_max=127)
    assert scale[:2].isnan().all()
    assert scale[2] == 2
    empty = token_scale(torch.zeros(2, 0), quant_min=-128, quant_max=127)
    assert empty.tolist() == [[SCALE_MIN]] * 2
