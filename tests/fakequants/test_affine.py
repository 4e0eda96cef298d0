"""Affine fake quantization: the values of the formula and the clipped straight-through gradient."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcore import (
    INT4,
    INT8,
    INT32,
    UINT8,
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    PluginHost,
    QDtype,
    QParams,
    QScheme,
    dequantize_tensor,
    quantize_tensor,
)
from qcore_fakequants.affine import AffineFakeQuantize, fake_quantize_affine
from qcore_observers.minmax import MinMaxObserver

INF, NAN = float("inf"), float("nan")
GRANULARITIES = [
    PerTensor(),
    PerChannel(0),
    PerChannel(-1),
    PerGroup(3),
    PerToken(),
    PerBlock((2, 2, 3)),
]


def one(scale: float, zero_point: int, dtype: QDtype = INT8) -> QParams:
    return QParams(
        scale=torch.tensor(scale),
        zero_point=torch.tensor(zero_point, dtype=torch.int32),
        scheme=QScheme(dtype=dtype, symmetric=False),
    )


def run(x: Tensor, qparams: QParams) -> tuple[Tensor, Tensor]:
    """Value and gradient for incoming gradients 1, 2, 3, ..."""
    x = x.detach().clone().requires_grad_()
    y = fake_quantize_affine(x, qparams)
    y.backward(torch.arange(1, x.numel() + 1).reshape(x.shape).to(x.dtype))
    assert x.grad is not None
    return y.detach(), x.grad


@settings(max_examples=200, deadline=None)
@given(
    st.floats(width=32, allow_nan=False),
    st.floats(2.0**-40, 2.0**60, width=32),
    st.integers(-128, 127),
)
def test_value_and_gradient_of_any_number(x: float, scale: float, zero_point: int) -> None:
    """The value is what the integers mean; the gradient is 1 where nothing was clipped."""
    qparams = one(scale, zero_point)
    y, gradient = run(torch.tensor([x]), qparams)
    exact = dequantize_tensor(quantize_tensor(torch.tensor([x]), qparams), qparams)
    assert y.item() == exact.item()
    quotient = (torch.tensor(x) / torch.tensor(scale)).item()
    inside = abs(quotient) != INF and -128 <= round(Fraction(quotient)) + zero_point <= 127
    assert gradient.item() == float(inside)


def test_the_gradient_ends_where_rounding_leaves_the_range() -> None:
    """Up to half a step beyond the last integer a value still rounds to it, ties to even."""
    x = torch.tensor([-8.5, -8.500001, -8.0, 0.3, 7.0, 7.49, 7.5, INF, -INF])
    _, gradient = run(x, one(1.0, 0, INT4))
    assert (gradient > 0).tolist() == [True, False, True, True, True, True, False, False, False]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "empty"])
def test_every_granularity_and_layout(granularity: Granularity, layout: str) -> None:
    """Values equal those of quantizing and back; clipped values get no gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((0, 4, 6) if layout == "empty" else (2, 4, 6), generator=generator) * 3
    if layout == "transposed":
        x = torch.randn(6, 4, 2, generator=generator).permute(2, 1, 0) * 3
    elif layout == "expanded":
        x = torch.randn(2, 1, 6, generator=generator).expand(2, 4, 6)
    shape = granularity.scale_shape(x.shape)
    qparams = QParams(
        scale=torch.rand(shape, generator=generator) + 0.1,
        zero_point=torch.randint(-8, 8, shape, generator=generator, dtype=torch.int32),
        scheme=QScheme(dtype=INT4, granularity=granularity, symmetric=False),
    )
    y, gradient = run(x, qparams)
    q = quantize_tensor(x, qparams)
    assert torch.equal(y, dequantize_tensor(q, qparams))
    assert y.shape == x.shape
    wide = QScheme(dtype=INT32, granularity=granularity, symmetric=False)
    unclipped = quantize_tensor(
        x, QParams(scale=qparams.scale, zero_point=qparams.zero_point, scheme=wide)
    )
    incoming = torch.arange(1, x.numel() + 1).reshape(x.shape).float()
    assert torch.equal(gradient, incoming * (unclipped == q))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("integers", [INT8, UINT8, INT32], ids=lambda dtype: dtype.name)
