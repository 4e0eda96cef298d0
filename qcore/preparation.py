"""Float -> QFloat: captures a model, plans, and puts quantized operations in place of float ones.

The user's model is copied, never edited. The copy shares nothing with it.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from .capture import Capture, Piece, capture
from .codegen import SharedGraphModule, keep_settings, shared_codegen
from .config import QConfig, QuantizerConfig
from .dynamic_quantize import DynamicQuantize
from .errors import QuantizationError, RecipeError
from .fake_quantize import FakeQuantize
from .granularity import PerChannel, PerToken
from .host import default_host
from .match import OpTable
from .numerics import Numerics
from .op import QFloatOp
from .planning import REPLACED, Decision, PiecePlan, Plan, plan_piece, whole_plan
from .recipe import Recipe
from .resolving import Resolver

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["QFloatInfo", "info_of", "plan", "prepare", "qfloat_ops", "quantizers"]

RecipeLike = Recipe | QConfig | str


@attrs.frozen(kw_only=True, eq=False)
class QFloatInfo:
    """What a QFloat model remembers of its making; see :func:`info_of`.

    Args:
        plan: what was done.
        recipe: what was asked.
        host: where its parts came from.
        pieces: path of each captured piece, and the piece.
        arity: number of positional inputs of the model.
    """

    plan: Plan
    recipe: Recipe
    host: "PluginHost"
    pieces: Mapping[str, Piece]
    arity: int

    def __deepcopy__(self, memo: dict[int, Any]) -> "QFloatInfo":
        return self


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    recipe: RecipeLike = "int8",
    *,
    host: "PluginHost | None" = None,
) -> Plan:
    """What :func:`prepare` would do with a model, without doing it.

    Args: as of :func:`prepare`.
    """
    return _Job(model, example_inputs, recipe, host).plan


def prepare(
    model: nn.Module,
    example_inputs: Any = None,
    recipe: RecipeLike = "int8",
    *,
    host: "PluginHost | None" = None,
) -> nn.Module:
    """A QFloat copy of a float model: observers and fake quantizers in place, ready to calibrate.

    Args:
        model: any float32 module; stays as it is.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments;
            the batch is the first dimension and may have any size later. None: no graph is
            captured, each layer that has a converter is quantized by itself, with float between.
        recipe: a :class:`Recipe`, a :class:`QConfig`, or the name of a preset.
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
    >>> info_of(qfloat).plan.row("0").fused
    ('1',)
    """
    return _Job(model, example_inputs, recipe, host).prepare()


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
        "of "
        "a preset (a file is read by Recipe.load, tables by Recipe.from_table)"
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


def info_of(model: nn.Module) -> QFloatInfo:
    """Plan, recipe and plug-ins of a QFloat model.

    Raises:
        QuantizationError: the model did not come from :func:`prepare`.
    """
    info = _info(model)
    if info is None:
        raise QuantizationError(
            f"{type(model).__name__} is not a QFloat model; make one with qcore.prepare"
        )
    return info


def forget_info(model: nn.Module) -> None:
    """Makes a copy of a QFloat model, whose parts were replaced, one no more."""
    del model._qcore_info


def is_qfloat(model: nn.Module) -> bool:
    """Whether a model came from :func:`prepare`."""
    return _info(model) is not None


def _info(model: nn.Module) -> QFloatInfo | None:
    if isinstance(model, fx.GraphModule):
        info = model.meta.get("qcore")
    else:
        info = getattr(model, "_qcore_info", None)
    return info if isinstance(info, QFloatInfo) else None


def qfloat_ops(model: nn.Module) -> list[tuple[str, QFloatOp]]:
    """Name and module of each quantized operation of a QFloat model."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, QFloatOp)]


def quantizers(model: nn.Module) -> list[tuple[str, FakeQuantize]]:
    """Name and module of each fake quantizer of a QFloat model."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, FakeQuantize)]


class _Job:
    """One call of plan or prepare."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        recipe: RecipeLike,
        host: "PluginHost | None",
    ) -> None:
        _check_model(model)
        self.host = host or default_host()
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
        # A piece in which nothing is quantized stays what it is in the model.
        changed = [piece for piece in self.pieces if piece.quantizes]
        for piece in changed:
            built = _Builder(piece, self.host, self.numerics).build()
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
        )
        if isinstance(model, fx.GraphModule):
            model.meta["qcore"] = info
        else:
            model._qcore_info = info  # type: ignore[assignment]
        return model


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
            f"{type(model).__name__} can't be copied ({type(error).__name__}: {error}); prepare "
            "works "
            "on a copy. A tensor that is kept from an earlier forward can be the cause: detach it"
        ) from error


def replace_module(model: nn.Module, path: str, new: nn.Module) -> None:
    """Puts ``new`` in the place of the submodule at ``path``.

    A forward around it may read settings of it or of what it holds, as TransformerEncoder does
    of its first layer: these ``new`` has too.
    """
    parent, _, name = path.rpartition(".")
    keep_settings(model.get_submodule(path), new)
    model.get_submodule(parent).register_module(name, new)


