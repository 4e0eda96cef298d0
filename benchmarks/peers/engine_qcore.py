"""qcore: the preset ``uint8``, prepared for the contract of the backend that runs it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from networks import Network
from numpy.typing import NDArray
from torch import Tensor

import qcore

__all__ = ["build", "load"]


_CONTRACTS = {"cpu": "cpu", "native": "native", "reference": "cpu"}
"""By backend, the one whose contract its program is prepared for; the reference computes any."""


def build(network: Network, folder: Path) -> None:
    """Quantizes the model for the contract of each backend."""
    data = network.data(folder.parent)
    batches = [torch.from_numpy(batch) for batch in data.calibration_batches()]
    for backend in sorted(set(_CONTRACTS.values())):
        recipe = qcore.Recipe(preset="uint8", backend=backend)
        q = qcore.quantize(network.model(folder.parent), batches[0], batches, recipe)
        qcore.save(q, folder / backend, golden_inputs=batches[0][:1])


def load(
    network: Network, folder: Path, variant: str, inputs: NDArray[np.float32], threads: int
) -> Callable[[], Tensor]:
    """The program lowered to the backend ``variant``, ready to run on ``inputs``."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    program = qcore.lower(qcore.load(folder / _CONTRACTS[variant]), variant)
    x = torch.from_numpy(inputs)
    return lambda: program(x)
