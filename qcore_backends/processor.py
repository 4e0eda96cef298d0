"""Tensors that a kernel on the processor can read."""

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from qcore import BackendError

__all__ = ["InputsOnProcessor", "check_on_processor"]


def check_on_processor(backend: str, names: Sequence[str], values: Sequence[Any]) -> None:
    """Refuses tensors that are not plain memory of the processor; other values pass.

    Raises:
        BackendError: one is on another device, or sparse.
    """
    for name, value in zip(names, values, strict=False):
        if not isinstance(value, Tensor):
            continue
        if not value.is_cpu:
            raise BackendError(
                f"backend {backend!r}: input {name!r} is on {value.device}, but the kernels run on "
                "the CPU; move it with .cpu()"
            )
        if value.layout != torch.strided:
            raise BackendError(
                f"backend {backend!r}: input {name!r} is {value.layout}, but the kernels take "
                "dense tensors; convert it with .to_dense()"
            )


@attrs.frozen(kw_only=True)
class InputsOnProcessor:
    """A forward pre-hook of a program that does :func:`check_on_processor` with its inputs.

    Args:
        backend: its name.
        names: of the inputs.
    """

    backend: str
    names: tuple[str, ...]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        check_on_processor(
            self.backend, (*self.names[: len(args)], *kwargs), [*args, *kwargs.values()]
        )