class _Builder:
    """Builds the QFloat graph of one piece."""

    def __init__(self, plan: PiecePlan, host: "PluginHost", numerics: Numerics) -> None:
        self.plan = plan
        self.host = host
        self.numerics = numerics
        self.source = plan.piece.graph
        self.root: dict[str, Any] = {}
        self.graph = fx.Graph()
        self.graph.set_codegen(shared_codegen(self.source.graph))
        self.env: dict[fx.Node, fx.Node] = {}
        self.held: dict[fx.Node, FakeQuantize] = {}
        """Quantizer of each value that is held as integers, by its node in the captured graph."""
        self.stubs: dict[fx.Node, fx.Node] = {}
        self.names = {str(n.target) for n in self.source.graph.nodes if n.op == "get_attr"}
        self.names |= {name for name, _ in self.source.named_modules() if name}
        self.called: set[nn.Module] = set()
        """Float modules that the QFloat graph calls."""
        self.absorbed: set[nn.Module] = set()
        """Float modules that became part of an operation."""
        self.settled = set(self.source.modules())
        """Modules whose mode is set: a BatchNorm that is frozen in a model in training stays so."""

    def build(self) -> fx.GraphModule:
        modules = dict(self.source.named_modules())
        inside = {
            step.node
            for d in self.plan.decisions.values()
            if d.status in REPLACED
            for step in d.match.steps
        }
        for node in self.source.graph.nodes:
            d = self.plan.decisions.get(node)
            if d is not None and d.status in REPLACED:
                self.env[node] = self._operation(d)
            elif node not in inside:
                new = self.graph.node_copy(node, lambda n: self.env[n])
                self.env[node] = new
                if node.op == "call_module":
                    self.root[str(node.target)] = modules[str(node.target)]
                    self.called.add(modules[str(node.target)])
                elif node.op == "get_attr":
                    self.root[str(node.target)] = self.plan.piece.tensor(str(node.target))
                if d is not None and d.status == "moves":
                    self.held[node] = self.held[d.match.inputs[0]]
        self.graph.lint()
        result = SharedGraphModule(self.root, self.graph, class_name="QFloat")
        self._set_mode(result, self.source.training)
        for module in self.absorbed - self.called:
            # They fire on the operation now; the operation may still call the module for its own
            # ends.
            for hooks in _hooks_of(module):
                hooks.clear()
        return result

    def _set_mode(self, module: nn.Module, training: bool) -> None:
        """Sets the mode of what is new in a module."""
        for part in module.modules():
            if part not in self.settled:
                part.training = training
                self.settled.add(part)

    def _operation(self, d: Decision) -> fx.Node:
        match = d.match
        assert d.qconfig is not None
        # A module that is called several times is several operations, each with its own name.
        first = match.first.node
        place = str(first.target) if match.first.module is not None else first.name
        name = self._fresh(place, keep=match.first.module is not None)
        self.names.add(name)
        where = self.plan.piece.qualified(name)
        op: QFloatOp = d.target.from_match(
            match, _Quantizers(qconfig=d.qconfig, where=where, host=self.host)
        )
        if d.quantized:
            links = [self._quantizer_of(x) for x in match.inputs]
            edge = self.plan.edges.get(match.node)
            output = None
            if edge is not None and d.gives_integers:
                output = make_quantizer(edge, where=where, host=self.host)
                self.held[match.node] = output
            op.link(links, output, self.numerics)
            args = [self.stubs.get(x, self.env[x]) for x in match.inputs]
        else:
            op.link((), None, self.numerics)
            args = [self.env[x] for x in match.inputs]
        args += [self.env[x] for x in match.plain]
        module = match.first.module
        self._set_mode(op, self.source.training if module is None else module.training)
        for step in match.steps:
            if step.module is not None:
                _copy_hooks(step.module, op, where)
                self.absorbed.add(step.module)
        self.root[name] = op
        new = self.graph.call_module(name, tuple(args))
        new.meta = {**match.node.meta, "qcore_name": where}
        return new

    def _quantizer_of(self, node: fx.Node) -> FakeQuantize:
        """The quantizer of an input; one is put in where the value is float."""
        if node not in self.held:
            name = self._fresh(f"{node.name}_quantizer")
            config = self.plan.edges[self.plan.source(node)]
            path = self.plan.piece.path
            where = f"{path}.{name}" if path else name
            quantizer = make_quantizer(config, where=where, host=self.host)
            self.root[name] = quantizer
            stub = self.graph.call_module(name, (self.env[node],))
            stub.meta = {**node.meta, "qcore_name": where}
            self.held[node] = quantizer
            self.stubs[node] = stub
        return self.held[node]

    def _fresh(self, name: str, *, keep: bool = False) -> str:
        """``name``, or with a number if it is taken; the first operation of a layer keeps its
        name."""
        candidate, i = name, 0
        taken = set(self.root) if keep else {*self.root, *self.names}
        while candidate in taken:
            i += 1
            candidate = f"{name}_{i}"
        return candidate


