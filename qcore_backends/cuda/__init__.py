"""The CUDA backend: Triton kernels on int8 tensor cores, exact by the default contract."""

from .backend import CudaBackend
from .replay import GraphReplay

__all__ = ["CudaBackend", "GraphReplay"]
