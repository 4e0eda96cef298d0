"""quantize, dequantize, dequantize_block, pack and unpack."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcore import (
    INT4,
    INT8,
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QParams,
    QScheme,
    QuantizationError,
    dequantize_tensor,
    pack,
    quantize_tensor,
)

from . import oracle
from .cases import Q, ints, wide

RANGES = {
    "int8": (-128, 127, torch.int8),
    "uint8": (0, 255, torch.uint8),
    "int4": (-8, 7, torch.int8),
    "int16": (-(2**15), 2**15 - 1, torch.int16),
}
HARD = [
    float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 0.25, -0.25, 0.5, -0.5, 0.75, 1.25, -1.25,
    3.4e38, -3.4e38, 1e-45, -1e-38, 2.0**23 + 1, 0.24999999, 0.25000003, -0.24999999, 63.75, 64.25,
]  # fmt: skip


@pytest.mark.parametrize("rounding", ["half_even", "half_away"])
@pytest.mark.parametrize("zero_point", [0, 3])
@pytest.mark.parametrize("scale", [0.5, 0.1, 1e-12, 3e38])
@pytest.mark.parametrize("dtype", RANGES)
def test_quantize(dtype: str, scale: float, zero_point: int, rounding: str) -> None:
    """NaN, infinities, ties, negative zero, denormals and huge values, and random ones."""
    low, high, storage = RANGES[dtype]
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.tensor(HARD), torch.randn(200, generator=generator) * 30])
    actual = Q.quantize(x, scale, zero_point, low, high, storage, rounding)
    assert actual.dtype == storage
    expected = oracle.quantize(x.numpy(), scale, zero_point, low, high, rounding)
    np.testing.assert_array_equal(actual.numpy(), expected)


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_quantize_other_floats(x_dtype: torch.dtype) -> None:
    """Half precision is computed in float32, float64 in itself; as the formula of the package."""
    x = (torch.randn(300, generator=torch.Generator().manual_seed(1)) * 10).to(x_dtype)
    x[:3] = torch.tensor([0.25, float("nan"), 60000.0])
    # In float32 this float64 number is a tie.
    if x_dtype == torch.float64:
        x[3] = 0.25 + 2.0**-40
    scheme = QScheme(dtype=INT8, symmetric=False)
    qparams = QParams(
        scale=torch.tensor(0.5), zero_point=torch.tensor(3, dtype=torch.int32), scheme=scheme
    )
    actual = Q.quantize(x, 0.5, 3, -128, 127, torch.int8, "half_even")
    assert torch.equal(actual, quantize_tensor(x, qparams))
    if x_dtype == torch.float64:
        assert actual[3] == 4
    else:
        expected = oracle.quantize(x.float().numpy(), 0.5, 3, -128, 127, "half_even")
        np.testing.assert_array_equal(actual.numpy(), expected)


def test_quantize_to_32_bits() -> None:
    """int32 saturates at its own ends, which float32 does not hold."""
    x = torch.tensor([1e30, -1e30, 2.0**31, 16777217.0, 0.5])
    actual = Q.quantize(x, 1.0, 0, -(2**31), 2**31 - 1, torch.int32, "half_even")
    assert actual.tolist() == [2**31 - 1, -(2**31), 2**31 - 1, 16777216, 0]


@pytest.mark.parametrize("zero_point", [0, 117, -128])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32], ids=str)
def test_dequantize(dtype: torch.dtype, zero_point: int) -> None:
    """``float32(q - zero_point) * scale``, also of integers that float32 does not hold."""
    info = torch.iinfo(dtype)
    q = ints((5, 40), dtype, low=info.min // 2, high=info.max // 2)
    actual = Q.dequantize(q, 0.1, zero_point)
    expected = (wide(q) - zero_point).astype(np.float32) * np.float32(0.1)
    np.testing.assert_array_equal(actual.numpy(), expected)
    assert actual.dtype == torch.float32


@pytest.mark.usefixtures("small_slices")
def test_formats_and_sizes() -> None:
    """channels_last, transposed, empty, scalar and large tensors."""
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    for data in (
        x.contiguous(memory_format=torch.channels_last),
        x.permute(3, 1, 0, 2),
        x[:, ::2, 1:],
        x[:0],
        x[0, 0, 0, 0],
        torch.linspace(-9, 9, 60000).reshape(60, 1000),
    ):
        q = Q.quantize(data, 0.1, 3, -128, 127, torch.int8, "half_even")
        assert q.stride() == torch.empty_like(data).stride()
        expected = torch.clamp(torch.round(data / torch.tensor(0.1)) + 3, -128, 127)
        assert torch.equal(q.float(), expected)
        back = Q.dequantize(q, 0.1, 3)
        assert back.stride() == q.stride()
        assert torch.equal(back, (q.float() - 3) * torch.tensor(0.1))


def test_quantize_and_back_is_near() -> None:
    """Within the range the error is at most half a step."""
    x = torch.linspace(-12.6, 12.5, 5001)
    q = Q.quantize(x, 0.1, -1, -128, 127, torch.int8, "half_even")
    assert (Q.dequantize(q, 0.1, -1) - x).abs().max() <= 0.05 + 1e-6


GRANULARITIES: list[tuple[Granularity, tuple[int, ...]]] = [
    (PerTensor(), (6, 8)),
    (PerChannel(0), (6, 8)),
    (PerChannel(1), (6, 8)),
    (PerChannel(0), (4, 3, 2, 5)),
    (PerChannel(-3), (4, 3, 2, 5)),
    (PerGroup(4), (6, 8)),
    (PerGroup(8), (6, 8)),
    (PerGroup(1), (6, 8)),
    (PerToken(), (2, 6, 8)),
    (PerBlock((3, 2)), (6, 8)),
    (PerBlock((2, 1, 2, 5)), (4, 3, 2, 5)),
    (PerTensor(), (1,)),
]


@pytest.mark.parametrize("affine", [False, True], ids=["symmetric", "affine"])
@pytest.mark.parametrize(("granularity", "shape"), GRANULARITIES, ids=str)
def test_dequantize_block(granularity: Granularity, shape: tuple[int, ...], affine: bool) -> None:
    """Every granularity gives what the package's dequantize gives."""
    q = ints(shape, low=-8, high=7)
    scales = granularity.scale_shape(shape)
    scale = torch.rand(scales, generator=torch.Generator().manual_seed(5)) + 0.01
    zero_point = ints(scales, low=-8, high=7, seed=6).to(torch.int32) if affine else None
    scheme = QScheme(dtype=INT4, granularity=granularity, symmetric=not affine)
    qparams = QParams(
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point,
        scheme=scheme,
    )
    block = granularity.block_shape(shape)
    for data in (q, q.to(torch.int32), q.flip(0).flip(0).mT.contiguous().mT if q.ndim > 1 else q):
        actual = Q.dequantize_block(data, scale, zero_point, block)
        assert torch.equal(actual, dequantize_tensor(data, qparams))
        assert actual.is_contiguous()


