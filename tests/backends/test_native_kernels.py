"""Each kernel of the native backend equals the definition of its operation, value for value: on
every instruction set of this machine, with one thread and with two."""

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

import qcore
from qcore_backends.native.library import ISA_VARIABLE, library

from . import operations
from .operations import built, integers, typed, zero_point

NATIVE = qcore.default_host().get("backend", "native")
pytestmark = pytest.mark.skipif(NATIVE.unavailable() is not None, reason=str(NATIVE.unavailable()))
KEY = NATIVE.numerics.key
BYTES = st.sampled_from([torch.int8, torch.uint8])
# Powers of two put one result in two on a tie.
SCALES = st.sampled_from([0.5, 0.25, 0.0217, 1.0, 0.0037])
examples = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Tests change the number of threads of torch."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check(op: str, inputs: list[Tensor], *args: object, others: tuple = ()) -> None:
    """The kernel gives what the definition gives, everywhere.

    Args:
        others: further lists of inputs, to be run by the same lowered program.
    """
    module, node = built(op, inputs, *args, key=KEY)
    backend = NATIVE()
    assert backend.why_not(node) is None
    lowered = backend.compile(copy.deepcopy(module), frozenset({node.name}))
    assert any(n.op == "call_module" for n in lowered.graph.nodes)
    for tensors in (inputs, *others):
        wanted = module(*tensors)
        for isa in library().isas():
            for threads in (1, 2):
                torch.set_num_threads(threads)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv(ISA_VARIABLE, isa)
                    found = lowered(*tensors)
                assert found.dtype == wanted.dtype
                assert found.stride() == wanted.stride()
                assert torch.equal(found, wanted), (isa, threads)


def output(data: st.DataObject, floats: bool = True) -> tuple:
    """The last six arguments of an operation."""
    return operations.output(data, scales=SCALES, key=KEY, floats=floats)


