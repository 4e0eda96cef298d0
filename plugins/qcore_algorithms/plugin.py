"""What the plug-in ``algorithms`` contributes: stages of a run. Imports no torch."""

from qcore import AlgorithmSpec, hookimpl

__all__ = ["qcore_algorithms"]


@hookimpl
def qcore_algorithms() -> tuple[AlgorithmSpec, ...]:
    """Scale search, and quantization-aware training."""
    return (
        AlgorithmSpec(
            name="easyquant",
            summary="scales that keep the direction of each layer's output (Wu et al., 2020)",
            target="qcore_algorithms.easyquant:easyquant",
            phase="calibrated",
            writes=("scales",),
        ),
        AlgorithmSpec(
            name="qat",
            summary="train the calibrated QFloat model on the data set",
            target="qcore_algorithms.qat:qat",
            phase="calibrated",
            writes=("weights", "statistics", "scales"),
        ),
    )