def test_dequantize_block_refusals() -> None:
    """A block that does not tile, or too few scales."""
    q = ints((6, 8))
    for block, count in (([4, 8], 1), ([6], 1), ([6, 0], 1), ([3, 8], 3)):
        with pytest.raises(QuantizationError, match="dequantize_block"):
            Q.dequantize_block(q, torch.ones(count), None, block)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_pack_is_the_bits(bits: int) -> None:
    """The first value is in the lowest bits; rows end in zeros."""
    for columns in (0, 1, 3, 7, 8, 9):
        q = ints((2, 3, columns), low=-(2 ** (bits - 1)), high=2 ** (bits - 1) - 1)
        np.testing.assert_array_equal(pack(q, bits).numpy(), oracle.pack(wide(q), bits))


@settings(max_examples=60, deadline=None, database=None)
@given(
    bits=st.sampled_from([1, 2, 4]),
    signed=st.booleans(),
    rows=st.lists(st.integers(0, 3), max_size=2),
    columns=st.integers(0, 19),
    seed=st.integers(0, 2**16),
)
def test_round_trip(bits: int, signed: bool, rows: list[int], columns: int, seed: int) -> None:
    """unpack(pack(q)) is q for any width, sign, shape and odd number of columns."""
    low = -(2 ** (bits - 1)) if signed else 0
    dtype = torch.int8 if signed else torch.uint8
    q = ints((*rows, columns), dtype, low=low, high=low + 2**bits - 1, seed=seed)
    packed = pack(q, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*rows, -(-columns * bits // 8))
    back = Q.unpack(packed, bits, signed, columns)
    assert back.dtype == dtype
    assert torch.equal(back, q)


def test_pack_and_unpack_non_contiguous() -> None:
    """Transposed inputs; the results are contiguous."""
    q = ints((9, 4), low=-8, high=7).t()
    assert torch.equal(pack(q, 4), pack(q.contiguous(), 4))
    packed = ints((5, 4), torch.uint8).t()
    back = Q.unpack(packed, 4, True, 9)
    assert torch.equal(back, Q.unpack(packed.contiguous(), 4, True, 9))
    assert back.is_contiguous()


def test_pack_refusals() -> None:
    """Other widths, and more columns than there are."""
    with pytest.raises(QuantizationError, match="bits=3"):
        pack(ints((2, 2)), 3)
    with pytest.raises(QuantizationError, match="bits=8"):
        Q.unpack(ints((2, 2), torch.uint8), 8, True, 2)
    with pytest.raises(QuantizationError, match="9 columns"):
        Q.unpack(ints((2, 2), torch.uint8), 2, True, 9)
