"""What the plug-in ``zoo`` contributes: models, data sets and float training. Imports no torch."""

from collections.abc import Iterable

from qcore import AlgorithmSpec, DatasetSpec, ModelSpec, hookimpl

__all__ = ["qcore_algorithms", "qcore_datasets", "qcore_models"]


@hookimpl
def qcore_models() -> Iterable[ModelSpec]:
    """Convolutional and transformer networks."""
    return (
        ModelSpec(
            name="resnet18",
            summary="ResNet-18 (He et al., 2016) for large or small images",
            target="qcore_zoo.resnet:resnet18",
        ),
        ModelSpec(
            name="resnet20",
            summary="ResNet-20 for small images (He et al., 2016, section 4.2)",
            target="qcore_zoo.resnet:resnet20",
        ),
        ModelSpec(
            name="resnet50",
            summary="ResNet-50 (He et al., 2016), stride in the 3x3 convolution",
            target="qcore_zoo.resnet:resnet50",
        ),
        ModelSpec(
            name="mobilenet_v2",
            summary="MobileNetV2 (Sandler et al., 2018) for large or small images",
            target="qcore_zoo.mobilenet:mobilenet_v2",
        ),
        ModelSpec(
            name="vit_small",
            summary="ViT-S/16 (Dosovitskiy et al., 2021; Touvron et al., 2021)",
            target="qcore_zoo.vit:vit_small",
        ),
        ModelSpec(
            name="vit_tiny_28",
            summary="a vision transformer of 0.2 M parameters for 28x28 images",
            target="qcore_zoo.vit:vit_tiny_28",
        ),
        ModelSpec(
            name="bert",
            summary="the encoder of BERT-base (Devlin et al., 2019) on embedded tokens",
            target="qcore_zoo.bert:bert",
        ),
        ModelSpec(
            name="minilm",
            summary="all-MiniLM-L6-v2 (Wang et al., 2020), vectors of sentences, trained",
            target="qcore_zoo.minilm:minilm",
        ),
    )


@hookimpl
def qcore_datasets() -> Iterable[DatasetSpec]:
    """Small real data sets."""
    return (
        DatasetSpec(
            name="digits",
            summary="1,797 handwritten digits of 8x8 pixels, shipped with scikit-learn",
            target="qcore_zoo.digits:digits",
        ),
        DatasetSpec(
            name="fashion_mnist",
            summary="70,000 grey images of clothing of 28x28 pixels (Xiao et al., 2017)",
            target="qcore_zoo.fashion_mnist:fashion_mnist",
        ),
    )


@hookimpl
def qcore_algorithms() -> Iterable[AlgorithmSpec]:
    """Float training."""
    return (
        AlgorithmSpec(
            name="train",
            summary="train the float model on the data set by SGD or AdamW",
            target="qcore_zoo.training:train",
            phase="float",
            writes=("weights", "statistics"),
        ),
    )
