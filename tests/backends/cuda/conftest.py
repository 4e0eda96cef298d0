"""Kernels of the CUDA backend beside their definition: in Triton's interpreter, or on a GPU."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import qcore

CUDA = qcore.default_host().get("backend", "cuda")
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not CUDA.unavailable() else "cpu")
KEY = qcore.Numerics().key


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs the kernels where they can't run."""
    why = CUDA.unavailable()
    for item in items:
        if why is not None and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(
    scope="session", params=[DEVICE], ids=["cuda" if DEVICE.type == "cuda" else "interpreter"]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where kernels run: on the GPU if there is one, else in the interpreter."""
    return request.param


def _typed(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """The node behind an operation that says what it stores."""
    info = torch.iinfo(dtype)
    args = (node, 1.0, 0, 1.0, 0, info.min, info.max, dtype, KEY)
    return graph.call_function(torch.ops.qcore.qrequantize.default, args)


def program_of(op: Any, inputs: list[Tensor], *args: Any) -> tuple[fx.GraphModule, fx.Node]:
    """A program of one operation.

    Args:
        op: an overload, or the name of one of qcore's.
        inputs: the tensors that are given at run time.
        args: its arguments, where "x0", "x1" stand for the inputs.
    """
    graph = fx.Graph()
    places = {}
    nodes = [graph.placeholder(f"x{i}") for i in range(len(inputs))]
    for i, (node, x) in enumerate(zip(nodes, inputs, strict=True)):
        places[f"x{i}"] = node if x.is_floating_point() else _typed(graph, node, x.dtype)
    root = {f"c{i}": a for i, a in enumerate(args) if isinstance(a, Tensor)}
    given = []
    for i, a in enumerate(args):
        if isinstance(a, Tensor):
            given.append(graph.get_attr(f"c{i}"))
        elif isinstance(a, list) and any(isinstance(x, str) for x in a):
            given.append([places[x] for x in a])
        else:
            given.append(places.get(a, a) if isinstance(a, str) else a)
    target = getattr(torch.ops.qcore, op).default if isinstance(op, str) else op
    node = graph.call_function(target, tuple(given))
    graph.output(node)
    return fx.GraphModule(root, graph), node


@pytest.fixture(scope="session")
def reason() -> Callable[..., str | None]:
    """Why the backend leaves an operation to the reference; None if it does not."""

    def why(op: Any, inputs: list[Tensor], *args: Any) -> str | None:
        return CUDA().why_not(program_of(op, inputs, *args)[1])

    return why


@pytest.fixture(scope="session")
def both(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """The result by definition, on the CPU, and that of the backend's kernel."""

    def run(op: Any, inputs: list[Tensor], *args: Any) -> tuple[Tensor, Tensor]:
        program, node = program_of(op, inputs, *args)
        backend = CUDA()
        assert backend.why_not(node) is None, backend.why_not(node)
        lowered = backend.compile(copy.deepcopy(program), frozenset({node.name}))
        assert any(n.op == "call_module" and n.users for n in lowered.graph.nodes)
        # No kernel may write into what it was given.
        given = [x.to(device) for x in inputs]
        before = [x.clone() for x in given]
        found = lowered(*given)
        for x, kept in zip(given, before, strict=True):
            assert same(x, kept)
        return program(*inputs), found.cpu()

    return run


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape and dtype and the same bits; any NaN is like another."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    equal = a.contiguous().view(bits) == b.contiguous().view(bits)
    return bool((equal | (a.isnan() & b.isnan())).all())


@pytest.fixture(scope="session")
def equal(both: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Asserts that a kernel gives each bit of its definition, and gives the result."""

    def check(op: Any, inputs: list[Tensor], *args: Any) -> Tensor:
        wanted, found = both(op, inputs, *args)
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        assert same(found, wanted), f"{int((found != wanted).sum())} of {wanted.numel()} differ"
        return found

    return check


class Draw:
    """Operands and outputs of operations."""

    @staticmethod
    def integers(dtype: torch.dtype, *shape: int) -> Tensor:
        """Every integer of a dtype."""
        info = torch.iinfo(dtype)
        return torch.randint(info.min, info.max + 1, shape).to(dtype)

    @staticmethod
    def output(
        dtype: torch.dtype = torch.int8, scale: float = 0.25, zero: int = 3, relu: bool = False
    ) -> tuple[Any, ...]:
        """The last six arguments of an operation."""
        if dtype == torch.float32:
            return (1.0, 0, 0, 0, dtype, KEY)
        info = torch.iinfo(dtype)
        return (scale, zero, zero if relu else info.min, info.max, dtype, KEY)


@pytest.fixture(scope="session")
def draw() -> type[Draw]:
    """Operands and outputs of operations."""
    return Draw
