"""``pytest --qcore-conformance`` and the base classes, as an author runs them."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from qcore import host as host_module
from qcore.testing import conformance, observers

# Tests run pytest within this process. What is imported there is forgotten afterwards, so what all
# of them use is imported here: there must not be two of a class.
assert conformance
assert observers

PLUGIN = """
    from qcore import ObserverSpec, hookimpl

    @hookimpl
    def qcore_observers():
        return [
            ObserverSpec(name="acme_largest", target="acme_observer:Largest", deviations={}),
            ObserverSpec(
                name="acme_last",
                target="acme_observer:Last",
                deviations={"order_of_batches_does_not_matter": "only the last batch counts"},
            ),
        ]
"""
OBSERVER = """
    import torch
    from qcore import Observer

    class Largest(Observer):
        def __init__(self, *, scheme, where=""):
            super().__init__(scheme=scheme, where=where)
            self.register_buffer("largest", None)

        def update(self, rows, min_val, max_val):
            largest = torch.maximum(-min_val, max_val)
            self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

        def combine(self, other):
            self.largest = torch.maximum(self.largest, other.largest)

        def range(self):
            return -self.largest, self.largest

    class Last(Largest):
        def update(self, rows, min_val, max_val):
            self.largest = torch.maximum(-min_val, max_val)

        def combine(self, other):
            pass
"""


@pytest.fixture
def acme(pytester, monkeypatch):
    """An installed plug-in, of which one observer is right and one merges wrongly."""

    def install(name: str, module: str, source: str) -> None:
        site = Path(pytester.path) / "site"
        metadata = site / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[qcore.v1]\n{name} = {module}\n")
        pytester.makepyfile(**{f"site/{module}": source})

    before = set(sys.modules)
    install("acme", "acme_plugin", PLUGIN)
    pytester.makepyfile(**{"site/acme_observer": OBSERVER})
    site = str(Path(pytester.path) / "site")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", site)
    importlib.invalidate_caches()
    host_module._make_default.cache_clear()
    yield install
    host_module._make_default.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith("acme_"):
            del sys.modules[name]


def test_every_contract_is_a_test(pytester, acme):
    """Without a test file; ids name contribution and contract, and the summary counts."""
    pytester.makepyfile(test_other="def test_other(): assert False")
    result = pytester.runpytest("-v", "--qcore-conformance", "acme")
    result.assert_outcomes(passed=43, xfailed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "acme:acme_largest::merge_equals_seeing_both PASSED*",
            "acme:acme_last::order_of_batches_does_not_matter XFAIL*",
            "acme:acme_last::merge_equals_seeing_both FAILED*",
        ]
    )
    assert "test_other" not in result.stdout.str()
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_summary(pytester, acme):
    """A line for each contribution and one for all, with contracts and cases."""
    chosen = "unseen_refuses or order_of or both"
    result = pytester.runpytest("--qcore-conformance=acme", "-k", chosen)
    result.stdout.fnmatch_lines(
        [
            "*qcore conformance*",
            "acme:acme_largest: 3 contracts checked on * cases (3 passed)",
            "acme:acme_last: 3 contracts checked on 9 cases (1 passed, 1 expected *, 1 failed)",
            "total: 6 contracts checked on * cases (4 passed, 1 expected failure, 0 not *",
        ]
    )


def test_what_was_violated_is_said_without_a_traceback(pytester, acme):
    """Given, came, due, and what the contract protects."""
    result = pytester.runpytest("--qcore-conformance", "acme", "-k", "acme_last and both")
    result.stdout.fnmatch_lines(
        ["*it answers scale *; due is scale *", "It protects: Ranks and shards *"]
    )
    assert "Traceback" not in result.stdout.str()
    assert "observer_statistics.py" not in result.stdout.str()


def test_collect_only(pytester, acme):
    """The tests are listed and nothing runs."""
    result = pytester.runpytest("--collect-only", "-q", "--qcore-conformance", "acme,observers")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["acme:acme_largest::reset_forgets", "observers:ema::*"])
    assert "qcore conformance" not in result.stdout.str()


def test_paths_are_collected_too(pytester, acme):
    """A path that is given is meant."""
    path = pytester.makepyfile(test_other="def test_other(): pass")
    chosen = "unseen_ref or test_other"
    result = pytester.runpytest("--qcore-conformance", "acme", "-k", chosen, path)
    result.assert_outcomes(passed=3, deselected=44)
    assert "test_other.py" in result.stdout.str()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("acne", "no plug-in is called 'acne'; did you mean 'acme'"),
        ("zoo", "plug-in 'zoo' has nothing to check"),
        ("broken", "is not in use (failed): importing 'broken_plugin' failed: ZeroDivisionError"),
        (" , ", "names no plug-in"),
        ("acme,acne", "no plug-in is called 'acne'"),
    ],
)
def test_what_can_not_be_checked_is_an_error(pytester, acme, argument, message):
    """Never zero tests and success."""
    acme("broken", "broken_plugin", "1 / 0")
    importlib.invalidate_caches()
    result = pytester.runpytest("--qcore-conformance", argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()


def test_nothing_left_is_an_error(pytester, acme):
    """Deselecting all tests, too, is not success."""
    result = pytester.runpytest("--qcore-conformance", "acme", "-k", "nonsense")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_nothing_examined_is_an_error(pytester, acme):
    """A contribution to which no contract applies was not checked."""
    pytester.makeconftest(
        """
        from qcore.testing import NotApplicable, observers
        from qcore.testing.contract import contract

        @contract("observer", "Nothing.")
        def never(subject):
            raise NotApplicable("no reason")

        observers.CONTRACTS, kept = (never,), observers.CONTRACTS

        def pytest_unconfigure():
            observers.CONTRACTS = kept
        """
    )
    result = pytester.runpytest("--qcore-conformance", "acme", "-k", "acme_largest")
    result.assert_outcomes(skipped=1, deselected=2)
    result.stdout.fnmatch_lines(["acme:acme_largest: nothing was examined"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_without_the_option_nothing_happens(pytester):
    """Other people's tests run as ever, and can block the plug-in."""
    pytester.makepyfile("def test_one(): pass")
    for options in ((), ("-p", "no:qcore")):
        result = pytester.runpytest(*options)
        result.assert_outcomes(passed=1)
        assert "qcore conformance" not in result.stdout.str()


