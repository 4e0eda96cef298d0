"""What a backend knows of the values of a program before it runs: constants and storage."""

from typing import Any

import torch
from torch import Tensor, fx

from qcore import schema_arguments

__all__ = ["constant", "storage_of"]


def constant(value: Any) -> Tensor | None:
    """The tensor that a node stands for whatever the input is; None if there is none."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        root = value.graph.owning_module
        assert root is not None
        owner, _, name = str(value.target).rpartition(".")
        found = getattr(root.get_submodule(owner), name)
        return found if isinstance(found, Tensor) else None
    if value.op == "call_function" and value.target is torch.ops.qcore.unpack.default:
        packed, *options = value.args
        tensor = constant(packed)
        return None if tensor is None else torch.ops.qcore.unpack.default(tensor, *options)
    return None


def storage_of(value: Any) -> torch.dtype | None:
    """Storage dtype of an integer value: of the operation that made it."""
    while isinstance(value, fx.Node) and value.op == "call_function":
        given = schema_arguments(value)
        for key in ("y_dtype", "dtype"):
            if isinstance(given.get(key), torch.dtype):
                return given[key]  # type: ignore[no-any-return]
        if "table" in given:
            table = constant(given["table"])
            return None if table is None else table.dtype
        if not value.all_input_nodes:
            return None
        value = value.all_input_nodes[0]
    return None
