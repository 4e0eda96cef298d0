"""The plug-in of the observers: light, complete, and each record leads to its class."""

import subprocess
import sys

import pytest

from qcore import UINT8, Observer, ObserverSpec, PluginHost, QScheme
from qcore_observers.plugin import qcore_observers

SPECS = {spec.name: spec for spec in qcore_observers()}


def test_the_observers_have_the_names_of_the_field() -> None:
    """What recipes may write."""
    assert list(SPECS) == [
        "ema",
        "histogram",
        "kl",
        "mean_abs",
        "minmax",
        "mse",
        "passive",
        "percentile",
    ]


def test_the_plugin_does_not_import_torch() -> None:
    """Listing observers is quick."""
    code = "import sys; from qcore_observers.plugin import *; qcore_observers(); "
    done = subprocess.run(
        [sys.executable, "-c", code + "print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "qcore_observers.plugin" in done.stdout.split()
    assert "torch" not in done.stdout.split()


@pytest.mark.parametrize("name", SPECS)
def test_the_host_finds_each_class(name: str) -> None:
    """By the name alone; the summary says what it does."""
    spec = SPECS[name]
    assert isinstance(spec, ObserverSpec)
    assert spec.summary
    cls = PluginHost().get("observer", name)
    assert issubclass(cls, Observer)
    assert cls.__doc__
    assert not cls(scheme=QScheme(dtype=UINT8, symmetric=False), where="x").seen
