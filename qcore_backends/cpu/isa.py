"""What the processor multiplies, as far as it decides what is exact."""

import os

import torch
from torch import Tensor

__all__ = ["has_vnni", "why_saturates"]

_PAIR_SAFE = 64
"""Two products of 255 and this weight are 32640, the last multiple that fits 16 bits."""

_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")
"""Values of ``ONEDNN_MAX_CPU_ISA`` that keep oneDNN from using VNNI."""


def has_vnni() -> bool:
    """Whether oneDNN multiplies u8 x s8 into 32 bits here; ``ONEDNN_MAX_CPU_ISA`` can forbid it."""
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_VNNI:
        return False
    flags = torch.backends.cpu.get_cpu_capability()
    if flags in ("AVX512", "AVX2"):
        return bool(torch.cpu._is_vnni_supported()) or bool(torch.cpu._is_amx_tile_supported())
    # Other architectures have no 16-bit pairs to saturate.
    return flags not in ("DEFAULT", "NO AVX")


def why_saturates(weight: Tensor) -> str | None:
    """Why products with an int8 weight are not exact here, and the cure; None if they are."""
    if has_vnni() or not weight.numel() or int(weight.int().abs().max()) <= _PAIR_SAFE:
        return None
    return (
        f"without VNNI, products of weights beyond {_PAIR_SAFE} saturate in pairs; use 7 bits for "
        "the weight"
    )
