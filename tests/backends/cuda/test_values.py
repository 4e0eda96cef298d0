"""Operations on single values and on windows of them: each integer is that of the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

I8, U8, I16, F32 = torch.int8, torch.uint8, torch.int16, torch.float32
ZEROS = {I8: (-128, 127, 0, 3), U8: (0, 255, 128, 7), I16: (-(2**15), 2**15 - 1, 0, -9)}
BYTES = st.sampled_from([I8, U8])
SCALES = st.sampled_from([0.5, 0.25, 0.0217, 1.0])


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [I8, U8, I16])
@pytest.mark.parametrize("scale", [0.5, 0.0217])
def test_quantizing(equal, x_dtype, dtype, scale):
    """Ties, infinities, NaN, zeros, the smallest and the largest numbers."""
    torch.manual_seed(0)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 3e38, -3e38, 1e-45])
    x = torch.cat([torch.randn(500) * 40 * scale, torch.arange(-300, 300) * scale / 2, odd])
    info = torch.iinfo(dtype)
    for zero in (info.min, info.max, 3):
        args = ("x0", scale, zero, info.min, info.max, dtype, "half_even")
        equal("quantize", [x.to(x_dtype)], *args)


def test_quotients_are_rounded_as_division_rounds(equal):
    """A reciprocal would give another integer: quotients that lie next to a half."""
    scale = float(torch.tensor(0.1))
    halves = torch.arange(-100, 100) + 0.5
    near = (halves * torch.tensor(scale)).repeat(3)
    near = torch.nextafter(near, torch.tensor([-9e9, 0.0, 9e9]).repeat_interleave(200))
    reciprocal = torch.round(near * (1 / torch.tensor(scale)))
    assert (reciprocal != torch.round(near / torch.tensor(scale))).any()
    equal("quantize", [near], "x0", scale, 0, -128, 127, I8, "half_even")


@pytest.mark.parametrize("dtype", [I8, U8, I16])
def test_back_to_float(equal, draw, dtype):
    """Every integer, and views of them."""
    x = draw.integers(dtype, 3, 5, 7)
    for view in (x, x.transpose(0, 2), x[:, ::2], x[:0]):
        equal("dequantize", [view], "x0", 0.0217, 3)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_another_scale(equal, draw, data):
    """To other qparams and storage, or to float."""
    dtype = data.draw(st.sampled_from([I8, U8, I16]))
    y_dtype = data.draw(st.sampled_from([I8, U8, I16, F32]))
    output = draw.output(y_dtype, data.draw(SCALES), 0 if y_dtype == F32 else 7)
    equal("qrequantize", [draw.integers(dtype, 700)], "x0", data.draw(SCALES), 3, *output)


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("op", ["qadd", "qmul"])
def test_sums_and_products(equal, draw, op, data):
    """Of any scales, broadcast, in any memory format, clamped at the zero point."""
    torch.manual_seed(0)
    # A sum of 16 bits is exact in float32; a product is left to the reference.
    allowed = BYTES if op == "qmul" else st.sampled_from([I8, U8, I16])
    dtypes = [data.draw(allowed) for _ in "ab"]
    a = draw.integers(dtypes[0], 2, 3, 5, 4)
    b_shape = data.draw(st.sampled_from([(2, 3, 5, 4), (3, 1, 1), (1,), (2, 1, 1, 1, 4)]))
    b = draw.integers(dtypes[1], *b_shape)
    if data.draw(st.booleans()):
        a = a.contiguous(memory_format=torch.channels_last)
    if data.draw(st.booleans()):
        a, b, dtypes = b, a, dtypes[::-1]
    zeros = [data.draw(st.sampled_from(ZEROS[dtype])) for dtype in dtypes]
    operands = ("x0", data.draw(SCALES), zeros[0], "x1", data.draw(SCALES), zeros[1])
    y_dtype = data.draw(st.sampled_from([I8, U8, I16, F32]))
    zero = 0 if y_dtype == F32 else ZEROS[y_dtype][-1]
    output = draw.output(y_dtype, data.draw(SCALES), zero, data.draw(st.booleans()))
    equal(op, [a, b], *operands, *output)


def test_one_behind_the_other(equal, draw):
    """Each part comes under the scale of the result."""
    torch.manual_seed(0)
    parts = [draw.integers(d, 2, n, 3) for d, n in ((I8, 4), (U8, 1), (I8, 2))]
    names = ["x0", "x1", "x2"]
    equal("qcat", parts, names, [0.5, 0.1, 0.3], [3, 128, -128], 1, *draw.output(I8, 0.4))


@pytest.mark.parametrize("dtype", [I8, U8])
def test_lookups(equal, draw, dtype):
    """Of every byte, of views, of nothing, of a narrower range."""
    x = torch.arange(256, dtype=torch.int32).to(U8).view(dtype)
    table = draw.integers(U8, 256)
    low = torch.iinfo(dtype).min
    for view in (x, x.reshape(4, 4, 16).transpose(0, 2), x[::3], x[:0]):
        equal("qtable", [view], "x0", table, low)
    narrow = torch.randint(0, 8, (50,)).to(dtype)
    equal("qtable", [narrow], "x0", draw.integers(I8, 8), 0)


@settings(max_examples=30, deadline=None)
@given(st.data())
@pytest.mark.parametrize("op", ["qmax_pool", "qavg_pool"])
def test_pools(equal, draw, op, data):
    """Every geometry in one and two dimensions, windows that hang over the border too."""
    torch.manual_seed(0)
    dims = data.draw(st.integers(1, 2))
    dtype = data.draw(BYTES)
    x = draw.integers(dtype, 2, 3, *[data.draw(st.integers(5, 7)) for _ in range(dims)])
    if dims == 2 and data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    kernel = [data.draw(st.integers(1, 3)) for _ in range(dims)]
    stride = data.draw(st.sampled_from([[], [1] * dims, [2] * dims]))
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    ceil = data.draw(st.booleans())
    if op == "qmax_pool":
        dilation = [data.draw(st.integers(1, 2)) for _ in range(dims)]
        equal(op, [x], "x0", kernel, stride, padding, dilation, ceil)
        return
    options = (ceil, data.draw(st.booleans()), data.draw(st.sampled_from([None, 3])))
    y_dtype = data.draw(st.sampled_from([I8, U8, I16, F32]))
    output = draw.output(y_dtype, data.draw(SCALES), 0 if y_dtype == F32 else 7)
    zero = data.draw(st.sampled_from(ZEROS[dtype]))
    equal(op, [x], "x0", data.draw(SCALES), zero, kernel, stride, padding, *options, *output)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (7, 9)])
@pytest.mark.parametrize("dtype", [I8, U8])
def test_adaptive_pools(equal, draw, size, dtype):
    """To one value, to windows that overlap, and to more values than there are."""
    torch.manual_seed(0)
    x = draw.integers(dtype, 2, 5, 7, 6)
    equal("qadaptive_max_pool", [x], "x0", list(size))
    for y_dtype in (I8, F32):
        equal("qadaptive_avg_pool", [x], "x0", 0.3, 7, list(size), *draw.output(y_dtype))
    equal("qadaptive_avg_pool", [x[:, :, 0]], "x0", 0.3, 7, [size[0]], *draw.output())


@pytest.mark.parametrize("dims", [[2, 3], [1], [-1], []])
@pytest.mark.parametrize("keep", [True, False])
def test_means(equal, draw, dims, keep):
    """Over any dimensions, in any memory format."""
    torch.manual_seed(0)
    for dtype, y_dtype in ((I8, I8), (U8, F32)):
        x = draw.integers(dtype, 2, 3, 5, 7)
        for view in (x, x.contiguous(memory_format=torch.channels_last)):
            equal("qmean", [view], "x0", 0.3, 7, dims, keep, *draw.output(y_dtype))


def test_nothing(equal, draw):
    """Empty tensors, where there are any values to compute from."""
    x = torch.empty(0, 3, 4, 4, dtype=I8)
    equal("qadd", [x, x], "x0", 0.5, 3, "x1", 0.25, 1, *draw.output())
    equal("qmax_pool", [x], "x0", [2, 2], [2, 2], [0, 0], [1, 1], False)
    equal("qadaptive_avg_pool", [x], "x0", 0.5, 3, [1, 1], *draw.output())
    equal("qadaptive_max_pool", [x], "x0", [1, 1])
    equal("qmean", [x], "x0", 0.5, 3, [2, 3], True, *draw.output())
    equal("qmul", [x, x[:, :1]], "x0", 0.5, 3, "x1", 0.25, 1, *draw.output())
    equal("qrequantize", [x], "x0", 0.5, 3, *draw.output(U8))
    equal("qcat", [x, x], ["x0", "x1"], [0.5, 0.25], [3, 0], 1, *draw.output())
    equal("quantize", [torch.empty(0, 3)], "x0", 0.5, 3, -128, 127, I8, "half_even")


@pytest.mark.parametrize(
    ("op", "args", "words"),
    [
        ("quantize", (0.5, 0, -9, 9, torch.int32, "half_even"), "8 or 16 bits"),
        ("quantize", (0.5, 0, -9, 9, I8, "half_away"), "does not round half to even"),
    ],
)
def test_what_is_left_to_the_reference(reason, op, args, words):
    """Wider integers and other roundings are not what the kernels compute."""
    assert words in reason(op, [torch.zeros(3)], "x0", *args)