def weights(
    data: st.DataObject, *shape: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Weight, scale, zero point and bias of ``shape[0]`` channels."""
    channels = shape[0]
    bits = data.draw(st.sampled_from([8, 4]))
    w = torch.randint(-(1 << bits - 1), 1 << bits - 1, shape).to(torch.int8)
    scale = data.draw(st.sampled_from([torch.tensor(0.0173), torch.rand(channels) + 0.01]))
    zero = None
    if bits == 4 and data.draw(st.booleans()):
        zero = torch.randint(-8, 8, (channels,), dtype=torch.int32)
    bias = torch.randint(-5000, 5000, (channels,), dtype=torch.int32)
    return w, scale, zero, data.draw(st.sampled_from([bias, None]))


def images(data: st.DataObject, dtype: torch.dtype, *shape: int) -> Tensor:
    x = integers(dtype, *shape)
    if data.draw(st.booleans()):
        return x.contiguous(memory_format=torch.channels_last)
    return x


@examples
@given(st.data())
def test_convolutions(data: st.DataObject) -> None:
    """Of any geometry, channels and groups; a second batch size by the same lowered program."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    dtype = data.draw(BYTES)
    groups = data.draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels = groups * data.draw(st.sampled_from([1, 3, 16, 21, 64]))
    outputs = groups * data.draw(st.sampled_from([1, 5, 16, 17, 40, 67]))
    kernel = [data.draw(st.sampled_from([1, 3, 2])), data.draw(st.sampled_from([1, 3, 4]))]
    stride = [data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2, 3]))]
    padding = [data.draw(st.integers(0, 1)), data.draw(st.integers(0, 2))]
    dilation = [data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 1, 2]))]
    size = data.draw(st.sampled_from([(9, 8), (7, 7), (12, 15)]))
    x = images(data, dtype, 2, channels, *size)
    w, scale, zero, bias = weights(data, outputs, channels // groups, *kernel)
    args = ["x0", data.draw(SCALES), zero_point(data, dtype), w, scale, zero, bias]
    args += [stride, padding, dilation, groups]
    inputs, others = [x], [integers(dtype, 1, channels, *size)]
    if data.draw(st.booleans()):
        shape = torch.nn.functional.conv2d(
            x.float(), w.float(), None, stride, padding, dilation, groups
        ).shape
        other = data.draw(BYTES)
        inputs.append(integers(other, *shape))
        others.append(integers(other, 1, *shape[1:]))
        args += ["x1", data.draw(SCALES), zero_point(data, other)]
    else:
        args += [None, 1.0, 0]
    check("qconv", inputs, *args, *output(data), others=(others,))


@examples
@given(st.data())
def test_depthwise_convolutions(data: st.DataObject) -> None:
    """Of any kernel, stride, padding and dilation, in one and two dimensions."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    dtype = data.draw(BYTES)
    channels = data.draw(st.sampled_from([2, 15, 16, 33, 96]))
    kernel = data.draw(st.sampled_from([(3, 3), (5, 5), (1, 3), (4, 2), (7,), (3,)]))
    dims = len(kernel)
    stride = [data.draw(st.sampled_from([1, 2])) for _ in range(dims)]
    dilation = [data.draw(st.sampled_from([1, 2])) for _ in range(dims)]
    padding = [data.draw(st.integers(0, 3)) for _ in range(dims)]
    x = integers(dtype, 2, channels, *(17, 14)[:dims])
    w, scale, zero, bias = weights(data, channels, 1, *kernel)
    args = ["x0", data.draw(SCALES), zero_point(data, dtype), w, scale, zero, bias]
    args += [stride, padding, dilation, channels, None, 1.0, 0]
    check("qconv", [x], *args, *output(data))


@examples
@given(st.data())
def test_linear_layers(data: st.DataObject) -> None:
    """With any rows, columns and depth, whole blocks and what is left over."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    dtype = data.draw(BYTES)
    depth = data.draw(st.sampled_from([1, 3, 4, 63, 64, 65, 130, 200]))
    columns = data.draw(st.sampled_from([1, 15, 16, 17, 48, 49, 64, 80, 130]))
    rows = data.draw(st.sampled_from([(1,), (2,), (7,), (3, 3), (31,), (33,), (2, 50), (300,)]))
    x = integers(dtype, *rows, depth)
    w, scale, zero, bias = weights(data, columns, depth)
    args = ["x0", data.draw(SCALES), zero_point(data, dtype), w, scale, zero, bias]
    others = ([integers(dtype, *rows, 2 * depth)[..., ::2]], [integers(dtype, 12, depth)])
    check("qlinear", [x], *args, *output(data), others=others)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize(("value", "weight"), [("max", -128), ("min", -128), ("max", 127)])
def test_the_largest_sums(dtype: torch.dtype, value: str, weight: int) -> None:
    """No pair of products saturates, whatever the instruction set."""
    x = torch.full((9, 4096), getattr(torch.iinfo(dtype), value), dtype=dtype)
    w = torch.full((20, 4096), weight, dtype=torch.int8)
    scale, bias = torch.full((20,), 1e-6), torch.full((20,), 2**28, dtype=torch.int32)
    for zero in (torch.iinfo(dtype).min, torch.iinfo(dtype).max):
        check(
            "qlinear", [x], "x0", 0.5, zero, w, scale, None, bias, 1.0, 0, 0, 0, torch.float32, KEY
        )


def test_four_bit_weights_that_are_packed() -> None:
    """The weight is what the packed bytes stand for."""
    packed = torch.randint(0, 256, (24, 10), dtype=torch.uint8)
    graph = fx.Graph()
    x = typed(graph, graph.placeholder("x"), torch.uint8, KEY)
    w = graph.call_function(torch.ops.qcore.unpack.default, (graph.get_attr("w"), 4, True, 19))
    args = (x, 0.5, 3, w, graph.get_attr("s"), None, None, 2.0, 1, 0, 255, torch.uint8, KEY)
    node = graph.call_function(torch.ops.qcore.qlinear.default, args)
    graph.output(node)
    module = fx.GraphModule({"w": packed, "s": torch.full((24,), 0.25)}, graph)
    lowered = NATIVE().compile(copy.deepcopy(module), frozenset({node.name}))
    values = integers(torch.uint8, 5, 19)
    assert torch.equal(lowered(values), module(values))


@examples
@given(st.data())
def test_products_of_activations(data: st.DataObject) -> None:
    """Of matrices, batches, broadcast batches and vectors, with transposed operands."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    a_dtype, b_dtype = data.draw(BYTES), data.draw(BYTES)
    m, k, n = (data.draw(st.sampled_from([1, 2, 5, 16, 20, 65])) for _ in range(3))
    shapes = data.draw(
        st.sampled_from(
            [
                ((m, k), (k, n)),
                ((3, m, k), (3, k, n)),
                ((2, 3, m, k), (2, 3, k, n)),
                ((2, 3, m, k), (3, k, n)),
                ((2, 1, 2, m, k), (3, 1, k, n)),
                ((k,), (2, k, n)),
                ((2, m, k), (k,)),
            ]
        )
    )
    a, b = integers(a_dtype, *shapes[0]), integers(b_dtype, *shapes[1])
    if b.ndim > 1 and data.draw(st.booleans()):
        b = b.transpose(-1, -2).contiguous().transpose(-1, -2)
    args = ["x0", data.draw(SCALES), zero_point(data, a_dtype)]
    args += ["x1", data.draw(SCALES), zero_point(data, b_dtype)]
    check("qmatmul", [a, b], *args, *output(data))


@examples
@given(st.data())
@pytest.mark.parametrize("op", ["qadd", "qmul"])
def test_sums_and_products(op: str, data: st.DataObject) -> None:
    """Of any scales, also where one operand is broadcast."""
    torch.manual_seed(0)
    a_dtype, b_dtype = data.draw(BYTES), data.draw(BYTES)
    a = images(data, a_dtype, 3, 4, 6, 5)
    b = integers(
        b_dtype, *data.draw(st.sampled_from([(3, 4, 6, 5), (4, 1, 1), (1,), (2, 1, 1, 1, 5)]))
    )
    operands = ("x0", data.draw(SCALES), zero_point(data, a_dtype))
    operands += ("x1", data.draw(SCALES), zero_point(data, b_dtype))
    check(op, [a, b], *operands, *output(data))


@examples
@given(st.data())
def test_requantization_and_dequantization(data: st.DataObject) -> None:
    """To another scale, zero point and storage, and to float."""
    dtype, size = data.draw(BYTES), data.draw(st.sampled_from([1, 15, 1000, 40_000]))
    x, scale, zero = integers(dtype, size), data.draw(SCALES), zero_point(data, dtype)
    check("qrequantize", [x], "x0", scale, zero, *output(data))
    check("dequantize", [x], "x0", scale, zero)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 5), (2, 4, 6, 6), (70_001,)])
def test_tables(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Of whole and of narrower ranges, to either signedness."""
    torch.manual_seed(0)
    low = torch.iinfo(dtype).min
    check("qtable", [integers(dtype, *shape)], "x0", integers(torch.int8, 256), low)
    narrow = torch.randint(0, 16, shape).to(dtype)
    check("qtable", [narrow], "x0", integers(torch.uint8, 16), 0)


SPECIAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.25, 0.75, -0.25]


