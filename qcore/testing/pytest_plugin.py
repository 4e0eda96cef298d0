"""``pytest --qcore-conformance PLUGIN``: each contract of a plug-in as a test, with no test file.

pytest loads this module in every run of an environment that has qcore, so it imports nothing until
the option is used; without the option it does nothing.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from .contract import Contract, Outcome, Subject

__all__ = ["ContractItem", "ContributionCollector"]

_OPTION = "--qcore-conformance"
_PROPERTY = "qcore-conformance"
_COLUMNS = ("passed", "expected failure", "not applicable", "failed", "unexpected pass")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declares the option."""
    parser.getgroup("qcore").addoption(
        _OPTION,
        action="append",
        default=[],
        metavar="PLUGIN",
        help="check every contract of everything that a plug-in of qcore contributes; repeatable, "
        "or names with commas between. Without paths no other tests are collected.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Finds what is to be checked, before anything is collected.

    Raises:
        pytest.UsageError: a plug-in is unknown, broken, or has nothing to check.
    """
    given: list[str] = config.getoption(_OPTION)
    if not given:
        return
    from ..errors import PluginError
    from ..host import default_host
    from .checking import subjects

    names = dict.fromkeys(n.strip() for text in given for n in text.split(",") if n.strip())
    if not names:
        raise pytest.UsageError(f"{_OPTION}={','.join(given)!r} names no plug-in")
    try:
        found = [subject for name in names for subject in subjects(default_host(), name)]
    except PluginError as error:
        raise pytest.UsageError(f"{_OPTION}: {error}") from error
    config.pluginmanager.register(_Run(config, found), "qcore-conformance-run")


class _Run:
    """The checks of one run of pytest, and their summary."""

    def __init__(self, config: pytest.Config, subjects: Iterable["Subject"]) -> None:
        both = [(subject.name, subject) for subject in subjects]
        names = Counter(name for name, _ in both)
        # A plug-in may use one name for contributions of several kinds.
        self.subjects = {
            name if names[name] == 1 else f"{name}[{subject.kind}]": subject
            for name, subject in both
        }
        self.seen: dict[str, Counter[str]] = {label: Counter() for label in self.subjects}
        self.config = config
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            # Neither the working folder nor `testpaths` is meant when no path is given.
            config.args = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        # First, so that -k and -m deselect these items like all others.
        for label, subject in self.subjects.items():
            collector = ContributionCollector.from_parent(
                session, name=label, nodeid=label, subject=subject
            )
            items.extend(session.genitems(collector))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # With xdist the tests run in other processes; this arrives in the one that sums up.
        for key, value in report.user_properties:
            if key == _PROPERTY and report.when == "call":
                label, status, cases = cast(tuple[str, str, int], value)
                self.seen[label].update({status: 1, "cases": cases})

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._idle() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        rows = [(label, seen) for label, seen in self.seen.items() if seen]
        if not rows:
            return
        total = sum((seen for _, seen in rows), Counter[str]())
        terminalreporter.section("qcore conformance")
        for label, seen in [*rows, ("total", total)]:
            run = sum(seen[status] for status in _COLUMNS if status != "not applicable")
            counts = ", ".join(
                f"{seen[status]} {status}"
                for status in _COLUMNS
                if seen[status] or label == "total"
            )
            terminalreporter.line(
                f"{label}: {_count(run, 'contract')} checked on {_count(seen['cases'], 'case')} "
                f"({counts})"
            )
        for label in self._idle():
            terminalreporter.line(f"{label}: nothing was examined", red=True)

    def _idle(self) -> list[str]:
        """Contributions that were checked whole and of which no contract was applicable."""
        from .checking import due

        return [
            label
            for label, seen in self.seen.items()
            if seen and seen["not applicable"] == len(due(self.subjects[label]))
        ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


class ContributionCollector(pytest.Collector):
    """One contribution: a test for each of its contracts."""

    def __init__(self, *, subject: "Subject", **options: Any) -> None:
        super().__init__(**options)
        self.subject = subject
        self.extra_keyword_matches.add(subject.kind)

    def collect(self) -> Iterator["ContractItem"]:
        """A test for each contract."""
        from .checking import due

        for contract in due(self.subject):
            yield ContractItem.from_parent(self, name=contract.name, contract=contract)


class ContractItem(pytest.Item):
    """The test of one contract."""

    parent: ContributionCollector
    outcome: "Outcome"

    def __init__(self, *, contract: "Contract", **options: Any) -> None:
        super().__init__(**options)
        self.contract = contract

    def runtest(self) -> None:
        """Checks the contract and keeps what came of it for the summary."""
        from .checking import check_contract
        from .conformance import report

        self.outcome = outcome = check_contract(self.parent.subject, self.contract)
        value = (self.parent.name, outcome.status, outcome.cases)
        self.user_properties.append((_PROPERTY, value))
        report(outcome)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *args: Any) -> Any:
        """What was violated, and why it matters, without a traceback of the kit."""
        from .contract import ContractViolation

        if not isinstance(excinfo.value, ContractViolation):
            return super().repr_failure(excinfo, *args)
        status, message = self.outcome.status, self.outcome.message
        return f"{status}: {message}\nIt protects: {self.contract.protects}"

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is: in no file."""
        return self.path, None, self.nodeid
