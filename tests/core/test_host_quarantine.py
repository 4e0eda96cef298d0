"""A broken plug-in is put in quarantine with its cause, and everything else works."""

import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from qcore import ObserverSpec, PluginError, PluginHost, hookimpl
from qcore.activation import MAX_RECORDS

ROOT = Path(__file__).resolve().parents[2]
HEAD = """\
from qcore import (
    BackendSpec, FusionSpec, ModelSpec, ObserverSpec, QConfig, SchemeSpec, hookimpl,
)
record = ObserverSpec(name="kl", target="a:b")
"""

# What is wrong -> the source of the plug-in's module, and what its failure says.
BROKEN = {
    "import error": (
        "import json.missing",
        r"importing 'acme_plugin' failed: ModuleNotFoundError: No module named 'json.missing'",
    ),
    "name error": ("nonsense", r"NameError: name 'nonsense' is not defined \(.*acme_plugin.py:5\)"),
    "syntax error": ("def", r"SyntaxError: invalid syntax \(acme_plugin.py, line 5\)"),
    "system exit": ("raise SystemExit(0)", "importing 'acme_plugin' failed: SystemExit: 0"),
    "exit": ("exit(1)", "SystemExit: 1"),
    "own base exception": (
        "class Odd(BaseException): ...\nraise Odd('x\\n\\x1b[2Jy')",
        r"Odd: x \?\[2Jy \(",
    ),
    "exception that can't be shown": (
        "class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd",
        r"Odd: \(its message can't be shown\)",
    ),
    "long message": ("raise ValueError('x' * 100000)", r"ValueError: x{500}\.\.\. \("),
    "no hooks": (
        "",
        "it implements no hook; mark one or more of these with @qcore.hookimpl: qcore_",
    ),
    "misspelt hook": (
        "@hookimpl\ndef qcore_observer(): return [record]",
        r"qcore has no hook 'qcore_observer'; did you mean 'qcore_observers'\? \(hooks: ",
    ),
    "misspelt specname": (
        "@hookimpl(specname='qcore_bakends')\ndef mine(): return []",
        r"qcore has no hook 'qcore_bakends'; did you mean 'qcore_backends'\?",
    ),
    "hook without its mark": (
        "def qcore_observers(): return [record]",
        "function qcore_observers is not marked as a hook, so it would never be called; put @qcore",
    ),
    "hook with arguments": (
        "@hookimpl\ndef qcore_observers(config): return [record]",
        r"its hooks \(they take no arguments\) failed: .*'config'",
    ),
    "wrapper": (
        "@hookimpl(wrapper=True)\ndef qcore_observers(): return (yield)",
        "hook qcore_observers is a wrapper; a hook of qcore returns its own records",
    ),
    "hook that raises": (
        "@hookimpl\ndef qcore_observers(): return [1 / 0]",
        r"hook qcore_observers failed: ZeroDivisionError: division by zero \(.*acme_plugin.py:6\)",
    ),
    "hook that exits": (
        "@hookimpl\ndef qcore_observers(): raise SystemExit",
        "hook qcore_observers failed: SystemExit",
    ),
    "generator that raises midway": (
        "@hookimpl\ndef qcore_observers():\n    yield record\n    raise ValueError('late')",
        r"hook qcore_observers failed: ValueError: late \(.*acme_plugin.py:8\)",
    ),
    "generator without end": (
        "@hookimpl\ndef qcore_observers():\n    n = 0\n    while True:\n"
        "        yield ObserverSpec(name=f'o{n}', target='a:b')\n        n += 1",
        f"hook qcore_observers returned more than {MAX_RECORDS} records; does its generator end",
    ),
    "nothing returned": (
        "@hookimpl\ndef qcore_observers(): pass",
        "returned None; return an iterable of ObserverSpec",
    ),
    "record instead of a list": (
        "@hookimpl\ndef qcore_observers(): return record",
        "returned a value of type qcore.specs.ObserverSpec; return an iterable of ObserverSpec",
    ),
    "coroutine": (
        "@hookimpl\nasync def qcore_observers(): return [record]",
        "returned a value of type coroutine; return an iterable",
    ),
    "string": (
        "@hookimpl\ndef qcore_observers(): return 'kl'",
        "returned a value of type str where only ObserverSpec may be",
    ),
    "class instead of a record": (
        "@hookimpl\ndef qcore_fake_quants(): return [SchemeSpec]",
        "of type type where only FakeQuantSpec or SchemeSpec or PresetSpec may be",
    ),
    "record for another hook": (
        "@hookimpl\ndef qcore_observers(): return [BackendSpec(name='x', target='a:b')]",
        "BackendSpec where only ObserverSpec may be; return it from qcore_backends",
    ),
    "subclass of a record": (
        "class Mine(ObserverSpec): kind = 'backend'\n"
        "@hookimpl\ndef qcore_observers(): return [Mine(name='x', target='a:b')]",
        "acme_plugin.Mine where only ObserverSpec may be",
    ),
    "name twice": (
        "@hookimpl\ndef qcore_observers(): return [record, record]",
        "hook qcore_observers: observer 'kl' comes twice",
    ),
    "malformed target": (
        "@hookimpl\ndef qcore_observers(): return [ObserverSpec(name='kl', target='a.b')]",
        r"hook qcore_observers failed: PluginError: .*target='a.b'; write .* \(.*plugin.py:6\)",
    ),
    "malformed name": (
        "@hookimpl\ndef qcore_observers(): return [ObserverSpec(name='a:b', target='a:b')]",
        "name='a:b'; use a non-empty name without spaces, commas and colons",
    ),
    "pattern that is a string": (
        "@hookimpl\ndef qcore_fusion_patterns(): return [FusionSpec(name='f', pattern='conv')]",
        "pattern='conv'; write a tuple of two steps or more",
    ),
    "host used by the light module": (
        "import test_host_of_this_test\ntest_host_of_this_test.host.specs('observer')",
        "plug-in 'acme' uses the host while the host activates it",
    ),
}


