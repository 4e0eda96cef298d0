"""Causes that can be read off the two programs: the same operation with other arguments.

Each difference of the data is confirmed by computing the right side's operation with the suspect's
arguments in their place.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, fx

from ..numerics import Numerics
from .evidence import Case
from .hypothesis import CONTRACT_CAUSES, Candidate, contract_in_words, possible, substituted
from .sides import operation_name
from .weight_causes import changed_weights

__all__ = ["changed_arguments", "changed_operations"]

_ZERO_POINTS = ("x_zero_point", "a_zero_point", "b_zero_point", "other_zero_point")
_SCALES = ("x_scale", "a_scale", "b_scale", "other_scale")
_OUTPUT = ("y_scale", "y_zero_point", "scale", "zero_point")
_CLAMP = ("y_min", "y_max", "quant_min", "quant_max")
_INPUTS = ("x", "a", "b", "xs", "other", "self", "input")


def changed_arguments(case: Case) -> Iterator[Candidate]:
    """One argument of the operation, or several that belong together, is another."""
    other = case.other
    if other is None or other.operation != case.operation:
        return
    changed = {
        name: value for name, value in other.given.items() if not _same(case.given.get(name), value)
    }
    groups = [
        *_contract(case, changed),
        _residual(case, changed),
        _of("clamp", changed, _CLAMP, case),
        _of("input-zero-point", changed, _ZERO_POINTS, case),
        _of("input-scale", changed, _SCALES, case),
        _of("qparams", changed, (*_OUTPUT, *_CLAMP), case),
        changed_weights(case, changed),
        _table(case, changed),
        _before(case, changed),
    ]
    for group in groups:
        if group is not None:
            yield group
    if len(changed) > 1:
        names = ", ".join(changed)
        yield substituted(case, "several", f"several arguments differ: {names}", changed)
    elif changed:
        (name,) = changed
        yield substituted(case, "argument", f"argument {name!r} differs", changed)


def changed_operations(case: Case) -> Iterator[Candidate]:
    """The operation itself is another, or several are in its place."""
    other = case.other
    if other is None:
        return
    ours, theirs = _ops(case.right.nodes), _ops(other.nodes)
    if ours == theirs:
        return
    fused = case.given.get("other") is not None
    name, how = "operations", "computes"
    if fused and "qadd" in theirs and other.given.get("other") is None:
        name, how = "unfused-add", "rounds before it adds the residual: it computes"
    yield Candidate(
        name=name,
        reason=f"{case.suspect} {how} {' + '.join(theirs)} where {case.reference} has "
        f"{' + '.join(ours)}",
        predict=other.run,
    )


def _ops(nodes: Any) -> list[str]:
    """The operations of a slice that compute."""
    names = [operation_name(node) for node in nodes if node.op == "call_function"]
    return [name for name in names if name != "unpack"]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _of(name: str, changed: Mapping[str, Any], keys: Any, case: Case) -> Candidate | None:
    """A candidate for the plain arguments of a group that differ."""
    mine = {key: changed[key] for key in keys if key in changed}
    if not mine:
        return None
    said = ", ".join(
        f"{key}={_short(value)} rather than {_short(case.given.get(key))}"
        for key, value in mine.items()
    )
    return substituted(case, name, f"{case.suspect} has {said}", mine)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _contract(case: Case, changed: Mapping[str, Any]) -> Iterator[Candidate]:
    """The settings of the contract that differ: the fewest that explain it, first."""
    if "rounding" in changed:
        said = f"{case.suspect} {contract_in_words({'rounding': changed['rounding']})}"
        yield substituted(case, "rounding", said, {"rounding": changed["rounding"]})
    if "numerics" not in changed:
        return
    ours, theirs = (
        attrs.asdict(Numerics.parse(key)) for key in (case.given["numerics"], changed["numerics"])
    )
    settings = [name for name in ours if ours[name] != theirs[name]]
    for size in range(1, len(settings) + 1):
        for some in itertools.combinations(settings, size):
            values = {name: theirs[name] for name in some}
            if not possible(ours | values):
                continue
            changes = {"numerics": Numerics(**(ours | values)).key}
            if "bias" in some and "bias" in changed:
                # A contract with another bias holds it in another dtype.
                changes["bias"] = changed["bias"]
            name = CONTRACT_CAUSES[some[0]] if size == 1 else "contract"
            yield substituted(case, name, f"{case.suspect} {contract_in_words(values)}", changes)


def _residual(case: Case, changed: Mapping[str, Any]) -> Candidate | None:
    """A fused residual that only one side has."""
    mine = {key: changed[key] for key in changed if key.startswith("other")}
    if "other" not in mine or (mine["other"] is None) == (case.given["other"] is None):
        return None
    does = "leaves the residual out" if mine["other"] is None else "adds a residual"
    return substituted(case, "residual", f"{case.suspect} {does}", mine)


def _table(case: Case, changed: Mapping[str, Any]) -> Candidate | None:
    mine = {key: changed[key] for key in ("table", "offset") if key in changed}
    if "table" not in mine or mine["table"].shape != case.given["table"].shape:
        return _of("table", mine, mine, case)
    n = int((mine["table"] != case.given["table"]).sum())
    said = f"{n} of {mine['table'].numel()} entries of {case.suspect}'s table are others"
    return substituted(case, "table", said, mine)


def _before(case: Case, changed: Mapping[str, Any]) -> Candidate | None:
    """What the steps before the operation made of equal values is not equal."""
    mine = {key: changed[key] for key in _INPUTS if key in changed}
    if not mine or case.other is None:
        return None
    steps: list[list[tuple[str, list[Any]]]] = [
        [_step(node) for node in side.nodes if node.op == "call_function"]
        for side in (case.right, case.other)
    ]
    # The operation itself comes last, or before steps that are the same.
    nothing: tuple[str, list[Any]] = ("nothing", [])
    for ours, theirs in itertools.zip_longest(*steps, fillvalue=nothing):
        if ours[0] != theirs[0] or not _same(ours[1], theirs[1]):
            break
    else:
        return None
    name = "operations"
    if "pad" in f"{ours[0]} {theirs[0]}":
        name = "padding"
        if "padding" in changed:
            mine["padding"] = changed["padding"]
    said = " where ".join(
        f"{side} has {step[0]}" + (f"({', '.join(map(str, step[1]))})" if step[1] else "")
        for side, step in ((case.suspect, theirs), (case.reference, ours))
    )
    return substituted(case, name, said, mine)


def _step(node: fx.Node) -> tuple[str, list[Any]]:
    """Name and plain arguments of a call; long lists of them say nothing."""
    if str(node.target).startswith("qcore."):
        return operation_name(node), []
    return operation_name(node), [arg for arg in node.args if not isinstance(arg, fx.Node)]
