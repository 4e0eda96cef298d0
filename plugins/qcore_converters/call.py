"""A call of the float model, kept to be repeated on other tensors."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from qcore import Step

__all__ = ["FloatCall", "has_runtime_sizes"]


class FloatCall(nn.Module):
    """The float operation of a step, as a module whose inputs are the step's tensors in order.

    An in-place module gets copies: in QFloat other operations read the same input.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.module = step.module
        self.function: Callable[..., Any] | None = None
        places = {node: _Place(i) for i, node in enumerate(step.node.all_input_nodes)}
        self.args = fx.map_arg(step.node.args, lambda node: places[node])
        self.kwargs = fx.map_arg(step.node.kwargs, lambda node: places[node])
        if step.module is None:
            assert callable(step.node.target)
            self.function = step.node.target

    def forward(self, *xs: Tensor) -> Tensor:
        target = self.module if self.module is not None else self.function
        assert target is not None
        if getattr(self.module, "inplace", False):
            xs = tuple(x.clone() for x in xs)
        args = [_fill(a, xs) for a in self.args]
        kwargs = {k: _fill(v, xs) for k, v in self.kwargs.items()}
        return target(*args, **kwargs)  # type: ignore[no-any-return]


class _Place(int):
    """Index of the tensor that stands here."""


def _fill(value: Any, xs: tuple[Tensor, ...]) -> Any:
    if isinstance(value, _Place):
        return xs[value]
    if isinstance(value, list | tuple):
        return type(value)(_fill(v, xs) for v in value)
    return value


def has_runtime_sizes(step: Step) -> bool:
    """Whether an argument other than the tensor inputs is computed when the model runs."""
    tensors = {n for v in step.arguments.values() for n in _nodes(v) if _is_tensor(n)}
    return any(node not in tensors for node in step.node.all_input_nodes)


def _nodes(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, list | tuple):
        return [n for v in value for n in _nodes(v)]
    return []


def _is_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return value is None or isinstance(value, Tensor)