# What is wrong -> what is installed; for what is seen before any code of a plug-in runs, and for
# what is missing.
DISTRIBUTIONS = {
    "entry point that names no module": [{"plugins": {"acme": "acme..plugin"}}],
    "entry point with a name of two words": [{"plugins": {"acme two": "acme_plugin"}}],
    "entry point that names a missing object": [
        {"plugins": {"acme": "acme_plugin:plugins"}, "modules": {"acme_plugin.py": "plugin = 1"}}
    ],
    "written for a later version of the API": [{"group": "qcore.v2"}],
    "plug-in name of another distribution": [{}, {"name": "other", "plugins": {"acme": "other"}}],
    "plug-in name twice in one distribution": [
        {"entry_points": "[qcore.v1]\nacme = acme_a\nacme = acme_b\n"}
    ],
    "declared dependency that is not installed": [
        {"modules": {"acme_plugin.py": "import acme_engine"}, "requires": ["acme-engine>=2"]}
    ],
    "dependency that is not declared": [{"modules": {"acme_plugin.py": "import acme_engine"}}],
    "extra that is not installed": [
        {
            "modules": {"acme_plugin.py": "import acme_engine"},
            "requires": ["acme-engine; extra == 'fast'"],
            "extras": ["fast"],
        }
    ],
}


def install_broken(site, source):
    """Install acme, broken, between two plug-ins that work; return their host."""
    site.plugin("aaa")
    site.install("acme", modules={"acme_plugin.py": HEAD + textwrap.dedent(source)})
    site.plugin("zzz")
    return PluginHost([site.folder])


@pytest.mark.parametrize(("source", "failure"), BROKEN.values(), ids=BROKEN)
def test_quarantine(site, monkeypatch, source, failure):
    """The plug-in contributes nothing and says why; the others are as if it were not there."""
    host = install_broken(site, source)
    monkeypatch.setitem(sys.modules, "test_host_of_this_test", type(sys)("test_host_of_this_test"))
    sys.modules["test_host_of_this_test"].host = host
    before, broken, after = host.plugins()
    assert (broken.status, broken.contributions) == ("failed", ())
    assert "\n" not in broken.failure
    assert re.search(failure, broken.failure)
    assert (before.status, after.status) == ("ok", "ok")
    assert [spec.origin.plugin for spec in host.specs("observer")] == ["aaa", "zzz"]
    assert host.degraded


def rows_of_the_guide():
    """What is wrong, status and message of each row of the table in the guide."""
    text = (ROOT / "docs" / "plugins" / "host.md").read_text(encoding="utf-8")
    table = text.partition("## Broken distributions\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|`]+) \| `(\w+)` \| `(.+)` \|$", table, re.MULTILINE)
    return [pytest.param(*row, id=row[0]) for row in rows]


def test_the_guide_has_every_case():
    """The table of the guide has each way of this file, once."""
    assert [row.id for row in rows_of_the_guide()] == [*DISTRIBUTIONS, *BROKEN]


@pytest.mark.parametrize(("case", "status", "message"), rows_of_the_guide())
def test_rows_of_the_guide(site, monkeypatch, case, status, message):
    """Each row is true: the status, what the list says, and that all others go on working."""
    if case in BROKEN:
        host = install_broken(site, BROKEN[case][0])
        monkeypatch.setitem(sys.modules, "test_host_of_this_test", SimpleNamespace(host=host))
    else:
        for name in ("aaa", "zzz"):
            site.plugin(name)
        for distribution in DISTRIBUTIONS[case]:
            site.install(**distribution)
        host = PluginHost([site.folder])
    infos = {info.plugin: info for info in host.plugins()}
    (broken,) = (infos[name] for name in infos if name.startswith("acme"))
    assert broken.status == status
    assert broken.contributions == ()
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.search(pattern, broken.failure), broken.failure
    assert [infos[name].status for name in ("aaa", "zzz")] == ["ok", "ok"]
    assert host.degraded == (status != "unavailable")


