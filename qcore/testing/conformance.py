"""Base classes by which a test file of a plug-in checks a contribution.

    class TestFirstBatch(ObserverConformance):
        subject = "acme:acme_first_batch"

is a whole test file: each contract is a test ``test_<name of the contract>``. A deviation that the
record declares is an expected failure, and a failure if it does not fail; a contract that has no
meaning for the contribution is skipped with the reason.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from ..host import PluginHost, default_host
from ..specs import CheckedSpec
from .checking import check_contract, contracts, due
from .contract import Contract, ContractViolation, Outcome, Subject

if TYPE_CHECKING:
    import pytest

__all__ = [
    "AlgorithmConformance",
    "BackendConformance",
    "ConverterConformance",
    "FakeQuantConformance",
    "FusionConformance",
    "ObserverConformance",
    "report",
]


def report(outcome: Outcome) -> None:
    """Ends a test as the outcome says.

    Raises:
        ContractViolation: the contribution is not as it should be.
        pytest.skip.Exception: the contract is not applicable.
        pytest.xfail.Exception: it failed as its author declared.
    """
    import pytest

    # A traceback through the kit says nothing about the contribution.
    __tracebackhide__ = True
    text = f"{outcome.subject}, contract {outcome.contract!r}: {outcome.message}"
    if not outcome.ok:
        raise ContractViolation(f"{outcome.status}: {text}")
    if outcome.status == "not applicable":
        pytest.skip(outcome.message)
    if outcome.status == "expected failure":
        pytest.xfail(outcome.message)
        # With --runxfail the call above does nothing.
        raise ContractViolation(text)


class _Conformance:
    """Base of the base classes.

    Attributes:
        subject: the contribution, ``"plugin:name"``, or ``"name"`` where one plug-in has it.
        options: keyword arguments to make it with: a class for each way of using it.
        host: what knows it; None is :func:`qcore.default_host`. A subclass may set a
            :class:`qcore.PluginHost` here, or define a fixture of this name that returns one.
    """

    kind: ClassVar[str]
    subject: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    host: Any = None

    # The base classes are no tests themselves, whatever classes pytest is told to collect.
    __test__ = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__test__ = hasattr(cls, "subject")
        for contract in contracts(cls.kind) if cls.__test__ else ():
            name = f"test_{contract.name}"
            if not hasattr(cls, name):
                setattr(cls, name, _test_of(contract))

    def test_deviations(self, request: "pytest.FixtureRequest") -> None:
        """Every deviation that the record declares is from a contract."""
        subject = self._subject(request)
        for contract in due(subject)[len(contracts(self.kind)) :]:
            report(check_contract(subject, contract))

    def _subject(self, request: "pytest.FixtureRequest") -> Subject:
        host = type(self).host
        if host is None:
            host = default_host()
        elif not isinstance(host, PluginHost):
            host = request.getfixturevalue("host")
        spec = cast(CheckedSpec, host.find(self.kind, self.subject))
        return Subject(host=host, spec=spec, options=self.options)


def _test_of(contract: Contract) -> Callable[..., None]:
    def test(self: _Conformance, request: "pytest.FixtureRequest") -> None:
        __tracebackhide__ = True
        report(check_contract(self._subject(request), contract))

    test.__name__ = f"test_{contract.name}"
    test.__qualname__ = f"{_Conformance.__name__}.{test.__name__}"
    test.__doc__ = contract.protects
    return test


class ObserverConformance(_Conformance):
    """Checks an observer; see the module's docstring."""

    kind = "observer"


class FakeQuantConformance(_Conformance):
    """Checks a fake quantizer; see the module's docstring."""

    kind = "fake_quant"


class FusionConformance(_Conformance):
    """Checks a fusion pattern; see the module's docstring."""

    kind = "fusion"


class ConverterConformance(_Conformance):
    """Checks a converter; see the module's docstring."""

    kind = "converter"


class BackendConformance(_Conformance):
    """Checks a backend; see the module's docstring."""

    kind = "backend"


class AlgorithmConformance(_Conformance):
    """Checks an algorithm; see the module's docstring."""

    kind = "algorithm"
