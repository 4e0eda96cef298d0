"""Checkpoints of a training: written whole or not at all, and taken up only by the same training.

A file holds the model, the optimizers and the best model so far, as named tensors without pickle,
and in its header what training it belongs to and how far that was.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qcore import Dataset, RecipeError

__all__ = ["Checkpoint", "training_key"]


def training_key(model: nn.Module, dataset: Dataset, options: Mapping[str, Any]) -> str:
    """Name of a training by content: where it starts, on what data, with which options.

    Args:
        model: in its first state.
        dataset: what it is trained on.
        options: plain data.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(dataset.fingerprint().encode())
    digest.update(json.dumps(dict(options), sort_keys=True, default=str).encode())
    digest.update(torch.__version__.encode())
    return digest.hexdigest()


@attrs.frozen(kw_only=True, eq=False)
class Checkpoint:
    """A file, and the training that it belongs to.

    Args:
        path: of the file.
        key: of the training; see :func:`training_key`.
    """

    path: Path
    key: str

    def save(
        self,
        *,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        best: Mapping[str, Tensor],
        best_accuracy: float,
    ) -> None:
        """Writes the state after ``step`` steps in the place of an earlier one.

        A process that is killed meanwhile leaves the earlier file.
        """
        tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in best.items()}
        for i, optimizer in enumerate(optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                for name, value in state.items():
                    if isinstance(value, Tensor):
                        tensors[f"optimizer.{i}.{index}.{name}"] = value
        # Cloned, because tensors that share memory (tied weights) can't be saved as such.
        whole = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        header = {"key": self.key, "step": str(step), "best_accuracy": repr(best_accuracy)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        save_file(whole, partial, metadata=header)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(self.path)

    def load(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> tuple[int, dict[str, Tensor], float]:
        """Puts model and optimizers into the saved state.

        Returns:
            Number of steps done, the best model's state (empty if there is none), and its accuracy.

        Raises:
            RecipeError: the file is damaged, or of another training.
        """
        with self._open() as file:
            header = file.metadata() or {}
            if header.get("key") != self.key:
                raise RecipeError(
                    f"qat: checkpoint {str(self.path)!r} is of another training (other model, "
                    "data, options or versions); remove it, or name another path"
                )
            parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
            for name in file.keys():  # noqa: SIM118, it is no mapping
                part, _, rest = name.partition(".")
                parts[part][rest] = file.get_tensor(name)
        model.load_state_dict(parts["model"])
        for i, optimizer in enumerate(optimizers):
            _restore(optimizer, i, parts["optimizer"])
        return int(header["step"]), parts["best"], float(header["best_accuracy"])

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise RecipeError(
                f"qat: checkpoint {str(self.path)!r} can't be read ({error}); remove it"
            ) from error

    def remove(self) -> None:
        """Deletes the file, if there is one."""
        self.path.unlink(missing_ok=True)


def _restore(optimizer: torch.optim.Optimizer, number: int, tensors: Mapping[str, Tensor]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for path, value in tensors.items():
        owner, index, name = path.split(".", 2)
        if int(owner) != number:
            continue
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # In the memory format of the parameter, in which the optimizer is fastest.
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