@examples
@given(st.data())
def test_quantization(data: st.DataObject) -> None:
    """Of ties, infinities and NaN, in any memory format, from any float of at most 32 bits."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    dtype = data.draw(BYTES)
    shape = data.draw(st.sampled_from([(3,), (2, 3, 9, 7), (4, 40), (1, 3, 64, 64), (2, 5, 6)]))
    x = torch.randn(shape) * 30
    x.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)[: x.numel()]
    views = [x, x.transpose(0, -1), x[..., ::2], x.half(), x.bfloat16()]
    if x.ndim == 4:
        views.append(x.contiguous(memory_format=torch.channels_last))
    info = torch.iinfo(dtype)
    args = (data.draw(SCALES), zero_point(data, dtype), info.min, info.max, dtype, "half_even")
    check("quantize", [data.draw(st.sampled_from(views))], "x0", *args)


@examples
@given(st.data())
def test_max_pools(data: st.DataObject) -> None:
    """Of any window, in one and two dimensions, with and without a batch."""
    torch.manual_seed(0)
    dims = data.draw(st.sampled_from([1, 2]))
    x = integers(data.draw(BYTES), *[2] * data.draw(st.integers(0, 1)), 19, *(11, 9)[:dims])
    kernel = [data.draw(st.integers(2, 3)) for _ in range(dims)]
    stride = data.draw(st.sampled_from([[], [1] * dims, [2] * dims]))
    padding = [data.draw(st.integers(0, 1)) for _ in range(dims)]
    dilation = [data.draw(st.integers(1, 2)) for _ in range(dims)]
    check("qmax_pool", [x], "x0", kernel, stride, padding, dilation, False)


@examples
@given(st.data())
def test_averages_of_whole_images(data: st.DataObject) -> None:
    """In one to three dimensions, with and without a batch."""
    torch.manual_seed(0)
    dims, dtype = data.draw(st.integers(1, 3)), data.draw(BYTES)
    x = integers(dtype, *[2] * data.draw(st.integers(0, 1)), 35, *(7, 5, 3)[:dims])
    args = ("x0", data.draw(SCALES), zero_point(data, dtype), [1] * dims)
    check("qadaptive_avg_pool", [x], *args, *output(data))


LINEAR = ("x0", 0.5, 0, torch.ones(2, 3, dtype=torch.int8), torch.ones(2), None, None)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({4: torch.ones(2, 3)}, "in groups"),
        ({5: torch.full((2,), -200, dtype=torch.int32)}, "does not fit 8 bits"),
        ({6: torch.ones(2)}, "bias is not an integer"),
        ({6: torch.full((2,), 2**31 - 1, dtype=torch.int32)}, "exceed 32 bits"),
        ({7: (1.0, 0, -9, 99, torch.int16, KEY)}, "the output is torch.int16"),
    ],
)
def test_what_has_no_kernel_has_a_reason(changes: dict, reason: str) -> None:
    """Weights, biases and outputs that the kernels can't compute exactly are named."""
    args = [*LINEAR, (1.0, 0, 0, 255, torch.uint8, KEY)]
    for i, value in changes.items():
        args[i] = value
    _, node = built("qlinear", [integers(torch.uint8, 4, 3)], *args[:7], *args[7], key=KEY)
    assert reason in (NATIVE().why_not(node) or "")
