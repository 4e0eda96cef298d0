"""qlinear_dynamic against the oracle, in every value."""

from collections.abc import Sequence
from fractions import Fraction

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcore import QuantizationError

from . import oracle
from .cases import Q, ints, wide

SCALE_MIN = Fraction(1, 2**40)


@attrs.frozen(kw_only=True)
class Dynamic:
    """A call of ``qlinear_dynamic``."""

    x: Tensor
    w: Tensor
    w_scale: Tensor
    w_zero_point: Tensor | None = None
    bias: Tensor | None = None
    low: int = -128
    high: int = 127

    def args(self) -> tuple[object, ...]:
        """All arguments."""
        return (
            self.x, self.low, self.high, self.w, self.w_scale, self.w_zero_point, self.bias
        )  # fmt: skip

    def actual(self) -> Tensor:
        """What the operation gives."""
        return Q.qlinear_dynamic(*self.args())

    def token_scales(self) -> oracle.Floats:
        """Scale of each token, from exact fractions."""
        largest = np.abs(self.x.numpy()).max(-1, initial=0.0)
        half = Fraction(self.high - self.low, 2)
        flat = [
            oracle.round_float32(max(Fraction(float(v)) / half, SCALE_MIN)) for v in largest.ravel()
        ]
        return np.array(flat, dtype=np.float32).reshape(*largest.shape, 1)

    def expected(self) -> oracle.Floats:
        """What the oracle says."""
        s = self.token_scales()
        divided = self.x.numpy() / s
        q = np.clip(oracle.round_all(divided, "half_even"), self.low, self.high)
        n, k = self.w.shape
        groups = self.w_scale.shape[1] if self.w_scale.ndim == 2 else 1
        width = k // groups
        w = wide(self.w)
        if self.w_zero_point is not None:
            zero = np.broadcast_to(wide(self.w_zero_point).reshape(-1, groups), (n, groups))
            w = w - np.repeat(zero, width, axis=1)
        scale = np.broadcast_to(self.w_scale.numpy().reshape(-1, groups), (n, groups))
        total = np.float32(0)
        for g in range(groups):
            part = slice(g * width, (g + 1) * width)
            acc = oracle.linear(q[..., part], w[:, part]).astype(np.float32)
            term = acc * scale[:, g]
            total = term if g == 0 else total + term
        y = total * s
        y = y if self.bias is None else y + self.bias.numpy()
        assert y.dtype == np.float32
        return y


def assert_equal(case: Dynamic) -> None:
    """Fails unless the operation gives the oracle's output, in every bit."""
    actual = case.actual()
    assert actual.dtype == torch.float32
    np.testing.assert_array_equal(actual.numpy(), case.expected())


