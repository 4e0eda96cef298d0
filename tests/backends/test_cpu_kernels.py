"""Each kernel of the CPU backend equals the definition of its operation, value for value."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qcore

from . import operations
from .operations import integers, zero_point

CPU = qcore.default_host().get("backend", "cpu")
pytestmark = pytest.mark.skipif(CPU.unavailable() is not None, reason=str(CPU.unavailable()))
KEY = CPU.numerics.key
BYTES = st.sampled_from([torch.int8, torch.uint8])
# Powers of two put one result in two on a tie.
SCALES = st.sampled_from([0.5, 0.25, 0.0217, 1.0, 0.37])


def both(op: str, inputs: list[Tensor], *args: object) -> tuple[Tensor, Tensor]:
    """The result by definition and that of the backend's kernel.

    Args:
        op: name of the operation.
        inputs: the tensors that are given at run time.
        args: its arguments, where "x0", "x1" stand for the inputs.
    """
    module, node = operations.built(op, inputs, *args, key=KEY)
    backend = CPU()
    assert backend.why_not(node) is None
    lowered = backend.compile(copy.deepcopy(module), frozenset({node.name}))
    assert any(n.op == "call_module" for n in lowered.graph.nodes)
    return module(*inputs), lowered(*inputs)


def output(data: st.DataObject, floats: bool = False) -> tuple:
    """The last six arguments of an operation."""
    return operations.output(data, scales=SCALES, key=KEY, floats=floats)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (7,), (3, 5, 5), (2, 4, 6, 6), (300_001,)])
def test_a_table_is_looked_up(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of any size, odd and empty ones too."""
    torch.manual_seed(0)
    x = integers(dtype, *shape)
    table = integers(torch.uint8, 256)
    wanted, found = both("qtable", [x], "x0", table, torch.iinfo(dtype).min)
    assert torch.equal(found, wanted)
    assert found.dtype == wanted.dtype


def test_a_table_of_a_narrow_range() -> None:
    """A table with fewer entries than a byte has values, to the other signedness."""
    x = torch.randint(-8, 8, (5, 9)).to(torch.int8)
    wanted, found = both("qtable", [x], "x0", integers(torch.uint8, 16), -8)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("view", ["channels_last", "transposed", "odd offset", "strided"])
def test_a_table_of_a_view(view: str) -> None:
    """The layout of the input does not matter."""
    x = integers(torch.uint8, 2, 6, 5, 8)
    views = {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(1, 3),
        "odd offset": x.flatten()[1:48],
        "strided": x[..., ::2],
    }
    wanted, found = both("qtable", [views[view]], "x0", integers(torch.int8, 256), 0)
    assert torch.equal(found, wanted)


@settings(max_examples=30, deadline=None)
@given(st.data())
@pytest.mark.parametrize("op", ["qadd", "qmul"])
def test_sums_and_products(op: str, data: st.DataObject) -> None:
    """Of any scales, also where one operand is broadcast."""
    torch.manual_seed(0)
    a_dtype, b_dtype = data.draw(BYTES), data.draw(BYTES)
    a = integers(a_dtype, 3, 4, 6, 5)
    b = integers(
        b_dtype, *data.draw(st.sampled_from([(3, 4, 6, 5), (4, 1, 1), (1,), (2, 1, 1, 1, 5)]))
    )
    if data.draw(st.booleans()):
        a = a.contiguous(memory_format=torch.channels_last)
    operands = ("x0", data.draw(SCALES), zero_point(data, a_dtype))
    operands += ("x1", data.draw(SCALES), zero_point(data, b_dtype))
    wanted, found = both(op, [a, b], *operands, *output(data))
    assert torch.equal(found, wanted)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_requantization(data: st.DataObject) -> None:
    """To another scale, zero point and storage."""
    dtype = data.draw(BYTES)
    x = integers(dtype, 1000)
    args = ("x0", data.draw(SCALES), zero_point(data, dtype), *output(data))
    wanted, found = both("qrequantize", [x], *args)
    assert torch.equal(found, wanted)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_maximum_pools(data: st.DataObject) -> None:
    """In one to three dimensions, with every geometry, in either memory format."""
    torch.manual_seed(0)
    dims = data.draw(st.integers(1, 3))
    x = integers(data.draw(BYTES), 2, 3, *[data.draw(st.integers(5, 9)) for _ in range(dims)])
    if dims > 1 and data.draw(st.booleans()):
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        x = x.contiguous(memory_format=formats[dims])
    kernel = [data.draw(st.integers(1, 3)) for _ in range(dims)]
    stride = data.draw(st.sampled_from([[], [1] * dims, [2] * dims, [3] * dims]))
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(dims)]
    wanted, found = both("qmax_pool", [x], "x0", kernel, stride, padding, dilation, False)
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_global_average_pools(data: st.DataObject) -> None:
    """To one value a channel, over odd and even counts."""
    torch.manual_seed(0)
    dtype = data.draw(BYTES)
    size = data.draw(st.sampled_from([(1, 1), (7, 7), (4, 8), (300, 300)]))
    x = integers(dtype, 2, 3, *size)
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    args = ("x0", data.draw(SCALES), zero_point(data, dtype), [1, 1], *output(data, floats=True))
    wanted, found = both("qadaptive_avg_pool", [x], *args)
    assert torch.equal(found, wanted)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_matrix_products(data: st.DataObject) -> None:
    """Of transposed views, of batches, of one row, of operands that broadcast, and of long sums."""
    torch.manual_seed(0)
    a_dtype, b_dtype = data.draw(BYTES), data.draw(BYTES)
    rows, columns = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    depth = data.draw(st.sampled_from([1, 5, 64, 700]))
    a_batch, b_batch = data.draw(
        st.sampled_from([((), ()), ((2, 3), (2, 3)), ((2, 3), ()), ((2, 1), (1, 3)), ((0,), (0,))])
    )
    a = integers(a_dtype, *a_batch, rows, depth)
    b = integers(b_dtype, *b_batch, columns, depth).transpose(-1, -2)
    if data.draw(st.booleans()):
        b = b.contiguous()
    operands = ("x0", data.draw(SCALES), zero_point(data, a_dtype))
    operands += ("x1", data.draw(SCALES), zero_point(data, b_dtype))
    wanted, found = both("qmatmul", [a, b], *operands, *output(data, floats=True))
    assert torch.equal(found, wanted)
    assert found.shape == wanted.shape


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_quantizing(data: st.DataObject) -> None:
    """Ties, infinities, NaN, zeros and the largest numbers, of any float dtype."""
    torch.manual_seed(0)
    dtype, scale = data.draw(BYTES), data.draw(SCALES)
    special = torch.tensor(
        [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 3e38, -3e38, 1e-45]
    )
    x = torch.cat([torch.randn(500) * 40 * scale, torch.arange(-300, 300) * scale / 2, special])
    if data.draw(st.booleans()):
        x = x[:-8]
    x = x.to(data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])))
    info = torch.iinfo(dtype)
    args = (scale, zero_point(data, dtype), info.min, info.max, dtype, "half_even")
    wanted, found = both("quantize", [x], "x0", *args)
    assert torch.equal(found, wanted)


