"""Everything that the plug-in brings keeps the contracts of its kind."""

from qcore.testing import (
    AlgorithmConformance,
    BackendConformance,
    ConverterConformance,
    FakeQuantConformance,
    FusionConformance,
    ObserverConformance,
)


class TestPercentileOfBatches(ObserverConformance):
    """The observer."""

    subject = "acme:acme_percentile_of_batches"


class TestStochastic(FakeQuantConformance):
    """The fake quantizer."""

    subject = "acme:acme_stochastic"


class TestConvSilu(FusionConformance):
    """The shorter chain."""

    subject = "acme:acme_conv_silu"


class TestConvBnSilu(FusionConformance):
    """The longer chain."""

    subject = "acme:acme_conv_bn_silu"


class TestConvSiluOperation(ConverterConformance):
    """What the chains become."""

    subject = "acme:acme_conv_silu"


class TestGatedLinear(ConverterConformance):
    """The gated layer."""

    subject = "acme:acme_gated_linear"


class TestNumpyBackend(BackendConformance):
    """The backend."""

    subject = "acme:acme_numpy"


class TestBiasCorrection(AlgorithmConformance):
    """The stage."""

    subject = "acme:acme_bias_correction"