def test_other_float_dtypes_give_what_eval_gives(dtype: torch.dtype, integers: QDtype) -> None:
    """The value in the dtype of the input, equal to the formula's; the gradient too."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0)).to(dtype)
    qparams = one(0.01, 0, integers)
    y, gradient = run(x, qparams)
    assert y.dtype == gradient.dtype == dtype
    assert torch.equal(y, dequantize_tensor(quantize_tensor(x, qparams), qparams).to(dtype))


def test_nan_is_seen_in_training_and_is_no_number_in_eval() -> None:
    """A diverging training must not look healthy; integers have no NaN."""
    x = torch.tensor([NAN, 1.0])
    y, gradient = run(x, one(0.5, 3))
    assert y[0].isnan()
    assert y[1].item() == 1.0
    assert gradient[1].item() == 2.0
    fake = AffineFakeQuantize(
        scheme=one(0.5, 3).scheme, observer=MinMaxObserver(scheme=one(0.5, 3).scheme)
    )
    fake.observer_enabled = False
    fake.set_qparams(one(0.5, 3))
    assert fake.train()(x)[0].isnan()
    assert fake.eval()(x).tolist() == [0.0, 1.0]


def test_an_infinite_gradient_does_not_leak_through_the_clamp() -> None:
    """Where the clamp acts, the gradient is 0 whatever comes in."""
    x = torch.tensor([100.0, 1.0], requires_grad=True)
    fake_quantize_affine(x, one(0.1, 0)).backward(torch.tensor([INF, 2.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0]


def test_the_scale_gets_no_gradient() -> None:
    """Affine is not learned."""
    scale = torch.tensor(0.1, requires_grad=True)
    qparams = QParams(
        scale=scale, zero_point=torch.tensor(0, dtype=torch.int32), scheme=QScheme(dtype=INT8)
    )
    x = torch.randn(5, requires_grad=True)
    fake_quantize_affine(x, qparams).sum().backward()
    assert scale.grad is None
    assert x.grad is not None


def test_without_gradients_nothing_is_saved() -> None:
    """Inference has no backward node, and the input is not changed."""
    x = torch.randn(5)
    before = x.clone()
    assert fake_quantize_affine(x, one(0.1, 0)).grad_fn is None
    assert torch.equal(x, before)


def test_gradients_of_gradients() -> None:
    """The backward is linear, so second derivatives are those of a piecewise identity."""
    x = torch.tensor([0.3, 50.0], requires_grad=True)
    y = (fake_quantize_affine(x, one(0.1, 0)) ** 2).sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, torch.tensor([2.0, 0.0]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20), st.integers(-128, 127))
def test_it_is_idempotent_and_monotone(values: list[float], zero_point: int) -> None:
    """The laws of a quantizer."""
    qparams = one(0.25, zero_point)
    x = torch.tensor(sorted(values))
    y = fake_quantize_affine(x, qparams)
    assert torch.equal(fake_quantize_affine(y, qparams), y)
    assert (y[1:] >= y[:-1]).all()


def test_training_learns_through_it() -> None:
    """A weight that is rounded still reaches its target, to half a step."""
    weight = torch.zeros(8, requires_grad=True)
    target = torch.linspace(-0.7, 0.7, 8)
    optimizer = torch.optim.SGD([weight], lr=0.3)
    for _ in range(50):
        loss = (fake_quantize_affine(weight, one(0.1, 0)) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    off = fake_quantize_affine(weight, one(0.1, 0)) - target
    assert off.abs().max() <= 0.05 + 1e-6


def test_training_and_eval_give_the_same_values() -> None:
    """The module in both modes, found by its name."""
    scheme = QScheme(dtype=UINT8, symmetric=False)
    cls = PluginHost().get("fake_quant", "affine")
    assert cls is AffineFakeQuantize
    fake = cls(scheme=scheme, observer=MinMaxObserver(scheme=scheme))
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    fake(x)
    fake.observer_enabled = False
    assert torch.equal(fake.train()(3 * x), fake.eval()(3 * x))