def test_quantizing_by_slices() -> None:
    """A batch that is worked through in parts, in channels last."""
    torch.manual_seed(0)
    x = torch.randn(5, 3, 200, 200).contiguous(memory_format=torch.channels_last)
    x[3, 1, 7, 7] = float("nan")
    wanted, found = both("quantize", [x], "x0", 0.03, 128, 0, 255, torch.uint8, "half_even")
    assert torch.equal(found, wanted)
    assert found.stride() == wanted.stride()
    back = both("dequantize", [found], "x0", 0.03, 128)
    assert torch.equal(*back)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_transposed_convolutions(data: st.DataObject) -> None:
    """As convolutions of the spread input: every geometry, with groups and padding that cuts."""
    torch.manual_seed(0)
    dims, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2]))
    dtype = data.draw(BYTES)
    size = [data.draw(st.integers(1, 4)) for _ in range(dims)]
    kernel = [data.draw(st.integers(1, 3)) for _ in range(dims)]
    stride = [data.draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(dims)]
    padding = [data.draw(st.integers(0, k)) for k in kernel]
    extra = [
        data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
    ]
    out = [
        (n - 1) * s - 2 * p + d * (k - 1) + e + 1
        for n, s, p, d, k, e in zip(size, stride, padding, dilation, kernel, extra, strict=True)
    ]
    if min(out) < 1:
        return
    x = integers(dtype, 2, 4, *size)
    w = torch.randint(-127, 128, (4, 3, *kernel)).to(torch.int8)
    w_scale = data.draw(st.sampled_from([torch.tensor(0.25), torch.rand(3) * 0.01 + 0.001]))
    bias = data.draw(st.sampled_from([None, torch.randn(3 * groups)]))
    args = ("x0", data.draw(SCALES), zero_point(data, dtype), w, w_scale, None, bias)
    geometry = (stride, padding, extra, dilation, groups)
    wanted, found = both("qconv_transpose", [x], *args, *geometry, *output(data, floats=True))
    assert torch.equal(found, wanted)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_convolutions_of_single_pixels(data: st.DataObject) -> None:
    """They run as linear layers where the input has a zero point."""
    torch.manual_seed(0)
    dtype, dims = data.draw(BYTES), data.draw(st.integers(1, 3))
    x = integers(dtype, *data.draw(st.sampled_from([(2, 4), (0, 4)])), *[5] * dims)
    w = torch.randint(-127, 128, (6, 4, *[1] * dims)).to(torch.int8)
    args = ("x0", data.draw(SCALES), zero_point(data, dtype), w, torch.rand(6) * 0.01, None)
    geometry = (torch.randn(6), [1] * dims, [0] * dims, [1] * dims, 1, None, 1.0, 0)
    wanted, found = both("qconv", [x], *args, *geometry, *output(data, floats=True))
    assert torch.equal(found, wanted)


class Twice(torch.nn.Module):
    """A residual that is read again after it was added."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.third = torch.nn.Conv2d(8, 8, 1)
        self.head = torch.nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = torch.relu(self.second(x) + x)
        return self.head(self.third(y) + x)


def test_a_residual_that_is_read_later_is_not_overwritten() -> None:
    """The kernel adds into its memory only where nobody reads it any more."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    recipe = qcore.Recipe(preset="uint8", backend="cpu")
    q = qcore.convert(qcore.calibrate(qcore.prepare(Twice().eval(), x[:2], recipe), [x]))
    lowered = qcore.lower(q, "cpu")
    assert torch.equal(lowered(x), q(x))
    kernels = [m for m in lowered.modules() if hasattr(m, "overwrite")]
    assert [m.overwrite for m in kernels].count(True) == 1
    assert torch.equal(lowered(x), q(x))


def test_a_convolution_that_is_added_to_its_own_input() -> None:
    """Input and residual are one tensor, which must not change while it is read."""

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 1)
            self.conv = torch.nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            return torch.relu(self.conv(x) + x).flatten(1)

    x = torch.randn(4, 3, 8, 8)
    recipe = qcore.Recipe(preset="uint8", backend="cpu")
    q = qcore.convert(qcore.calibrate(qcore.prepare(Own().eval(), x[:2], recipe), [x]))
    assert torch.equal(qcore.lower(q, "cpu")(x), q(x))
