"""The plan: what will be quantized how, what stays float, and why; decided before anything runs.

A value is held as integers where a quantized operation needs it. The rules:

- an *anchor* (convolution, linear layer, matrix product) is quantized wherever its configuration
  allows; float inputs get a quantizer;
- any other operation with a converter is quantized if all its inputs are integers already and a
  later operation wants integers; otherwise quantizing it would only add rounding;
- an operation that only moves values follows its input;
- an operation whose result only goes to float operations gives float from its accumulator,
  unrounded;
- an operation that quantizes its inputs at run time takes float and gives float;
- a value is as wide as its widest consumer asks.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, fx, nn

from .capture import Capture, Piece
from .config import QConfig, QScheme, QuantizerConfig
from .errors import QuantizationError
from .granularity import PerTensor, PerToken
from .match import Match, OpTable, Step, find_matches, function_name, is_float_tensor
from .numerics import Numerics
from .op import Island, Movement, QFloatOp
from .resolving import Resolver

if TYPE_CHECKING:
    from .host import PluginHost

__all__ = ["REPLACED", "Plan", "PlanRow"]

REPLACED = ("quantized", "dynamic", "weight-only")
"""Statuses of the layers that become operations of QFloat."""


@attrs.frozen(kw_only=True)
class PlanRow:
    """One layer of a plan.

    Args:
        name: qualified name of the layer, or of the function's node.
        kind: class of the module, or the function.
        op: operation, where a converter knows it.
        status: ``"quantized"``, ``"dynamic"`` (its inputs are quantized at run time),
            ``"weight-only"``, ``"moves"`` (integers pass through), ``"float"``.
        weight: scheme of the weight, or empty.
        inputs: schemes of the inputs.
        output: scheme of the output, ``"float"`` if it leaves as float.
        fused: the other layers that became part of it.
        kernel: what runs it: as ``prepare`` decides, the operation of Q that it becomes; as
            :func:`qcore.kernel_plan` finds of a program, the kernels of a backend.
        reason: why it is not quantized, or what else there is to know.
        converter: ``plugin:name`` of its converter.
        fusion: ``plugin:name`` of the pattern by which the others became part of it.
    """

    name: str
    kind: str
    op: str = ""
    status: str
    weight: str = ""
    inputs: tuple[str, ...] = ()
    output: str = "float"
    fused: tuple[str, ...] = ()
    kernel: str = ""
    reason: str = ""
    converter: str = ""
    fusion: str = ""


@attrs.frozen(kw_only=True)
class Plan:
    """What ``prepare`` does with a model.

    Args:
        rows: one a layer, in the order of execution.
        captured: path and rung of each captured piece; ``""`` is the whole model.
        failures: path and reason of what could not be captured.
        backend: the backend's name.
        numerics: key of the arithmetic contract.
    """

    rows: tuple[PlanRow, ...]
    captured: tuple[tuple[str, str], ...]
    failures: tuple[tuple[str, str], ...]
    backend: str
    numerics: str

    def count(self, status: str) -> int:
        """Number of rows of a status."""
        return sum(row.status == status for row in self.rows)

    def row(self, name: str) -> PlanRow:
        """The row of a layer.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_data(self) -> dict[str, Any]:
        """Plain lists and dictionaries, as for JSON."""
        return attrs.asdict(self)

    def __str__(self) -> str:
        header = ("layer", "kind", "status", "weight", "inputs", "output", "kernel", "note")
        table = [header]
        for row in self.rows:
            note = row.reason
            if row.fused:
                note = f"with {', '.join(row.fused)}" + (f"; {note}" if note else "")
            inputs = " + ".join(row.inputs)
            table.append(
                (row.name, row.kind, row.status, row.weight, inputs, row.output, row.kernel, note)
            )
        widths = [max(len(line[i]) for line in table) for i in range(len(header) - 1)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[-1]])
            for line in table
        ]
        lines = [line.rstrip() for line in lines]
        lines.insert(1, "-" * max(map(len, lines)))
        counts = ", ".join(
            f"{self.count(s)} {s}" for s in (*REPLACED, "moves", "float") if self.count(s)
        )
        pieces = ", ".join(f"{path or 'the model'} ({rung})" for path, rung in self.captured)
        lines += ["", f"{counts or 'nothing to quantize'}; captured: {pieces or 'nothing'}"]
        lines += [f"not captured: {path or 'the model'}: {why}" for path, why in self.failures]
        lines += [f"backend {self.backend}, numerics {self.numerics}"]
        return "\n".join(lines)


