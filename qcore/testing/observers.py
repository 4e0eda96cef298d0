"""The contracts of observers."""

from .contract import Contract

__all__ = ["CONTRACTS"]

CONTRACTS: tuple[Contract, ...] = ()
