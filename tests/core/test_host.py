"""The plug-in host: what it finds, imports, looks up and loads, on real distributions."""

import importlib
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

import qcore
from qcore import ObserverSpec, Origin, PluginError, PluginHost, hookimpl
from qcore.hookspecs import HOOKS, KINDS

ROOT = Path(__file__).resolve().parents[2]


class InProcess:
    """A plug-in that nobody installed."""

    @hookimpl
    def qcore_observers(self):
        return [ObserverSpec(name="own", target="acme_observers:Observer")]


def statuses(host):
    """Status of each plug-in by name."""
    return {info.plugin: info.status for info in host.plugins()}


def qualified(host, kind="observer"):
    """Contributions of a kind as ``plugin:name``, in the order of the host."""
    return [f"{spec.origin.plugin}:{spec.name}" for spec in host.specs(kind)]


def test_nothing_is_imported_before_it_is_needed(site):
    """Making a host and listing what is installed import no plug-in; asking for a kind does."""
    site.plugin("acme")
    host = PluginHost([site.folder])
    (info,) = host.plugins(activate=False)
    assert (info.status, info.contributions) == ("discovered", ())
    assert "acme_plugin" not in sys.modules
    assert qualified(host) == ["acme:kl"]
    assert "acme_plugin" in sys.modules


def test_target_is_imported_by_load_only(site):
    """A record can be found and shown while the code that it points to does not even exist."""
    site.plugin("acme")
    host = PluginHost([site.folder])
    spec = host.find("observer", "kl")
    assert "acme_observers" not in sys.modules
    site.write("acme_observers.py", "import qcore\nclass Observer(qcore.Observer): ...\n")
    assert host.load(spec) is sys.modules["acme_observers"].Observer
    assert host.get("observer", "kl") is host.load(spec)


def test_every_record_carries_its_origin(site):
    """Plug-in, distribution, version and entry point are stamped on, whatever the plug-in wrote."""
    source = """
        from qcore import ObserverSpec, Origin, hookimpl
        forged = Origin(plugin="other", distribution="qcore-quant", version="9", entry_point="x")
        @hookimpl
        def qcore_observers():
            return [ObserverSpec(name="kl", target="a:b", origin=forged)]
        """
    site.install("Acme_Tools", plugins={"acme": "acme_plugin"}, modules={"acme_plugin.py": source})
    origin = PluginHost([site.folder]).find("observer", "kl").origin
    assert origin == Origin(
        plugin="acme", distribution="acme-tools", version="1.2", entry_point="acme_plugin"
    )
    assert origin.describe() == "acme (acme-tools 1.2)"


def test_entry_point_may_name_an_object(site):
    """The value of an entry point is a module, or an object in it with hooks as methods."""
    source = """
        from qcore import ObserverSpec, hookimpl
        class Plugin:
            @hookimpl
            def qcore_observers(self):
                yield ObserverSpec(name="kl", target="a:b")
        class Place:
            plugin = Plugin()
        """
    site.install(plugins={"acme": "acme_plugin:Place.plugin"}, modules={"acme_plugin.py": source})
    assert qualified(PluginHost([site.folder])) == ["acme:kl"]


def test_order_is_by_plugin_and_name(site):
    """Neither the order of installation nor that of the records shows."""
    for name in ("beta", "alpha"):
        site.plugin(name, observers=("z", "a", "m"))
    host = PluginHost([site.folder])
    host.register(InProcess(), name="aaa")
    expected = ["aaa:own", "alpha:a", "alpha:m", "alpha:z", "beta:a", "beta:m", "beta:z"]
    assert qualified(host) == expected
    assert [info.plugin for info in host.plugins()] == ["aaa", "alpha", "beta"]


def test_hosts_do_not_share_state(site):
    """What one host registers or blocks, another does not know."""
    site.plugin("acme")
    one, two = PluginHost([site.folder], block=["acme"]), PluginHost([site.folder])
    one.register(InProcess(), name="mine")
    assert statuses(one) == {"acme": "blocked", "mine": "ok"}
    assert statuses(two) == {"acme": "ok"}


@pytest.mark.parametrize(
    "rules", [{"block": ["acme"]}, {"allow": ["other"]}, {"allow": ["acme"], "block": ["acme"]}]
)
def test_blocked_is_never_imported(site, rules):
    """A plug-in outside the allow-list or in the block-list is listed and stays unimported."""
    source = "raise SystemExit('imported')"
    site.install("acme", modules={"acme_plugin.py": source})
    site.plugin("other")
    host = PluginHost([site.folder], **rules)
    assert statuses(host)["acme"] == "blocked"
    with pytest.raises(PluginError, match=r"plug-in acme \(acme 1.2\) is blocked"):
        host.find("observer", "acme:kl")
    assert "acme_plugin" not in sys.modules
    assert not host.degraded