@attrs.frozen(kw_only=True, eq=False)
class Decision:
    """What becomes of one match."""

    match: Match
    target: Any
    qconfig: QConfig | None
    status: str
    reason: str = ""

    @property
    def quantized(self) -> bool:
        return self.status == "quantized"

    @property
    def gives_integers(self) -> bool:
        """Whether its result can be held as integers."""
        return self.quantized and not self.target.float_output


@attrs.define(kw_only=True, eq=False)
class PiecePlan:
    """The decisions about one captured piece, and the scheme of each value.

    Attributes:
        decisions: by the last node of each match, in graph order.
        edges: configuration of each value that is held as integers, by its node.
        prefix: of the names of this piece's layers in the whole model.
    """

    piece: Piece
    decisions: dict[fx.Node, Decision]
    edges: dict[fx.Node, QuantizerConfig]

    @property
    def quantizes(self) -> bool:
        """Whether anything in the piece is quantized."""
        return any(d.status in REPLACED for d in self.decisions.values())

    def qualified(self, step: Step) -> str:
        """Name of a step in the whole model: its module's, or its node's within the piece."""
        return qualified(self.piece, step.node)

    def source(self, node: fx.Node) -> fx.Node:
        """The node whose quantizer holds for the value of ``node``: back through movements."""
        while (d := self.decisions.get(node)) is not None and d.status == "moves":
            node = d.match.inputs[0]
        return node


def plan_piece(
    piece: Piece,
    table: OpTable,
    resolver: Resolver,
    host: "PluginHost",
    numerics: Numerics,
) -> PiecePlan:
    """Decides about one captured piece, for an arithmetic contract."""
    graph = piece.graph.graph
    modules = dict(piece.graph.named_modules())
    decisions: dict[fx.Node, Decision] = {}

    def left_out(match: Match) -> str | None:
        return _left_out(match, piece, resolver)

    for found in find_matches(graph, modules, table, left_out):
        match = attrs.evolve(found, name=qualified(piece, found.first.node))
        decisions[match.node] = _candidate(match, resolver, host, numerics)
    while True:
        settled = _settle(graph, decisions)
        if settled is None:
            break
        decisions = settled
    plan = PiecePlan(piece=piece, decisions=decisions, edges={})
    plan.edges = _edges(plan)
    return plan


def _left_out(match: Match, piece: Piece, resolver: Resolver) -> str | None:
    """Why the recipe leaves in float what a fusion would take in; None if it does not."""
    reasons = [
        resolver.resolve(name=qualified(piece, step.node), type_name=step.kind, op=step.op)[1]
        for step in match.steps
    ]
    # Where the layer itself stays in float, there is nothing to keep out of it.
    if reasons[0]:
        return None
    return next(filter(None, reasons), None)


def qualified(piece: Piece, node: fx.Node) -> str:
    """Name in the whole model of what a node calls."""
    if node.op == "call_module":
        return piece.qualified(str(node.target))
    return f"{piece.path}.{node.name}" if piece.path else node.name


def _candidate(
    match: Match, resolver: Resolver, host: "PluginHost", numerics: Numerics
) -> Decision:
    target = host.load(match.converter)

    def decide(status: str, reason: str = "", qconfig: QConfig | None = None) -> Decision:
        return Decision(match=match, target=target, qconfig=qconfig, status=status, reason=reason)

    if isinstance(target, type) and issubclass(target, Movement):
        why = target.why_not(match.first)
        return decide("float", why) if why else decide("moves")
    if isinstance(target, type) and issubclass(target, Island):
        return decide("float", target.reason(match.first))
    if not (isinstance(target, type) and issubclass(target, QFloatOp)):
        raise QuantizationError(
            f"converter {match.converter.name!r}: {target!r} is no QFloatOp, Movement or Island "
            "class"
        )
    qconfig, why = resolver.resolve(name=match.name, type_name=match.first.kind, op=match.op)
    if qconfig is None:
        return decide("float", why)
    has_weight = match.first.module is not None and any(
        True for _ in match.first.module.parameters(recurse=False)
    )
    if target.anchor and has_weight and qconfig.weight is None:
        return decide("float", "the recipe gives no scheme for weights")
    status = "quantized"
    if target.weight_only:
        status = "weight-only"
    elif qconfig.activation is None:
        if not (target.anchor and has_weight):
            return decide("float", "the recipe quantizes weights only")
        status = "weight-only"
    else:
        scheme = qconfig.activation.scheme
        assert not isinstance(scheme, str)
        if isinstance(scheme.granularity, PerToken):
            why = _unfit_tokens(target, qconfig.activation, scheme)
            if why is not None:
                return decide("float", why)
            status = "dynamic"
        elif not isinstance(scheme.granularity, PerTensor) or scheme.dtype.bits > 16:
            return decide(
                "float",
                f"activation scheme {scheme.describe()} is neither static per tensor nor at run "
                "time per token, of 16 bits or fewer, which is what operations on integers take",
            )
    why = _unfit_values(match) or target.why_not(match, qconfig)
    if why is None and status != "weight-only":
        why = target.why_not_by(numerics, qconfig)
    if why is not None:
        return decide("float", why)
    return decide(status, "", qconfig)


