"""What the plug-in contributes; light to import, the parts are loaded when a recipe names them."""

from qcore import (
    AlgorithmSpec,
    BackendSpec,
    ConverterSpec,
    FakeQuantSpec,
    FusionSpec,
    ModelSpec,
    ObserverSpec,
    hookimpl,
)

__all__ = [
    "qcore_algorithms",
    "qcore_backends",
    "qcore_fake_quants",
    "qcore_fusion_patterns",
    "qcore_models",
    "qcore_module_converters",
    "qcore_observers",
]

_CONV = ("conv1d", "conv2d", "conv3d")


@hookimpl
def qcore_observers() -> tuple[ObserverSpec, ...]:
    """One observer."""
    return (
        ObserverSpec(
            name="acme_percentile_of_batches",
            summary="mean over the batches of each batch's percentile",
            target="qcore_acme.percentile_of_batches:PercentileOfBatchesObserver",
        ),
    )


@hookimpl
def qcore_fake_quants() -> tuple[FakeQuantSpec, ...]:
    """One fake quantizer."""
    return (
        FakeQuantSpec(
            name="acme_stochastic",
            summary="stochastic rounding in training (Gupta et al., 2015)",
            target="qcore_acme.stochastic:StochasticFakeQuantize",
            deviations={
                "training_equals_quantize_then_dequantize": "in training rounding is by chance, "
                "and only its mean is the value; eval mode rounds to nearest",
                "error_is_at_most_half_a_step": "a value may go to the farther of its two levels, "
                "which is up to a whole step away",
            },
        ),
    )


@hookimpl
def qcore_fusion_patterns() -> tuple[FusionSpec, ...]:
    """Convolution and SiLU, with and without BatchNorm; the operation has a converter below."""
    return tuple(
        FusionSpec(
            name=f"acme_{name}",
            summary="convolution and SiLU with 14 bits in between",
            pattern=pattern,
            op="acme_conv_silu",
            check="qcore_acme.silu:unfit",
            examples=f"qcore_acme.silu:{name}",
        )
        for name, pattern in (
            ("conv_silu", (_CONV, "silu")),
            ("conv_bn_silu", (_CONV, "batch_norm", "silu")),
        )
    )


@hookimpl
def qcore_module_converters() -> tuple[ConverterSpec, ...]:
    """The gated layer, and what the fusions make."""
    return (
        ConverterSpec(
            name="acme_gated_linear",
            summary="gated linear layer by integers of 16 bits and a table",
            op="acme_gated_linear",
            types=("qcore_acme.gated_linear.GatedLinear",),
            target="qcore_acme.gated_linear:QFloatGatedLinear",
            examples="qcore_acme.gated_linear:examples",
        ),
        ConverterSpec(
            name="acme_conv_silu",
            summary="convolution and SiLU with 14 bits in between",
            op="acme_conv_silu",
            target="qcore_acme.silu:QFloatConvSilu",
            examples="qcore_acme.silu:examples",
        ),
    )


@hookimpl
def qcore_backends() -> tuple[BackendSpec, ...]:
    """One backend."""
    return (
        BackendSpec(
            name="acme_numpy",
            summary="linear layers on NumPy, exact by the default contract",
            target="qcore_acme.numpy_backend:NumpyBackend",
        ),
    )


@hookimpl
def qcore_algorithms() -> tuple[AlgorithmSpec, ...]:
    """One stage."""
    return (
        AlgorithmSpec(
            name="acme_bias_correction",
            summary="takes the mean error of rounded weights off the biases (Nagel et al., 2019)",
            phase="calibrated",
            writes=("weights", "statistics"),
            target="qcore_acme.bias_correction:correct_biases",
        ),
    )


@hookimpl
def qcore_models() -> tuple[ModelSpec, ...]:
    """A network that has a use for all of them."""
    return (
        ModelSpec(
            name="acme_gated_net",
            summary="convolutions with SiLU and a gated layer",
            target="qcore_acme.network:GatedNet",
        ),
    )