@pytest.mark.parametrize("case", ["import error", "misspelt hook", "generator that raises midway"])
def test_strict_raises(site, case):
    """A strict host stops at the first broken plug-in and names it and the cause."""
    source, failure = BROKEN[case]
    install_broken(site, source)
    with pytest.raises(
        PluginError, match=r"plug-in acme \(acme 1.2\) is not in use \(failed\): .*" + failure
    ):
        PluginHost([site.folder], strict=True).specs("observer")


def test_registration_is_atomic_over_hooks(site):
    """A hook that fails after others worked takes their records with it."""
    host = install_broken(
        site,
        """
        @hookimpl
        def qcore_observers():
            return [record]

        @hookimpl
        def qcore_datasets():
            raise ValueError
        """,
    )
    assert [spec.origin.plugin for spec in host.specs("observer")] == ["aaa", "zzz"]


def test_hook_is_called_once(site):
    """A failure is remembered: the plug-in is not run again by the next question."""
    host = install_broken(site, "import sys; sys.acme_runs.append(1); raise ValueError")
    sys.acme_runs = []
    try:
        for _ in range(3):
            host.specs("observer")
        assert sys.acme_runs == [1]
    finally:
        del sys.acme_runs


def test_keyboard_interrupt_goes_through(site):
    """Ctrl-C during an import is the user's, and the next question starts where it stopped."""
    host = install_broken(
        site,
        """
        import sys
        if sys.acme_interrupt:
            raise KeyboardInterrupt
        @hookimpl
        def qcore_observers(): return [record]
        """,
    )
    sys.acme_interrupt = True
    try:
        with pytest.raises(KeyboardInterrupt):
            host.specs("observer")
        sys.acme_interrupt = False
        assert [spec.origin.plugin for spec in host.specs("observer")] == ["aaa", "acme", "zzz"]
    finally:
        del sys.acme_interrupt


@pytest.mark.parametrize("value", ["", "acme..plugin", "acme plugin", "acme:"])
def test_malformed_entry_point(site, value):
    """An entry point that names no module is a failure that shows it."""
    site.install("acme", plugins={"kl": value})
    (info,) = PluginHost([site.folder]).plugins()
    assert info.status == "failed"
    assert info.failure == f"the entry point 'kl' is {value!r}; write 'package.module'"


@pytest.mark.parametrize("name", ["two words", "a:b", "a,b", "x\x1b[2J", ""])
def test_malformed_plugin_name(site, name):
    """A plug-in that could not be named in a list or a recipe is not imported."""
    site.install("acme", plugins={name: "acme_plugin"}, modules={"acme_plugin.py": "1 / 0"})
    (info,) = PluginHost([site.folder]).plugins()
    assert info.status == "failed"
    assert f"the entry point is called {name!r}" in info.failure
    assert "acme_plugin" not in sys.modules


def test_entry_point_that_names_a_missing_object(site):
    """The nearest name is offered."""
    source = "plugin = 1"
    site.install(plugins={"kl": "acme_plugin:plugins"}, modules={"acme_plugin.py": source})
    (info,) = PluginHost([site.folder]).plugins()
    assert "has no 'plugins'; did you mean 'plugin'?" in info.failure


def test_entry_point_that_names_none(site):
    """None is no plug-in, though pluggy would take it."""
    site.install(plugins={"kl": "acme_plugin:x"}, modules={"acme_plugin.py": "x = None"})
    (info,) = PluginHost([site.folder]).plugins()
    assert info.failure == "the entry point names None; let it name a module"


def test_optional_hook_of_a_later_version(site):
    """A plug-in may implement a hook that this qcore does not have, if it says so."""
    source = """
        from qcore import ObserverSpec, hookimpl
        @hookimpl(optionalhook=True)
        def qcore_of_the_future(): ...
        @hookimpl
        def qcore_observers(): return [ObserverSpec(name="kl", target="a:b")]
        """
    site.install(modules={"acme_plugin.py": source})
    (info,) = PluginHost([site.folder]).plugins()
    assert (info.status, len(info.contributions)) == ("ok", 1)


def test_two_implementations_of_one_hook():
    """A plug-in may split a hook; both parts are called and their records joined."""

    class Plugin:
        @hookimpl
        def qcore_observers(self):
            return [ObserverSpec(name="b", target="a:b")]

        @hookimpl(specname="qcore_observers")
        def more(self):
            return [ObserverSpec(name="a", target="a:b")]

    host = PluginHost([])
    host.register(Plugin())
    assert [spec.name for spec in host.specs("observer")] == ["a", "b"]


def test_one_name_for_two_kinds():
    """An observer and a fake quantizer may share a name."""

    class Plugin:
        @hookimpl
        def qcore_observers(self):
            return [ObserverSpec(name="lsq", target="a:b")]

        @hookimpl
        def qcore_fake_quants(self):
            from qcore import FakeQuantSpec

            return [FakeQuantSpec(name="lsq", target="a:b")]

    host = PluginHost([])
    host.register(Plugin())
    assert host.find("observer", "lsq").kind != host.find("fake_quant", "lsq").kind
