"""Which operation a node of a captured graph is, and which nodes one converter takes together.

The converters of the host name the operations: ``torch.nn.Conv2d`` is ``conv2d``,
``aten.add.Tensor`` is ``add``. The fusion patterns are chains of those names.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import fx, nn

from .errors import PluginError
from .specs import ConverterSpec, FusionSpec

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["Match", "OpTable", "Step", "find_matches", "schema_arguments"]

MAPPING = "mapping"
"""Name of the plug-in that a mapping of a call becomes; its converters win over all others."""


@attrs.frozen(kw_only=True, eq=False)
class Step:
    """One node of a match.

    Args:
        op: name of the operation.
        node: the node of the captured graph.
        module: the float module that the node calls; None for a function.
        arguments: of a function, by the names of its schema, defaults filled in; nodes stay nodes.
            Of a module: the call's arguments by the names of ``forward``.
        taken_plain: names of the arguments that the converter takes as they are.
    """

    op: str
    node: fx.Node
    module: nn.Module | None
    arguments: Mapping[str, Any]
    taken_plain: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Class of the module, or name of the function."""
        if self.module is not None:
            return type(self.module).__name__
        return function_name(self.node.target)

    @property
    def tensors(self) -> tuple[fx.Node, ...]:
        """Inputs that are floating-point tensors, in order, one that is used twice twice; without
        the plain ones."""
        values = [v for k, v in self.arguments.items() if k not in self.taken_plain]
        return tuple(node for node in _nodes(values) if is_float_tensor(node))

    @property
    def plain(self) -> tuple[fx.Node, ...]:
        """Inputs that the converter takes as they are, in order."""
        return tuple(_nodes([v for k, v in self.arguments.items() if k in self.taken_plain]))

    @property
    def others(self) -> tuple[fx.Node, ...]:
        """Inputs that are something else: sizes, numbers and tensors of integers or truth
        values."""
        known = (*self.tensors, *self.plain)
        return tuple(node for node in self.node.all_input_nodes if node not in known)


@attrs.frozen(kw_only=True, eq=False)
class Match:
    """Nodes that one converter takes: a single operation, or a fused chain.

    Args:
        name: qualified name of the first step's module, or of its node.
        op: operation whose converter takes it.
        steps: first to last.
        inputs: floating-point tensor inputs of the whole: the first step's, then the further ones
            in chain order.
        converter: the converter's record.
        fusion: the pattern's record; None for a single operation.
        refused: why longer patterns that fit were not taken.
    """

    name: str
    op: str
    steps: tuple[Step, ...]
    inputs: tuple[fx.Node, ...]
    converter: ConverterSpec
    fusion: FusionSpec | None = None
    refused: tuple[str, ...] = ()

    @property
    def first(self) -> Step:
        """The step that gives the match its name."""
        return self.steps[0]

    @property
    def node(self) -> fx.Node:
        """The node whose value is the result of the whole."""
        return self.steps[-1].node

    @property
    def plain(self) -> tuple[fx.Node, ...]:
        """Inputs that are taken as they are: of all steps, in chain order."""
        return tuple(node for step in self.steps for node in step.plain)

    def step(self, *ops: str) -> Step | None:
        """The first step whose operation is one of ``ops``."""
        return next((s for s in self.steps if s.op in ops), None)


