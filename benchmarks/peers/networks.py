"""The networks that the engines run: random weights of a fixed seed, and inputs for them.

What an engine is given lies in files, so that all run the same weights on the same values:
``float.safetensors`` (the state of the model) and ``data.safetensors`` (inputs, the float model's
outputs for them, calibration inputs).
"""

from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qcore

__all__ = ["CALIBRATION_BATCH", "SAMPLES", "Data", "Network", "network_named"]

SAMPLES = 32
"""Inputs of each kind."""

CALIBRATION_BATCH = 8

_FLOAT_FILE = "float.safetensors"
_DATA_FILE = "data.safetensors"


@attrs.frozen(kw_only=True)
class Data:
    """What every engine is given, float32.

    Args:
        inputs: ``[SAMPLES, ...]``.
        outputs: what the float model gives for them, ``[SAMPLES, ...]``.
        calibration: other inputs, ``[SAMPLES, ...]``.
    """

    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]
    calibration: NDArray[np.float32]

    def batch(self, size: int) -> NDArray[np.float32]:
        """The first ``size`` inputs, over and over if there are fewer."""
        return self.inputs[np.arange(size) % len(self.inputs)]

    def calibration_batches(self) -> list[NDArray[np.float32]]:
        """The calibration inputs in batches."""
        return np.split(self.calibration, len(self.calibration) // CALIBRATION_BATCH)

    def sqnr_db(self, outputs: NDArray[np.float32]) -> float:
        """Signal to quantization noise of what an engine gave for :meth:`batch`, in dB."""
        wanted = self.outputs[np.arange(len(outputs)) % len(self.outputs)].astype(np.float64)
        noise = float(np.square(outputs.reshape(wanted.shape) - wanted).sum())
        return float(10 * np.log10(np.square(wanted).sum() / max(noise, 1e-300)))


@attrs.frozen(kw_only=True)
class Network:
    """One network.

    Args:
        name: on the command line.
        build: the model with fresh weights.
        draw: so many inputs from a generator.
        transformer: attention and layer norms, which some tools are told.
    """

    name: str
    build: Callable[[], nn.Module]
    draw: Callable[[int, torch.Generator], Tensor]
    transformer: bool = False

    def make_files(self, folder: Path) -> None:
        """Writes the model's state and the data."""
        torch.manual_seed(0)
        model = self.build()
        generator = torch.Generator().manual_seed(1)
        calibration, inputs = (self.draw(SAMPLES, generator) for _ in range(2))
        _settle_batch_norms(model, calibration)
        with torch.no_grad():
            outputs = torch.cat([model(x) for x in inputs.split(CALIBRATION_BATCH)])
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / _FLOAT_FILE)
        data = {"inputs": inputs, "outputs": outputs, "calibration": calibration}
        save_file(data, folder / _DATA_FILE)

    def model(self, folder: Path) -> nn.Module:
        """The float model in eval mode, with the weights that :meth:`make_files` wrote."""
        model = self.build()
        model.load_state_dict(load_file(folder / _FLOAT_FILE))
        return model.eval()

    @staticmethod
    def data(folder: Path) -> Data:
        """What :meth:`make_files` wrote."""
        return Data(**load_arrays(folder / _DATA_FILE))


def _settle_batch_norms(model: nn.Module, batch: Tensor) -> None:
    """Gives batch norms the statistics of a batch, so that no signal dies or blows up.

    Leaves the model in eval mode.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(batch)
    model.eval()


def _images(count: int, generator: torch.Generator) -> Tensor:
    """Images ``[count, 3, 224, 224]``: soft blobs and a little noise."""
    coarse = torch.randn(count, 3, 14, 14, generator=generator)
    blobs = F.interpolate(coarse, size=224, mode="bicubic", align_corners=False)
    return blobs + 0.25 * torch.randn(count, 3, 224, 224, generator=generator)


def _tokens(count: int, generator: torch.Generator) -> Tensor:
    """Embedded tokens ``[count, 128, 768]``."""
    return torch.randn(count, 128, 768, generator=generator)


def network_named(name: str) -> Network:
    """A network by its name on the command line."""
    zoo, options = {"bert6": ("bert", {"depth": 6})}.get(name, (name, {}))
    make = qcore.default_host().get("model", zoo)
    return Network(
        name=name,
        build=lambda: make(**options),
        draw=_tokens if zoo == "bert" else _images,
        transformer=zoo in ("bert", "vit_small"),
    )
