"""torch in float32: eager, and compiled by inductor with frozen weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from networks import Network
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["build", "load"]


def build(network: Network, folder: Path) -> None:
    """Nothing: the weights are there already."""


def load(
    network: Network, folder: Path, variant: str, inputs: NDArray[np.float32], threads: int
) -> Callable[[], Tensor]:
    """The model, ready to run on ``inputs``."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = network.model(folder.parent)
    if variant == "compile":
        torch._inductor.config.freezing = True
        model = torch.compile(model)
    x = torch.from_numpy(inputs)
    return lambda: model(x)
