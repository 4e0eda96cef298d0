"""Linear layers and products of activations: each integer is that of the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

I8, U8, F32 = torch.int8, torch.uint8, torch.float32
BYTES = st.sampled_from([I8, U8])
ZEROS = {I8: (-128, 127, 0, 3), U8: (0, 255, 128, 7)}


def weight(*shape, bits=8):
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).to(I8)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_linear_layers(equal, draw, data):
    """Tails in every dimension, zero points at the ends, ties, relu, any kind of bias."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    rows = data.draw(st.sampled_from([(1,), (7,), (2, 17), (33,)]))
    depth, columns = data.draw(st.sampled_from([(1, 1), (32, 32), (45, 37), (70, 5), (96, 33)]))
    x_dtype, y_dtype = data.draw(BYTES), data.draw(st.sampled_from([I8, U8, torch.int16, F32]))
    # Powers of two put one output in two on a tie.
    ties = data.draw(st.booleans())
    w_scale = torch.full((columns,), 0.5) if ties else torch.rand(columns) * 0.01
    w_scale = data.draw(st.sampled_from([w_scale, w_scale[0]]))
    bias = data.draw(
        st.sampled_from([None, torch.randint(-9999, 9999, (columns,), dtype=torch.int32)])
    )
    w_zero = data.draw(st.sampled_from([None, torch.ones(columns, dtype=torch.int32)]))
    zero = 0 if y_dtype == F32 else ZEROS.get(y_dtype, (0,))[-1]
    output = draw.output(y_dtype, 32.0 if ties else 0.7, zero, data.draw(st.booleans()))
    equal(
        "qlinear", [draw.integers(x_dtype, *rows, depth)], "x0", 0.5,
        data.draw(st.sampled_from(ZEROS[x_dtype])), weight(columns, depth, bits=7),
        w_scale, w_zero, bias, *output,
    )  # fmt: skip


@pytest.mark.parametrize("x_dtype", [I8, U8])
@pytest.mark.parametrize("w", [-128, 127])
def test_extremes(equal, draw, x_dtype, w):
    """The largest operands of either sign, over a sum that float32 alone would round."""
    info = torch.iinfo(x_dtype)
    x = torch.tensor([[info.min], [info.max]]).expand(2, 1100).to(x_dtype)
    y = equal(
        "qlinear", [x], "x0", 1.0, info.max if w > 0 else info.min,
        torch.full((3, 1100), w).to(I8), torch.ones(3), None,
        torch.full((3,), 2**20 + 1, dtype=torch.int32), *draw.output(F32),
    )  # fmt: skip
    assert y.abs().max() > 2**24


def test_a_float_bias_is_added_after_the_scale(equal, draw):
    """As a program of another contract has it."""
    torch.manual_seed(0)
    x, w = draw.integers(I8, 19, 40), weight(21, 40)
    for dtype in (I8, F32):
        equal(
            "qlinear", [x], "x0", 0.5, 3, w, torch.rand(21) * 0.01, None, torch.randn(21),
            *draw.output(dtype),
        )  # fmt: skip


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("depth", "groups"), [(96, 3), (60, 5), (64, 1), (64, 2)])
@pytest.mark.parametrize("zero", [None, 3])
def test_groups_along_the_inputs(equal, draw, bits, depth, groups, zero):
    """Sums of groups are scaled and added in their order; of 4 bits, two lie in a byte."""
    torch.manual_seed(0)
    x, w = draw.integers(U8, 5, depth), weight(35, depth, bits=bits)
    if zero is not None:
        w, zero = w.clamp(-100, 100), torch.full((35, groups), zero, dtype=torch.int32)
    scale = torch.rand(35, groups) * 0.01 + 0.001
    for dtype in (I8, F32):
        equal(
            "qlinear", [x], "x0", 0.5, 7, w, scale, zero, torch.randn(35),
            *draw.output(dtype, 0.7),
        )  # fmt: skip


def test_no_rows(equal, draw):
    """A batch of nothing gives nothing, in the right shape."""
    w = weight(5, 8)
    scale = torch.rand(5)
    x = torch.empty(0, 3, 8, dtype=I8)
    equal("qlinear", [x], "x0", 0.5, 3, w, scale, None, None, *draw.output())
    equal("qlinear_dynamic", [torch.empty(2, 0, 8)], "x0", -128, 127, w, scale, None, None)
    a, b = torch.empty(0, 4, 8, dtype=I8), torch.empty(0, 8, 5, dtype=I8)
    equal("qmatmul", [a, b], "x0", 0.5, 3, "x1", 0.5, 1, *draw.output())


@pytest.mark.parametrize("view", ["transposed", "sliced"])
def test_views(equal, draw, view):
    """Rows that do not lie one behind the other."""
    torch.manual_seed(0)
    x = draw.integers(I8, 12, 40)
    x = x.t() if view == "transposed" else x[:, ::3]
    w = weight(9, x.shape[1])
    equal("qlinear", [x], "x0", 0.5, 3, w, torch.rand(9), None, None, *draw.output())


