"""What the plug-in ``algorithms`` contributes: stages of a run. Imports no torch."""

from qcore import AlgorithmSpec, hookimpl

__all__ = ["qcore_algorithms"]


@hookimpl
def qcore_algorithms() -> tuple[AlgorithmSpec, ...]:
    """Quantization-aware training."""
    return (
        AlgorithmSpec(
            name="qat",
            summary="train the calibrated QFloat model on the data set",
            target="qcore_algorithms.qat:qat",
            phase="calibrated",
            writes=("weights", "statistics", "scales"),
        ),
    )