@pytest.mark.parametrize(
    ("value", "used"),
    [
        (None, {"acme", "beta"}),
        ("", set()),
        ("acme", {"acme"}),
        (" beta , acme,", {"acme", "beta"}),
    ],
)
def test_allow_list_of_the_environment(site, monkeypatch, value, used):
    """QCORE_PLUGINS unset allows all plug-ins; set, those it names; empty, none."""
    for name in ("acme", "beta"):
        site.plugin(name)
    if value is None:
        monkeypatch.delenv("QCORE_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("QCORE_PLUGINS", value)
    found = statuses(PluginHost.from_environment())
    assert {name for name in ("acme", "beta") if found[name] == "ok"} == used


def test_a_host_made_in_python_ignores_the_environment(site, monkeypatch):
    """What a program passes is what it gets."""
    site.plugin("acme")
    monkeypatch.setenv("QCORE_PLUGINS", "")
    assert statuses(PluginHost([site.folder])) == {"acme": "ok"}


def test_default_host_is_made_once_and_lazily(monkeypatch):
    """The default host reads the environment at its first use, then stays."""
    qcore.host._make_default.cache_clear()
    monkeypatch.setenv("QCORE_PLUGINS", "")
    try:
        host = qcore.default_host()
        monkeypatch.setenv("QCORE_PLUGINS", "observers")
        assert qcore.default_host() is host
        assert host.specs("observer") == ()
    finally:
        qcore.host._make_default.cache_clear()


def test_allowed_plugin_that_is_not_installed(site):
    """A misspelt allow-list is not silently an empty one."""
    site.plugin("acme")
    host = PluginHost([site.folder], allow=["acne"])
    missing = host.plugins()[1]
    assert (missing.plugin, missing.status) == ("acne", "missing")
    assert missing.failure.endswith("it is not installed; did you mean 'acme'?")
    assert host.degraded


def test_lists_of_names_are_not_strings():
    """``block="acme"`` would block the plug-ins a, c, m and e."""
    with pytest.raises(PluginError, match=r"block='acme'; give a list of names: \['acme'\]"):
        PluginHost(block="acme")


def test_name_of_two_distributions(site):
    """Two distributions with one plug-in name: neither is imported, both are reported."""
    for name in ("acme", "zenith"):
        module = f"{name}_plugin"
        site.install(name, plugins={"kl": module}, modules={f"{module}.py": "raise SystemExit"})
    site.plugin("other")
    host = PluginHost([site.folder])
    clashing = [info for info in host.plugins() if info.plugin == "kl"]
    assert [(i.distribution, i.status) for i in clashing] == [
        ("acme", "conflict"),
        ("zenith", "conflict"),
    ]
    assert {i.failure for i in clashing} == {
        "acme 1.2 and zenith 1.2 each bring a plug-in 'kl', so none is used; uninstall all but one"
    }
    assert not {"acme_plugin", "zenith_plugin"} & set(sys.modules)
    assert qualified(host) == ["other:kl"]
    with pytest.raises(
        PluginError, match=r"not in use \(conflict\): acme 1\.2 and zenith 1\.2 each"
    ):
        host.find("observer", "kl:kl")


def test_name_twice_in_one_distribution(site):
    """One distribution that declares a name twice gets no plug-in of that name."""
    site.install("acme", entry_points="[qcore.v1]\nkl = acme_a\nkl = acme_b\n")
    infos = PluginHost([site.folder]).plugins()
    assert [info.status for info in infos] == ["conflict", "conflict"]
    assert "acme 1.2 declares the plug-in 'kl' as 'acme_a' and 'acme_b'" in infos[0].failure


def test_builtin_is_not_shadowed(site):
    """A distribution that takes the name of a built-in plug-in disables it aloud, not silently."""
    site.install("evil", plugins={"observers": "evil_plugin"})
    site.install("qcore-quant", "0.1", plugins={"observers": "qcore_observers.plugin"})
    host = PluginHost([site.folder])
    assert {info.status for info in host.plugins()} == {"conflict"}
    assert host.degraded


@pytest.mark.parametrize(
    ("group", "upgrade"),
    [("qcore.v0", "acme"), ("qcore.v2", "qcore-quant"), ("qcore.v10", "qcore")],
)
def test_other_version_of_the_api(site, group, upgrade):
    """A plug-in for another version of the API is reported with the upgrade, and not imported."""
    site.install("acme", group=group, modules={"acme_plugin.py": "raise SystemExit"})
    host = PluginHost([site.folder])
    (info,) = host.plugins()
    assert info.status == "incompatible"
    assert (
        f"API {group}, and this qcore has qcore.v1; pip install --upgrade {upgrade}" in info.failure
    )
    assert "acme_plugin" not in sys.modules


def test_distribution_for_several_versions_of_the_api(site):
    """One that supports this version and a later one is simply used."""
    site.plugin("acme")
    entry_points = site.folder / "acme-1.2.dist-info" / "entry_points.txt"
    entry_points.write_text(entry_points.read_text() + "[qcore.v2]\nacme = acme_later\n")
    assert statuses(PluginHost([site.folder])) == {"acme": "ok"}


def test_contribution_of_two_plugins(site):
    """One name from two plug-ins is an error at use that names both; plugin:name solves it."""
    site.plugin("acme", observers=("kl", "one"))
    site.plugin("zenith", observers=("kl",))
    host = PluginHost([site.folder])
    assert host.find("observer", "one").origin.plugin == "acme"
    with pytest.raises(PluginError) as caught:
        host.find("observer", "kl")
    assert str(caught.value) == (
        "observer 'kl' is ambiguous: it comes from acme (acme 1.2) and from zenith (zenith 1.2); "
        "write 'acme:kl' or 'zenith:kl'"
    )
    assert host.find("observer", "zenith:kl").origin.plugin == "zenith"


def test_qualified_name_activates_one_plugin(site):
    """``plugin:name`` needs no other plug-in, so it imports none."""
    site.plugin("acme")
    site.plugin("beta")
    assert PluginHost([site.folder]).find("observer", "beta:kl").name == "kl"
    assert "acme_plugin" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("observer", "minmx", r"no observer is called 'minmx'; did you mean 'minmax'\?"),
        ("observer", "xyz", r"available: kl, minmax"),
        ("observer", "xyz", r"not in use: broken \(failed\).*plugins list"),
        ("backend", "cpu", r"no backend is called 'cpu' \(available: none\)"),
        (
            "observr",
            "kl",
            r"no kind of contribution is called 'observr'; did you mean 'observer'\?",
        ),
        ("observer", "acne:kl", r"no plug-in is called 'acne'; did you mean 'acme'\?"),
        ("observer", "acme:kll", r"acme \(acme 1.2\) has no observer 'kll'; did you mean 'kl'\?"),
        ("backend", "acme:kl", r"has no backend 'kl' \(it has: no backend at all\)"),
        (
            "observer",
            "broken:kl",
            r"broken \(broken 1.2\) is not in use \(failed\): importing 'broken_plugin'",
        ),
    ],
)
def test_unknown_names(site, kind, name, message):
    """What is not there is an error that says what is, and what could not be used."""
    site.plugin("acme", observers=("kl", "minmax"))
    site.install("broken", modules={"broken_plugin.py": "1 / 0"})
    with pytest.raises(PluginError, match=message):
        PluginHost([site.folder]).find(kind, name)


