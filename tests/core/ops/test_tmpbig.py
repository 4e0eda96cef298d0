"""On random layers with random qparams, the operation is the oracle on every integer."""

import attrs
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .cases import CONTRACTS, Activation, Conv, Linear, Target, assert_equal, ints

QUICK = settings(
    max_examples=2500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

DTYPES = st.sampled_from([torch.int8, torch.uint8, torch.int16])
# Powers of two make ties; the others make every step round.
SCALES = st.one_of(
    st.integers(-12, 3).map(lambda e: 2.0**e),
    st.floats(2.0**-13, 4.0, width=32),
)


@st.composite
def activations(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Activation:
    info = torch.iinfo(dtype)
    low = draw(st.sampled_from([info.min, info.max - 40, info.max // 2]))
    return Activation(
        q=ints(shape, dtype, low=low, seed=draw(st.integers(0, 999))),
        scale=draw(SCALES),
        zero_point=draw(st.integers(info.min, info.max)),
    )


@st.composite
def targets(draw: st.DrawFn, numerics: str) -> Target:
    dtype = draw(st.sampled_from([torch.int8, torch.uint8, torch.int16, torch.float32]))
    if dtype == torch.float32:
        return Target(dtype=dtype, numerics=numerics)
    info = torch.iinfo(dtype)
    zero_point = draw(st.integers(info.min, info.max))
    return Target(
        scale=draw(SCALES),
        zero_point=zero_point,
        low=draw(st.sampled_from([info.min, zero_point])),
        high=info.max,
        dtype=dtype,
        numerics=numerics,
    )


@st.composite
def weights(
    draw: st.DrawFn, shape: tuple[int, ...], scales: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    affine = draw(st.booleans())
    dtype = draw(st.sampled_from([torch.int8, torch.uint8])) if affine else torch.int8
    seed = draw(st.integers(0, 999))
    count = int(torch.Size(scales).numel())
    scale = draw(st.lists(SCALES, min_size=count, max_size=count))
    zero_point = ints(scales, dtype, seed=seed + 1).to(torch.int32) if affine else None
    return ints(shape, dtype, seed=seed), torch.tensor(scale).reshape(scales), zero_point


@st.composite
def biases(draw: st.DrawFn, channels: int, numerics: str) -> torch.Tensor | None:
    kind = draw(st.sampled_from(["none", "own", "own", "large"]))
    if kind == "none":
        return None
    if ".float32." in numerics:
        return torch.tensor(
            draw(st.lists(st.floats(-50, 50, width=32), min_size=channels, max_size=channels))
        )
    most = 2**31 - 1 if kind == "large" else 2**14
    return ints((channels,), torch.int32, low=-most, high=most, seed=draw(st.integers(0, 99)))


@st.composite
def convolutions(draw: st.DrawFn) -> Conv:
    spatial = draw(st.integers(1, 3))
    numerics = draw(st.sampled_from(CONTRACTS))
    pairs = numerics.endswith("int16_pairs")
    transposed = draw(st.booleans()) and not pairs
    groups = draw(st.integers(1, 3))
    c, n = (groups * draw(st.integers(1, 3)) for _ in range(2))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(spatial))

    kernel, stride, padding, dilation = sizes(1, 3), sizes(1, 3), sizes(0, 2), sizes(1, 2)
    # Large enough for at least one output.
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    image = tuple(
        max(1, r - 2 * p, 2 * p + 2 - r) + e
        for r, p, e in zip(reach, padding, sizes(0, 3), strict=True)
    )
    dtype = draw(st.sampled_from([torch.int8, torch.uint8]) if pairs else DTYPES)
    x = draw(activations((draw(st.integers(1, 2)), c, *image), dtype))
    channels = n // groups if transposed else n
    w = (c, n // groups, *kernel) if transposed else (n, c // groups, *kernel)
    w_q, w_scale, w_zero_point = draw(weights(w, draw(st.sampled_from([(), (channels,)]))))
    case = Conv(
        x=x,
        w=w_q,
        w_scale=w_scale,
        w_zero_point=w_zero_point,
        bias=draw(biases(n, numerics)),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=tuple(min(p, s - 1) for p, s in zip(sizes(0, 2), stride, strict=True))
        if transposed
        else None,
        y=draw(targets(numerics)),
    )
    if transposed or not draw(st.booleans()):
        return case
    shape = tuple(case.accumulator().shape)
    return attrs.evolve(case, other=draw(activations(shape, draw(DTYPES))))


@st.composite
def linears(draw: st.DrawFn) -> Linear:
    numerics = draw(st.sampled_from(CONTRACTS))
    pairs = numerics.endswith("int16_pairs")
    grouped = draw(st.booleans()) and "fixed_point" not in numerics
    groups = draw(st.integers(1, 4)) if grouped else 1
    columns, n = groups * draw(st.integers(1, 40)), draw(st.integers(1, 4))
    rows = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    dtype = draw(st.sampled_from([torch.int8, torch.uint8]) if pairs else DTYPES)
    scales = (n, groups) if grouped else draw(st.sampled_from([(), (n,)]))
    w, w_scale, w_zero_point = draw(weights((n, columns), scales))
    return Linear(
        x=draw(activations((*rows, columns), dtype)),
        w=w,
        w_scale=w_scale,
        w_zero_point=w_zero_point,
        bias=draw(biases(n, "x.x.float32.x" if grouped else numerics)),
        y=draw(targets(numerics)),
    )


@QUICK
@given(convolutions())
def test_convolution_is_the_oracle(case: Conv) -> None:
    """Any dimension, window, groups, dtype, granularity, bias, residual and contract."""
    assert_equal(case)


@QUICK
@given(linears())
def test_linear_is_the_oracle(case: Linear) -> None:
    """Any rows, columns, groups, dtype, granularity, bias and contract."""
    assert_equal(case)
