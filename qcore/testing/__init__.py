"""The conformance kit: named contracts that every contribution of a kind must fulfil.

    pytest --qcore-conformance acme

checks everything that the plug-in ``acme`` contributes, without any test file;
:class:`ObserverConformance` and its kin are base classes for test files, and :func:`check_plugin`
is the same without pytest. ``import qcore`` does not import this package, which itself imports
neither torch nor pytest: each name is loaded on first use.

A *contract* is a law with a name and the reason why it holds for every contribution of a kind. Its
check examines cases and counts them; a check that has examined nothing has failed. What a
contribution does not fulfil on purpose its record declares as ``deviations``, with the reason: then
the contract is expected to fail, and it is a failure if it does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checking import check_contract, check_plugin, check_subject, contracts, subjects
    from .conformance import (
        AlgorithmConformance,
        BackendConformance,
        ConverterConformance,
        FakeQuantConformance,
        FusionConformance,
        ObserverConformance,
    )
    from .contract import KINDS, Contract, ContractViolation, NotApplicable, Outcome, Subject

__all__ = [
    "KINDS",
    "AlgorithmConformance",
    "BackendConformance",
    "Contract",
    "ContractViolation",
    "ConverterConformance",
    "FakeQuantConformance",
    "FusionConformance",
    "NotApplicable",
    "ObserverConformance",
    "Outcome",
    "Subject",
    "check_contract",
    "check_plugin",
    "check_subject",
    "contracts",
    "subjects",
]

_CHECKING = ("check_contract", "check_plugin", "check_subject", "contracts", "subjects")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _CHECKING:
        module = "checking"
    else:
        module = "conformance" if name.endswith("Conformance") else "contract"
    value = getattr(import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
