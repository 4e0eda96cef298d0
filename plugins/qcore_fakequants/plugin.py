"""What this plug-in contributes; light to import, the classes are loaded when used."""

from qcore import FakeQuantSpec, PresetSpec, SchemeSpec, hookimpl

from .presets import PRESETS
from .schemes import SCHEMES

__all__ = ["qcore_fake_quants"]


@hookimpl
def qcore_fake_quants() -> tuple[FakeQuantSpec | SchemeSpec | PresetSpec, ...]:
    """The affine fake quantizer, the named schemes and the presets."""
    return (
        FakeQuantSpec(
            name="affine",
            summary="rounding with the clipped straight-through gradient",
            target="qcore_fakequants.affine:AffineFakeQuantize",
        ),
        *SCHEMES,
        *PRESETS,
    )
