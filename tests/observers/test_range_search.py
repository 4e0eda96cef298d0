"""The search of the range with the least squared error, against slow oracles and brute force."""

import math

import pytest
import torch
from torch import Tensor

from qcore import (
    INT2,
    INT4,
    INT8,
    INT8_NARROW,
    INT16,
    UINT2,
    UINT8,
    QDtype,
    QScheme,
    choose_qparams,
    dequantize_tensor,
    quantize_tensor,
)
from qcore_observers.range_search import (
    error_of_counts,
    error_of_values,
    range_of_counts,
    range_of_values,
    search_range,
)
from qcore_observers.tally import tally

SCHEMES = [
    QScheme(dtype=dtype, symmetric=symmetric)
    for dtype in (INT2, UINT2, INT4, INT8_NARROW, UINT8)
    for symmetric in (True, False)
]


def draw(kind: str, n: int, seed: int = 0) -> Tensor:
    """Values of a shape that occurs in networks."""
    normal = torch.randn(n, generator=torch.Generator().manual_seed(seed))
    match kind:
        case "normal":
            return normal
        case "relu":
            return normal.relu()
        case "gelu":
            return torch.nn.functional.gelu(2 * normal)
        case "laplace":
            return normal.sign() * normal.square()
        case "long tail":
            return torch.exp(2 * normal)
        case "outliers":
            normal[:2] = torch.tensor([300.0, -80.0])
            return normal
        case "shifted":
            return normal + 6
        case "negative":
            return -normal.abs() - 1
        case _:
            return normal.remainder(1.0)


KINDS = [
    "normal",
    "relu",
    "gelu",
    "laplace",
    "long tail",
    "outliers",
    "shifted",
    "negative",
    "even",
]


def error(x: Tensor, low: float, high: float, scheme: QScheme) -> float:
    """Squared error of quantizing ``x`` for real."""
    qparams = choose_qparams(torch.tensor(low), torch.tensor(high), scheme=scheme)
    back = dequantize_tensor(quantize_tensor(x, qparams), qparams)
    return (back.double() - x.double()).square().sum().item()


def ends(x: Tensor) -> tuple[float, float]:
    return min(x.min().item(), 0.0), max(x.max().item(), 0.0)


def brute_force(x: Tensor, scheme: QScheme) -> float:
    """Least error over a fine grid of ranges, each tried on the values themselves."""
    low, high = ends(x)
    steps = scheme.dtype.quant_max - scheme.dtype.quant_min
    fine = [2 ** (-i / 32) * (1 + 1 / (steps - 1)) for i in range(32 * 6)]
    if scheme.symmetric or low == 0 or high == 0:
        return min(error(x, low * f, high * f, scheme) for f in fine)
    coarse = fine[::12]
    return min(error(x, low * a, high * b, scheme) for a in coarse for b in coarse)


@pytest.mark.parametrize("scheme", SCHEMES, ids=QScheme.describe)
def test_the_error_of_values_is_that_of_quantizing_them(scheme: QScheme) -> None:
    """For several ranges of several rows at once, in units of the row's largest magnitude."""
    rows = torch.stack([draw("normal", 50), draw("laplace", 50) * 1e20, draw("relu", 50) * 1e-20])
    scheme_ = scheme
    factors = torch.tensor([0.1, 0.5, 0.99, 1.0])[:, None].double()
    low, high = rows.amin(1).clamp(max=0) * factors, rows.amax(1).clamp(min=0) * factors
    found = error_of_values(rows, scheme=scheme_)(low, high, math.inf)
    for c in range(4):
        for r in range(3):
            unit = rows[r].abs().max().item()
            wanted = error(
                rows[r] / unit, low[c, r].item() / unit, high[c, r].item() / unit, scheme
            )
            # 1e-20 is beyond the smallest scale, at which all integers are 0.
            if r < 2:
                assert found[c, r].item() == pytest.approx(wanted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("scheme", [*SCHEMES, QScheme(dtype=INT16)], ids=QScheme.describe)
def test_the_error_of_counts_is_the_integral_over_the_bins(scheme: QScheme) -> None:
    """For steps wider and far narrower than a bin, and for clipped ranges."""
    counts = torch.tensor([[3, 0, 7, 1, 4, 0, 2, 5]])
    edges = torch.arange(-3.0, 6.0).double()[None] * 0.7
    spread = 20_000
    inside = (torch.arange(spread).double() + 0.5) / spread
    x = (edges[0, :-1, None] + inside * (edges[0, 1:] - edges[0, :-1])[:, None]).float()
    for factor in (0.2, 0.9, 1.0):
        low, high = edges[:, 0] * factor, edges[:, -1] * factor
        found = error_of_counts(counts, edges, scheme=scheme)(
            low[None], high[None], math.inf
        ).item()
        wanted = sum(
            n * error(x[i], low.item(), high.item(), scheme) / spread
            for i, n in enumerate(counts[0].tolist())
        )
        assert found * edges.abs().max().item() ** 2 == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=QScheme.describe)
