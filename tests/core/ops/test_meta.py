"""Meta kernels tell the truth, and every operation can be exported and compiled."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from .calls import CALLS, OPERATIONS, call
from .cases import DEFAULT, ints

BATCHED = [
    name
    for name, (operation, args) in CALLS.items()
    if operation not in ("dequantize_block", "unpack", "qcat")
    and isinstance(args[0], Tensor)
    and args[0].is_contiguous()
    and args[0].ndim > 1
    and "residual" not in name
    and "matmul" not in name
    and operation not in ("qadd", "qsub", "qmul")
    and operation != "qrecurrent"
    and name not in ("qembedding_bag-weights", "qembedding_bag-offsets")
]


def significant_strides(x: Tensor) -> list[int]:
    """Strides of the dimensions that have a second index."""
    return [s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1]


def test_every_operation_is_called() -> None:
    """The table of calls leaves no operation out."""
    assert {operation for operation, _ in CALLS.values()} == OPERATIONS


@pytest.mark.parametrize("name", CALLS)
def test_fake_result_is_like_the_real_one(name: str) -> None:
    """Shape, dtype, device and strides, also of channels_last and transposed inputs."""
    operation, args = CALLS[name]
    real = call(name)
    mode = FakeTensorMode()
    fakes = tree_map(lambda a: mode.from_tensor(a) if isinstance(a, Tensor) else a, args)
    with mode:
        fake = getattr(torch.ops.qcore, operation)(*fakes)
    assert fake.shape == real.shape
    assert fake.dtype == real.dtype
    assert fake.device == real.device
    assert significant_strides(fake) == significant_strides(real)
    assert not real.is_inference()


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name: str) -> None:
    """torch's own check of schema and meta kernel: nothing is mutated, nothing aliased."""
    operation, args = CALLS[name]
    overload = getattr(torch.ops.qcore, operation).default
    torch.library.opcheck(overload, args, test_utils=("test_schema", "test_faketensor"))


class Call(nn.Module):
    """One call as a module; the first operand is its input."""

    def __init__(self, name: str) -> None:
        super().__init__()
        operation, self.args = CALLS[name]
        self.operation = getattr(torch.ops.qcore, operation)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.operation(x, *self.args[1:])
        return result


def larger(x: Tensor) -> Tensor:
    """A batch of another size."""
    return torch.cat([x, x.flip(0), x])


@pytest.mark.parametrize("name", BATCHED)
def test_export_with_a_dynamic_batch(name: str) -> None:
    """Each operation is one node, and the program runs on a batch of any other size."""
    module, x = Call(name), CALLS[name][1][0]
    shapes = {"x": {0: torch.export.Dim("batch", max=4096)}}
    program = torch.export.export(module, (x,), dynamic_shapes=shapes)
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert targets == [module.operation.default]
    exported = program.module()
    for data in (x, larger(x)):
        assert torch.equal(exported(data), module(data))


class Block(nn.Module):
    """A quantized residual block with all that surrounds it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table, self.linear = ints((4, 4, 3, 3)), ints((256,)), ints((10, 4))
        self.scale = torch.tensor(0.02)

    def forward(self, x: Tensor) -> Tensor:
        ops, y = torch.ops.qcore, (0.1, 3, -128, 127, torch.int8, DEFAULT)
        q = ops.quantize(x, 0.05, -3, -128, 127, torch.int8, "half_even")
        window = ([1, 1], [1, 1], [1, 1], 1)
        q = ops.qconv(q, 0.05, -3, self.conv, self.scale, None, None, *window, q, 0.05, -3, *y)
        q = ops.qmax_pool(q, [2, 2], [2, 2], [0, 0], [1, 1], False)
        q = ops.qtable(q, self.table, -128)
        q = ops.qadd(q, 0.1, 3, q.flip(3), 0.1, 3, *y)
        q = ops.qadaptive_avg_pool(q, 0.1, 3, [1, 1], *y).flatten(1)
        q = ops.qlinear(q, 0.1, 3, self.linear, self.scale, None, None, *y)
        return ops.dequantize(q, 0.1, 3)


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_program_exports_and_compiles(fmt: torch.memory_format) -> None:
    """Several operations in a row: exported with a dynamic batch, compiled as one graph."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 8, generator=generator).contiguous(memory_format=fmt)
    block = Block()
    program = torch.export.export(
        block, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", max=4096)}}
    )
    compiled = torch.compile(block, backend="eager", fullgraph=True, dynamic=True)
    for data in (x, larger(x).contiguous(memory_format=fmt)):
        expected = block(data)
        assert expected.unique().numel() > 5
        assert torch.equal(program.module()(data), expected)
        assert torch.equal(compiled(data), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["qconv-2d-last", "qlinear-tokens", "qcat", "qavg_pool-2d"])
def test_single_operations_compile(name: str) -> None:
    """torch.compile keeps the call whole and gives the same integers."""
    operation, args = CALLS[name]

    def run(*args: Any) -> Tensor:
        result: Tensor = getattr(torch.ops.qcore, operation)(*args)
        return result

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*args), call(name))
    torch.compiler.reset()