def test_data_is_loaded_as_data():
    """A scheme loads as its QScheme, a preset as its QConfig, a fusion as itself."""
    scheme = qcore.QScheme(dtype=qcore.INT4)
    qconfig = qcore.QConfig(weight=qcore.QuantizerConfig(scheme="int4"), activation=None)

    class Plugin:
        @hookimpl
        def qcore_fake_quants(self):
            yield qcore.SchemeSpec(name="int4", scheme=scheme)
            yield qcore.PresetSpec(name="w4", qconfig=qconfig)

        @hookimpl
        def qcore_fusion_patterns(self):
            yield qcore.FusionSpec(name="conv-relu", pattern=("conv2d", "relu"))
            yield qcore.FusionSpec(name="checked", pattern=("a", "b"), check="operator:not_")
            yield qcore.FusionSpec(name="shown", pattern=("a", "b"), examples="builtins:list")
            yield qcore.FusionSpec(name="odd", pattern=("a", "b"), examples="math:pi")

    host = PluginHost([])
    host.register(Plugin())
    assert host.get("scheme", "int4") is scheme
    assert host.get("preset", "w4") is qconfig
    fusion = host.get("fusion", "conv-relu")
    assert (fusion.pattern, host.load_check(fusion)) == (("conv2d", "relu"), None)
    assert host.load_check(host.get("fusion", "checked"))(False) is True
    assert host.load_examples(fusion) is None
    assert host.load_examples(host.get("fusion", "shown"))() == []
    with pytest.raises(PluginError, match=r"examples='math:pi' is of type float; .*callable"):
        host.load_examples(host.get("fusion", "odd"))
    assert host.find("preset", "w4").target == "weight=int4 activation=float"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "No module named 'acme_observers'"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*acme_observers.py:1\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("Observers = 1", r"has no 'Observer'; did you mean 'Observers'\?"),
        ("Observer = 1", "the target 'acme_observers:Observer' is of type int; it must be a class"),
        (
            "class Observer: ...",
            "is the class Observer; it must be a class that derives from qcore",
        ),
    ],
)
def test_target_that_does_not_load(site, source, message):
    """An error in a target names the contribution, its origin, the target and the cause."""
    site.plugin("acme")
    if source is not None:
        site.write("acme_observers.py", source)
    with pytest.raises(PluginError, match=message) as caught:
        PluginHost([site.folder]).get("observer", "kl")
    assert str(caught.value).startswith("observer 'kl' of acme (acme 1.2): ")


