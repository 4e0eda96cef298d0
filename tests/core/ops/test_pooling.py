"""Pools and means against the oracle, in every value."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from . import oracle
from .cases import CONTRACTS, Activation, Q, Target, ints, wide

AVG = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ADAPTIVE = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
ADAPTIVE_MAX = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)

WINDOWS = {
    "1d": ((2, 3, 11), (3,), (2,), (1,)),
    "1d-wide": ((2, 3, 10), (5,), (3,), (2,)),
    "2d": ((2, 3, 7, 6), (2, 2), (2, 2), (0, 0)),
    "2d-padded": ((2, 3, 7, 6), (3, 2), (2, 2), (1, 1)),
    "2d-overlapping": ((2, 3, 7, 6), (3, 3), (1, 2), (1, 1)),
    "2d-gaps": ((2, 3, 7, 8), (2, 2), (3, 3), (0, 1)),
    "3d": ((1, 2, 5, 4, 6), (2, 2, 3), (2, 1, 2), (1, 0, 1)),
    "one-element": ((1, 1, 1), (1,), (1,), (0,)),
}


def average(x: Activation, sums: oracle.Ints, count: np.ndarray | int, y: Target) -> np.ndarray:
    step = np.float32(x.scale) / np.asarray(count, dtype=np.float32)
    return oracle.finish(sums, step, y.contract)


@pytest.mark.parametrize("divisor", [None, 3])
@pytest.mark.parametrize("include_pad", [True, False], ids=["pads", "values"])
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("window", WINDOWS)
def test_avg_pool(window: str, ceil_mode: bool, include_pad: bool, divisor: int | None) -> None:
    """Every option of torch's average pools; sums and counts are torch's own in float64."""
    shape, kernel, stride, padding = WINDOWS[window]
    x = Activation(q=ints(shape), scale=0.11, zero_point=-37)
    y = Target(scale=0.097, zero_point=5)
    options = (kernel, stride, padding, ceil_mode, include_pad)
    actual = Q.qavg_pool(x.q, x.scale, x.zero_point, *options, divisor, *y.args)
    windows = oracle.pool_windows(shape[2:], kernel, stride, padding, ceil_mode=ceil_mode)
    sums, _, count = oracle.pool(x.centred(), windows, include_pad=include_pad)
    expected = average(x, sums, count if divisor is None else divisor, y)
    np.testing.assert_array_equal(actual.numpy(), expected)

    more: dict[str, Any] = {} if len(kernel) == 1 else {"divisor_override": divisor}
    if len(kernel) > 1 or divisor is None:
        data = torch.from_numpy(x.centred()).double()
        of_torch = AVG[len(kernel) - 1](data, *options, **more).numpy()
        np.testing.assert_allclose(of_torch, sums / (divisor or count), rtol=1e-12)


@pytest.mark.parametrize("window", ["1d", "2d", "3d"])
def test_no_stride_means_the_kernel(window: str) -> None:
    """As in torch."""
    shape, kernel, _, _ = WINDOWS[window]
    q, none = ints(shape), [0] * len(kernel)
    for stride in ([], kernel):
        rest = (none, False, True, None, *Target(scale=0.02).args)
        result = Q.qavg_pool(q, 0.02, 0, kernel, stride, *rest)
        largest = Q.qmax_pool(q, kernel, stride, none, [1] * len(kernel), False)
        if not stride:
            first = (result, largest)
    assert torch.equal(first[0], result)
    assert torch.equal(first[1], largest)


@pytest.mark.parametrize("numerics", CONTRACTS)
def test_avg_pool_on_ties(numerics: str) -> None:
    """An average of four to the same scale is a tie in a quarter of the windows."""
    x = Activation(q=ints((2, 3, 8, 8), torch.uint8), scale=0.5, zero_point=101)
    y = Target(scale=0.5, zero_point=-3, numerics=numerics, low=-300, high=300, dtype=torch.int16)
    window = ([2, 2], [2, 2], [0, 0], False, True, None)
    actual = Q.qavg_pool(x.q, x.scale, x.zero_point, *window, *y.args)
    windows = oracle.pool_windows((8, 8), (2, 2), (2, 2), (0, 0))
    sums, _, count = oracle.pool(x.centred(), windows)
    np.testing.assert_array_equal(actual.numpy(), average(x, sums, count, y))
    assert oracle.is_tie(sums / 4).mean() > 0.1


def test_avg_pool_of_large_windows() -> None:
    """Sums beyond 2**24 are exact too."""
    x = Activation(q=ints((1, 2, 20000), torch.int16, low=30000), scale=1e-4, zero_point=-32768)
    y = Target(dtype=torch.float32)
    actual = Q.qavg_pool(
        x.q, x.scale, x.zero_point, [9999], [9999], [0], False, True, None, *y.args
    )
    windows = oracle.pool_windows((20000,), (9999,), (9999,), (0,))
    sums = np.stack([x.centred()[..., w].sum(-1) for w in windows[0]], axis=-1)
    assert sums.min() > 2**24
    np.testing.assert_array_equal(actual.numpy(), average(x, sums, 9999, y))


@pytest.mark.parametrize(
    ("shape", "output"),
    [
        ((2, 3, 10), (4,)),
        ((2, 3, 7, 6), (3, 4)),
        ((2, 3, 7, 6), (1, 1)),
        ((2, 3, 4, 4), (2, 2)),
        ((2, 3, 2, 3), (5, 4)),
        ((3, 7, 6), (2, 5)),
        ((1, 2, 5, 4, 7), (2, 3, 4)),
        ((1, 1, 1, 1), (1, 1)),
    ],
    ids=str,
)
def test_adaptive_pools(shape: tuple[int, ...], output: tuple[int, ...]) -> None:
    """Sizes that do not divide, upsampling, images without a batch: average and maximum."""
    x = Activation(q=ints(shape, torch.uint8), scale=0.11, zero_point=77)
    y = Target(scale=0.1, zero_point=-5)
    dims = len(output)
    windows = oracle.adaptive_windows(shape[-dims:], output)
    sums, _, count = oracle.pool(x.centred(), windows)
    _, largest, _ = oracle.pool(wide(x.q), windows)
    actual = Q.qadaptive_avg_pool(x.q, x.scale, x.zero_point, output, *y.args)
    np.testing.assert_array_equal(actual.numpy(), average(x, sums, count, y))
    selected = Q.qadaptive_max_pool(x.q, output)
    assert selected.dtype == torch.uint8
    np.testing.assert_array_equal(selected.numpy(), largest)

    data = torch.from_numpy(x.centred()).double()
    of_torch = ADAPTIVE[dims - 1](data, output).numpy()
    np.testing.assert_allclose(of_torch, sums / count, rtol=1e-12, atol=1e-12)
    assert torch.equal(ADAPTIVE_MAX[dims - 1](x.q.double(), output), selected.double())


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dim", [(2, 3), (1,), (-1,), (0, 2), (), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16], ids=str)
def test_mean(dim: tuple[int, ...], keepdim: bool, dtype: torch.dtype) -> None:
    """Means over any dimensions; none named means all."""
    x = Activation(q=ints((2, 3, 5, 4), dtype), scale=0.11, zero_point=-37)
    y = Target(scale=0.05, zero_point=5, low=-(2**15), high=2**15 - 1, dtype=torch.int16)
    actual = Q.qmean(x.q, x.scale, x.zero_point, dim, keepdim, *y.args)
    dims = dim or (0, 1, 2, 3)
    sums = x.centred().sum(axis=dims, keepdims=keepdim)
    count = math.prod(x.q.shape[d] for d in dims)
    np.testing.assert_array_equal(actual.numpy(), average(x, sums, count, y))
    assert actual.shape == x.q.float().mean(dim, keepdim=keepdim).shape


def test_mean_of_many() -> None:
    """Sums beyond 2**24 are exact too."""
    x = Activation(q=ints((2, 300000), low=90), scale=0.1, zero_point=-127)
    y = Target(dtype=torch.float32)
    actual = Q.qmean(x.q, x.scale, x.zero_point, [1], False, *y.args)
    sums = x.centred().sum(1)
    assert sums.min() > 2**24
    np.testing.assert_array_equal(actual.numpy(), average(x, sums, 300000, y))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16], ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True], ids=["floor", "ceil"])
@pytest.mark.parametrize("dilated", [False, True], ids=["dense", "dilated"])
@pytest.mark.parametrize("window", ["1d", "2d-padded", "2d-gaps", "3d", "one-element"])
def test_max_pool(window: str, dilated: bool, ceil_mode: bool, dtype: torch.dtype) -> None:
    """A maximum selects an integer; padding never wins."""
    shape, kernel, stride, padding = WINDOWS[window]
    if window == "one-element":
        dilated = False
    dilation = [2 if dilated else 1] * len(kernel)
    q = ints(shape, dtype, high=torch.iinfo(dtype).min + 90)
    actual = Q.qmax_pool(q, kernel, stride, padding, dilation, ceil_mode)
    windows = oracle.pool_windows(
        shape[2:], kernel, stride, padding, ceil_mode=ceil_mode, dilation=dilation
    )
    _, largest, _ = oracle.pool(wide(q), windows)
    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual.numpy(), largest)
    of_torch = MAX[len(kernel) - 1](q.double(), kernel, stride, padding, dilation, ceil_mode)
    assert torch.equal(of_torch, actual.double())


def test_memory_formats_and_empty_batches() -> None:
    """channels_last stays and changes no value; an empty batch gives an empty result."""
    y = Target(scale=0.02).args
    window = ([2, 2], [2, 2], [0, 0])
    pools = {
        "avg": lambda q: Q.qavg_pool(q, 0.02, 3, *window, False, True, None, *y),
        "adaptive": lambda q: Q.qadaptive_avg_pool(q, 0.02, 3, [3, 2], *y),
        "max": lambda q: Q.qmax_pool(q, *window, [1, 1], False),
        "adaptive-max": lambda q: Q.qadaptive_max_pool(q, [3, 2]),
    }
    q = ints((2, 3, 8, 6))
    last = q.contiguous(memory_format=torch.channels_last)
    for (name, pool), batch in itertools.product(pools.items(), (1, 2)):
        result = pool(last[:batch])
        assert torch.equal(result, pool(q[:batch])), name
        assert result.is_contiguous(memory_format=torch.channels_last), name
        assert pool(q).is_contiguous(), name
        assert pool(q[:0]).shape == (0, *result.shape[1:]), name
    spread = ints((6, 8, 3, 2)).permute(3, 2, 1, 0)
    for name, pool in pools.items():
        assert torch.equal(pool(spread), pool(spread.contiguous())), name
