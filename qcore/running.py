"""A whole recipe: model and data, float stages, Float -> QFloat -> Q, measurements, and a folder of
results.

The folder holds ``result.json``, the resolved recipe, the plan, and the artifact.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .artifact import save
from .backend import available_backend, lower
from .cache import cache_folder
from .calibration import calibrate
from .conversion import convert
from .dataset import Dataset
from .errors import BackendError, QuantizationError, RecipeError
from .fidelity import count_differences
from .host import default_host
from .placing import kernel_plan
from .planning import Plan
from .preparation import plan, prepare
from .qfloat_model import info_of
from .ranks import world_size
from .recipe import Recipe, Stage
from .specs import AlgorithmSpec
from .stages import checked_stages, run_stage
from .versions import installed_version

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = [
    "Phases",
    "RunResult",
    "accuracy",
    "built_model",
    "float_model",
    "loaded_data",
    "plan_recipe",
    "quantize",
    "recipe_phases",
    "run_recipe",
]

_EVAL_BATCH = 250


@attrs.frozen(kw_only=True)
class RunResult:
    """What a run measured; ``result.json`` holds the same.

    Args:
        accuracy: percent on the test split, of ``float``, ``qfloat`` and ``q``.
        integers: ``compared`` and ``differing`` values of QFloat and Q over the test split.
        bytes: size of the parameters and buffers of ``float`` and ``q``.
        seconds: by stage.
        folder: where everything lies.
        artifact, plan: paths in it.
    """

    accuracy: Mapping[str, float]
    integers: Mapping[str, int]
    bytes: Mapping[str, int]
    seconds: Mapping[str, float]
    folder: Path
    artifact: Path
    plan: Path

    def to_data(self) -> dict[str, Any]:
        """Plain data, as in ``result.json``."""
        data = attrs.asdict(self)
        del data["folder"]
        return {**data, "artifact": str(self.artifact), "plan": str(self.plan)}


@attrs.frozen(kw_only=True, eq=False)
class Phases:
    """The model of a recipe in each phase, and its data.

    Args:
        float, qfloat, q: after all stages of the phase.
        data: of the recipe.
    """

    float: nn.Module
    qfloat: nn.Module
    q: nn.Module
    data: Dataset


def quantize(
    model: nn.Module,
    example_inputs: Any,
    batches: Any,
    recipe: Recipe | str = "int8",
    *,
    host: "PluginHost | None" = None,
) -> nn.Module:
    """Float -> Q in one call: prepare, calibrate, convert.

    Args:
        model: float model; stays as it is.
        example_inputs: as for :func:`qcore.prepare`.
        batches: as for :func:`qcore.calibrate`.
        recipe: as for :func:`qcore.prepare`.
        host: plug-ins; by default those installed.

    Returns:
        The integer program.
    """
    return convert(calibrate(prepare(model, example_inputs, recipe, host=host), batches))


def accuracy(model: nn.Module, data: Dataset, split: str = "test") -> float:
    """Top-1 accuracy in percent of a classifier in eval mode, whose mode is then as before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    correct = total = 0
    try:
        with torch.no_grad():
            for inputs, labels in data.batches(split, _EVAL_BATCH):  # type: ignore[arg-type]
                correct += _correct(model(inputs), labels)
                total += len(labels)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return 100.0 * correct / total


def _correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(-1) == labels).sum())


def plan_recipe(recipe: Recipe, *, host: "PluginHost | None" = None) -> Plan:
    """The plan of a recipe for its model as built, untrained; runs no stage.

    The model is converted as it is, so that ``kernel`` can name what its backend will run. Where
    that can't be known yet, ``kernel`` names operations of Q, as in the plan of
    :func:`qcore.prepare`.
    """
    return plan_with_note(recipe, host=host)[0]


def plan_with_note(recipe: Recipe, *, host: "PluginHost | None" = None) -> tuple[Plan, str]:
    """The plan of a recipe, and why its kernels are not known; empty if they are."""
    return _Run(recipe, host or default_host()).plan()


def built_model(recipe: Recipe, *, host: "PluginHost | None" = None) -> nn.Module:
    """The model of a recipe as built, untrained, in eval mode; runs no stage."""
    return _Run(recipe, host or default_host()).model().eval()


def loaded_data(recipe: Recipe, *, host: "PluginHost | None" = None) -> Dataset:
    """The data set of a recipe."""
    return _Run(recipe, host or default_host()).data()