class OpTable:
    """Finds the converter of a node.

    Args:
        converters: records of the host.
        fusions: records of the host.
        prefer: ``plugin:name`` of converters that win where several claim one type or function.
        load_check: imports the check of a fusion; :meth:`qcore.PluginHost.load_check`.

    Raises:
        PluginError: at use, if two converters claim what a model contains and none is preferred.
    """

    def __init__(
        self,
        converters: Iterable[ConverterSpec],
        fusions: Iterable[FusionSpec] = (),
        *,
        prefer: Sequence[str] = (),
        load_check: Callable[[FusionSpec], Callable[[Match], str | None] | None] = lambda _: None,
    ) -> None:
        self._types: dict[type, list[ConverterSpec]] = {}
        self._functions: dict[str, list[ConverterSpec]] = {}
        self._ops: dict[str, list[ConverterSpec]] = {}
        self._prefer = set(prefer)
        self._load_check = load_check
        self._checks: dict[str, Callable[[Match], str | None] | None] = {}
        for spec in converters:
            self._ops.setdefault(spec.op, []).append(spec)
            for name in spec.types:
                cls = loaded_class(name)
                if cls is not None:
                    self._types.setdefault(cls, []).append(spec)
            for name in spec.functions:
                self._functions.setdefault(name, []).append(spec)
        self.fusions = sorted(
            fusions,
            key=lambda f: (
                -f.priority,
                -len(f.pattern),
                f.origin.plugin if f.origin else "",
                f.name,
            ),
        )

    @classmethod
    def of(cls, host: "PluginHost", prefer: Sequence[str] = ()) -> "OpTable":
        """The table of what the plug-ins of a host contribute."""
        return cls(
            [s for s in host.specs("converter") if isinstance(s, ConverterSpec)],
            [s for s in host.specs("fusion") if isinstance(s, FusionSpec)],
            prefer=prefer,
            load_check=host.load_check,
        )

    def of_module(self, module: nn.Module) -> ConverterSpec | None:
        """Converter of a module; of the nearest base class whose ``forward`` it keeps."""
        for cls in type(module).__mro__:
            if cls in self._types and getattr(cls, "forward", None) is type(module).forward:
                return self._one(self._types[cls], f"type {cls.__module__}.{cls.__qualname__}")
        return None

    def of_function(self, target: Any) -> ConverterSpec | None:
        """Converter of a function of the graph."""
        name = function_name(target)
        specs = self._functions.get(name)
        return self._one(specs, f"function {name}") if specs else None

    def of_op(self, op: str, plugin: str | None = None) -> ConverterSpec | None:
        """Converter that takes matches of the operation ``op``."""
        specs = self._ops.get(op, [])
        own = [s for s in specs if s.origin and s.origin.plugin == plugin]
        return self._one(own or specs, f"operation {op!r}") if specs else None

    def _one(self, specs: list[ConverterSpec], what: str) -> ConverterSpec:
        if len(specs) > 1:
            given = [s for s in specs if s.origin and s.origin.plugin == MAPPING]
            preferred = given or [s for s in specs if _full_name(s) in self._prefer]
            if len(preferred) != 1:
                names = " and ".join(_full_name(s) for s in specs)
                raise PluginError(
                    f"{what} is claimed by the converters {names}; name one in the recipe's "
                    f"prefer = [{_full_name(specs[0])!r}], or block a plug-in"
                )
            specs = preferred
        return specs[0]

    def step(self, node: fx.Node, modules: Mapping[str, nn.Module]) -> Step | None:
        """The step that ``node`` is; None if no converter knows it."""
        if node.op == "call_module":
            module = modules[str(node.target)]
            spec = self.of_module(module)
            if spec is None:
                return None
            arguments = _bind(module, node)
            return Step(
                op=spec.op,
                node=node,
                module=module,
                arguments=arguments,
                taken_plain=spec.plain,
            )
        if node.op == "call_function":
            spec = self.of_function(node.target)
            if spec is None:
                return None
            return Step(
                op=spec.op,
                node=node,
                module=None,
                arguments=schema_arguments(node),
                taken_plain=spec.plain,
            )
        return None

    def refusal(self, match: Match) -> str | None:
        """Why the fusion of a match is refused, by a rule or by its check; None if it is not."""
        fusion = match.fusion
        if any(step.others for step in match.steps[1:]):
            return "an argument is computed at run time, or is no floating-point tensor"
        if fusion is None or fusion.check is None:
            return None
        if fusion.check not in self._checks:
            self._checks[fusion.check] = self._load_check(fusion)
        check = self._checks[fusion.check]
        return check(match) if check is not None else None

    def converter(self, step: Step) -> ConverterSpec:
        """Converter of a step that :meth:`step` gave."""
        found = (
            self.of_module(step.module)
            if step.module is not None
            else self.of_function(step.node.target)
        )
        assert found is not None
        return found


