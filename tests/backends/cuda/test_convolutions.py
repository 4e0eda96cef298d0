"""Convolutions on each of the kernels: every integer is that of the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

I8, U8, F32 = torch.int8, torch.uint8, torch.float32
ZEROS = {I8: (-128, 127, 0, 3), U8: (0, 255, 128, 7)}


def weight(*shape):
    return torch.randint(-100, 101, shape).to(I8)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_every_geometry(equal, draw, data):
    """Groups, dilation, stride, padding, one and two dimensions, residuals, either format."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    dims = data.draw(st.sampled_from([1, 2, 2]))
    groups, inputs, outputs = data.draw(
        # One tap a tile, several taps a tile, tails of both, grouped, depthwise with a multiple.
        st.sampled_from([(1, 36, 20), (1, 3, 8), (2, 5, 7), (2, 33, 3), (6, 1, 2), (5, 1, 1)])
    )
    kernel = [data.draw(st.integers(1, 3)) for _ in range(dims)]
    stride = [data.draw(st.integers(1, 2)) for _ in range(dims)]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(dims)]
    padding = [data.draw(st.integers(0, 2)) for _ in range(dims)]
    size = [data.draw(st.integers(5, 7)) for _ in range(dims)]
    x_dtype = data.draw(st.sampled_from([I8, U8]))
    y_dtype = data.draw(st.sampled_from([I8, U8, F32]))
    channels = groups * outputs
    x = draw.integers(x_dtype, data.draw(st.integers(1, 2)), groups * inputs, *size)
    if dims == 2 and data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    given_inputs, other = [x], (None, 1.0, 0)
    if data.draw(st.booleans()):
        out = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
        ]
        o_dtype = data.draw(st.sampled_from([I8, U8]))
        given_inputs.append(draw.integers(o_dtype, x.shape[0], channels, *out))
        other = ("x1", data.draw(st.sampled_from([0.5, 0.037])), ZEROS[o_dtype][-1])
    ties = data.draw(st.booleans())
    w_scale = torch.full((channels,), 0.5) if ties else torch.rand(channels) * 0.01
    w_scale = data.draw(st.sampled_from([w_scale, w_scale[0]]))
    bias = data.draw(
        st.sampled_from([None, torch.randint(-9999, 9999, (channels,), dtype=torch.int32)])
    )
    zero = 0 if y_dtype == F32 else ZEROS[y_dtype][-1]
    equal(
        "qconv", given_inputs, "x0", 0.5, data.draw(st.sampled_from(ZEROS[x_dtype])),
        weight(channels, inputs, *kernel), w_scale, None, bias, stride, padding, dilation, groups,
        *other, *draw.output(y_dtype, 16.0 if ties else 0.7, zero, data.draw(st.booleans())),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "inputs", "kernel", "label"),
    [
        (1, 8, 1, "triton int8 convolution of single pixels"),
        (8, 1, 3, "triton int8 depthwise convolution"),
        (2, 4, 3, "triton int8 convolution"),
    ],
)
def test_each_has_its_kernel(device, draw, groups, inputs, kernel, label):
    """Single pixels and depthwise layers have kernels of their own; the plan names them."""
    from torch import nn

    import qcore

    conv = nn.Conv2d(groups * inputs, 8, kernel, groups=groups)
    x = torch.randn(2, 8, 6, 6)
    q = qcore.convert(qcore.calibrate(qcore.prepare(nn.Sequential(conv).eval(), x), [x]))
    table = qcore.lowered_info(qcore.lower(q.to(device), "cuda"))[""]
    assert label in table.kernels.values()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_single_pixels(equal, draw, data):
    """One to three dimensions, either format, residuals, two weights to a byte, any output."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    dims = data.draw(st.sampled_from([1, 2, 2, 3]))
    inputs, outputs = data.draw(st.sampled_from([(1, 1), (5, 33), (64, 7)]))
    bits = data.draw(st.sampled_from([4, 8]))
    x_dtype = data.draw(st.sampled_from([I8, U8]))
    y_dtype = data.draw(st.sampled_from([I8, U8, torch.int16, F32]))
    size = [data.draw(st.integers(1, 4)) for _ in range(dims)]
    x = draw.integers(x_dtype, data.draw(st.integers(1, 2)), inputs, *size)
    given_inputs, other = [x], (None, 1.0, 0)
    if data.draw(st.booleans()):
        o_dtype = data.draw(st.sampled_from([I8, U8]))
        given_inputs.append(draw.integers(o_dtype, x.shape[0], outputs, *size))
        other = ("x1", 0.037, ZEROS[o_dtype][-1])
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if dims > 1 and data.draw(st.booleans()):
        given_inputs = [t.contiguous(memory_format=formats[t.ndim]) for t in given_inputs]
    w = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (outputs, inputs, *[1] * dims)).to(I8)
    bias = data.draw(st.sampled_from([None, torch.randint(-99, 99, (outputs,), dtype=torch.int32)]))
    geometry = ([1] * dims, [0] * dims, [1] * dims, 1)
    equal(
        "qconv", given_inputs, "x0", 0.5, data.draw(st.sampled_from(ZEROS[x_dtype])), w,
        torch.rand(outputs) * 0.01, None, bias, *geometry, *other,
        *draw.output(y_dtype, 0.07, 0 if y_dtype == F32 else 7, data.draw(st.booleans())),
    )  # fmt: skip


@pytest.mark.parametrize(("groups", "kernel"), [(1, 1), (1, 3), (4, 3)])
@pytest.mark.parametrize("y_dtype", [I8, torch.int16, F32])
def test_a_float_bias_is_added_after_the_scale(equal, draw, groups, kernel, y_dtype):
    """As a program of another contract has it, on each kernel; 16-bit outputs too."""
    torch.manual_seed(0)
    equal(
        "qconv", [draw.integers(U8, 2, 4, 5, 5)], "x0", 0.5, 7,
        weight(4, 4 // groups, kernel, kernel), torch.rand(4) * 0.01, None, torch.randn(4),
        [1, 1], [kernel // 2] * 2, [1, 1], groups, None, 1.0, 0, *draw.output(y_dtype, 0.07),
    )  # fmt: skip


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("x_dtype", [I8, U8])
def test_the_border_is_the_zero_point(equal, draw, groups, x_dtype):
    """Where only padding is seen the result is that of the bias, at extreme zero points too."""
    for zero in ZEROS[x_dtype]:
        x = draw.integers(x_dtype, 1, 4, 3, 3)
        equal(
            "qconv", [x], "x0", 0.5, zero, weight(4, 4 // groups, 3, 3), torch.rand(4) * 0.01, None,
            torch.randint(-99, 99, (4,), dtype=torch.int32), [1, 1], [4, 4], [1, 1], groups,
            None, 1.0, 0, *draw.output(),
        )  # fmt: skip


def test_no_images(equal, draw):
    """A batch of nothing, on each kernel."""
    for groups, kernel in ((1, 1), (1, 3), (4, 3)):
        x = torch.empty(0, 4, 5, 5, dtype=I8)
        equal(
            "qconv", [x], "x0", 0.5, 3, weight(4, 4 // groups, kernel, kernel), torch.rand(4), None,
            None, [1, 1], [0, 0], [1, 1], groups, None, 1.0, 0, *draw.output(),
        )  # fmt: skip


def test_a_weight_with_zero_points(equal, reason, draw):
    """It is taken off when the program is lowered, where 8 bits hold the difference."""
    torch.manual_seed(0)
    x, zero = draw.integers(I8, 2, 4, 5, 5), torch.tensor([3, -9, 0], dtype=torch.int32)
    geometry = ([1, 1], [1, 1], [1, 1], 1, None, 1.0, 0, *draw.output())
    args = ("x0", 0.5, 3, weight(3, 4, 3, 3), torch.rand(3) * 0.01)
    equal("qconv", [x], *args, zero, None, *geometry)
    assert "more than 8 bits" in reason("qconv", [x], *args, zero - 100, None, *geometry)


def test_what_is_left_to_the_reference(reason, draw):
    """Three dimensions, and a border that the input could not hold."""
    x, w = torch.zeros(1, 2, 4, 4, 4, dtype=I8), weight(2, 2, 2, 2, 2)
    geometry = ([1] * 3, [0] * 3, [1] * 3, 1, None, 1.0, 0, *draw.output())
    found = reason("qconv", [x], "x0", 0.5, 3, w, torch.rand(2), None, None, *geometry)
    assert "three dimensions" in found
    x, w = torch.zeros(1, 2, 4, 4, dtype=I8), weight(2, 2, 3, 3)
    geometry = ([1] * 2, [1] * 2, [1] * 2, 1, None, 1.0, 0, *draw.output())
    found = reason("qconv", [x], "x0", 0.5, 200, w, torch.rand(2), None, None, *geometry)
    assert "padding" in found
