"""What every kernel of the backend is: a module made once from a node, and called with tensors."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..values import constant

__all__ = [
    "INT32_MAX",
    "Kernel",
    "float32",
    "given_tensor",
    "reciprocal",
    "why_integers",
]

INT32_MAX = 2**31 - 1


class Kernel(nn.Module):
    """Base of the kernels. What can be computed once is held in buffers, which move with the model.

    Args:
        given: arguments of the node by the names of its schema.

    Attributes:
        label: its name in plans.
        inputs: the arguments that are tensors of the run, in the order of ``forward``; None ones
            are left out.
    """

    label: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("x",)

    @abstractmethod
    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        """Why the kernel can't run such a node; None if it can."""
        return None

    def hold(self, name: str, value: Tensor | None) -> None:
        """Keeps a tensor as ``self.name``; it is no part of the state dict."""
        held = None if value is None else value.contiguous()
        self.register_buffer(name, held, persistent=False)


def given_tensor(given: dict[str, Any], name: str) -> Tensor:
    """The constant of that name, which ``why_not`` has asked for, on the CPU."""
    value = constant(given[name])
    assert value is not None, f"{name} is computed at run time"
    return value.cpu()


def why_integers(*dtypes: torch.dtype | None) -> str | None:
    """Why operands of these storage dtypes can't be multiplied as int8; None if they can."""
    if all(dtype in (torch.int8, torch.uint8) for dtype in dtypes):
        return None
    return "an operand is no 8-bit tensor"


def float32(value: float) -> Tensor:
    """A number as a float32 tensor ``[]``."""
    return torch.tensor(value, dtype=torch.float32)


def reciprocal(y_scale: float) -> float:
    """``float32(1 / y_scale)``."""
    return float(float32(1.0) / float32(y_scale))