def make(rows: Sequence[int] = (7,), columns: int = 24, **changes: object) -> Dynamic:
    """Normal values of very different tokens, per-channel int8 weights, a bias."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn((*rows, columns), generator=generator)
    values: dict[str, object] = {
        "x": x * torch.exp(4 * torch.randn((*rows, 1), generator=generator)),
        "w": ints((5, columns), low=-127, seed=1),
        "w_scale": torch.linspace(0.004, 0.011, 5),
        "bias": torch.linspace(-3, 2, 5),
    }
    return Dynamic(**{**values, **changes})


@pytest.mark.parametrize("rows", [(), (1,), (7,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("columns", [1, 24])
@pytest.mark.parametrize("bias", [None, torch.linspace(-3, 2, 5)], ids=["plain", "bias"])
def test_shapes(rows: tuple[int, ...], columns: int, bias: Tensor | None) -> None:
    """Any leading dimensions are tokens, also none and empty ones."""
    assert_equal(make(rows, columns, bias=bias))


def test_no_columns() -> None:
    """A sum of nothing is the bias."""
    case = make((3,), 0, x=torch.zeros(3, 0))
    assert torch.equal(case.actual(), case.bias.expand(3, 5))


@pytest.mark.parametrize(
    "span", [(-128, 127), (-127, 127), (-8, 7), (-1, 1), (-(2**15), 2**15 - 1)]
)
def test_ranges_of_tokens(span: tuple[int, int]) -> None:
    """Full and narrow ranges of 8 bits, few bits, and 16."""
    assert_equal(make(low=span[0], high=span[1]))


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (5, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("affine", [False, True], ids=["symmetric", "affine"])
def test_weight_granularity(shape: tuple[int, ...], dtype: torch.dtype, affine: bool) -> None:
    """One weight scale a tensor, a channel or a group, with and without zero points."""
    w_scale = torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 0.01 + 0.001
    zero_point = ints(shape, dtype, seed=4).to(torch.int32) if affine else None
    w = ints((5, 24), dtype, seed=2)
    assert_equal(make(w=w, w_scale=w_scale, w_zero_point=zero_point))


def test_ties_go_to_the_even_integer() -> None:
    """Values that lie between two integers of a token whose scale is a power of two."""
    x = torch.tensor([[63.75, 0.25, 0.75, 1.25, -0.25, -1.75, -63.75]])
    w = torch.eye(7, dtype=torch.int8)
    case = Dynamic(x=x, w=w, w_scale=torch.tensor(2.0))
    assert case.token_scales().item() == 0.5
    assert case.actual().tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -4.0, -128.0]]
    assert_equal(case)


def test_tokens_of_zeros_and_of_extreme_size() -> None:
    """No division by zero; the scale of a huge token is clipped, that of a tiny one too."""
    x = torch.tensor([[0.0, -0.0], [2.0**-149, 2.0**-140], [3e38, -1e38], [1.0, -1.0]])
    w = ints((3, 2), seed=3)
    y = Dynamic(x=x, w=w, w_scale=torch.ones(3), bias=torch.tensor([1.0, -2.0, 0.5])).actual()
    assert y[:2].tolist() == [[1.0, -2.0, 0.5]] * 2
    assert torch.isfinite(y[3]).all()
    scale = torch.tensor(2.0**126 / 127.5)
    assert torch.equal(y[2], torch.tensor([127.0, -128.0]) @ w.float().t() * scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_token_that_is_not_finite_gives_nan_and_disturbs_no_other(bad: float) -> None:
    """NaN and infinities show in their own row of the result, all of it."""
    case = make((4,))
    spoilt = case.x.clone()
    spoilt[2, 5] = bad
    y = attrs.evolve(case, x=spoilt).actual()
    assert y[2].isnan().all()
    good = [0, 1, 3]
    assert torch.equal(y[good], case.actual()[good])


@pytest.mark.usefixtures("small_slices")
def test_a_token_gives_the_same_in_any_batch() -> None:
    """The result of a row depends on that row alone, however many there are."""
    case = make((900,), 96, w=ints((30, 96), low=-127), w_scale=torch.tensor(0.01), bias=None)
    whole = case.actual()
    for row in range(0, 900, 53):
        assert torch.equal(whole[row], attrs.evolve(case, x=case.x[row]).actual())


def test_non_contiguous_operands() -> None:
    """Transposed inputs and weights are read as what they show; the output is contiguous."""
    x = make((3, 2)).x.permute(1, 0, 2)
    case = make(x=x, w=ints((24, 10), low=-127).t()[::2])
    assert_equal(case)
    assert case.actual().is_contiguous()


def test_autocast_does_not_round_the_sums() -> None:
    """Inside autocast the operation is the same."""
    case = make((9,), 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.actual()
    assert torch.equal(inside, case.actual())


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_random_layers_are_the_oracle(data: st.DataObject) -> None:
    """Any rows, columns, groups, dtype, scales and bias."""
    groups = data.draw(st.integers(1, 4))
    columns, n = groups * data.draw(st.integers(1, 30)), data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    affine = data.draw(st.booleans())
    dtype = data.draw(st.sampled_from([torch.int8, torch.uint8])) if affine else torch.int8
    shape = data.draw(st.sampled_from([(), (n,), (n, groups)]))
    # Powers of two make ties; the others make every step round.
    x = torch.randn(data.draw(st.integers(1, 4)), columns, generator=generator)
    if data.draw(st.booleans()):
        x = (x * 16).round() / 4
    scales = torch.rand(shape, generator=generator) + 0.01
    assert_equal(
        Dynamic(
            x=x,
            w=ints((n, columns), dtype, seed=seed),
            w_scale=scales.log2().round().exp2() if data.draw(st.booleans()) else scales,
            w_zero_point=ints(shape, dtype, seed=seed + 1).int() if affine else None,
            bias=torch.randn(n, generator=generator) if data.draw(st.booleans()) else None,
            low=data.draw(st.sampled_from([-128, -127, -8])),
            high=data.draw(st.sampled_from([127, 7])),
        )
    )


def test_refusals() -> None:
    """What does not fit is refused, by name."""
    with pytest.raises(QuantizationError, match=r"float32 \[..., K\]"):
        make(x=torch.randn(3, 24).double()).actual()
    with pytest.raises(QuantizationError, match=r"integers \[N, K\]"):
        make(w=ints((5, 23))).actual()
    with pytest.raises(QuantizationError, match="both sides of 0"):
        make(low=0).actual()
    with pytest.raises(QuantizationError, match="fit 16 bits"):
        make(high=2**15).actual()
    with pytest.raises(QuantizationError, match="int32 bias"):
        make(bias=ints((5,), torch.int32)).actual()
    with pytest.raises(QuantizationError, match="7 groups"):
        make(w_scale=torch.ones(5, 7)).actual()