def test_target_of_other_kinds_is_callable():
    """An algorithm, a model or a data set is a callable, and nothing else will do."""

    class Plugin:
        @hookimpl
        def qcore_models(self):
            return [
                qcore.ModelSpec(name="net", target="math:sqrt"),
                qcore.ModelSpec(name="pi", target="math:pi"),
            ]

    host = PluginHost([])
    host.register(Plugin())
    assert host.get("model", "net")(4) == 2
    with pytest.raises(PluginError, match="'math:pi' is of type float; it must be callable"):
        host.get("model", "pi")


def test_record_without_origin_is_not_loaded():
    """Only what a host collected is imported; a record made elsewhere, say from a file, is not."""
    spec = qcore.ModelSpec(name="net", target="os:system")
    with pytest.raises(PluginError, match="has no origin"):
        PluginHost([]).load(spec)


def test_register_and_unregister(site):
    """A plug-in of this process is used like an installed one, until it is taken out."""
    host = PluginHost([])
    info = host.register(InProcess())
    assert (info.plugin, info.distribution, info.status) == ("InProcess", "(in process)", "ok")
    assert host.find("observer", "own").origin.describe() == "InProcess (in process)"
    host.unregister("InProcess")
    assert host.plugins() == ()
    with pytest.raises(PluginError, match="no plug-in 'InProcess' was registered"):
        host.unregister("InProcess")


def test_register_a_module(site):
    """A module is called by its own name unless another is given."""
    site.plugin("acme")
    module = importlib.import_module("acme_plugin")
    host = PluginHost([])
    host.register(module)
    host.register(module, name="again")
    assert qualified(host) == ["acme_plugin:kl", "again:kl"]


@pytest.mark.parametrize("name", ["acme", "mine"])
def test_register_takes_no_name_that_is_taken(site, name):
    """Neither an installed plug-in nor a registered one is shadowed."""
    site.plugin("acme")
    host = PluginHost([site.folder])
    host.register(InProcess(), name="mine")
    before = host.plugins()
    with pytest.raises(PluginError, match=f"the name is taken by {name} "):
        host.register(InProcess(), name=name)
    assert host.plugins() == before


def test_register_under_a_name_that_is_not_in_use(site):
    """The name of a plug-in that this host can never use is free."""
    site.plugin("acme")
    host = PluginHost([site.folder], allow=["gone"])
    host.register(InProcess(), name="acme")
    host.register(InProcess(), name="gone")
    assert qualified(host) == ["acme:own", "gone:own"]
    assert host.find("observer", "acme:own").origin.distribution == "(in process)"


@pytest.mark.parametrize(
    ("name", "message"), [("a:b", "no spaces, commas and colons"), ("bad", "blocks this name")]
)
def test_register_refuses_names(name, message):
    """A name must be one that lists and recipes can hold, and not blocked."""
    with pytest.raises(PluginError, match=message):
        PluginHost([], block=["bad"]).register(InProcess(), name=name)


def test_register_is_atomic():
    """A plug-in of which any part is wrong leaves the host as it was."""

    class Plugin(InProcess):
        @hookimpl
        def qcore_models(self):
            raise ValueError("no")

    host = PluginHost([])
    with pytest.raises(PluginError, match=r"plug-in 'Plugin' .*hook qcore_models.*ValueError: no"):
        host.register(Plugin())
    assert host.plugins() == ()
    host.register(InProcess(), name="Plugin")


