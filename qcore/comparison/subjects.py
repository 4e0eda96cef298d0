"""What ``qcore compare`` is given: artifacts and recipes, where they run, and on what inputs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx, nn

from ..artifact.golden import decode_leaves
from ..artifact.reading import Artifact, read_artifact
from ..backend import lower
from ..errors import ArtifactError, RecipeError
from ..recipe import Recipe
from ..running import Phases, recipe_phases
from ..suggest import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..host import PluginHost

__all__ = ["PHASES", "Opener", "Subject", "inputs_for"]

PHASES = ("float", "qfloat", "q")
"""Words that may stand behind the ``@``, besides the names of backends."""

_SAMPLES = 64
_BATCH = 32


@attrs.frozen(kw_only=True, eq=False)
class Subject:
    """One side of a comparison, opened.

    Args:
        name: as it was given.
        model: what to compare.
        source: where it comes from, which has inputs too.
    """

    name: str
    model: nn.Module
    source: Artifact | Phases


class Opener:
    """Opens the two sides; a recipe or artifact that both name is read once.

    Args:
        use_cache: take the result of the float stages of a recipe from the cache.
        allow_other_numerics: lower a program even to a backend with another contract.
        host: plug-ins.
    """

    def __init__(self, *, use_cache: bool, allow_other_numerics: bool, host: "PluginHost") -> None:
        self.use_cache = use_cache
        self.allow_other_numerics = allow_other_numerics
        self.host = host
        self._read: dict[Path, Artifact | Phases] = {}
        # Lowered models refer to their programs.
        self._programs: list[nn.Module] = []

    def open(self, text: str) -> Subject:
        """A side from ``PATH`` or ``PATH@WHERE``.

        Args:
            text: a recipe file or the folder of an artifact; behind an ``@`` a phase (``float``,
                ``qfloat``, ``q``) or the name of a backend that Q is lowered to. Without one it is
                Q on the reference kernels.

        Raises:
            RecipeError: a phase that is none; a phase that an artifact does not have; a recipe that
                can't be read.
            ArtifactError: no such path; an artifact that can't be read, or that holds only parts of
                a model.
            BackendError: the backend is not available, or has another contract.
        """
        path, where = self._split(text)
        source = self._source(path)
        if isinstance(source, Artifact):
            if where in ("float", "qfloat"):
                raise RecipeError(
                    f"{text!r}: an artifact holds Q alone; compare {where!r} of its recipe file "
                    f"(RECIPE.toml@{where})"
                )
            q: nn.Module = _whole(source)
        else:
            q = source.q
        if where in PHASES:
            model = q if where == "q" or isinstance(source, Artifact) else getattr(source, where)
        else:
            self._programs.append(q)
            model = lower(q, where, allow_other_numerics=self.allow_other_numerics, host=self.host)
        return Subject(name=text, model=model, source=source)

    def _split(self, text: str) -> tuple[Path, str]:
        path, at, where = text.rpartition("@")
        if not at or Path(text).exists():
            return Path(text), "q"
        backends = sorted(spec.name for spec in self.host.specs("backend"))
        if where not in (*PHASES, *backends):
            raise RecipeError(
                f"{text!r}: {where!r} is neither a phase ({', '.join(PHASES)}) nor a backend "
                f"({', '.join(backends)}){did_you_mean(where, (*PHASES, *backends))}"
            )
        return Path(path), where

    def _source(self, path: Path) -> Artifact | Phases:
        key = path.resolve()
        if key not in self._read:
            if path.is_dir():
                self._read[key] = read_artifact(path)
            elif path.is_file():
                recipe = Recipe.load(path)
                self._read[key] = recipe_phases(recipe, use_cache=self.use_cache, host=self.host)
            else:
                raise ArtifactError(
                    f"{str(path)!r}: there is no such file or folder; give a recipe file or the "
                    "folder of an artifact"
                )
        return self._read[key]


def _whole(artifact: Artifact) -> fx.GraphModule:
    """The program of an artifact that is a whole model."""
    if "" not in artifact.programs:
        raise ArtifactError(
            f"{str(artifact.folder)!r} holds programs for {len(artifact.programs)} parts of a "
            "model, which can't run without it; compare in Python: qcore.compare("
            "qcore.load(folder, into=model), ...)"
        )
    return artifact.programs[""]


def inputs_for(a: Subject, b: Subject, *, file: str | None, samples: int | None) -> list[Any]:
    """The batches to compare on.

    From ``file`` if it is given; else test inputs of a recipe, if one side is one; else the golden
    inputs of an artifact, A's first.

    Args:
        file: ``.npy``, one array; or ``.safetensors``, one tensor or one for each input by name.
        samples: at most so many, from a file or a recipe; by default all of a file, 64 of a recipe.

    Raises:
        RecipeError: a file that can't be read; ``samples`` for golden inputs.
    """
    if file is not None:
        return list(_batches(_from_file(Path(file)), samples))
    phases = next((s.source for s in (a, b) if isinstance(s.source, Phases)), None)
    if phases is not None:
        return list(_batches(phases.data.test_inputs, samples or _SAMPLES))
    if samples is not None:
        raise RecipeError(
            "--samples is for the data of a recipe or for --inputs; of two artifacts the golden "
            "inputs are used, which are few"
        )
    assert isinstance(a.source, Artifact)
    return [_golden(a.source)]


def _from_file(path: Path) -> Tensor | dict[str, Tensor]:
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(_array(path))
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return next(iter(tensors.values())) if len(tensors) == 1 else tensors
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise RecipeError(f"--inputs {str(path)!r}: {type(error).__name__}: {error}") from error
    raise RecipeError(f"--inputs {str(path)!r}: give a .npy or a .safetensors file")


def _array(path: Path) -> "NDArray[Any]":
    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except (ValueError, EOFError) as error:
        # NumPy would advise to unpickle it.
        raise ValueError("it is no array of numbers; write it with numpy.save") from error


def _batches(inputs: Tensor | Mapping[str, Tensor], samples: int | None) -> Iterator[Any]:
    """Inputs in batches along dimension 0."""
    tensors = {"": inputs} if isinstance(inputs, Tensor) else dict(inputs)
    sizes = {len(t) if t.ndim else 0 for t in tensors.values()}
    if len(sizes) != 1 or sizes == {0}:
        said = ", ".join(f"{name or 'the array'} {list(t.shape)}" for name, t in tensors.items())
        raise RecipeError(f"--inputs: give tensors with one batch, not empty, first; got {said}")
    (size,) = sizes
    size = min(size, samples or size)
    for start in range(0, size, _BATCH):
        part = {name: t[start : min(start + _BATCH, size)] for name, t in tensors.items()}
        yield part[""] if isinstance(inputs, Tensor) else part


def _golden(artifact: Artifact) -> Any:
    """The golden inputs as a batch."""
    program = _whole(artifact)
    record = artifact.manifest.programs[""].golden
    leaves = decode_leaves(record.inputs, artifact.tensors, "golden.inputs")
    guard = program.meta["qcore"].guard
    if guard is None:
        return tuple(leaves)
    args, kwargs = pytree.tree_unflatten(list(leaves), guard.spec)
    return {**dict(zip(guard.names, args, strict=False)), **kwargs} if kwargs else tuple(args)
