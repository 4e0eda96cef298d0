"""A call of the float model, kept to be repeated on other tensors."""

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from qcore import Step

__all__ = ["FloatCall"]


class FloatCall(nn.Module):
    """The float operation of a step, as a module whose inputs are the step's tensors in order.

    A tensor that the call takes twice is two inputs. An in-place module gets copies: in QFloat
    other operations read the same input.
    """

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.module = step.module
        self.function: Callable[..., Any] | None = None
        places = (_Place(i) for i in itertools.count())
        self.args = fx.map_arg(step.node.args, lambda node: next(places))
        self.kwargs = fx.map_arg(step.node.kwargs, lambda node: next(places))
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
