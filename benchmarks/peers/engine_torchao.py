"""torchao: PT2E quantization for x86, compiled by inductor with frozen weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from networks import Network
from numpy.typing import NDArray
from torch import Tensor

# Also registers the operations that a converted model is made of.
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

__all__ = ["build", "load"]


def build(network: Network, folder: Path) -> None:
    """Exports, calibrates and converts the model with torchao's default configuration for x86."""
    batches = [torch.from_numpy(b) for b in network.data(folder.parent).calibration_batches()]
    dynamic = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        model = network.model(folder.parent)
        # Its fusions take the calls of one module for one call unless the export is strict.
        exported = torch.export.export(
            model, (batches[0],), dynamic_shapes=dynamic, strict=True
        ).module()
        quantizer = X86InductorQuantizer()
        quantizer.set_global(get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        for batch in batches:
            prepared(batch)
        converted = convert_pt2e(prepared)
        program = torch.export.export(converted, (batches[0],), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "int8.pt2")


def load(
    network: Network, folder: Path, variant: str, inputs: NDArray[np.float32], threads: int
) -> Callable[[], Tensor]:
    """The compiled model, ready to run on ``inputs``; the first run compiles."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    torch._inductor.config.freezing = True
    program = torch.compile(torch.export.load(folder / "int8.pt2").module())
    x = torch.from_numpy(inputs)
    return lambda: program(x)
