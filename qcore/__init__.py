"""qcore: a plug-in based quantization framework for PyTorch, Float -> QFloat -> Q.

The public names are listed in ``__init__.pyi``, once, for type checkers and for this module. Each
is loaded on first use, so that ``import qcore`` does not import torch.
"""

import ast
import pkgutil
from importlib import import_module
from typing import Any


def _public_names() -> dict[str, str]:
    """Module of each name that the stub imports."""
    stub = ast.parse(pkgutil.get_data(__name__, "__init__.pyi") or b"")
    return {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


_MODULE_OF = _public_names()

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
