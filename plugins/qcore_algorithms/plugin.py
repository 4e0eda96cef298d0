"""What the plug-in ``algorithms`` contributes: stages of a run. Imports no torch."""

from qcore import AlgorithmSpec, hookimpl

__all__ = ["qcore_algorithms"]


@hookimpl
def qcore_algorithms() -> tuple[AlgorithmSpec, ...]:
    """Corrections after calibration, and quantization-aware training."""
    return (
        AlgorithmSpec(
            name="bias_correction",
            summary="outputs of layers with mean and spread of float (Nagel; Banner et al., 2019)",
            target="qcore_algorithms.bias_correction:bias_correction",
            phase="calibrated",
            writes=("weights", "statistics", "scales"),
        ),
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
