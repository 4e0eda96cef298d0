"""Settings of the process that change torch's kernels change no integer."""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from .calls import CALLS, call
from .cases import DEFAULT, Activation, Conv, Q, ints


def wide_conv() -> Tensor:
    """16-bit activations with weights so small that a float32 sum would be exact."""
    q, w = ints((3, 4, 9, 9), torch.int16), torch.zeros((5, 4, 3, 3), dtype=torch.int8)
    w[:, 1, 1, 1] = 1
    y = (1.0, 0, -(2**31), 2**31 - 1, torch.float32, DEFAULT)
    window = ([1, 1], [1, 1], [1, 1], 1)
    return Q.qconv(q, 1.0, 0, w, torch.ones(()), None, None, *window, None, 1.0, 0, *y)


def wide_linear() -> Tensor:
    """The same as a matrix product."""
    q, w = ints((64, 64), torch.int16), ints((64, 64), low=-2, high=2)
    y = (1.0, 0, -(2**31), 2**31 - 1, torch.float32, DEFAULT)
    return Q.qlinear(q, 1.0, 0, w, torch.ones(()), None, None, *y)


def image_conv(batch: int = 32) -> Tensor:
    """A layer of a size for which fast convolutions are tuned."""
    x = Activation(q=ints((batch, 32, 14, 14), torch.uint8), zero_point=131)
    w, scale = ints((32, 32, 3, 3), low=-127), torch.ones(32)
    window = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    case = Conv(x=x, w=w, w_scale=scale, **window)
    y = (1.0, 0, -(2**31), 2**31 - 1, torch.float32, DEFAULT)
    return Q.qconv(*case.args()[:-6], *y)


MORE = {"wide conv": wide_conv, "wide linear": wide_linear, "image": image_conv}


def results() -> dict[str, Tensor]:
    """What every call of the table gives, and the three above."""
    return {name: call(name) for name in CALLS} | {name: f() for name, f in MORE.items()}


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """The results under the default settings."""
    return results()


@contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def without_mkldnn() -> Iterator[None]:
    # The flag's setters also touch one that warns where there is no such GPU.
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SETTINGS = {
    "precision-medium": lambda: matmul_precision("medium"),
    "precision-high": lambda: matmul_precision("high"),
    "no-mkldnn": without_mkldnn,
    "one-thread": lambda: threads(1),
    "two-threads": lambda: threads(2),
    "deterministic": deterministic,
    "default-float64": default_dtype,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference-mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_change_nothing(setting: str, expected: dict[str, Tensor]) -> None:
    """Reduced precision, other kernels, threads, determinism, default dtype, autocast."""
    with SETTINGS[setting]():
        actual = results()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_the_settings_are_a_danger() -> None:
    """Autocast does round a plain float32 convolution of these integers."""
    x, w = ints((2, 8, 9, 9)).float(), ints((8, 8, 3, 3)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = torch.nn.functional.conv2d(x, w)
    assert not torch.equal(rounded.float(), torch.nn.functional.conv2d(x, w))


def test_nnpack_stays_as_it_was() -> None:
    """Its switch is the process's: after a convolution, it is as before."""
    for enabled in (True, False):
        with torch.backends.nnpack.flags(enabled=enabled):
            image_conv(1)
            assert torch._C._get_nnpack_enabled() == enabled


def test_results_need_no_gradient() -> None:
    """Scales that are trained elsewhere do not make a graph of the integers."""
    case = Conv(
        x=Activation(q=ints((1, 2, 5, 5))), w=ints((3, 2, 3, 3)), w_scale=torch.ones(3),
        stride=(1, 1), padding=(0, 0), dilation=(1, 1),
    )  # fmt: skip
    args = list(case.args())
    args[4] = torch.ones(3, requires_grad=True)
    assert not Q.qconv(*args).requires_grad


def test_nnpack_stays_off_while_any_thread_convolves() -> None:
    """Layers that run in several threads switch it back on only after the last one."""
    expected = image_conv(4)
    with torch.backends.nnpack.flags(enabled=True):
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(image_conv, [4] * 12))
        assert torch._C._get_nnpack_enabled()
    assert all(torch.equal(result, expected) for result in results)
