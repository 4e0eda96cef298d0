"""The CUDA backend: Triton kernels on int8 tensor cores, equal to the reference on every integer."""

from .backend import CudaBackend
from .replay import GraphReplay

__all__ = ["CudaBackend", "GraphReplay"]