def function_name(target: Any) -> str:
    """``aten.add.Tensor`` for an overload, ``_operator.getitem`` for a function of Python."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def find_matches(
    graph: fx.Graph,
    modules: Mapping[str, nn.Module],
    table: OpTable,
    refuse: Callable[[Match], str | None] = lambda _: None,
) -> list[Match]:
    """Every operation of the graph that a converter knows, fused where a pattern fits.

    Patterns are tried in order of priority, each over the nodes in graph order; a node belongs to
    one match.

    Args:
        graph: a captured graph.
        modules: those that it calls, by name.
        table: converters and patterns.
        refuse: why a fusion is not wanted, though it is possible; None if it is.

    Returns:
        Matches in the order of their last nodes.
    """
    steps = {node: step for node in graph.nodes if (step := table.step(node, modules))}
    taken: set[fx.Node] = set()
    matches: list[Match] = []
    refused: dict[fx.Node, dict[str, None]] = {}
    for fusion in table.fusions:
        for node in steps:
            match = _chain(fusion, node, steps, taken, table)
            if match is None:
                continue
            why = table.refusal(match) or refuse(match)
            if why is not None:
                refused.setdefault(node, {})[why] = None
                continue
            matches.append(attrs.evolve(match, refused=tuple(refused.get(node, ()))))
            taken.update(step.node for step in match.steps)
    for node, step in steps.items():
        if node not in taken:
            matches.append(
                Match(
                    name=_name(step),
                    op=step.op,
                    steps=(step,),
                    inputs=step.tensors,
                    converter=table.converter(step),
                    refused=tuple(refused.get(node, ())),
                )
            )
    order = {node: i for i, node in enumerate(graph.nodes)}
    return sorted(matches, key=lambda m: order[m.node])


def _chain(
    fusion: FusionSpec,
    start: fx.Node,
    steps: Mapping[fx.Node, Step],
    taken: set[fx.Node],
    table: OpTable,
) -> Match | None:
    chain: list[Step] = []
    inputs: list[fx.Node] = []
    node = start
    for i, wanted in enumerate(fusion.pattern):
        step = steps.get(node)
        names = (wanted,) if isinstance(wanted, str) else wanted
        if step is None or node in taken or step.op not in names:
            return None
        tensors = list(step.tensors)
        if chain:
            # The value may be used once: a second use, even by the same node, needs it unfused.
            if tensors.count(chain[-1].node) != 1:
                return None
            tensors.remove(chain[-1].node)
        inputs += tensors
        chain.append(step)
        if i + 1 < len(fusion.pattern):
            if len(node.users) != 1:
                return None
            node = next(iter(node.users))
    converter: ConverterSpec | None
    if fusion.op is None:
        converter = table.converter(chain[0])
    else:
        converter = table.of_op(fusion.op, fusion.origin.plugin if fusion.origin else None)
    if converter is None:
        raise PluginError(
            f"fusion {fusion.name!r}: no converter takes the operation {fusion.op!r}; contribute a "
            "ConverterSpec with that op"
        )
    return Match(
        name=_name(chain[0]),
        op=converter.op,
        steps=tuple(chain),
        inputs=tuple(inputs),
        converter=converter,
        fusion=fusion,
    )


def _name(step: Step) -> str:
    return str(step.node.target) if step.node.op == "call_module" else step.node.name


def _nodes(value: Any) -> list[fx.Node]:
    """The nodes in a value, in order; lists and tuples are flattened."""
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, list | tuple):
        return [node for item in value for node in _nodes(item)]
    return []


def is_float_tensor(node: fx.Node) -> bool:
    """Whether the value of a node is a floating-point tensor, or several (what split returns).

    Without metadata, as in a graph of a single module, it is taken for one.
    """
    value = node.meta.get("val")
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return value is None


def _bind(module: nn.Module, node: fx.Node) -> dict[str, Any]:
    try:
        bound = inspect.signature(type(module).forward).bind(module, *node.args, **node.kwargs)
    except TypeError:
        return {str(i): arg for i, arg in enumerate(node.args)} | dict(node.kwargs)
    arguments = dict(bound.arguments)
    arguments.pop(next(iter(arguments)))
    return arguments


def schema_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a function node by the names of its schema, defaults filled in; nodes stay
    nodes.

    A function without a schema has the positions as names.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): arg for i, arg in enumerate(node.args)} | dict(node.kwargs)
    bound: dict[str, Any] = {}
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            bound[argument.name] = node.args[i]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def loaded_class(name: str) -> type | None:
    """The class of that name if its package is loaded: only then can a model hold an instance."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] not in sys.modules:
        return None
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):
        return None
    return found if isinstance(found, type) else None


def _full_name(spec: ConverterSpec) -> str:
    return f"{spec.origin.plugin if spec.origin else '?'}:{spec.name}"
