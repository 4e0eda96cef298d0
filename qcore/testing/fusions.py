"""The contracts of fusions."""

from .contract import Contract

__all__ = ["CONTRACTS"]

CONTRACTS: tuple[Contract, ...] = ()