def float_model(
    recipe: Recipe, *, use_cache: bool = True, host: "PluginHost | None" = None
) -> tuple[nn.Module, Dataset]:
    """The model of a recipe after its float stages, from the cache if they ran before, and its
    data.

    Args: as of :func:`run_recipe`.
    """
    run = _Run(recipe, host or default_host())
    data = run.data()
    return run.trained(run.model(), data, use_cache=use_cache), data


def recipe_phases(
    recipe: Recipe, *, use_cache: bool = True, host: "PluginHost | None" = None
) -> Phases:
    """The model of a recipe in every phase; nothing is measured or saved.

    Args: as of :func:`run_recipe`.
    """
    run = _Run(recipe, host or default_host())
    data = run.data()
    model = run.trained(run.model(), data, use_cache=use_cache)
    qfloat = run.qfloat(model, data)
    return Phases(float=model, qfloat=qfloat, q=run.q(qfloat, data), data=data)


def run_recipe(
    recipe: Recipe,
    *,
    folder: str | Path | None = None,
    use_cache: bool = True,
    host: "PluginHost | None" = None,
) -> RunResult:
    """Runs a recipe from the float model to the artifact.

    Args:
        recipe: with ``model`` and ``data``.
        folder: where the results go; must be new or empty. By default ``runs/NAME`` with a number
            behind it if that exists.
        use_cache: take the float stages' model from the cache if exactly these stages ran before on
            this model and data, and put it there otherwise.
        host: plug-ins; by default those installed.

    Raises:
        RecipeError: no model or data, stages in an impossible order, or several processes, each of
            which would do and write all of it.
    """
    _require_one_process()
    return _Run(recipe, host or default_host()).run(folder, use_cache=use_cache)


def _require_one_process() -> None:
    # torchrun says how many it started before any of them joins a group.
    started = int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    processes = max(started, world_size())
    if processes > 1:
        raise RecipeError(
            f"a recipe is run by one process, and there are {processes}; write a program that "
            "calls qcore.prepare, qcore.calibrate and the stage qat in each of them, as "
            "docs/distributed.md shows"
        )


