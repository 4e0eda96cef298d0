"""ONNX Runtime: static quantization to QDQ, uint8 activations, int8 weights by channel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from networks import Network
from numpy.typing import NDArray

__all__ = ["build", "export", "load"]


def build(network: Network, folder: Path) -> None:
    """Exports the model, lets ONNX Runtime simplify it, and quantizes it with its own tools."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(network.data(folder.parent).calibration_batches())

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"x": batch}

    exported, simple = folder / "float.onnx", folder / "simple.onnx"
    export(network, folder.parent, exported)
    quant_pre_process(exported, simple, skip_symbolic_shape=network.transformer)
    quantize_static(
        simple,
        folder / "int8.onnx",
        Batches(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        # With the norms and activations of a transformer in int8, too, it is no faster and far less
        # exact.
        op_types_to_quantize=["Conv", "Gemm", "MatMul"] if network.transformer else None,
    )
    exported.unlink()
    simple.unlink()


def export(network: Network, files: Path, target: Path) -> None:
    """The float model as ONNX, with the batch as a variable, in one file."""
    import torch

    x = torch.from_numpy(network.data(files).inputs[:2])
    with torch.no_grad():
        torch.onnx.export(
            network.model(files),
            (x,),
            target,
            dynamo=True,
            opset_version=20,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )


def load(
    network: Network, folder: Path, variant: str, inputs: NDArray[np.float32], threads: int
) -> Callable[[], Any]:
    """A session, ready to run on ``inputs``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Otherwise its threads spin on while other engines have their turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        folder / "int8.onnx", options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"x": inputs})[0]