def _unfit_tokens(target: type[QFloatOp], config: QuantizerConfig, scheme: QScheme) -> str | None:
    """Why an operation can't quantize its inputs at run time as asked; None if it can."""
    if not target.dynamic_op:
        return (
            f"activation scheme {scheme.describe()} is found at run time, which is for linear "
            "layers"
        )
    if not scheme.symmetric or not scheme.dtype.signed or scheme.power_of_two:
        return (
            f"activation scheme {scheme.describe()}: at run time a scale is that of a symmetric, "
            "signed range, and no power of two"
        )
    if scheme.dtype.bits > 16:
        return f"activation scheme {scheme.describe()}: use 16 bits or fewer"
    plain = QuantizerConfig(scheme=config.scheme)
    if config != plain:
        return (
            f"activation scheme {scheme.describe()} is found at run time from each token, so "
            f"observer {config.observer!r}, fake quantizer {config.fake_quant!r} and options have "
            "no part in it; leave them out"
        )
    return None


def _unfit_values(match: Match) -> str | None:
    """Why the values that a match takes and gives are none for an operation on integers."""
    for step in match.steps:
        if any(isinstance(node.meta.get("val"), Tensor) for node in step.others):
            return "one of its inputs is no floating-point tensor"
        if step.others:
            return "one of its arguments is computed at run time"
    for node in (*match.inputs, match.node):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype != torch.float32:
            return f"it computes in {str(value.dtype).removeprefix('torch.')}, not in float32"
    return None


def _settle(
    graph: fx.Graph, decisions: Mapping[fx.Node, Decision]
) -> dict[fx.Node, Decision] | None:
    """One round of the rules on values; None if nothing changes any more."""
    changed: dict[fx.Node, Decision] = {}
    integers: set[fx.Node] = set()
    for node, d in decisions.items():
        inputs_ready = bool(d.match.inputs) and all(x in integers for x in d.match.inputs)
        if d.status == "moves" and not inputs_ready:
            changed[node] = attrs.evolve(d, status="float", reason="moves a float value")
        elif d.quantized and not d.target.anchor and not inputs_ready:
            changed[node] = attrs.evolve(
                d,
                status="float",
                reason="not all of its inputs are integers: quantizing it would only add rounding",
            )
        elif d.gives_integers or d.status == "moves":
            integers.add(node)
    current = {**decisions, **changed}
    wanted: set[fx.Node] = set()
    for node, d in reversed(current.items()):
        if d.quantized and not d.target.anchor and node not in wanted:
            changed[node] = attrs.evolve(
                d,
                status="float",
                reason="only float operations follow: quantizing it would only add rounding",
            )
        elif d.quantized or (d.status == "moves" and node in wanted):
            wanted.update(d.match.inputs)
    if not changed:
        # A value nobody wants as integers leaves its operation as float, and moves as float.
        late = {
            node: attrs.evolve(d, status="float", reason="moves a float value")
            for node, d in current.items()
            if d.status == "moves" and not _held(d.match.inputs[0], current, wanted)
        }
        return {**current, **late} if late else None
    return {**decisions, **changed}


def _held(node: fx.Node, decisions: Mapping[fx.Node, Decision], wanted: set[fx.Node]) -> bool:
    """Whether the value of ``node`` is held as integers."""
    d = decisions.get(node)
    if d is None:
        return False
    if d.status == "moves":
        return _held(d.match.inputs[0], decisions, wanted)
    return d.gives_integers and node in wanted