class _Run:
    def __init__(self, recipe: Recipe, host: "PluginHost") -> None:
        self.recipe = recipe
        self.host = host
        if recipe.model is None or recipe.data is None:
            missing = "model" if recipe.model is None else "data"
            raise RecipeError(
                f"recipe {recipe.name!r}: it has no [{missing}]; a run needs both, with a name each"
            )
        if recipe.require:
            host.require(list(recipe.require))
        self.stages = checked_stages(recipe.algorithms, host)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        # A recipe may list a stage twice.
        taken = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        self.seconds[stage] = round(taken, 3)

    def model(self) -> nn.Module:
        assert self.recipe.model is not None
        torch.manual_seed(self.recipe.seed)
        return self._make("model", self.recipe.model)  # type: ignore[no-any-return]

    def data(self) -> Dataset:
        assert self.recipe.data is not None
        data: Dataset = self._make("dataset", self.recipe.data)
        return data

    def _make(self, kind: str, table: Mapping[str, Any]) -> Any:
        options = {key: value for key, value in table.items() if key != "name"}
        spec = self.host.find(kind, table["name"])
        defaults = dict(getattr(spec, "options", {}))
        target = self.host.load(spec)
        try:
            return target(**{**defaults, **options})
        except TypeError as error:
            raise RecipeError(
                f"{kind} {table['name']!r} with options {options}: {error}"
            ) from error

    def _apply(self, phase: str, model: nn.Module, data: Dataset) -> nn.Module:
        for stage, spec in self.stages:
            if spec.phase != phase:
                continue
            target = self.host.load(spec)
            with self.timed(stage.name):
                model = run_stage(
                    target,
                    model,
                    name=stage.name,
                    dataset=data,
                    seed=self.recipe.seed,
                    options=stage.options,
                )
        return model

    def plan(self) -> tuple[Plan, str]:
        example = self.data().train_inputs[:2]
        qfloat = prepare(self.model(), example, self.recipe, host=self.host)
        decided = info_of(qfloat).plan
        try:
            q = convert(calibrate(qfloat, [example]))
            return kernel_plan(q, host=self.host), ""
        # What two images of an untrained model say of ranges need not hold of the trained one.
        except (BackendError, QuantizationError) as error:
            return decided, str(error)

    def run(self, folder: str | Path | None, *, use_cache: bool) -> RunResult:
        folder = _new_folder(folder, self.recipe.name)
        with self.timed("data"):
            data = self.data()
        model = self.model()
        # Before the long work: what can't be quantized, or can't run here, shows now.
        available_backend(self.recipe.backend, self.host)
        plan(model, data.train_inputs[:2], self.recipe, host=self.host)
        model = self.trained(model, data, use_cache=use_cache)
        scores = {"float": accuracy(model, data)}

        qfloat = self.qfloat(model, data)
        q = self.q(qfloat, data)

        correct = {"qfloat": 0, "q": 0}

        def watch(batch: Any, left: Tensor, right: Tensor) -> None:
            correct["qfloat"] += _correct(left, batch[1])
            correct["q"] += _correct(right, batch[1])

        with self.timed("compare"):
            batches = list(data.batches("test", _EVAL_BATCH))
            fidelity = count_differences(
                qfloat, lower(q, self.recipe.backend, host=self.host), batches, watch=watch
            )
        for phase, n in correct.items():
            scores[phase] = 100.0 * n / len(data.test_labels)

        with self.timed("save"):
            artifact = folder / "artifact"
            save(q, artifact, golden_inputs=data.test_inputs[:2])
        the_plan = kernel_plan(q, self.recipe.backend, host=self.host)
        plan_file = folder / "plan.txt"
        plan_file.write_text(f"{the_plan}\n", encoding="utf-8")
        _write_json(folder / "plan.json", the_plan.to_data())
        _write_json(folder / "recipe.json", self.recipe.to_table())
        result = RunResult(
            accuracy=scores,
            integers={"compared": fidelity.compared, "differing": fidelity.differing},
            bytes={"float": _bytes(model), "q": _bytes(q)},
            seconds=self.seconds,
            folder=folder,
            artifact=artifact,
            plan=plan_file,
        )
        _write_json(folder / "result.json", result.to_data())
        return result

    def qfloat(self, model: nn.Module, data: Dataset) -> nn.Module:
        """QFloat of a trained model, calibrated, after the stages that work on it."""
        with self.timed("prepare"):
            qfloat = prepare(model, data.train_inputs[:2], self.recipe, host=self.host)
        qfloat = self._apply("qfloat", qfloat, data)
        with self.timed("calibrate"):
            calibrate(qfloat, self._calibration(data))
        return self._apply("calibrated", qfloat, data)

    def q(self, qfloat: nn.Module, data: Dataset) -> nn.Module:
        """The program of a QFloat model, after the stages that work on it."""
        with self.timed("convert"):
            q = convert(qfloat)
        return self._apply("q", q, data)

    def _calibration(self, data: Dataset) -> list[Tensor]:
        options = self.recipe.calibration
        samples = int(options.get("samples", 512))
        size = int(options.get("batch_size", 128))
        seed = int(options.get("seed", self.recipe.seed))
        batches = data.batches("train", size, shuffle=True, seed=seed, limit=samples)
        return [inputs for inputs, _ in batches]

    def trained(self, model: nn.Module, data: Dataset, *, use_cache: bool) -> nn.Module:
        """The model after the float stages, from the cache if they ran before."""
        stages = [(s, spec) for s, spec in self.stages if spec.phase == "float"]
        if not stages:
            return model
        key = self._key(model, data, stages)
        file = cache_folder() / "float" / f"{key}.safetensors"
        if use_cache and file.is_file():
            with self.timed("load trained float"):
                model.load_state_dict(load_file(file))
            return model.eval()
        model = self._apply("float", model, data)
        if use_cache:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(f".{os.getpid()}.partial")
            state = {k: v.detach().contiguous() for k, v in model.state_dict().items()}
            save_file(state, partial)
            partial.replace(file)
        return model

    def _key(
        self, model: nn.Module, data: Dataset, stages: list[tuple[Stage, AlgorithmSpec]]
    ) -> str:
        """Name of a trained model by content: its initial weights, the data, the stages, the
        versions."""
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().numpy().tobytes())
        words = {
            "data": data.fingerprint(),
            "model": dict(self.recipe.model or {}),
            "seed": self.recipe.seed,
            "stages": [
                (stage.name, dict(stage.options), spec.origin and attrs.asdict(spec.origin))
                for stage, spec in stages
            ],
            "torch": torch.__version__,
            "qcore": installed_version(),
        }
        digest.update(json.dumps(words, sort_keys=True, default=str).encode())
        return digest.hexdigest()


def _new_folder(folder: str | Path | None, name: str) -> Path:
    if folder is not None:
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RecipeError(f"folder {str(path)!r} is not empty; name a new one")
        path.mkdir(parents=True, exist_ok=True)
        return path
    number = 1
    while True:
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path


def _bytes(model: nn.Module) -> int:
    """Size of the distinct parameters and buffers of a model."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers()) if t.numel()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, default=str) + "\n", encoding="utf-8")
