"""The contracts of backends."""

from .contract import Contract

__all__ = ["CONTRACTS"]

CONTRACTS: tuple[Contract, ...] = ()
