"""The torch values that a program holds as literals, by the names they have in an artifact."""

from collections.abc import Mapping

import torch

__all__ = ["DTYPES", "LITERAL_DTYPES", "MEMORY_FORMATS", "name_of_dtype"]

_STORED = (
    "bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64",
)  # fmt: skip

DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in _STORED}
"""What tensors an artifact stores."""

LITERAL_DTYPES: Mapping[str, torch.dtype] = {
    **DTYPES,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}
"""What an operation can be asked for."""

MEMORY_FORMATS: Mapping[str, torch.memory_format] = {
    name: getattr(torch, name)
    for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}


def name_of_dtype(dtype: torch.dtype) -> str:
    """``"int8"`` for ``torch.int8``."""
    return str(dtype).removeprefix("torch.")
