"""The plug-in of the observers: light, complete, and each record leads to its class."""

from collections.abc import Callable

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


def test_the_plugin_does_not_import_torch(loaded_by: Callable[[str, str], list[str]]) -> None:
    """Listing observers is quick."""
    loaded = loaded_by("qcore_observers.plugin", "qcore_observers")
    assert "qcore_observers.plugin" in loaded
    assert "torch" not in loaded


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