@pytest.mark.parametrize("requirement", ["acme", "Acme>=1.2,<2", "acme==1.*", "acme~=1.0"])
def test_requirements_that_hold(site, requirement):
    """A required distribution is there, in the version, and its plug-ins work."""
    site.plugin("acme")
    PluginHost([site.folder]).require([requirement])


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("acme>=1.3", r"'acme>=1.3': installed is acme 1.2; pip install 'acme>=1.3'"),
        ("acne", r"'acne' brings plug-ins; did you mean 'acme'\?$"),
        ("zzz>1", r"no installed distribution 'zzz' brings plug-ins; pip install 'zzz>1'"),
        ("broken", r"plug-in bad \(broken 1.2\) is not in use \(failed\): importing"),
        ("bad>=1", r"'bad' is a plug-in; name its distribution, 'broken'"),
        ("blocked", r"plug-in blocked \(blocked 1.2\) is blocked; allow it"),
        ("odd>=1", r"version of the installed odd can't be compared: 'x' is not a version"),
        ("acme>=", r"'acme>=': write the name of a distribution"),
    ],
)
def test_requirements_that_do_not_hold(site, requirement, message):
    """Each way to fail a requirement says what is there and what to do."""
    site.plugin("acme")
    site.plugin("blocked")
    site.plugin("odd", "x")
    site.install("broken", plugins={"bad": "bad_plugin"}, modules={"bad_plugin.py": "1 / 0"})
    host = PluginHost([site.folder], block=["blocked"])
    with pytest.raises(PluginError, match=message):
        host.require([requirement])


def test_requirement_of_a_distribution_with_a_blocked_plugin(site):
    """Blocking one of several plug-ins does not break a requirement on their distribution."""
    site.plugin("acme")
    entry_points = site.folder / "acme-1.2.dist-info" / "entry_points.txt"
    entry_points.write_text(entry_points.read_text() + "more = acme_more\n")
    PluginHost([site.folder], block=["more"]).require(["acme"])


def test_requirements_are_a_list(site):
    """A string is not a list of its letters."""
    with pytest.raises(PluginError, match="give a list"):
        PluginHost([]).require("acme")


def test_threads_see_one_activation(site):
    """Threads that ask at the same time get the same records, from one call of the hooks."""
    source = """
        import time
        from qcore import ObserverSpec, hookimpl
        calls = []
        @hookimpl
        def qcore_observers():
            calls.append(1)
            time.sleep(0.05)
            return [ObserverSpec(name="kl", target="a:b")]
        """
    site.install(modules={"acme_plugin.py": source})
    host = PluginHost([site.folder])
    seen = []
    threads = [threading.Thread(target=lambda: seen.append(host.specs("observer"))) for _ in "1234"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert all(specs[0] is seen[0][0] for specs in seen)
    assert sys.modules["acme_plugin"].calls == [1]


def builtin_entry_points():
    """The entry points that the project declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["entry-points"]["qcore.v1"]


@pytest.mark.parametrize("plugin", builtin_entry_points())
def test_builtin_lives_by_its_entry_point(site, plugin):
    """A built-in plug-in has no privilege: without its line in the metadata it is not there."""
    declared = builtin_entry_points()
    everything = PluginHost([site.install("qcore-quant", "0.1", plugins=declared).parent])
    brought = {(s.kind, s.name) for i in everything.plugins() for s in i.contributions}
    del declared[plugin]
    rest = type(site)(site.folder / "rest")
    without = PluginHost([rest.install("qcore-quant", "0.1", plugins=declared).parent])
    left = {(s.kind, s.name) for i in without.plugins() for s in i.contributions}
    (info,) = (i for i in everything.plugins() if i.plugin == plugin)
    assert info.status == "ok", info.failure
    assert brought - left == {(s.kind, s.name) for s in info.contributions} != set()
    assert plugin not in statuses(without)


def test_builtin_targets_load():
    """Everything that the built-in plug-ins contribute can be imported and is of its kind."""
    host = PluginHost(allow=builtin_entry_points())
    for kind in KINDS:
        for spec in host.specs(kind):
            host.load(spec)
            if kind == "fusion":
                host.load_check(spec)


def test_every_hook_and_kind_is_public():
    """Each record that a hook may return is a public name of qcore, and each kind has one hook."""
    records = [record for allowed in HOOKS.values() for record in allowed]
    assert len({record.kind for record in records}) == len(records) == len(KINDS)
    for record in records:
        assert getattr(qcore, record.__name__) is record
        assert set(record.contract or ()) <= set(qcore.__all__)


def test_a_plugin_installed_by_pip_form_is_found_by_a_new_interpreter(site):
    """What a site folder holds is there for a program that only imports qcore."""
    site.plugin("acme")
    program = "import qcore; print(qcore.default_host().find('observer', 'acme:kl').origin)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(site.folder), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert "distribution='acme', version='1.2'" in result.stdout, result.stderr
