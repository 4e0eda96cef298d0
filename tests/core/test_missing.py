"""A missing module is an extra that was not asked for, or a fault; the cure is exact."""

import importlib
import sys

import pytest

from qcore import MissingExtraError, PluginError, PluginHost

PLUGIN = """
    {imports}
    from qcore import AlgorithmSpec, hookimpl

    @hookimpl
    def qcore_algorithms():
        return [AlgorithmSpec(name="tune", phase="q", target="acme_target:tune")]
    """


def install(site, imports="", **metadata):
    """Install acme, whose plug-in module begins with ``imports``."""
    site.install("acme", modules={"acme_plugin.py": PLUGIN.format(imports=imports)}, **metadata)
    (info,) = PluginHost([site.folder]).plugins()
    return info


@pytest.mark.parametrize(
    ("module", "requirement"),
    [("not_there", "Not-There>=1"), ("not_there.deep", "not.there[all]")],
)
def test_extra_of_a_plugin_module(site, module, requirement):
    """A plug-in whose module needs a missing extra is unavailable, and the cure is a command."""
    info = install(
        site, f"import {module}", extras=["fast"], requires=[f"{requirement}; extra == 'fast'"]
    )
    assert info.status == "unavailable"
    assert "pip install 'acme[fast]'" in info.failure
    assert not info.degraded


def test_extra_of_a_target(site):
    """A target that needs a missing extra is an error of its own, with the same cure."""
    install(site, extras=["fast"], requires=['not-there (>=1) ; extra == "fast"'])
    site.write("acme_target.py", "import not_there\ndef tune(): ...\n")
    host = PluginHost([site.folder])
    with pytest.raises(MissingExtraError) as caught:
        host.get("algorithm", "tune")
    for part in ("algorithm 'tune' of acme (acme 1.2)", "acme_target", "pip install 'acme[fast]'"):
        assert part in str(caught.value)


def test_smallest_extra_is_named(site):
    """Extras that gather others, such as dev, are not what a user should install."""
    info = install(
        site,
        "import not_there",
        extras=["all", "fast"],
        requires=[
            "not-there; extra == 'all'",
            "numpy; extra == 'all'",
            "not-there; extra == 'fast'",
        ],
    )
    assert "pip install 'acme[fast]'" in info.failure


def test_extra_that_the_entry_point_names(site):
    """An entry point may name its extra, for modules whose distribution has another name."""
    info = install(
        site,
        "import not_there",
        plugins={"acme": "acme_plugin [fast]"},
        extras=["fast"],
        requires=["another-name; extra == 'fast'"],
    )
    assert info.status == "unavailable"
    assert "pip install 'acme[fast]'" in info.failure


def test_module_with_a_well_known_distribution(site, monkeypatch):
    """scikit-learn is imported as sklearn; the metadata names the distribution."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    info = install(
        site, "import sklearn", extras=["zoo"], requires=["scikit-learn>=1.4; extra == 'zoo'"]
    )
    assert info.status == "unavailable"
    assert "pip install 'acme[zoo]'" in info.failure


def test_requirement_that_is_not_installed(site):
    """A dependency that is not optional and not there is a fault of the installation."""
    info = install(site, "import not_there", requires=["not-there>=2 ; python_version > '3'"])
    assert info.status == "failed"
    assert "pip install 'not-there>=2'" in info.failure


def test_module_that_nobody_declares(site):
    """An import that the metadata does not explain may be misspelt, and the cure says so."""
    info = install(site, "import not_there")
    assert info.status == "failed"
    assert "if 'not_there' is not misspelt: pip install not-there" in info.failure


@pytest.mark.parametrize("module", ["acme_plugin.more", "qcore.not_there", "json.not_there"])
def test_module_of_a_package_that_is_there(site, module):
    """A missing part of the plug-in, of qcore or of an installed package is no matter for pip."""
    info = install(site, f"import {module}")
    assert info.status == "failed"
    assert "pip install" not in info.failure


def test_plugin_of_this_process(site):
    """Without a distribution there is no extra to name, and the error is plain."""
    site.write("acme_plugin.py", PLUGIN.format(imports=""))
    site.write("acme_target.py", "import not_there\n")
    host = PluginHost([])
    host.register(importlib.import_module("acme_plugin"), name="acme")
    with pytest.raises(PluginError, match=r"acme \(in process\).*No module named 'not_there'"):
        host.get("algorithm", "tune")
