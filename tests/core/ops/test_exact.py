"""Exact sums: which way they are computed, and that every bit is right."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qcore.ops import exact_conv, exact_matmul, saturating_matmul
from qcore.ops.saturating import taps

from . import oracle
from .cases import ints, wide

PLAIN = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1}


class Products(TorchDispatchMode):
    """Records the dtype of every matrix product and convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(word in func.__name__ for word in ("mm", "mv", "convolution", "addmm")):
            self.dtypes.append(next(a.dtype for a in args if isinstance(a, Tensor)))
        return func(*args, **(kwargs or {}))


def extreme(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """int8 weights near the ends, whose sums are odd and as large as can be."""
    return ints(shape, low=120, seed=seed) * torch.where(ints(shape[:1], seed=1) < 0, -1, 1).to(
        torch.int8
    ).reshape(-1, *[1] * (len(shape) - 1))


def check_matmul(x: Tensor, w: Tensor, x_max: int, bias: Tensor | None = None) -> list[torch.dtype]:
    with Products() as products:
        acc = exact_matmul(x.float(), w.float(), x_max=x_max, bias=bias)
    expected = oracle.linear(wide(x), wide(w)) + (0 if bias is None else wide(bias))
    np.testing.assert_array_equal(acc.double().numpy(), expected)
    return products.dtypes


def test_small_sums_are_one_float32_product() -> None:
    """Where the largest weight alone proves it, and where only the sums do."""
    assert check_matmul(ints((5, 7)), ints((4, 7)), 128) == [torch.float32]
    sparse = torch.zeros((4, 5000), dtype=torch.int8)
    sparse[:, ::100] = 127
    assert check_matmul(ints((5, 5000)), sparse, 128) == [torch.float32]


def test_long_sums_are_split() -> None:
    """Sums far beyond 2**24 are added from float32 slices; one float32 product would be wrong."""
    x, w = torch.full((3, 5000), 255, dtype=torch.int16), extreme((4, 5000))
    x[1] -= ints((5000,), low=0, high=3)
    dtypes = check_matmul(x, w, 255)
    assert set(dtypes) == {torch.float32}
    assert 10 <= len(dtypes) <= 12
    naive = (x.float() @ w.float().T).double().numpy()
    assert (naive != oracle.linear(wide(x), wide(w))).any()


def test_the_sums_at_the_bound() -> None:
    """2**24 - 1 is the largest sum of one product."""
    w = torch.full((1, 65793), 1, dtype=torch.int8)
    x = torch.full((1, 65793), 255, dtype=torch.int16)
    assert 65793 * 255 == 2**24 - 1
    assert len(check_matmul(x, w, 255)) == 1
    w[0, 0] = 2
    assert len(check_matmul(x, w, 255)) == 2


def test_uneven_weights_are_split_where_they_must_be() -> None:
    """Slices follow the weights: all the mass at one end needs more of them."""
    w = torch.zeros((2, 4096), dtype=torch.int8)
    w[:, :1024] = 127
    x = torch.full((2, 4096), -255, dtype=torch.int16)
    dtypes = check_matmul(x, w, 255)
    assert len(dtypes) >= 8
    assert set(dtypes) == {torch.float32}


@pytest.mark.parametrize("side", ["activations", "weights"])
def test_wide_operands_are_multiplied_in_float64(side: str) -> None:
    """Operands of more than 8 bits would be rounded by reduced-precision kernels."""
    x, w = ints((3, 40), torch.int16), ints((4, 40))
    if side == "activations":
        assert check_matmul(x, w, 2**15) == [torch.float64]
    else:
        assert check_matmul(w, x, 128) == [torch.float64]
    assert check_matmul(x, ints((4, 40), torch.int16, seed=1), 2**16) == [torch.float64]


@pytest.mark.parametrize("size", [100, 2**24, 2**31 - 1], ids=["inside", "beside", "end"])
@pytest.mark.parametrize("columns", [7, 3000])
def test_bias_joins_exactly(columns: int, size: int) -> None:
    """A bias that would leave the bound is added in float64."""
    bias = torch.tensor([size, -size, size - 1, 1 - size], dtype=torch.int32)
    x, w = torch.full((3, columns), 127, dtype=torch.int8), extreme((4, columns))
    check_matmul(x, w, 128, bias)


def test_batched_products() -> None:
    """Matrices batch by batch, short and long."""
    for size in (6, 3000):
        a, b = ints((2, 3, 4, size)), ints((2, 3, 5, size), low=100, seed=1)
        acc = exact_matmul(a.float(), b.float(), x_max=128)
        expected = np.einsum("abmk,abnk->abmn", wide(a), wide(b))
        np.testing.assert_array_equal(acc.double().numpy(), expected)


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 0, 3), (3, 4, 0)], ids=str)
def test_empty_products(shape: tuple[int, int, int]) -> None:
    """No rows, no columns or nothing to add."""
    m, n, k = shape
    x, w = torch.zeros(m, k), torch.zeros(n, k)
    bias = torch.full((n,), 2**30 + 1, dtype=torch.int32)
    acc = exact_matmul(x, w, x_max=128, bias=bias)
    assert acc.shape == (m, n)
    assert (acc.double() == 2**30 + 1).all()


