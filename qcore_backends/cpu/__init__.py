"""The CPU backend: int8 kernels of every torch wheel, exact by their own contract."""

from .backend import CpuBackend

__all__ = ["CpuBackend"]
