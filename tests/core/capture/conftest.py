"""Checks that a captured graph computes what its model does."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from qcore.capture import Capture, Piece, capture

Check = Callable[..., None]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Threads cost these tiny models more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def whole() -> Callable[..., Piece]:
    """Captures a model whose convolutions and linear layers are leaves, and expects one piece."""

    def capture_whole(model: nn.Module, *args: Any, **kwargs: Any) -> Piece:
        found = capture_layers(model, *args, **kwargs)
        assert [piece.path for piece in found.pieces] == [""], found.failures
        return found.pieces[0]

    return capture_whole


def capture_layers(model: nn.Module, *args: Any, **kwargs: Any) -> Capture:
    """Convolutions and linear layers as leaves."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return capture(model, args, kwargs, is_leaf=lambda m: isinstance(m, kinds))


@pytest.fixture(name="capture_layers")
def _capture_layers() -> Callable[..., Capture]:
    return capture_layers


@pytest.fixture
def agrees() -> Check:
    """Asserts that a graph computes what the model does, and also with all bodies inlined."""
    programs: dict[Piece, fx.GraphModule] = {}

    def check(piece: Piece, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if piece not in programs:
            programs[piece] = _inlined(piece)

        # Each runs on inputs of its own: a forward may write to them.
        def fresh() -> Any:
            return pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))

        with torch.no_grad():
            for run in (piece.graph, programs[piece]):
                given, keywords = fresh()
                got = run(*given, **keywords)
                given, keywords = fresh()
                assert_same(got, model(*given, **keywords))

    return check


def assert_same(got: Any, want: Any) -> None:
    """Equal trees: of type, structure, dtypes and values."""
    got_leaves, got_spec = pytree.tree_flatten(got)
    want_leaves, want_spec = pytree.tree_flatten(want)
    assert got_spec == want_spec
    for one, other in zip(got_leaves, want_leaves, strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        else:
            assert one == other


def _inlined(piece: Piece) -> fx.GraphModule:
    """The graph of a piece with the body of each call in the place of the call."""
    graph, holder = fx.Graph(), nn.Module()
    names: dict[str, str] = {}
    values: dict[fx.Node, Any] = {}

    def get_attr(name: str, tensor: Tensor) -> fx.Node:
        if name not in names:
            names[name] = f"tensor_{len(names)}"
            holder.register_buffer(names[name], tensor.detach())
        return graph.get_attr(names[name])

    for node in piece.graph.graph.nodes:
        if node.op == "call_module":
            values[node] = piece.inline(node, graph, values, get_attr)
        elif node.op == "get_attr":
            values[node] = get_attr(node.target, piece.tensor(node.target))
        elif node.target is operator.getitem and not isinstance(values[node.args[0]], fx.Node):
            values[node] = values[node.args[0]][node.args[1]]
        elif node.op == "output":
            graph.output(fx.map_arg(node.args[0], values.__getitem__))
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    graph.set_codegen(piece.graph.graph._codegen)
    graph.lint()
    return fx.GraphModule(holder, graph)
