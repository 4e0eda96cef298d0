"""Which contracts there are for what, and what comes of checking them."""

import time
from importlib import import_module

from ..activation import describe_error
from ..errors import PluginError
from ..host import PluginHost
from ..specs import CheckedSpec
from ..suggest import did_you_mean
from .contract import KINDS, Contract, ContractViolation, NotApplicable, Outcome, Status, Subject

__all__ = ["check_contract", "check_plugin", "check_subject", "contracts", "due", "subjects"]


def contracts(kind: str) -> tuple[Contract, ...]:
    """The contracts of a kind of contribution, in the order in which they are checked.

    Args:
        kind: one of :data:`KINDS`.

    Raises:
        PluginError: there are no contracts for such a kind.

    >>> contracts("observer")[0].kind
    'observer'
    """
    if kind not in KINDS:
        raise PluginError(
            f"no contracts for the kind {kind!r}{did_you_mean(kind, KINDS)} "
            f"(kinds with contracts: {', '.join(KINDS)})"
        )
    found: tuple[Contract, ...] = import_module(f".{kind}s", __package__).CONTRACTS
    return found


def subjects(host: PluginHost, plugin: str) -> tuple[Subject, ...]:
    """Everything of a plug-in that has contracts, in the order of (kind, name).

    Raises:
        PluginError: the plug-in is unknown or not in use, or brings nothing that has contracts.
    """
    infos = host.plugins()
    named = [info for info in infos if info.plugin == plugin]
    if not named:
        known = sorted({info.plugin for info in infos})
        raise PluginError(
            f"no plug-in is called {plugin!r}{did_you_mean(plugin, known)} "
            f"(installed: {', '.join(known) or 'none'})"
        )
    for info in named:
        if info.status != "ok":
            raise PluginError(info.trouble)
    found = tuple(
        Subject(host=host, spec=spec)
        for info in named
        for spec in info.contributions
        if isinstance(spec, CheckedSpec) and contracts(spec.kind)
    )
    if not found:
        kinds = sorted({spec.kind for info in named for spec in info.contributions})
        raise PluginError(
            f"plug-in {plugin!r} has nothing to check: it contributes "
            f"{', '.join(kinds) or 'nothing'}, and only these kinds have contracts: "
            f"{', '.join(kind for kind in KINDS if contracts(kind))}"
        )
    return found


def due(subject: Subject) -> tuple[Contract, ...]:
    """The contracts of a subject, and one that fails for each deviation from an unknown one."""
    known = contracts(subject.kind)
    names = [contract.name for contract in known]
    unknown = [name for name in subject.deviations if name not in names]
    return (*known, *(_unknown(subject.kind, name, names) for name in unknown))


def _unknown(kind: str, name: str, names: list[str]) -> Contract:
    def check(subject: Subject) -> int:
        raise ContractViolation(
            f"the record declares a deviation from {name!r}, and {kind} has no such "
            f"contract{did_you_mean(name, names)} (contracts: {', '.join(names)})"
        )

    return Contract(
        kind=kind,
        name=name,
        protects="A deviation from no contract would excuse nothing, and hide a renamed one.",
        check=check,
    )


def check_contract(subject: Subject, contract: Contract) -> Outcome:
    """Checks one contract on one contribution; raises nothing but a user's Ctrl-C.

    The random numbers of torch start at the same place for every check, and go on behind it as if
    it had not been.
    """
    import torch

    reason = subject.deviations.get(contract.name)
    known = any(contract is one for one in contracts(contract.kind))
    cases, start = 0, time.perf_counter()
    status: Status
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            cases = contract.check(subject)
        if cases < 1:
            raise ContractViolation(f"the check examined {cases} cases; a check examines something")
    except NotApplicable as cause:
        status, message = "not applicable", str(cause)
        if reason is not None:
            status = "failed"
            message += f"; so it can't deviate, as its record declares: {reason}"
    except (Exception, SystemExit) as error:
        text = str(error) if isinstance(error, ContractViolation) else describe_error(error)
        if reason is None or not known:
            status, message = "failed", text
        else:
            status, message = "expected failure", f"{reason} ({text})"
    else:
        status, message = "passed", ""
        if reason is not None:
            status = "unexpected pass"
            message = f"it holds, and its record declares that it does not: {reason}; remove that"
    return Outcome(
        subject=subject.name,
        kind=subject.kind,
        contract=contract.name,
        status=status,
        cases=cases if status in ("passed", "unexpected pass") else 0,
        message=message,
        seconds=time.perf_counter() - start,
    )


def check_subject(subject: Subject) -> tuple[Outcome, ...]:
    """Checks every contract of a contribution.

    Raises:
        ContractViolation: none of them is applicable, so that nothing was examined.
    """
    found = tuple(check_contract(subject, contract) for contract in due(subject))
    if not any(outcome.examined for outcome in found):
        raise ContractViolation(
            f"{subject.kind} {subject.name}: none of its {len(found)} contracts is applicable, so "
            "nothing was examined: " + "; ".join(sorted({outcome.message for outcome in found}))
        )
    return found


def check_plugin(host: PluginHost, plugin: str) -> tuple[Outcome, ...]:
    """Checks every contract of everything that a plug-in contributes.

    Args:
        host: knows the plug-in.
        plugin: its name.

    Returns:
        One outcome for each contract of each contribution; :attr:`Outcome.ok` of all of them says
        whether the plug-in conforms.

    Raises:
        PluginError: the plug-in is unknown or broken, or has nothing to check.
        ContractViolation: nothing was examined of a contribution.

    >>> from qcore import PluginHost
    >>> check_plugin(PluginHost(), "observer")
    Traceback (most recent call last):
        ...
    qcore.errors.PluginError: no plug-in is called 'observer'; did you mean 'observers'? ...
    """
    return tuple(
        outcome for subject in subjects(host, plugin) for outcome in check_subject(subject)
    )
