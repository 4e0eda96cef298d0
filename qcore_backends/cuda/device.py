"""What the GPU is and can do, and what to do where there is none."""

import functools
import importlib.metadata
import importlib.util
import os

import attrs
import torch

__all__ = ["Gpu", "described", "gpu", "interpreted", "why_too_old", "why_unavailable"]

_OLDEST = (8, 0)
"""Ampere: the oldest GPUs that Triton compiles for."""

_TRUE = ("1", "true", "on", "yes", "y")


@attrs.frozen(kw_only=True)
class Gpu:
    """A CUDA device.

    Args:
        name: of the vendor.
        capability: compute capability, major and minor.
        multiprocessors: how many.
        shared_memory: bytes that one block of threads can have.

    >>> gpu = Gpu(name="H", capability=(9, 0), multiprocessors=132, shared_memory=232448)
    >>> gpu.int8, gpu.float8
    (True, True)
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int

    @property
    def int8(self) -> bool:
        """Whether it has tensor cores for int8 that the kernels here can use."""
        return self.capability >= _OLDEST

    @property
    def float8(self) -> bool:
        """Whether it has tensor cores for float8."""
        return self.capability >= (8, 9)


@functools.cache
def gpu(index: int) -> Gpu:
    """The CUDA device of that index."""
    properties = torch.cuda.get_device_properties(index)
    return Gpu(
        name=properties.name,
        capability=(properties.major, properties.minor),
        multiprocessors=properties.multi_processor_count,
        # What every GPU since Ampere has at least, where torch does not say.
        shared_memory=getattr(properties, "shared_memory_per_block_optin", 99 * 1024),
    )


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the CPU: ``TRITON_INTERPRET=1``."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRUE


def why_unavailable() -> str | None:
    """Why the kernels can't run on this machine, and the cure; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run: pip install 'qcore-quant[cuda]'"
    if interpreted():
        return None
    if torch.version.hip is not None:
        return "this build of torch is for ROCm; install a build of torch for CUDA"
    if torch.version.cuda is None:
        return (
            "this build of torch has no CUDA; install a build of torch for CUDA, or set "
            "TRITON_INTERPRET=1 to try the kernels on the CPU, slowly"
        )
    if not torch.cuda.is_available():
        return "torch finds no CUDA device; check that nvidia-smi lists one and its driver is new"
    return why_too_old(torch.cuda.current_device())


def why_too_old(index: int) -> str | None:
    """Why the kernels can't run on the CUDA device of that index, and the cure; None if they
    can."""
    found = gpu(index)
    if found.int8:
        return None
    return (
        f"{found.name} has compute capability {_written(found.capability)}; the kernels need "
        f"{_written(_OLDEST)} (Ampere) or newer: choose another device with "
        "CUDA_VISIBLE_DEVICES, or backend 'reference', which runs on any"
    )


def _written(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def described() -> str:
    """What the kernels run on, in a line."""
    triton = f"Triton {importlib.metadata.version('triton')}"
    if interpreted():
        return f"{triton} in its interpreter on the CPU: exact, and slow (TRITON_INTERPRET=1)"
    found = gpu(torch.cuda.current_device())
    kinds = "int8 and float8 tensor cores" if found.float8 else "int8 tensor cores, none for float8"
    return f"{triton}, {found.name}, compute capability {_written(found.capability)}: {kinds}"
