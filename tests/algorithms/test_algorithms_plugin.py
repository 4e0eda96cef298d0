"""The plug-in of the algorithms: light, and each record leads to a stage."""

import inspect
from collections.abc import Callable

import qcore
from qcore_algorithms.plugin import qcore_algorithms


def test_the_plugin_does_not_import_torch(loaded_by: Callable[[str, str], list[str]]) -> None:
    """Listing algorithms is quick."""
    loaded = loaded_by("qcore_algorithms.plugin", "qcore_algorithms")
    assert "qcore_algorithms.plugin" in loaded
    assert "torch" not in loaded


def test_each_record_leads_to_a_stage() -> None:
    """A callable that takes what a run gives it."""
    host = qcore.default_host()
    for spec in qcore_algorithms():
        assert spec.summary
        taken = inspect.signature(host.get("algorithm", spec.name)).parameters
        assert {"model", "dataset", "seed"} <= set(taken)
