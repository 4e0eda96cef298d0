"""What of the kernels is compiled, and for which instruction sets."""

import platform
from pathlib import Path

from qcore import CppLibrary, CppUnit

__all__ = ["instruction_sets", "kernel_library"]

_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")

_VNNI = (
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    "-mprefer-vector-width=512",
)

_X86_FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": ("-mavx2",),
    "avx512vnni": _VNNI,
    "avx512vbmi": (*_VNNI, "-mavx512vbmi"),
    "amx": (*_VNNI, "-mavx512vbmi", "-mamx-tile", "-mamx-int8"),
}
"""What each instruction set adds, in the order of the tables in ``csrc/executor.cpp``."""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Flags of each instruction set that is compiled on this architecture, weakest first."""
    x86 = _X86_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else {}
    return {"generic": (), **x86}


def kernel_library() -> CppLibrary:
    """The kernels, once for each instruction set, and what runs them."""
    kernels = [
        CppUnit(source="kernels.cpp", flags=(f"-DQCORE_ISA={name}", *flags))
        for name, flags in instruction_sets().items()
    ]
    return CppLibrary(
        name="native",
        folder=Path(__file__).parent / "csrc",
        units=(*kernels, CppUnit(source="executor.cpp")),
        flags=_FLAGS,
    )
