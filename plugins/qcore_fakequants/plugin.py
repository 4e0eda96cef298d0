"""What this plug-in contributes; light to import, the classes are loaded when used."""

from qcore import FakeQuantSpec, PresetSpec, SchemeSpec, hookimpl

from .megengine import MEGENGINE_PRESETS
from .presets import PRESETS
from .schemes import SCHEMES

__all__ = ["qcore_fake_quants"]


@hookimpl
def qcore_fake_quants() -> tuple[FakeQuantSpec | SchemeSpec | PresetSpec, ...]:
    """The fake quantizers, the named schemes and the presets."""
    return (
        FakeQuantSpec(
            name="affine",
            summary="rounding with the clipped straight-through gradient",
            target="qcore_fakequants.affine:AffineFakeQuantize",
        ),
        FakeQuantSpec(
            name="lsq",
            summary="learned step (Esser et al., 2020)",
            target="qcore_fakequants.lsq:LSQFakeQuantize",
        ),
        FakeQuantSpec(
            name="lsq_plus",
            summary="learned step and zero point (Bhalgat et al., 2020)",
            target="qcore_fakequants.lsq_plus:LSQPlusFakeQuantize",
        ),
        FakeQuantSpec(
            name="pact",
            summary="learned clip of activations (Choi et al., 2018)",
            target="qcore_fakequants.pact:PACTFakeQuantize",
        ),
        FakeQuantSpec(
            name="tqt",
            summary="learned logarithm of the threshold (Jain et al., 2020)",
            target="qcore_fakequants.tqt:TQTFakeQuantize",
        ),
        *SCHEMES,
        *PRESETS,
        *MEGENGINE_PRESETS,
    )
