"""Programs of one operation, and what to draw for it, for the tests of a backend's kernels."""

import torch
from hypothesis import strategies as st
from torch import Tensor, fx


def built(op: str, inputs: list[Tensor], *args: object, key: str) -> tuple[fx.GraphModule, fx.Node]:
    """A program of one operation, where "x0", "x1" in ``args`` stand for the inputs."""
    graph = fx.Graph()
    places = {}
    for i, x in enumerate(inputs):
        node = graph.placeholder(f"x{i}")
        places[f"x{i}"] = node if x.is_floating_point() else typed(graph, node, x.dtype, key)
    root = {f"c{i}": a for i, a in enumerate(args) if isinstance(a, Tensor)}
    given = []
    for i, a in enumerate(args):
        if isinstance(a, Tensor):
            given.append(graph.get_attr(f"c{i}"))
        else:
            given.append(places.get(a, a) if isinstance(a, str) else a)
    node = graph.call_function(getattr(torch.ops.qcore, op).default, tuple(given))
    graph.output(node)
    return fx.GraphModule(root, graph), node


def typed(graph: fx.Graph, node: fx.Node, dtype: torch.dtype, key: str) -> fx.Node:
    """The node behind an operation that says what it stores."""
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    args = (node, 1.0, 0, 1.0, 0, low, high, dtype, key)
    return graph.call_function(torch.ops.qcore.qrequantize.default, args)


def integers(dtype: torch.dtype, *shape: int) -> Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, shape).to(dtype)


def zero_point(data: st.DataObject, dtype: torch.dtype) -> int:
    info = torch.iinfo(dtype)
    return data.draw(st.sampled_from([info.min, info.max, 0, 3, info.min + 127]))


def output(
    data: st.DataObject, *, scales: st.SearchStrategy[float], key: str, floats: bool
) -> tuple:
    """The last six arguments of an operation."""
    dtype = data.draw(st.sampled_from([torch.int8, torch.uint8, *[torch.float32] * floats]))
    if dtype == torch.float32:
        return (1.0, 0, 0, 0, dtype, key)
    info = torch.iinfo(dtype)
    zero = zero_point(data, dtype)
    low = data.draw(st.sampled_from([info.min, zero]))
    return (data.draw(scales), zero, low, info.max, dtype, key)
