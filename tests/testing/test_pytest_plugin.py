"""``pytest --qcore-conformance`` and the base classes, as an author runs them."""

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qcore import host as host_module

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
DATA = """
    from qcore import INT8, QScheme, SchemeSpec, hookimpl

    @hookimpl
    def qcore_fake_quants():
        return [SchemeSpec(name="data", scheme=QScheme(dtype=INT8))]
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
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder, with a folder ``site`` that modules are imported from."""
    (tmp_path / "site").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    before = set(sys.modules)
    host_module._make_default.cache_clear()
    yield tmp_path
    host_module._make_default.cache_clear()
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., pytest.RunResult]:
    """Runs pytest in the working folder, in this process.

    The fixture ``pytester`` would forget the modules that are imported meanwhile, and leave torch
    and qcore with two of some of their classes.
    """

    def call(*arguments: str) -> pytest.RunResult:
        own = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "--import-mode=importlib"]
        code = pytest.main([*own, "-c", os.devnull, "--rootdir=.", *arguments])
        out, err = capsys.readouterr()
        return pytest.RunResult(code, out.splitlines(), err.splitlines(), 0.0)

    return call


def install(folder: Path, name: str, source: str) -> None:
    """A plug-in as pip leaves it."""
    metadata = folder / "site" / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[qcore.v1]\n{name} = {name}_plugin\n")
    (folder / "site" / f"{name}_plugin.py").write_text(textwrap.dedent(source))
    importlib.invalidate_caches()


@pytest.fixture
def acme(folder: Path) -> None:
    """An installed plug-in, of which one observer is right and one merges wrongly."""
    install(folder, "acme", PLUGIN)
    (folder / "site" / "acme_observer.py").write_text(textwrap.dedent(OBSERVER))


def test_every_contract_is_a_test(run, acme):
    """Without a test file; ids name contribution and contract, and the summary counts."""
    Path("test_other.py").write_text("def test_other(): assert False")
    result = run("-v", "--qcore-conformance", "acme")
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


def test_summary(run, acme):
    """A line for each contribution and one for all, with contracts and cases."""
    chosen = "unseen_refuses or order_of or both"
    result = run("--qcore-conformance=acme", "-k", chosen)
    result.stdout.fnmatch_lines(
        [
            "*qcore conformance*",
            "acme:acme_largest: 3 contracts checked on * cases (3 passed)",
            "acme:acme_last: 3 contracts checked on 9 cases (1 passed, 1 expected *, 1 failed)",
            "total: 6 contracts checked on * cases (4 passed, 1 expected failure, 0 not *",
        ]
    )


def test_what_was_violated_is_said_without_a_traceback(run, acme):
    """Given, came, due, and what the contract protects."""
    result = run("--qcore-conformance", "acme", "-k", "acme_last and both")
    result.stdout.fnmatch_lines(
        ["*it answers scale *; due is scale *", "It protects: Ranks and shards *"]
    )
    assert "Traceback" not in result.stdout.str()
    assert "observer_statistics.py" not in result.stdout.str()


def test_collect_only(run, acme):
    """The tests are listed and nothing runs."""
    result = run("--collect-only", "-q", "--qcore-conformance", "acme,observers")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["acme:acme_largest::reset_forgets", "observers:ema::*"])
    assert "qcore conformance" not in result.stdout.str()


def test_paths_are_collected_too(run, acme):
    """A path that is given is meant."""
    Path("test_other.py").write_text("def test_other(): pass")
    chosen = "unseen_ref or test_other"
    result = run("--qcore-conformance", "acme", "-k", chosen, "test_other.py")
    result.assert_outcomes(passed=3, deselected=44)
    assert "test_other.py" in result.stdout.str()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("acne", "no plug-in is called 'acne'; did you mean 'acme'"),
        ("data", "plug-in 'data' has nothing to check: it contributes scheme"),
        ("broken", "is not in use (failed): importing 'broken_plugin' failed: ZeroDivisionError"),
        (" , ", "names no plug-in"),
        ("acme,acne", "no plug-in is called 'acne'"),
    ],
)
def test_what_can_not_be_checked_is_an_error(run, acme, folder, argument, message):
    """Never zero tests and success."""
    install(folder, "broken", "1 / 0")
    install(folder, "data", DATA)
    result = run("--qcore-conformance", argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()


def test_nothing_left_is_an_error(run, acme):
    """Deselecting all tests, too, is not success."""
    result = run("--qcore-conformance", "acme", "-k", "nonsense")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_nothing_examined_is_an_error(run, acme):
    """A contribution to which no contract applies was not checked."""
    Path("conftest.py").write_text(
        textwrap.dedent("""
        from qcore.testing import NotApplicable, observers
        from qcore.testing.contract import contract

        @contract("observer", "Nothing.")
        def never(subject):
            raise NotApplicable("no reason")

        observers.CONTRACTS, kept = (never,), observers.CONTRACTS

        def pytest_unconfigure():
            observers.CONTRACTS = kept
        """)
    )
    result = run("--qcore-conformance", "acme", "-k", "acme_largest")
    result.assert_outcomes(skipped=1, deselected=2)
    result.stdout.fnmatch_lines(["acme:acme_largest: nothing was examined"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_without_the_option_nothing_happens(run):
    """Other people's tests run as ever, and can block the plug-in."""
    Path("test_one.py").write_text("def test_one(): pass")
    for options in ((), ("-p", "no:qcore")):
        result = run(*options)
        result.assert_outcomes(passed=1)
        assert "qcore conformance" not in result.stdout.str()


def test_with_workers(run, acme):
    """xdist shares the contracts out, and the summary counts them all."""
    arguments = ["-n", "2", "--qcore-conformance", "acme", "-k", "unseen_ref or reset or order_of"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed, 1 xfailed" in done.stdout
    assert "\ntotal: 6 contracts checked on " in done.stdout


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


def test_base_classes(run, acme):
    """A class with a subject is a whole test file; a host and options can be given."""
    Path("test_acme.py").write_text(textwrap.dedent(CLASSES))
    chosen = "unseen_refuses or order_of or both or deviations"
    result = run("-rA", "-k", chosen)
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


def test_a_wrong_deviation_fails_in_a_class(run, acme, folder):
    """The record of the plug-in is checked as well."""
    (folder / "site" / "acme_plugin.py").write_text(
        "from qcore import ObserverSpec, hookimpl\n"
        "@hookimpl\n"
        "def qcore_observers():\n"
        "    return [ObserverSpec(name='x', target='acme_observer:Largest',\n"
        "                         deviations={'merge': 'why not'})]\n"
    )
    Path("test_acme.py").write_text(
        "from qcore.testing import ObserverConformance\n"
        "class TestX(ObserverConformance):\n"
        "    subject = 'acme:x'\n"
    )
    result = run("-k", "deviations")
    result.assert_outcomes(failed=1, deselected=23)
    result.stdout.fnmatch_lines(["*declares a deviation from 'merge'*has no such contract*"])
