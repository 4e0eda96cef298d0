"""The contracts of algorithms."""

from .contract import Contract

__all__ = ["CONTRACTS"]

CONTRACTS: tuple[Contract, ...] = ()
