"""Float -> QFloat: captures a model, plans, and puts quantized operations in place of float ones.

The user's model is copied, never edited. The copy shares nothing with it.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from .building import PieceBuilder
from .capture import Capture, capture
from .codegen import keep_settings
from .config import QConfig
from .errors import QuantizationError, RecipeError
from .host import default_host
from .mapping import host_with_mapping
from .match import OpTable
from .numerics import Numerics
from .op import QFloatOp
from .planning import REPLACED, Plan, plan_piece, whole_plan
from .qfloat_model import QFloatInfo
from .recipe import Recipe
from .resolving import Resolver

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["plan", "prepare"]

RecipeLike = Recipe | QConfig | str


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    recipe: RecipeLike = "int8",
    *,
    mapping: Mapping[type[nn.Module], type[QFloatOp]] | None = None,
    host: "PluginHost | None" = None,
) -> Plan:
    """What :func:`prepare` would do with a model, without doing it.

    Args: as of :func:`prepare`.
    """
    return _Job(model, example_inputs, recipe, mapping, host).plan


def prepare(
    model: nn.Module,
    example_inputs: Any = None,
    recipe: RecipeLike = "int8",
    *,
    mapping: Mapping[type[nn.Module], type[QFloatOp]] | None = None,
    host: "PluginHost | None" = None,
) -> nn.Module:
    """A QFloat copy of a float model: observers and fake quantizers in place, ready to calibrate.

    Args:
        model: any float32 module; stays as it is.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments;
            the batch is the first dimension and may have any size later. None: no graph is
            captured, each layer that has a converter is quantized by itself, with float between.
        recipe: a :class:`Recipe`, a :class:`QConfig`, or the name of a preset.
        mapping: converters for this call, by the type of module that each is for; they win over
            those of plug-ins.
        host: plug-ins; by default those installed.

    Returns:
        A module that is called like ``model``. If the model was captured whole it is a graph of its
        real layers; otherwise a copy of the model with the captured parts replaced.

    Raises:
        QuantizationError: nothing in the model can be quantized, or it has parameters that are not
            float32.
        RecipeError, PluginError: the recipe asks for what there is not.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU())
    >>> qfloat = prepare(model, torch.zeros(2, 1, 8, 8))
    >>> qfloat.meta["qcore"].plan.row("0").fused
    ('1',)
    """
    return _Job(model, example_inputs, recipe, mapping, host).prepare()


def as_recipe(recipe: RecipeLike) -> Recipe:
    """A recipe from what callers may pass for one."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, QConfig):
        return Recipe(qconfig=recipe)
    if isinstance(recipe, str):
        return Recipe(preset=recipe)
    raise RecipeError(
        f"recipe: got a {type(recipe).__name__}; give a qcore.Recipe, a qcore.QConfig or the name "
        "of a preset (a file is read by Recipe.load, tables by Recipe.from_table)"
    )


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what callers may pass as inputs."""
    if inputs is None:
        return (), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


class _Job:
    """One call of plan or prepare."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        recipe: RecipeLike,
        mapping: Mapping[type[nn.Module], type[QFloatOp]] | None,
        host: "PluginHost | None",
    ) -> None:
        _check_model(model)
        self.host = host or default_host()
        if mapping:
            self.host = host_with_mapping(mapping, self.host)
        self.recipe = as_recipe(recipe)
        if self.recipe.require:
            self.host.require(list(self.recipe.require))
        resolver = Resolver(self.recipe, self.host)
        self.numerics = _numerics(self.recipe, self.host)
        table = OpTable.of(self.host, self.recipe.prefer)
        self.model = _copy(model)
        self.args, self.kwargs = as_arguments(example_inputs)
        self.capture: Capture = capture(
            self.model,
            self.args,
            self.kwargs,
            is_leaf=lambda module: table.of_module(module) is not None,
        )
        self.pieces = [
            plan_piece(piece, table, resolver, self.host, self.numerics)
            for piece in self.capture.pieces
        ]
        self.plan = whole_plan(
            self.pieces, self.capture, backend=self.recipe.backend, numerics=self.numerics
        )
        resolver.check_overrides(self.plan.rows)

    def prepare(self) -> nn.Module:
        if not any(map(self.plan.count, REPLACED)):
            reasons = [f"{r.name or 'the model'}: {r.reason}" for r in self.plan.rows[:4]]
            reasons += [f"{path or 'the model'}: {why}" for path, why in self.plan.failures[:4]]
            raise QuantizationError(
                "nothing in the model can be quantized with this recipe; "
                + ("; ".join(reasons) or "it has no layer that a converter knows")
            )
        model = self.model
        float_model = copy.deepcopy(model, {id(t): t for _, t in named_tensors(model)})
        # A piece in which nothing is quantized stays what it is in the model.
        changed = [piece for piece in self.pieces if piece.quantizes]
        for piece in changed:
            built = PieceBuilder(piece, self.host, self.numerics).build()
            built.register_forward_pre_hook(piece.piece.guard, with_kwargs=True)
            if piece.piece.path == "":
                model = built
            else:
                for path in (piece.piece.path, *piece.piece.aliases):
                    replace_module(model, path, built)
        info = QFloatInfo(
            plan=self.plan,
            recipe=self.recipe,
            host=self.host,
            pieces={piece.piece.path: piece.piece for piece in changed},
            arity=len(self.args) if self.args or self.kwargs else required_inputs(self.model),
            float_model=float_model,
            places=_places(float_model, model),
        )
        if isinstance(model, fx.GraphModule):
            model.meta["qcore"] = info
        else:
            model._qcore_info = info  # type: ignore[assignment]
        return model


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers with every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _places(float_model: nn.Module, qfloat: nn.Module) -> dict[str, str]:
    """Name in QFloat of each tensor of the float model that went there."""
    names = {id(tensor): name for name, tensor in named_tensors(qfloat)}
    found = ((name, names.get(id(tensor))) for name, tensor in named_tensors(float_model))
    return {name: place for name, place in found if place is not None}


def required_inputs(model: nn.Module) -> int:
    """Number of positional inputs that ``forward`` can't do without, at least 1."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is p.empty for p in parameters))


def _numerics(recipe: Recipe, host: "PluginHost") -> Numerics:
    if recipe.numerics is not None:
        return Numerics.parse(recipe.numerics)
    numerics: Numerics = host.get("backend", recipe.backend).numerics
    return numerics


def _check_model(model: nn.Module) -> None:
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise QuantizationError(
                f"parameter {name!r} is {tensor.dtype}; the simulation of integers needs float32: "
                "quantize a copy made with copy.deepcopy(model).float()"
            )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise QuantizationError(
            f"{type(model).__name__} can't be copied ({type(error).__name__}: {error}), and "
            "prepare works on a copy; a tensor kept from an earlier forward can be the cause: "
            "detach it"
        ) from error


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Puts ``new`` in the place of the submodule at ``path``.

    A forward around it may read settings of it or of what it holds, as TransformerEncoder does
    of its first layer: these ``new`` has too.
    """
    parent, _, name = path.rpartition(".")
    keep_settings(model.get_submodule(path), new)
    model.get_submodule(parent).register_module(name, new)


def positional(batch: Any, arity: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a batch: of a tuple or list the first ``arity`` items, so labels may follow."""
    args, kwargs = as_arguments(batch)
    return (args[:arity] if isinstance(batch, Sequence) else args), kwargs
