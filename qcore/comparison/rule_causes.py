"""Causes by other rules: the same data, computed in another way.

Every candidate is the right side's operation, run by the reference kernels with the arguments that
amount to the other rule.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from ..numerics import Numerics, round_to_int, scalar
from .evidence import Case, bias_as, has_bias
from .hypothesis import CONTRACT_CAUSES, Candidate, contract_in_words, possible

__all__ = [
    "clamp",
    "input_zero_point",
    "mixed_contract",
    "no_bias",
    "other_contract",
    "padding",
    "quantize_rules",
    "residual",
    "table",
]

_OUTPUT = {"y_scale", "y_zero_point", "y_min", "y_max", "y_dtype", "numerics"}
"""Arguments of the operations that compute by a contract."""

_NEAR = (0, -128, 128, -1, 1)
"""What a zero point is taken for: none, that of the other sign, or one beside it."""


def _rounds(case: Case) -> bool:
    """Whether the operation gives integers by a contract."""
    return case.given.keys() >= _OUTPUT and case.given["y_dtype"] != torch.float32


def other_contract(case: Case) -> Iterator[Candidate]:
    """One setting of the arithmetic contract is another."""
    if "numerics" not in case.given:
        return
    ours = Numerics.parse(case.given["numerics"])
    for setting in ("rounding", "zero_point", "accumulator", "requantization", "bias"):
        for value in Numerics.ALLOWED[setting]:
            if value != getattr(ours, setting):
                yield from _contract(case, ours, {setting: value})


def mixed_contract(case: Case) -> Iterator[Candidate]:
    """Several settings of the arithmetic contract are others, the fewest first."""
    if not _rounds(case):
        return
    ours = Numerics.parse(case.given["numerics"])
    every = [
        {s: v for s, v in zip(Numerics.ALLOWED, values, strict=True) if v != getattr(ours, s)}
        for values in itertools.product(*Numerics.ALLOWED.values())
    ]
    for changes in sorted(every, key=len):
        if len(changes) > 1:
            yield from _contract(case, ours, changes)


def _contract(case: Case, ours: Numerics, changes: Mapping[str, str]) -> Iterator[Candidate]:
    settings = {**attrs.asdict(ours), **changes}
    if not possible(settings):
        return
    arguments: dict[str, Any] = {"numerics": Numerics(**settings).key}
    if "bias" in changes and has_bias(case.given):
        arguments["bias"] = bias_as(changes["bias"], case.given)
    name = CONTRACT_CAUSES[next(iter(changes))] if len(changes) == 1 else "contract"
    yield Candidate(
        name=name,
        reason=f"{case.suspect} {contract_in_words(changes)}",
        predict=lambda: case.right.run(**arguments),
    )


def quantize_rules(case: Case) -> Iterator[Candidate]:
    """Float values become integers by another rule."""
    if case.operation != "quantize":
        return
    given = case.given
    other = "half_away" if given["rounding"] == "half_even" else "half_even"
    yield Candidate(
        name="rounding",
        reason=f"{case.suspect} {contract_in_words({'rounding': other})}",
        predict=lambda: case.right.run(rounding=other),
    )

    def quantized(steps: Tensor, zero_point: int) -> Tensor:
        q = torch.nan_to_num(round_to_int(steps, given["rounding"])) + zero_point
        return case.right.finish(q.clamp(given["quant_min"], given["quant_max"]))

    scale = scalar(given["scale"], given["x"])
    yield Candidate(
        name="zero-point-order",
        reason=f"{case.suspect} {contract_in_words({'zero_point': 'before'})}",
        predict=lambda: quantized(given["x"].float() / scale + given["zero_point"], 0),
    )
    yield Candidate(
        name="reciprocal",
        reason=f"{case.suspect} multiplies by 1 / scale instead of dividing by the scale",
        predict=lambda: quantized(
            given["x"].float() * (scalar(1.0, scale) / scale), given["zero_point"]
        ),
    )


def clamp(case: Case) -> Iterator[Candidate]:
    """A clamp is missing, or there is one that should not be."""
    if not _rounds(case):
        return
    given = case.given
    info = torch.iinfo(given["y_dtype"])
    low, high = given["y_min"], given["y_max"]
    lowest, highest = int(case.got.min()), int(case.got.max())
    bounds = [
        ("does not clamp from below (a relu is missing)", min(info.min, lowest), high),
        ("does not clamp from above", low, max(info.max, highest)),
        ("does not clamp", min(info.min, lowest), max(info.max, highest)),
        ("has a relu", given["y_zero_point"], high),
        (f"clamps from below at {lowest}", lowest, high),
        (f"clamps from above at {highest}", low, highest),
        (f"clamps to [{lowest}, {highest}]", lowest, highest),
    ]
    for said, y_min, y_max in bounds:
        if (y_min, y_max) != (low, high) and y_min <= y_max:
            yield Candidate(
                name="clamp",
                reason=f"{case.suspect} {said}; {case.reference} clamps to [{low}, {high}]",
                predict=lambda y_min=y_min, y_max=y_max: case.right.run(y_min=y_min, y_max=y_max),  # type: ignore[misc]
            )


def no_bias(case: Case) -> Iterator[Candidate]:
    """The bias is left out."""
    if case.given.get("bias") is not None and "y_dtype" in case.given:
        yield Candidate(
            name="bias",
            reason=f"{case.suspect} leaves the bias out",
            predict=lambda: case.right.run(bias=None),
        )


def residual(case: Case) -> Iterator[Candidate]:
    """A fused residual is added elsewhere, or not at all."""
    given = case.given
    other = given.get("other")
    if other is None or not _rounds(case):
        return
    alone = {"other": None, "other_scale": 1.0, "other_zero_point": 0}
    y = {key: given[key] for key in ("y_scale", "y_zero_point", "y_min", "y_max", "y_dtype")}
    info = torch.iinfo(given["y_dtype"])

    def unfused() -> Tensor:
        first = case.right.run(**alone, y_min=info.min, y_max=info.max)
        total = torch.ops.qcore.qadd.default(
            first.to(given["y_dtype"]),
            given["y_scale"],
            given["y_zero_point"],
            other,
            given["other_scale"],
            given["other_zero_point"],
            *y.values(),
            given["numerics"],
        )
        return case.right.finish(total)

    yield Candidate(
        name="unfused-add",
        reason=f"{case.suspect} rounds before it adds the residual, as if the sum were not fused",
        predict=unfused,
    )
    yield Candidate(
        name="residual",
        reason=f"{case.suspect} leaves the residual out",
        predict=lambda: case.right.run(**alone),
    )


def padding(case: Case) -> Iterator[Candidate]:
    """Padding holds the integer 0 instead of the zero point."""
    given = case.given
    if case.operation != "qconv" or not any(given["padding"]) or given["x_zero_point"] == 0:
        return
    around = [p for size in reversed(given["padding"]) for p in (size, size)]
    yield Candidate(
        name="padding",
        reason=f"{case.suspect} pads with the integer 0 rather than the zero point "
        f"{given['x_zero_point']}, which stands for 0",
        predict=lambda: case.right.run(
            x=F.pad(given["x"], around, value=0), padding=[0] * len(given["padding"])
        ),
    )


def input_zero_point(case: Case) -> Iterator[Candidate]:
    """An input is taken to have another zero point."""
    for key in ("x_zero_point", "a_zero_point", "b_zero_point", "other_zero_point"):
        own = case.given.get(key)
        if not isinstance(own, int) or (key[0] == "o" and case.given.get("other") is None):
            continue
        for step in _NEAR:
            value = own + step if step else 0
            if value != own:
                yield Candidate(
                    name="input-zero-point",
                    reason=f"{case.suspect} computes with {key}={value} rather than {own}",
                    predict=lambda key=key, value=value: case.right.run(**{key: value}),  # type: ignore[misc]
                )


def table(case: Case) -> Iterator[Candidate]:
    """Entries of a lookup table are others."""
    if case.operation != "qtable" or case.right.nodes[-1] is not case.right.principal:
        return
    given = case.given
    entries: Tensor = given["table"].clone()
    index = given["x"].reshape(-1).to(torch.int64) - given["offset"]
    entries[index] = case.got.reshape(-1).to(entries.dtype)
    n = int((entries != given["table"]).sum())
    yield Candidate(
        name="table",
        reason=f"{n} of {entries.numel()} entries of {case.suspect}'s table are others",
        predict=lambda: case.right.run(table=entries),
    )
