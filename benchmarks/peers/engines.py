"""The engines by name, and the networks: what the command line needs to know, without imports."""

from dataclasses import dataclass

__all__ = ["BASE", "ENGINES", "NETWORKS", "EngineEntry"]


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One column of the table.

    Args:
        title: as the table shows it.
        module: the file that builds and runs it.
        variant: which of the module's ways.
        distributions: whose versions matter to it.
    """

    title: str
    module: str
    variant: str = ""
    distributions: tuple[str, ...] = ()


BASE = "float32"

ENGINES = {
    BASE: EngineEntry(title="torch eager float32", module="engine_torch", variant="eager"),
    "compile": EngineEntry(title="torch.compile float32", module="engine_torch", variant="compile"),
    "onnxruntime": EngineEntry(
        title="ONNX Runtime int8",
        module="engine_onnxruntime",
        distributions=("onnxruntime", "onnx", "onnxscript"),
    ),
    "openvino": EngineEntry(
        title="OpenVINO int8",
        module="engine_openvino",
        variant="f32",
        distributions=("openvino", "nncf"),
    ),
    "openvino-bf16": EngineEntry(
        title="OpenVINO int8, bf16",
        module="engine_openvino",
        variant="bf16",
        distributions=("openvino", "nncf"),
    ),
    "torchao": EngineEntry(
        title="torchao PT2E + inductor int8",
        module="engine_torchao",
        distributions=("torchao",),
    ),
    "qcore": EngineEntry(title="qcore cpu int8", module="engine_qcore", variant="cpu"),
    "qcore-native": EngineEntry(title="qcore native int8", module="engine_qcore", variant="native"),
    "qcore-reference": EngineEntry(
        title="qcore reference int8", module="engine_qcore", variant="reference"
    ),
}
"""The order is that of the columns. ``qcore-reference`` runs only when it is asked for."""

NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "vit_small": "ViT-S/16",
    "bert6": "BERT-base, 6 blocks",
}
"""Title of each network; ``networks.py`` builds them."""
