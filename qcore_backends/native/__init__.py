"""The native backend: whole programs on kernels of our own, for CPUs."""

from .backend import NativeBackend

__all__ = ["NativeBackend"]