def test_a_histogram_finds_what_brute_force_on_the_values_finds(kind: str, scheme: QScheme) -> None:
    """At most 2 % above the best of a fine grid, and not above min-max."""
    x = draw(kind, 20_000)
    low, high = x.amin(0, keepdim=True), x.amax(0, keepdim=True)
    t = tally(x[None], low, high, bins=2048)
    found = [end.item() for end in range_of_counts(t.counts, t.edges(), *t.ends, scheme=scheme)]
    reached = error(x, *found, scheme)
    assert reached <= 1.02 * brute_force(x, scheme)
    assert reached <= 1.005 * error(x, *ends(x), scheme)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [2, 32, 300])
@pytest.mark.parametrize("scheme", SCHEMES, ids=QScheme.describe)
def test_values_find_what_brute_force_finds(kind: str, n: int, scheme: QScheme) -> None:
    """The search on the values is never worse than min-max, and near the best of a fine grid."""
    x = draw(kind, n, seed=1)
    found = [end.item() for end in range_of_values(x[None], scheme=scheme)]
    reached = error(x, *found, scheme)
    scale = x.double().square().sum().item()
    assert reached <= error(x, *ends(x), scheme) + 1e-12 * scale
    # For two values in many levels, one range of thousands happens to be exact.
    if n > 2:
        allowed = 1.02 if scheme.dtype.bits < 8 else 1.1
        assert reached <= allowed * brute_force(x, scheme)


def test_the_largest_value_may_be_put_on_an_integer() -> None:
    """In int4 about zero, 7 stands for 14/15 of min-max: a wider range makes it exact."""
    x = torch.tensor([[-7.0, -3.0, 0.0, 1.0, 7.0]])
    low, high = (end.item() for end in range_of_values(x, scheme=QScheme(dtype=INT4)))
    assert max(-low, high) == pytest.approx(7.5, rel=1e-3)
    assert error(x, low, high, QScheme(dtype=INT4)) < 1e-4


def test_rows_are_searched_as_if_alone() -> None:
    """Rows that differ by many orders of magnitude do not disturb each other."""
    kinds = ["normal", "relu", "outliers", "negative", "long tail"]
    rows = torch.stack([draw(kind, 200) * 10.0 ** (5 * i - 8) for i, kind in enumerate(kinds)])
    scheme = QScheme(dtype=INT8, symmetric=False)
    together = torch.stack(range_of_values(rows, scheme=scheme))
    alone = torch.cat([torch.stack(range_of_values(row[None], scheme=scheme)) for row in rows], 1)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


def test_more_rows_than_are_searched_at_a_time() -> None:
    """Groups of a large weight are worked through in parts."""
    rows = draw("normal", 5000 * 32).reshape(5000, 32)
    scheme = QScheme(dtype=INT4)
    low, high = range_of_values(rows, scheme=scheme)
    assert low.shape == high.shape == (5000,)
    first = range_of_values(rows[4990:], scheme=scheme)
    assert torch.equal(low[4990:], first[0])
    assert torch.equal(high[4990:], first[1])


def test_a_power_of_two_scale_is_searched_as_such() -> None:
    """The error is that of the scale that will be used, so the search knows its steps."""
    scheme = QScheme(dtype=INT8, power_of_two=True)
    x = draw("normal", 2000)
    low, high = (end.item() for end in range_of_values(x[None], scheme=scheme))
    scale = choose_qparams(torch.tensor(low), torch.tensor(high), scheme=scheme).scale.item()
    assert math.log2(scale).is_integer()
    assert error(x, low, high, scheme) <= 1.001 * brute_force(x, scheme)


def test_the_search_never_leaves_the_start_for_worse() -> None:
    """With an error that grows for any change, the range stays."""
    low, high = torch.tensor([-2.0]).double(), torch.tensor([3.0]).double()
    found = search_range(
        lambda a, b, _: (a - low).abs() + (b - high).abs(),
        low,
        high,
        scheme=QScheme(dtype=QDtype.custom(bits=3, signed=True), symmetric=False),
    )
    assert [end.item() for end in found] == [-2.0, 3.0]