_WATCHES = ("_forward_pre_hooks", "_forward_hooks")
_OTHER_HOOKS = (
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    return [getattr(module, name) for name in (*_WATCHES, *_OTHER_HOOKS)]


def _copy_hooks(source: nn.Module, target: nn.Module, where: str) -> None:
    """Gives the hooks that a user put on a layer to the operation that takes its place.

    They see what goes into the whole operation and what comes out of it.
    """
    for name in _WATCHES:
        hooks = {key: _only_watching(hook, where) for key, hook in getattr(source, name).items()}
        getattr(target, name).update(hooks)
    for name in _OTHER_HOOKS:
        getattr(target, name).update(getattr(source, name))
    if source._is_full_backward_hook is not None:
        target._is_full_backward_hook = source._is_full_backward_hook


def _only_watching(hook: Callable[..., Any], where: str) -> Callable[..., None]:
    """``hook``, with an error if it changes a value: the integer program would not do that."""

    def watch(module: nn.Module, *seen: Any) -> None:
        given = {id(leaf) for leaf in pytree.tree_leaves(seen)}
        changed = [leaf for leaf in pytree.tree_leaves(hook(module, *seen)) if leaf is not None]
        if any(id(leaf) not in given for leaf in changed):
            raise QuantizationError(
                f"layer {where!r}: a forward hook changes its input or output, which the integer "
                "program can't do; move that into a forward, or leave the layer in float with an "
                "override quantize = false"
            )

    return watch


def make_quantizer(config: QuantizerConfig, *, where: str, host: "PluginHost") -> FakeQuantize:
    """A fake quantizer with its observer, from resolved configuration."""
    assert not isinstance(config.scheme, str)
    observer_class: Callable[..., Any] = host.get("observer", config.observer)
    fake_quant_class: Callable[..., FakeQuantize] = host.get("fake_quant", config.fake_quant)
    try:
        observer = observer_class(
            scheme=config.scheme, where=where, **dict(config.observer_options)
        )
        return fake_quant_class(
            scheme=config.scheme, observer=observer, where=where, **dict(config.fake_quant_options)
        )
    except TypeError as error:
        raise QuantizationError(
            f"layer {where!r}: observer {config.observer!r} with options "
            f"{dict(config.observer_options)}, fake quantizer {config.fake_quant!r} with options "
            f"{dict(config.fake_quant_options)}: {error}"
        ) from error


@attrs.frozen(kw_only=True)
class _Quantizers:
    qconfig: QConfig
    where: str
    host: "PluginHost"

    def weight(self, ch_axis: int = 0, name: str = "weight") -> FakeQuantize:
        config = self.qconfig.weight
        if config is None:
            raise QuantizationError(f"layer {self.where!r}: the recipe gives no scheme for weights")
        assert not isinstance(config.scheme, str)
        scheme = config.scheme
        if isinstance(scheme.granularity, PerChannel):
            scheme = attrs.evolve(scheme, granularity=PerChannel(ch_axis))
        quantizer = make_quantizer(
            attrs.evolve(config, scheme=scheme), where=f"{self.where}.{name}", host=self.host
        )
        quantizer.of_weight = True
        return quantizer

    def activation(self, name: str) -> FakeQuantize:
        config = self.qconfig.activation
        if config is None:
            raise QuantizationError(
                f"layer {self.where!r}: the recipe gives no scheme for activations"
            )
        return make_quantizer(config, where=f"{self.where}.{name}", host=self.host)

    def dynamic(self) -> DynamicQuantize | None:
        config = self.qconfig.activation
        scheme = None if config is None else config.scheme
        assert not isinstance(scheme, str)
        if scheme is None or not isinstance(scheme.granularity, PerToken):
            return None
        return DynamicQuantize(scheme=scheme, where=self.where)


def set_switches(
    model: nn.Module, *, observer: bool | None = None, fake_quant: bool | None = None
) -> None:
    """Switches observing and fake quantization of every quantizer of a model."""
    for module in model.modules():
        if observer is not None and isinstance(module, FakeQuantize):
            module.observer_enabled = observer
        if fake_quant is not None and isinstance(module, FakeQuantize | DynamicQuantize):
            module.fake_quant_enabled = fake_quant


def enable_observer(model: nn.Module) -> None:
    """Makes every quantizer of a QFloat model observe."""
    set_switches(model, observer=True)


def disable_observer(model: nn.Module) -> None:
    """Stops every quantizer of a QFloat model from observing."""
    set_switches(model, observer=False)


def enable_fake_quant(model: nn.Module) -> None:
    """Makes every quantizer of a QFloat model quantize."""
    set_switches(model, fake_quant=True)


def disable_fake_quant(model: nn.Module) -> None:
    """Lets every quantizer of a QFloat model pass values unchanged."""
    set_switches(model, fake_quant=False)


def positional(batch: Any, arity: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a batch: of a tuple or list the first ``arity`` items, so labels may follow."""
    args, kwargs = as_arguments(batch)
    return (args[:arity] if isinstance(batch, Sequence) else args), kwargs