def _edges(plan: PiecePlan) -> dict[fx.Node, QuantizerConfig]:
    asked: dict[fx.Node, list[QuantizerConfig]] = {}
    for d in plan.decisions.values():
        if d.quantized:
            assert d.qconfig is not None
            assert d.qconfig.activation is not None
            for node in d.match.inputs:
                asked.setdefault(plan.source(node), []).append(d.qconfig.activation)
    edges = {}
    for node, configs in asked.items():
        own = plan.decisions.get(node)
        if own is not None and own.quantized and own.qconfig and own.qconfig.activation:
            # Of equally wide ones the producer's comes first.
            configs = sorted(configs, key=lambda c: c != own.qconfig.activation)  # type: ignore[union-attr]
        edges[node] = max(configs, key=_bits)
    return edges


def _bits(config: QuantizerConfig) -> int:
    assert not isinstance(config.scheme, str)
    return config.scheme.dtype.bits


def _describe(config: QuantizerConfig | None) -> str:
    return config.scheme.describe() if config and not isinstance(config.scheme, str) else "float"


def piece_rows(plan: PiecePlan) -> list[PlanRow]:
    """The rows of one piece, with what no converter knows."""
    rows = []
    modules = dict(plan.piece.graph.named_modules())
    inside = {s.node for d in plan.decisions.values() for s in d.match.steps}
    for node in plan.piece.graph.graph.nodes:
        d = plan.decisions.get(node)
        if d is not None:
            rows.append(_row(plan, d))
        elif node not in inside and node.op in ("call_module", "call_function"):
            if not is_float_tensor(node) and node.op == "call_function":
                continue
            row = _unknown_row(plan, node, modules)
            if row is not None:
                rows.append(row)
    return rows


def _row(plan: PiecePlan, d: Decision) -> PlanRow:
    m = d.match
    converter = m.converter
    common: dict[str, Any] = {
        "name": plan.qualified(m.first),
        "kind": m.first.kind,
        "op": m.op,
        "status": d.status,
        "fused": tuple(plan.qualified(s) if s.module is not None else s.op for s in m.steps[1:]),
        "reason": "; ".join(filter(None, (d.reason, *(f"not fused: {w}" for w in m.refused)))),
        "converter": f"{converter.origin.plugin}:{converter.name}" if converter.origin else "",
        "fusion": f"{m.fusion.origin.plugin}:{m.fusion.name}"
        if m.fusion and m.fusion.origin
        else "",
    }
    if d.status == "float":
        return PlanRow(**common)
    if d.status == "weight-only":
        assert d.qconfig is not None
        return PlanRow(
            **common,
            weight=_describe(d.qconfig.weight),
            inputs=("float",),
            kernel=d.target.program_op if d.target.weight_only else "dequantize_block + float",
        )
    if d.status == "dynamic":
        assert d.qconfig is not None
        return PlanRow(
            **common,
            weight=_describe(d.qconfig.weight),
            inputs=(_describe(d.qconfig.activation),),
            kernel=d.target.dynamic_op,
        )
    source = plan.source(m.node)
    output = plan.edges.get(source) if d.status == "moves" or d.gives_integers else None
    inputs = tuple(_describe(plan.edges.get(plan.source(x))) for x in m.inputs)
    weight = ""
    if d.quantized and m.first.module is not None and d.qconfig and d.qconfig.weight:
        parameters = [n for n, _ in m.first.module.named_parameters(recurse=False)]
        weight = _describe(d.qconfig.weight) if parameters else ""
    kernel = d.target.program_op if d.quantized else ""
    return PlanRow(**common, weight=weight, inputs=inputs, output=_describe(output), kernel=kernel)


_SILENT = ("_operator.getitem", "aten.sym_size.int")


def _unknown_row(
    plan: PiecePlan, node: fx.Node, modules: Mapping[str, nn.Module]
) -> PlanRow | None:
    if node.op == "call_module":
        kind = type(modules[str(node.target)]).__name__
    else:
        kind = function_name(node.target)
        if kind in _SILENT:
            return None
    return PlanRow(
        name=qualified(plan.piece, node),
        kind=kind,
        status="float",
        reason="no converter knows it; it runs in float between a dequantize and a quantize",
    )


def whole_plan(
    pieces: Iterable[PiecePlan], capture: Capture, *, backend: str, numerics: Numerics
) -> Plan:
    """The plan of a model from those of its pieces."""
    return Plan(
        rows=tuple(row for piece in pieces for row in piece_rows(piece)),
        captured=tuple((piece.path, piece.rung) for piece in capture.pieces),
        failures=tuple(capture.failures),
        backend=backend,
        numerics=numerics.key,
    )
