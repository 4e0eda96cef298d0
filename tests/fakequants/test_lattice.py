"""Rounding to a lattice that is learned: values, the table of gradients, and sums.

Everything holds compiled and in operations of torch.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcore import (
    INT4,
    UINT8,
    Granularity,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    QParams,
    QScheme,
    dequantize_tensor,
    quantize_tensor,
)
from qcore_fakequants import compiled, lattice
from qcore_fakequants.lattice import fake_quantize_learned


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(lattice, "kernel", lambda: None)
    elif compiled.kernel() is None:
        pytest.skip("no C++ compiler")


GRANULARITIES = [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(3), PerBlock((2, 2, 3))]


def gradients(
    x: Tensor, scale: Tensor, zero_point: Tensor, grad: Tensor, **options: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, and gradients by x, scale and zero point."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, scale, zero_point)]
    y = fake_quantize_learned(*leaves, **options)  # type: ignore[arg-type]
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.floats(-40, 40, width=32),
    st.floats(2.0**-6, 4.0, width=32),
    st.integers(-8, 7),
    st.booleans(),
    st.booleans(),
)
def test_the_table_of_gradients(
    x: float, scale: float, zero_point: int, rounded: bool, through: bool
) -> None:
    """Each number alone, against the formulas of the module."""
    quotient = (torch.tensor(x) / torch.tensor(scale)).item()
    low, high = -8 - zero_point, 7 - zero_point
    r = round(quotient)
    inside = low <= r <= high if rounded else low < quotient < high
    q = min(max(r, low), high)
    y, of_x, of_scale, of_zero_point = gradients(
        torch.tensor([x]),
        torch.tensor(scale),
        torch.tensor(float(zero_point)),
        torch.tensor([3.0]),
        dtype=INT4,
        granularity=PerTensor(),
        rounded=rounded,
        through=through,
    )
    assert y.item() == (torch.tensor(float(q)) * torch.tensor(scale)).item()
    assert of_x.item() == (3.0 if inside else 0.0)
    slope = (r - quotient if through else 0.0) if inside else q
    assert of_scale.item() == pytest.approx(3.0 * slope, rel=1e-5, abs=1e-5)
    assert of_zero_point.item() == pytest.approx(0.0 if inside else -3.0 * scale, rel=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_every_granularity(granularity: Granularity, layout: str) -> None:
    """A scale gets the sum over the values that share it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64) * 3
    if layout == "transposed":
        x = torch.randn(6, 4, 2, generator=generator, dtype=torch.float64).permute(2, 1, 0) * 3
    shape = granularity.scale_shape(x.shape)
    scale = torch.rand(shape, generator=generator) + 0.1
    zero_point = torch.randint(-8, 8, shape, generator=generator).double()
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    options = {"dtype": INT4, "granularity": granularity}
    y, of_x, of_scale, of_zero_point = gradients(x, scale, zero_point, grad, **options)

    block = granularity.block_shape(x.shape)
    index = torch.zeros(x.shape, dtype=torch.long)
    for dim, (n, b) in enumerate(zip(x.shape, block, strict=True)):
        place = (torch.arange(n) // b).reshape([-1 if i == dim else 1 for i in range(3)])
        index = index * (n // b) + place
    s, z = scale.double().flatten()[index], zero_point.flatten()[index]
    u, low, high = x / s, -8 - z, 7 - z
    inside = (u > low) & (u < high)
    q = torch.minimum(torch.maximum(u.round(), low), high)
    torch.testing.assert_close(y, q * s)
    assert torch.equal(of_x, torch.where(inside, grad, 0.0))

    def summed(values: Tensor) -> Tensor:
        total = torch.zeros(max(scale.numel(), 1), dtype=torch.float64)
        return total.index_add(0, index.flatten(), values.flatten()).reshape(shape)

    expected = summed(grad * torch.where(inside, u.round() - u, q))
    torch.testing.assert_close(of_scale.double(), expected, rtol=1e-5, atol=1e-5)
    expected = summed(torch.where(inside, 0.0, -s * grad))
    torch.testing.assert_close(of_zero_point, expected, rtol=1e-5, atol=1e-5)


def test_sums_over_large_tensors_are_accurate() -> None:
    """At 8 bits the rounding error is a hundredth of the value; its sum keeps 3 digits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1 << 20, generator=generator)
    grad = torch.randn(x.shape, generator=generator)
    scale = torch.tensor(0.02)
    _, _, of_scale, _ = gradients(
        x, scale, torch.tensor(128.0), grad, dtype=UINT8, granularity=PerTensor()
    )
    u = x.double() / scale.double()
    inside = (u > -128) & (u < 127)
    slope = torch.where(inside, u.round() - u, u.round().clamp(-128, 127))
    expected = (grad.double() * slope).sum()
    assert of_scale.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_dtypes(dtype: torch.dtype) -> None:
    """The value is that of the formula; the scale's gradient is float32."""
    scheme = QScheme(dtype=UINT8, symmetric=False)
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(dtype)
    qparams = QParams(
        scale=torch.tensor(0.01), zero_point=torch.tensor(128, dtype=torch.int32), scheme=scheme
    )
    y, of_x, of_scale, _ = gradients(
        x,
        qparams.scale,
        qparams.zero_point.float(),
        torch.ones_like(x),
        dtype=UINT8,
        granularity=PerTensor(),
    )
    assert y.dtype == of_x.dtype == dtype
    assert of_scale.dtype == torch.float32
    assert torch.equal(y, dequantize_tensor(quantize_tensor(x, qparams), qparams).to(dtype))


@pytest.mark.parametrize("size", [0, 1])
def test_small_and_empty(size: int) -> None:
    """No values: gradients of 0."""
    _, of_x, of_scale, _ = gradients(
        torch.ones(size),
        torch.tensor(0.4),
        torch.tensor(0.0),
        torch.ones(size),
        dtype=INT4,
        granularity=PerTensor(),
    )
    assert of_x.shape == (size,)
    assert of_scale.item() == pytest.approx(-0.5 * size)


def test_a_zero_point_of_integers_has_no_gradient() -> None:
    """A fixed zero point is given as it is stored."""
    scale = torch.tensor(0.5, requires_grad=True)
    zero_point = torch.tensor(1, dtype=torch.int32)
    x = torch.tensor([0.6, 99.0], requires_grad=True)
    y = fake_quantize_learned(x, scale, zero_point, dtype=INT4, granularity=PerTensor())
    assert y.tolist() == [0.5, 3.0]
    y.sum().backward()
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(-0.2 + 6)
