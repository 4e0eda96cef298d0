"""What every operation of the backend is: made once from a node, and written into plans."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..values import constant, storage_of
from .memory import Value
from .planner import Planner
from .records import Output

__all__ = [
    "BYTES",
    "Given",
    "Layer",
    "channels_last",
    "constant",
    "contiguous",
    "float32_product",
    "in_layout",
    "output_multiplier",
    "output_record",
    "plain",
    "storage_of",
    "stored_zero",
    "why_no_output",
]

BYTES = (torch.int8, torch.uint8)

Given = dict[str, Any]
"""Arguments of a node by the names of its schema."""


class Layer(ABC):
    """One operation: what can be computed before its shapes are known, and how it runs.

    Args:
        given: arguments of the node.

    Attributes:
        label: its name in plans.
        inputs: the arguments that are tensors of the run, in the order of :meth:`write`.
    """

    label: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(self, given: Given) -> None: ...

    @classmethod
    @abstractmethod
    def why_not(cls, given: Given) -> str | None:
        """Why there is no kernel for such a node; None if there is one."""

    @abstractmethod
    def write(self, planner: Planner, inputs: Mapping[str, Value], expected: Tensor) -> Value:
        """Adds the operation to a plan.

        Args:
            inputs: by the names of :attr:`inputs`; None ones are left out.
            expected: shape and dtype of the result, on the device ``meta``.
        """


def plain(given: Given) -> Given:
    """The arguments that are no nodes. Layers keep no nodes: when plans are written, the program
    has changed, and nodes no longer say what they store."""
    return {key: value for key, value in given.items() if not isinstance(value, fx.Node)}


def stored_zero(zero_point: int, dtype: torch.dtype | None) -> int:
    """The zero point of integers as the kernels store them."""
    return zero_point + (128 if dtype == torch.int8 else 0)


def why_no_output(given: Given) -> str | None:
    """Why the kernels can't give the output that a node asks for."""
    dtype = given["y_dtype"]
    if dtype == torch.float32:
        return None
    if dtype not in BYTES:
        return f"the output is {dtype}"
    info = torch.iinfo(dtype)
    if not info.min <= given["y_min"] <= given["y_max"] <= info.max:
        return f"the output's range is not within {dtype}"
    if not -(2**20) < given["y_zero_point"] < 2**20:
        return "the output's zero point is far outside of its range"
    return None


def output_record(given: Given, *, other_scale: float = 0.0, other_zero: int = 0) -> Output:
    """The last step of an operation; ``other_scale`` is that of a residual."""
    if given["y_dtype"] == torch.float32:
        return Output(is_float=1, other_scale=other_scale, other_zero=other_zero)
    zero = given["y_zero_point"]
    return Output(
        low=given["y_min"] - zero,
        high=given["y_max"] - zero,
        zero=stored_zero(zero, given["y_dtype"]),
        other_scale=other_scale,
        other_zero=other_zero,
    )


def output_multiplier(given: Given, scale: Tensor) -> Tensor:
    """What an accumulator with the step ``scale`` is multiplied by, float32."""
    if given["y_dtype"] == torch.float32:
        return scale
    return scale / torch.tensor(given["y_scale"], dtype=torch.float32)


def channels_last(shape: tuple[int, ...]) -> Tensor:
    """The layout of images ``[B, C, *spatial]`` whose channels are neighbours in memory."""
    order = [0, *range(2, len(shape)), 1]
    dense = torch.empty([shape[d] for d in order], dtype=torch.uint8, device="meta")
    return dense.permute([0, len(shape) - 1, *range(1, len(shape) - 1)])


def contiguous(shape: tuple[int, ...]) -> Tensor:
    """The layout of a contiguous tensor."""
    return torch.empty(shape, dtype=torch.uint8, device="meta")


def in_layout(planner: Planner, x: Value, layout: Tensor) -> Value:
    """``x``, copied if it does not already lie in ``layout``."""
    if _same_order(x.layout, layout):
        return x
    return planner.copy(x, layout)


def _same_order(a: Tensor, b: Tensor) -> bool:
    """Whether strides agree wherever they are ever used."""
    return all(n == 1 or s == t for n, s, t in zip(a.shape, a.stride(), b.stride(), strict=True))


def float32_product(a: float, b: float | Tensor) -> Tensor:
    """``float32(a * b)``."""
    return torch.tensor(a, dtype=torch.float32) * b