def check_conv(x: Tensor, w: Tensor, x_max: int, **options: Any) -> list[torch.dtype]:
    options = {**PLAIN, **options}
    bias = options.pop("bias", None)
    with Products() as products:
        acc = exact_conv(x.float(), w.float(), x_max=x_max, bias=bias, **options)
    transposed = options.pop("transposed", False)
    slow = oracle.conv_transpose if transposed else oracle.conv
    expected = slow(wide(x), wide(w), **options)
    if bias is not None:
        expected = expected + wide(bias).reshape(-1, *[1] * (w.ndim - 2))
    np.testing.assert_array_equal(acc.double().numpy(), expected)
    return products.dtypes


@pytest.mark.parametrize("transposed", [False, True], ids=["direct", "transposed"])
def test_convolutions_are_split_along_channels(transposed: bool) -> None:
    """Many channels at both ends of the range: slices of channels, each in float32."""
    x = torch.full((2, 2000, 4), 255, dtype=torch.int16)
    w = extreme((2000, 3, 3) if transposed else (3, 2000, 3))
    if transposed:
        w = extreme((3, 2000, 3)).transpose(0, 1).contiguous()
    more = {"transposed": True, "output_padding": (0,)} if transposed else {}
    dtypes = check_conv(x, w, 255, **more)
    assert set(dtypes) == {torch.float32}
    assert len(dtypes) > 10
    bias = torch.tensor([2**31 - 1, -(2**31) + 1, 12345], dtype=torch.int32)
    assert check_conv(x, w, 255, bias=bias, **more) == dtypes


def test_convolutions_with_short_sums_are_whole() -> None:
    """One float32 convolution, which takes the bias along where there is room."""
    x, w = ints((2, 8, 9)), ints((4, 8, 3), low=-127)
    assert check_conv(x, w, 128) == [torch.float32]
    small, large = torch.tensor([1, -2, 3, 99]), torch.tensor([2**24, -(2**30), 2**31 - 1, 0])
    assert check_conv(x, w, 128, bias=small.int()) == [torch.float32]
    assert check_conv(x, w, 128, bias=large.int()) == [torch.float32]


@pytest.mark.parametrize("case", ["long taps", "groups", "16 bits"])
def test_convolutions_without_slices_run_in_float64(case: str) -> None:
    """One channel that is too much by itself, grouped channels, wide operands."""
    bias = torch.tensor([2**31 - 1, -5, 2**24 + 1, 7], dtype=torch.int32)
    if case == "long taps":
        x, w = torch.full((1, 2, 605), 255, dtype=torch.int16), extreme((4, 2, 601))
        assert check_conv(x, w, 255, bias=bias) == [torch.float64]
    elif case == "groups":
        x, w = torch.full((1, 1200, 5), 255, dtype=torch.int16), extreme((4, 600, 3))
        assert check_conv(x, w, 255, groups=2, bias=bias) == [torch.float64]
    else:
        x, w = ints((2, 3, 9), torch.int16), ints((4, 3, 3))
        assert check_conv(x, w, 2**15, bias=bias) == [torch.float64]


def test_grouped_transposed_bound_is_that_of_one_output() -> None:
    """Of a transposed convolution's weights only those of one group meet in an output."""
    x, w = torch.full((1, 1200, 3), 255, dtype=torch.int16), extreme((1200, 2, 3))
    options = {"transposed": True, "output_padding": (0,)}
    assert check_conv(x, w, 255, groups=300, **options) == [torch.float32]
    assert check_conv(x, w, 255, groups=2, **options) == [torch.float64]


def test_saturating_product_is_a_plain_loop() -> None:
    """Pairs saturate at both ends of 16 bits, odd reductions end in half a pair."""
    for columns in (1, 2, 9, 16):
        x = ints((6, columns), torch.uint8, low=150)
        w = ints((5, columns), seed=2)
        w[0], w[1] = 127, -128
        acc = saturating_matmul(x.float(), w.float(), x_max=255)
        expected = oracle.saturating_linear(wide(x), wide(w))
        np.testing.assert_array_equal(acc.numpy(), expected)
        if columns > 1:
            assert (expected != oracle.linear(wide(x), wide(w))).any()


def test_saturation_depends_on_the_order() -> None:
    """It is a pair that saturates, not the sum: swapping columns changes the result."""
    x = torch.tensor([[255.0, 255.0, 255.0, 255.0]])
    w = torch.tensor([[127.0, 127.0, -127.0, -127.0]])
    assert saturating_matmul(x, w).item() == 2**15 - 1 - 2**15
    swapped = w[:, [0, 2, 1, 3]]
    assert saturating_matmul(x, swapped).item() == 0


def test_small_weights_never_saturate() -> None:
    """Then the accumulator is the exact one, without a look at single pairs."""
    x, w = ints((4, 50), torch.uint8), ints((3, 50), low=-64, high=64)
    with Products() as products:
        acc = saturating_matmul(x.float(), w.float(), x_max=255)
    np.testing.assert_array_equal(acc.numpy(), oracle.linear(wide(x), wide(w)))
    assert len(products.dtypes) == 1


def test_taps_come_before_channels() -> None:
    """Patches are ordered by tap, then by channel."""
    x = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 2, 3, 4)
    patches = taps(x, (2, 2), (1, 2), (2, 1))
    assert patches.shape == (1, 1, 2, 4, 2)
    assert patches[0, 0, 1].flatten().tolist() == [2, 14, 3, 15, 10, 22, 11, 23]
