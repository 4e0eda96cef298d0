"""What a contract is, what it is checked on, and what comes out."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

import attrs

from ..errors import PluginError, QcoreError
from ..host import PluginHost
from ..specs import AlgorithmSpec, CheckedSpec, ConverterSpec, FusionSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "KINDS",
    "Contract",
    "ContractViolation",
    "NotApplicable",
    "Outcome",
    "Status",
    "Subject",
    "contract",
    "require",
]

KINDS = ("observer", "fake_quant", "fusion", "converter", "backend", "algorithm")
"""The kinds of contribution that have contracts; the others are data, or anybody's code."""

Status = Literal["passed", "failed", "expected failure", "not applicable", "unexpected pass"]


class ContractViolation(QcoreError, AssertionError):  # noqa: N818
    """A contribution does not do what its kind must; says what was given, what came, what was
    due."""


class NotApplicable(Exception):  # noqa: N818
    """A contract has no meaning for a contribution; says why. Raised by checks."""


@attrs.frozen(kw_only=True)
class Subject:
    """A contribution that is checked.

    Args:
        host: the host that knows it.
        spec: its record.
        options: keyword arguments to make the target with, besides those that its kind has.
    """

    host: PluginHost
    spec: CheckedSpec
    options: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def kind(self) -> str:
        """The kind of the contribution."""
        return self.spec.kind

    @property
    def name(self) -> str:
        """``plugin:name``."""
        plugin = self.spec.origin.plugin if self.spec.origin else "?"
        return f"{plugin}:{self.spec.name}"

    @property
    def deviations(self) -> dict[str, str]:
        """Names of the contracts that it does not fulfil on purpose, and why."""
        return dict(self.spec.deviations)

    def load(self) -> Any:
        """The target; of a fusion its record.

        Raises:
            PluginError: it can't be imported, or is not what its kind must be.
        """
        return self.host.load(self.spec)

    def make(self, **arguments: Any) -> Any:
        """Calls the target with these arguments and with :attr:`options`."""
        return self.load()(**arguments, **self.options)

    def examples(self) -> Iterator[tuple["nn.Module", tuple["Tensor", ...]]]:
        """What the author gave to try the contribution on; made anew at each call.

        Yields:
            A float module, and the tensors to call it with.

        Raises:
            NotApplicable: the author gave nothing.
            ContractViolation: the author's function yields something else.
            PluginError: it can't be imported or called.
        """
        from torch import Tensor, nn

        spec = cast(FusionSpec | ConverterSpec | AlgorithmSpec, self.spec)
        function = self.host.load_examples(spec)
        if function is None:
            raise NotApplicable(f"{type(spec).__name__}.examples names no modules to try it on")
        for example in function():
            pair = example if isinstance(example, tuple) and len(example) == 2 else (None, None)
            module, inputs = pair
            if not (
                isinstance(module, nn.Module)
                and isinstance(inputs, tuple)
                and all(isinstance(value, Tensor) for value in inputs)
            ):
                raise ContractViolation(
                    f"examples={spec.examples!r} yielded {example!r:.200}; due is a pair of an "
                    "nn.Module and a tuple of the tensors to call it with"
                )
            yield module, inputs


def _kind(instance: "Contract", attribute: "attrs.Attribute[str]", value: str) -> None:
    if value not in KINDS:
        raise PluginError(f"contract {instance.name!r}: kind={value!r}; use one of {KINDS}")


def _name(instance: "Contract", attribute: "attrs.Attribute[str]", value: str) -> None:
    if not value.isidentifier() or value != value.lower():
        raise PluginError(f"contract {value!r}: name it in snake_case")


@attrs.frozen(kw_only=True)
class Contract:
    """A law of a kind of contribution.

    Args:
        kind: one of :data:`KINDS`.
        name: snake_case; what authors, reports and deviations call it.
        protects: one sentence: what goes wrong for a user where it does not hold.
        check: examines cases and returns how many; raises :class:`ContractViolation` at the first
            that breaks the law, and :class:`NotApplicable` where the law has no meaning for the
            subject. Returning 0 breaks every contract.
    """

    kind: str = attrs.field(validator=_kind)
    name: str = attrs.field(validator=_name)
    protects: str
    check: Callable[[Subject], int] = attrs.field(repr=False)


def contract(kind: str, protects: str) -> Callable[[Callable[[Subject], int]], Contract]:
    """Makes a check a contract that is called as the function is."""

    def make(check: Callable[[Subject], int]) -> Contract:
        return Contract(kind=kind, name=check.__name__, protects=protects, check=check)

    return make


def require(holds: bool, message: str) -> None:
    """Goes on where something holds.

    Raises:
        ContractViolation: it does not.
    """
    if not holds:
        raise ContractViolation(message)


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of checking one contract on one contribution.

    Args:
        subject: ``plugin:name`` of the contribution.
        kind: its kind.
        contract: name of the contract.
        status: ``"passed"``; ``"failed"``; ``"expected failure"``: it failed, as its record
            declares; ``"unexpected pass"``: it did not fail, though its record declares so, which
            is a failure; ``"not applicable"``.
        cases: how many cases the check examined; 0 unless it passed.
        message: why, unless it passed.
        seconds: how long it took.
    """

    subject: str
    kind: str
    contract: str
    status: Status
    cases: int = 0
    message: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it is as it should be."""
        return self.status not in ("failed", "unexpected pass")

    @property
    def examined(self) -> bool:
        """Whether the contract was tried at all."""
        return self.status != "not applicable"
