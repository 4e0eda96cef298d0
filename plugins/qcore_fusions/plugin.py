"""Entry point of the built-in fusion patterns.

A layer takes in the BatchNorm, the residual addition and the clamp that follow it, so that there is
one rounding where the float model has up to four operations. Activations that are no clamp
(hardswish, gelu, ...) stay operations of their own: a lookup table on integers.
"""

from collections.abc import Iterable

from qcore import FusionSpec, hookimpl

_CLAMP = ("relu", "relu6", "hardtanh")
_CONV = ("conv1d", "conv2d", "conv3d")
_CONV_TRANSPOSE = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_CHECK = "qcore_fusions.checks:unfit"


def _fusion(name: str, *pattern: str | tuple[str, ...]) -> FusionSpec:
    words = (step if isinstance(step, str) else step[0] for step in pattern)
    return FusionSpec(
        name=name, summary=f"{' + '.join(words)} as one", pattern=pattern, check=_CHECK
    )


@hookimpl
def qcore_fusion_patterns() -> Iterable[FusionSpec]:
    yield _fusion("conv-bn-add-relu", _CONV, "batch_norm", "add", _CLAMP)
    yield _fusion("conv-bn-add", _CONV, "batch_norm", "add")
    yield _fusion("conv-bn-relu", _CONV, "batch_norm", _CLAMP)
    yield _fusion("conv-bn", _CONV, "batch_norm")
    yield _fusion("conv-add-relu", _CONV, "add", _CLAMP)
    yield _fusion("conv-add", _CONV, "add")
    yield _fusion("conv-relu", _CONV, _CLAMP)
    yield _fusion("conv_transpose-bn-relu", _CONV_TRANSPOSE, "batch_norm", _CLAMP)
    yield _fusion("conv_transpose-bn", _CONV_TRANSPOSE, "batch_norm")
    yield _fusion("conv_transpose-relu", _CONV_TRANSPOSE, _CLAMP)
    yield _fusion("linear-bn-relu", "linear", "batch_norm", _CLAMP)
    yield _fusion("linear-bn", "linear", "batch_norm")
    yield _fusion("linear-relu", "linear", _CLAMP)
    yield _fusion("bn-relu", "batch_norm", _CLAMP)
    yield _fusion("add-relu", "add", _CLAMP)
    yield _fusion("sub-relu", "sub", _CLAMP)
    yield _fusion("mul-relu", "mul", _CLAMP)
    yield _fusion("matmul-relu", "matmul", _CLAMP)
