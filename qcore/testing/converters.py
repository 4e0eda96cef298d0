"""The contracts of converters."""

from .contract import Contract

__all__ = ["CONTRACTS"]

CONTRACTS: tuple[Contract, ...] = ()