def test_with_workers(pytester, acme):
    """xdist shares the contracts out, and the summary counts them all."""
    arguments = ["-n", "2", "--qcore-conformance", "acme", "-k", "unseen_ref or reset or order_of"]
    result = pytester.runpytest_subprocess("-p", "no:pytester", *arguments)
    result.assert_outcomes(passed=5, xfailed=1)
    result.stdout.fnmatch_lines(["total: 6 contracts checked on *"])


def test_loading_it_imports_nothing_of_qcore():
    """Every run of pytest in the environment pays for it."""
    program = (
        "import sys, qcore.testing.pytest_plugin\n"
        "print(*sorted(n for n in sys.modules if n.startswith(('qcore.', 'torch', 'attr'))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    # pytest itself may use attrs.
    names = [name for name in done.stdout.split() if not name.startswith("attr")]
    assert names == ["qcore.testing", "qcore.testing.pytest_plugin"], done.stderr


CLASSES = """
    import pytest
    import qcore
    from qcore.testing import ObserverConformance

    class TestLargest(ObserverConformance):
        subject = "acme:acme_largest"

    class TestLast(ObserverConformance):
        subject = "acme_last"

    class TestSampled(ObserverConformance):
        subject = "observers:minmax"
        options = {"bins": 16}

    class TestHost(ObserverConformance):
        subject = "acme:acme_largest"
        host = qcore.PluginHost(block=["acme"])

    class TestFixture(ObserverConformance):
        subject = "acme:acme_largest"

        @pytest.fixture
        def host(self):
            return qcore.PluginHost(allow=["observers"])
"""


def test_base_classes(pytester, acme):
    """A class with a subject is a whole test file; a host and options can be given."""
    pytester.makepyfile(test_acme=CLASSES)
    chosen = "unseen_refuses or order_of or both or deviations"
    result = pytester.runpytest("-rA", "-k", chosen)
    result.stdout.fnmatch_lines_random(
        [
            "PASSED *TestLargest::test_unseen_refuses",
            "PASSED *TestLargest::test_deviations",
            "XFAIL *TestLast::test_order_of_batches_does_not_matter - only the last batch counts*",
            "FAILED *TestLast::test_merge_equals_seeing_both*",
            "FAILED *TestSampled::test_unseen_refuses*",
            "*unexpected keyword argument 'bins'*",
            "FAILED *TestHost::test_unseen_refuses*",
            "*plug-in acme (acme 1.0) is blocked*",
            "FAILED *TestFixture::test_unseen_refuses*",
        ]
    )
    assert "ObserverConformance::" not in result.stdout.str()


def test_a_wrong_deviation_fails_in_a_class(pytester, acme):
    """The record of the plug-in is checked as well."""
    (Path(pytester.path) / "site" / "acme_plugin.py").write_text(
        "from qcore import ObserverSpec, hookimpl\n"
        "@hookimpl\n"
        "def qcore_observers():\n"
        "    return [ObserverSpec(name='x', target='acme_observer:Largest',\n"
        "                         deviations={'merge': 'why not'})]\n"
    )
    pytester.makepyfile(
        test_acme="""
        from qcore.testing import ObserverConformance

        class TestX(ObserverConformance):
            subject = "acme:x"
        """
    )
    result = pytester.runpytest("-k", "deviations")
    result.assert_outcomes(failed=1, deselected=23)
    result.stdout.fnmatch_lines(["*declares a deviation from 'merge'*has no such contract*"])
