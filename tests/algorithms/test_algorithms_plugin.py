"""The plug-in of the algorithms: light, and each record leads to a stage."""

import inspect
import subprocess
import sys

import qcore
from qcore_algorithms.plugin import qcore_algorithms


def test_the_plugin_does_not_import_torch() -> None:
    """Listing algorithms is quick."""
    code = "import sys; from qcore_algorithms.plugin import *; qcore_algorithms(); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "qcore_algorithms.plugin" in done.stdout.split()
    assert "torch" not in done.stdout.split()


def test_each_record_leads_to_a_stage() -> None:
    """A callable that takes what a run gives it."""
    host = qcore.default_host()
    for spec in qcore_algorithms():
        assert spec.summary
        taken = inspect.signature(host.get("algorithm", spec.name)).parameters
        assert {"model", "dataset", "seed"} <= set(taken)
