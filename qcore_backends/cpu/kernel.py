"""What every kernel of the backend is: a module made once from a node, and called with tensors."""

from abc import abstractmethod
from typing import Any, ClassVar, Self

from torch import nn

__all__ = ["Kernel"]


class Kernel(nn.Module):
    """Base of the kernels. It holds what can be computed once and is never changed, so copies of a
    program share it.

    Args:
        given: arguments of the node by the names of its schema.

    Attributes:
        label: its name in plans.
        inputs: the arguments that are tensors of the run, in the order of ``forward``; None ones
            are left out.
    """

    label: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()

    @classmethod
    def why_not(cls, given: dict[str, Any]) -> str | None:
        """Why the kernel can't run such a node; None if it can."""
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
