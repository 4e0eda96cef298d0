"""What is measured: the engines of a recipe or of an artifact, ready for their processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from safetensors.torch import save_file

from ..artifact import save
from ..artifact.manifest import MANIFEST_FILE
from ..artifact.reading import read_manifest_of
from ..errors import ArtifactError, QcoreError, RecipeError
from ..recipe import Recipe
from ..running import built_model, loaded_data, quantize
from .engines import INPUTS

if TYPE_CHECKING:
    from ..host import PluginHost

__all__ = ["FLOAT", "Target", "open_target"]

FLOAT = "float32"
"""Name of the float model among the engines."""

_SAMPLES = 64


@attrs.frozen(kw_only=True)
class Target:
    """A recipe or an artifact.

    Args:
        name: as it was given.
        engines: by name, what an :class:`~qcore.benchmarking.engines.Order` says about it.
        failures: by name, why an engine could not be made.
        has_float: whether its float model is the first engine.
    """

    name: str
    engines: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, str]
    has_float: bool


def open_target(
    target: "str | Path | Recipe",
    backends: Sequence[str],
    folder: Path,
    *,
    host: "PluginHost | None" = None,
) -> Target:
    """Reads a target, and makes the programs of a recipe.

    A recipe's program is made for each backend anew, by that backend's contract. The model is as
    built and calibrated on a few samples: no stage runs, because speed does not depend on the
    values of weights.

    Args:
        target: a recipe, the path of one, or the folder of an artifact.
        backends: names; none: the one that the recipe names.
        folder: an empty one, for files that the processes read.
        host: plug-ins; by default those installed.

    Raises:
        ArtifactError, RecipeError: the target can't be read.
    """
    if not isinstance(target, Recipe):
        path = Path(target)
        if path.is_dir():
            return _artifact(path, backends)
        name = str(target)
        target = Recipe.load(path)
    else:
        name = target.name
    return _recipe(name, target, backends or (target.backend,), folder, host)


def _artifact(path: Path, backends: Sequence[str]) -> Target:
    if not (path / MANIFEST_FILE).is_file():
        raise ArtifactError(
            f"{str(path)!r} has no {MANIFEST_FILE}; give the folder of an artifact or a recipe file"
        )
    manifest = read_manifest_of(path)
    if "" not in manifest.programs:
        raise ArtifactError(
            f"{str(path)!r} holds programs for {len(manifest.programs)} parts of a model, which "
            "can't run without it; measure its recipe instead"
        )
    names = backends or (manifest.recipe.backend,)
    engines = {name: {"backend": name, "artifact": str(path.resolve())} for name in names}
    return Target(name=str(path), engines=engines, failures={}, has_float=False)


def _recipe(
    name: str,
    recipe: Recipe,
    backends: Sequence[str],
    folder: Path,
    host: "PluginHost | None",
) -> Target:
    data = loaded_data(recipe, host=host)
    save_file({INPUTS: data.test_inputs[:_SAMPLES].contiguous()}, folder / "inputs.safetensors")
    shared = {"recipe": recipe.to_table(), "inputs": str(folder / "inputs.safetensors")}
    engines: dict[str, dict[str, Any]] = {FLOAT: {"backend": None, **shared}}
    failures: dict[str, str] = {}
    calibration = [inputs for inputs, _ in data.batches("train", _SAMPLES // 2, limit=_SAMPLES)]
    for index, backend in enumerate(backends):
        artifact = folder / f"artifact-{index}"
        try:
            q = quantize(
                built_model(recipe, host=host),
                data.train_inputs[:2],
                calibration,
                attrs.evolve(recipe, backend=backend),
                host=host,
            )
            save(q, artifact, golden_inputs=data.test_inputs[:2])
        except RecipeError:
            raise
        except QcoreError as error:
            failures[backend] = str(error)
            continue
        engines[backend] = {"backend": backend, "artifact": str(artifact), **shared}
    return Target(name=name, engines=engines, failures=failures, has_float=True)
