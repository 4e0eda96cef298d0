"""Stochastic rounding."""

import pytest
import torch
from qcore_acme.stochastic import StochasticFakeQuantize, round_stochastic

import qcore

INT4 = qcore.QScheme(dtype=qcore.INT4)
AFFINE = qcore.QScheme(dtype=qcore.UINT8, granularity=qcore.PerChannel(0), symmetric=False)


def quantizer(scheme, scale, zero_point=0):
    """A stochastic fake quantizer with fixed qparams."""
    observer = qcore.default_host().get("observer", "minmax")(scheme=scheme)
    made = StochasticFakeQuantize(scheme=scheme, observer=observer)
    made.observer_enabled = False
    scale = torch.tensor(scale)
    zero_point = torch.full(scale.shape, zero_point, dtype=torch.int32)
    made.set_qparams(qcore.QParams(scale=scale, zero_point=zero_point, scheme=scheme))
    return made


def test_a_value_is_right_on_average():
    """The mean of many roundings is the value, to five standard errors."""
    torch.manual_seed(0)
    fake, n = quantizer(INT4, 0.5), 40_000
    for value in (0.1, 1.33, -2.4):
        y = fake(torch.full((n,), value))
        below = 0.5 * (value // 0.5)
        assert set(y.tolist()) == {below, below + 0.5}
        assert abs(y.mean().item() - value) < 5 * 0.25 / n**0.5


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 3e-5, 7.7])
def test_levels_stay(scale):
    """What is on a level already never moves, whatever the rounding of ``k * scale``."""
    torch.manual_seed(0)
    scheme = qcore.QScheme(dtype=qcore.INT16)
    levels = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    x = levels.float() * torch.tensor(scale)
    assert torch.equal(quantizer(scheme, scale)(x), x)


def test_chance_follows_the_seed():
    """The same seed gives the same values; another gives others."""
    fake, x = quantizer(INT4, 0.5), torch.linspace(-3, 3, 100)
    torch.manual_seed(1)
    first = fake(x)
    assert not torch.equal(fake(x), first)
    torch.manual_seed(1)
    assert torch.equal(fake(x), first)


def test_gradient_ends_where_values_are_clamped():
    """1 within the range of the integers, 0 beyond, by channel."""
    fake = quantizer(AFFINE, [0.5, 1.0], zero_point=100)
    x = torch.tensor([[-51.0, 3.0, 78.0], [-99.0, 156.0, 0.2]], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]


def test_eval_rounds_to_nearest():
    """In eval mode nothing is left to chance: the formula of qcore."""
    fake = quantizer(INT4, 0.5).eval()
    assert fake(torch.tensor([0.2, 0.3, 1.25, 9.0])).tolist() == [0.0, 0.5, 1.0, 3.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(dtype):
    """Values have the dtype of the input; NaN stays NaN where a model is trained."""
    y = quantizer(INT4, 0.5)(torch.tensor([0.5, float("nan")], dtype=dtype))
    assert y.dtype == dtype
    assert y[0] == 0.5
    assert y[1].isnan()


def test_rounding_stays_within_the_neighbours():
    """No value moves by a whole step."""
    torch.manual_seed(0)
    x = 100 * torch.randn(10_000)
    assert (round_stochastic(x) - x).abs().max() < 1