@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("span", [(-128, 127), (-7, 7)])
def test_inputs_quantized_at_run_time(equal, groups, bits, span):
    """Each bit, with tokens of zeros, of the smallest and the largest numbers, NaN and Inf."""
    torch.manual_seed(0)
    x = torch.randn(3, 6, 96) * torch.tensor([1e-30, 1e-3, 1.0, 3e4, 1e30, 1.0])[:, None]
    x[0, 5] = 0
    x[1, 5, 2], x[2, 5, 95], x[0, 0, 0] = float("nan"), float("-inf"), 3.4e38
    # Ties: halves of steps.
    x[1, 0] = torch.arange(96) / 2 - 20
    x[1, 0, 0] = 127.5 if span[1] == 127 else 7.0
    scale = torch.rand(21) if groups is None else torch.rand(21, groups)
    for bias in (None, torch.randn(21)):
        y = equal("qlinear_dynamic", [x], "x0", *span, weight(21, 96, bits=bits), scale, None, bias)
        assert y[1, 5].isnan().all()
        assert y[2, 5].isnan().all()
        assert torch.isfinite(y[0, 1:]).all()


def test_tokens_are_divided_as_division_rounds(equal):
    """A reciprocal would give other integers: quotients that lie next to a half."""
    step = torch.tensor(12.7) / 127.5
    near = ((torch.arange(-120, 120) + 0.5) * step).repeat(3)
    near = torch.nextafter(near, torch.tensor([-9e9, 0.0, 9e9]).repeat_interleave(240))
    x = torch.cat([near, torch.tensor([12.7])])[None]
    assert (torch.round(x * (1 / step)) != torch.round(x / step)).any()
    w = weight(3, x.shape[1])
    equal("qlinear_dynamic", [x], "x0", -128, 127, w, torch.rand(3), None, None)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_products_of_activations(equal, draw, data):
    """Batches, views, operands that broadcast, vectors; all zero points."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    a_dtype, b_dtype = data.draw(BYTES), data.draw(BYTES)
    rows, depth, columns = data.draw(
        st.sampled_from([(1, 1, 1), (33, 48, 17), (5, 19, 35), (16, 64, 32)])
    )
    a_batch, b_batch = data.draw(
        st.sampled_from([((), ()), ((2, 3), (2, 3)), ((3,), ()), ((2, 1), (1, 3))])
    )
    a = draw.integers(a_dtype, *a_batch, rows, depth)
    b = draw.integers(b_dtype, *b_batch, columns, depth).transpose(-1, -2)
    layout = data.draw(st.sampled_from(["as it is", "other", "vector a", "vector b", "vectors"]))
    if layout == "other":
        a, b = a.transpose(-1, -2).contiguous().transpose(-1, -2), b.contiguous()
    if layout in ("vector a", "vectors"):
        a = draw.integers(a_dtype, depth)
    if layout in ("vector b", "vectors"):
        b = draw.integers(b_dtype, depth)
    # Zero points outside of the dtype can't fill up a row.
    zeros = [data.draw(st.sampled_from([*ZEROS[d], 1, 300])) for d in (a_dtype, b_dtype)]
    output = draw.output(data.draw(st.sampled_from([I8, U8, torch.int16, F32])), 64.0, 5)
    equal("qmatmul", [a, b], "x0", 0.5, zeros[0], "x1", 0.25, zeros[1], *output)


def test_sums_that_32_bits_might_not_hold_run_as_they_are_defined(both, draw):
    """A product of activations knows its depth only when it runs."""
    torch.manual_seed(0)
    depth = 2**31 // 255**2 + 1
    a, b = torch.full((1, depth), 255, dtype=U8), torch.full((depth, 2), 255, dtype=U8)
    wanted, found = both("qmatmul", [a, b], "x0", 1.0, 0, "x1", 1.0, 0, *draw.output(F32))
    assert torch.equal(found, wanted)
    assert float(found[0, 0]) > 2**31


def test_what_32_bits_do_not_hold(reason, draw):
    """A layer whose sum could leave 32 bits is left to the reference, with the figure."""
    w = torch.full((1, 70_000), 127, dtype=I8)
    args = ("x0", 1.0, -128, w, torch.ones(1), None, None, *draw.output())
    x = torch.zeros(1, 70_000, dtype=I8)
    assert f"a sum can reach {70_000 * 127 * 255}" in reason("qlinear", [x], *args)
    bias = torch.tensor([2**31 - 1], dtype=torch.int32)
    args = ("x0", 1.0, 0, torch.ones(1, 8, dtype=I8), torch.ones(1), None, bias, *draw.output())
    assert f"reach {2**31 - 1 + 8 * 128}" in reason("qlinear", [x[:, :8]], *args)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.int16}, "no 8-bit tensor"),
        ({"w": torch.int16}, "the weight is no 8-bit tensor"),
        ({"zero": -200}, "more than 8 bits"),
        ({"y": torch.int32}, "the output is torch.int32"),
    ],
)
def test_what_is_left_to_the_reference(reason, draw, changes, words):
    """Each reason is said."""
    w = torch.full((3, 8), 100).to(changes.get("w", I8))
    zero = torch.full((3,), changes["zero"], dtype=torch.int32) if "zero" in changes else None
    output = (0.5, 0, -9, 9, changes.get("y", I8), draw.output()[-1])
    x = torch.zeros(2, 8, dtype=changes.get("x", I8))
    found = reason("qlinear", [x], "x0", 0.5, 0, w, torch.rand(3), zero, None, *output)
    assert words in found
