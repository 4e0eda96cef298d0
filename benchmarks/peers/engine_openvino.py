"""OpenVINO: quantized by NNCF; what stays float computes in float32 or in bfloat16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from engine_onnxruntime import export
from networks import Network
from numpy.typing import NDArray

__all__ = ["build", "load"]


def build(network: Network, folder: Path) -> None:
    """Converts the ONNX form of the model, and quantizes it with NNCF's defaults."""
    import nncf

    exported = folder / "float.onnx"
    export(network, folder.parent, exported)
    batches = network.data(folder.parent).calibration_batches()
    quantized = nncf.quantize(
        openvino.convert_model(exported),
        nncf.Dataset(batches),
        subset_size=len(batches),
        preset=nncf.QuantizationPreset.MIXED if network.transformer else None,
        model_type=nncf.ModelType.TRANSFORMER if network.transformer else None,
    )
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)
    exported.unlink()


def load(
    network: Network, folder: Path, variant: str, inputs: NDArray[np.float32], threads: int
) -> Callable[[], Any]:
    """A request of the compiled model, ready to run on ``inputs``."""
    core = openvino.Core()
    model = core.read_model(folder / "int8.xml")
    model.reshape(list(inputs.shape))
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": variant,
        },
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(inputs))

    def run() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return run
