"""The QFloat graph of a captured piece, built as its plan says."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
from torch import fx, nn

from .codegen import SharedGraphModule, shared_codegen
from .config import QConfig, QuantizerConfig
from .dynamic_quantize import DynamicQuantize
from .errors import QuantizationError
from .fake_quantize import FakeQuantize
from .granularity import PerChannel, PerToken
from .layer_hooks import copy_hooks, hooks_of
from .numerics import Numerics
from .op import QFloatOp
from .planning import REPLACED, Decision, PiecePlan

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["PieceBuilder", "make_quantizer"]


class PieceBuilder:
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
            for hooks in hooks_of(module):
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
                copy_hooks(step.module, op, where)
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
