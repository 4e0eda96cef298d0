"""What a comparison found."""

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["CAUSES", "TAIL", "UNKNOWN", "Cause", "Comparison", "Difference", "OperationComparison"]

TAIL = 8
"""Differences of this many steps or more, and of their negative, share a bin of the histogram."""

UNKNOWN = "unknown"

CAUSES = (
    "rounding",
    "zero-point-order",
    "requantization",
    "bias-arithmetic",
    "saturation",
    "contract",
    "reciprocal",
    "clamp",
    "bias",
    "weight",
    "channel-scale",
    "batch-norm",
    "unfused-add",
    "residual",
    "padding",
    "input-zero-point",
    "input-scale",
    "qparams",
    "table",
    "operations",
    "argument",
    "several",
    "float-arithmetic",
    UNKNOWN,
)
"""Every name that a cause can have."""


@attrs.frozen(kw_only=True)
class Difference:
    """How the values of one operation differ: B's less A's.

    Args:
        compared: number of values.
        differing: how many of them are not equal; NaN is equal to nothing.
        histogram: number of values by their difference in steps of the scale (LSB), from the lowest
            on; without those that are equal. The bins at -8 and 8 hold everything beyond, too.
            Empty for values in float.
        largest: largest absolute difference, in steps; of values in float, in their own unit. None
            where one is not finite.
        sqnr: signal to quantization noise in dB, ``10 log10(sum a^2 / sum (b - a)^2)`` over the
            real values; None where there is no noise, no signal, or a value that is not finite.
    """

    compared: int
    differing: int
    histogram: Mapping[int, int]
    largest: float | None
    sqnr: float | None

    @property
    def share(self) -> float:
        """Share of the values that differ, 0 to 1."""
        return self.differing / self.compared if self.compared else 0.0

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **attrs.asdict(self),
            "histogram": {str(step): count for step, count in self.histogram.items()},
        }


@attrs.frozen(kw_only=True)
class Cause:
    """Why an operation gives other values for the same inputs.

    Args:
        name: one of :data:`CAUSES`, such as ``"rounding"``; ``"unknown"`` where no hypothesis
            explains enough.
        reason: a sentence.
        explained: of the values that differ, how many have exactly the value that the cause
            predicts. They were counted in the first batch in which any differed.
        differing: how many differ there.
        refuted: how many others the cause would change, although they are equal.
        alternatives: other causes that would explain as much, where few values differ.
    """

    name: str = attrs.field(validator=attrs.validators.in_(CAUSES))
    reason: str
    explained: int
    differing: int
    refuted: int = 0
    alternatives: tuple[str, ...] = ()

    @property
    def evidence(self) -> str:
        """The numbers in words.

        >>> Cause(name="bias", reason="", explained=812, differing=812).evidence
        'explains 812 of 812 differing values'
        """
        text = f"explains {self.explained} of {self.differing} differing values"
        if self.refuted:
            text += f", and would change {self.refuted} equal ones"
        if self.alternatives:
            text += f"; so would {', '.join(self.alternatives)}"
        return text

    def __str__(self) -> str:
        return f"{self.reason} ({self.evidence})" if self.name != UNKNOWN else self.reason


@attrs.frozen(kw_only=True)
class OperationComparison:
    """One operation on both sides.

    Args:
        name: of the layer; ``"(output)"``, with a number where there are several, is a result of
            the model.
        operation: what computes it, such as ``"qconv"``.
        free: how its values differ where each side runs by itself.
        isolated: how they differ where B's operation gets the inputs that A's had.
        cause: of the isolated difference; None if there is none, or where one side is Float.
    """

    name: str
    operation: str
    free: Difference
    isolated: Difference
    cause: Cause | None = None

    @property
    def source(self) -> bool:
        """Whether the operation itself differs, and not just its inputs."""
        return self.isolated.differing > 0

    @property
    def inherited(self) -> bool:
        """Whether its values differ only because its inputs do."""
        return self.free.differing > 0 and not self.source

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "operation": self.operation,
            "source": self.source,
            "inherited": self.inherited,
            "free": self.free.to_data(),
            "isolated": self.isolated.to_data(),
            "cause": None if self.cause is None else attrs.asdict(self.cause),
        }


@attrs.frozen(kw_only=True)
class Comparison:
    """The outcome of :func:`qcore.compare`.

    Args:
        a, b: what was compared.
        exact: whether equal integers are to be expected; not where one side is Float.
        batches: number of batches.
        operations: in the order of execution.
        only_a, only_b: operations that only one side has; they were not compared.
        notes: what else there is to know.
    """

    a: str
    b: str
    exact: bool
    batches: int
    operations: tuple[OperationComparison, ...]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def compared(self) -> int:
        """Number of values of all operations."""
        return sum(operation.free.compared for operation in self.operations)

    @property
    def differing(self) -> int:
        """How many of them differ where each side runs by itself."""
        return sum(operation.free.differing for operation in self.operations)

    @property
    def equal(self) -> bool:
        """Whether every value of every operation is the same, and both have the same operations."""
        return (
            not any(o.free.differing or o.isolated.differing for o in self.operations)
            and not self.only_a
            and not self.only_b
        )

    @property
    def sources(self) -> tuple[OperationComparison, ...]:
        """The operations that differ by themselves."""
        return tuple(operation for operation in self.operations if operation.source)

    @property
    def first(self) -> OperationComparison | None:
        """The operation at which the two part."""
        return next(iter(self.sources), None)

    def __getitem__(self, name: str) -> OperationComparison:
        """The operation of a name.

        Raises:
            KeyError: there is none.
        """
        for operation in self.operations:
            if operation.name == name:
                return operation
        raise KeyError(name)

    def verdict(self) -> str:
        """The outcome in a sentence."""
        count = f"{self.compared:,} values of {len(self.operations)} operations"
        if not self.exact:
            return self._nearness(count)
        if self.equal:
            return f"equal: {count} of A ({self.a}) and B ({self.b})"
        text = f"{self.differing:,} of {count} differ between A ({self.a}) and B ({self.b})"
        if self.first is not None:
            text += f"; they part at {self.first.name!r} ({self.first.operation})"
            if self.first.cause is not None:
                text += f": {self.first.cause.name}: {self.first.cause}"
        elif not self.differing:
            text = f"equal in {count}, but A ({self.a}) and B ({self.b}) have not the same ones"
        return text

    def _nearness(self, count: str) -> str:
        def ratio(operation: OperationComparison, sqnr: float | None) -> str:
            number = "no noise" if sqnr is None else f"{sqnr:.1f} dB"
            return f"{number} at {operation.name!r}"

        last = self.operations[-1]
        text = f"{count} of A ({self.a}) and B ({self.b}): SQNR {ratio(last, last.free.sqnr)}"
        noisy = [o for o in self.operations if o.isolated.sqnr is not None]
        if noisy:
            worst = min(noisy, key=lambda o: o.isolated.sqnr or 0.0)
            text += f"; the operation that loses most is {ratio(worst, worst.isolated.sqnr)}"
        return text

    def to_data(self) -> dict[str, Any]:
        """Plain data, as ``qcore compare --json`` prints it."""
        return {
            "a": self.a,
            "b": self.b,
            "equal": self.equal,
            "exact": self.exact,
            "verdict": self.verdict(),
            "batches": self.batches,
            "compared": self.compared,
            "differing": self.differing,
            "first": None if self.first is None else self.first.name,
            "sources": [operation.name for operation in self.sources],
            "operations": [operation.to_data() for operation in self.operations],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "notes": list(self.notes),
        }
