"""The tables of the documentation say what the code accepts and brings."""

import inspect
import re
import types

import attrs
import pytest

import qcore

RECIPES = "docs/recipes.md"
NUMERICS = "docs/numerics.md"


def accepted(table: dict) -> set[str]:
    """The keys that a recipe knows where ``table`` has the unknown key ``zzz``."""
    with pytest.raises(qcore.RecipeError, match="unknown key 'zzz'") as caught:
        qcore.Recipe.from_table(table)
    return set(str(caught.value).rpartition("known are ")[2].split(", "))


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("Keys of a recipe", {"zzz": 1}),
        ("Keys of a quantizer", {"weight": {"zzz": 1}}),
        ("Keys of a quantizer", {"activation": {"zzz": 1}}),
        ("Keys of a scheme", {"weight": {"scheme": {"zzz": 1}}}),
        ("Keys of an override", {"override": [{"zzz": 1}]}),
        ("Keys of plugins", {"plugins": {"zzz": 1}}),
        ("Keys of calibration", {"calibration": {"zzz": 1}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_recipe_keys(page_named, heading, table):
    """Each table of keys has the keys that the reader accepts there, each once."""
    documented = page_named(RECIPES).first_column(heading)
    assert sorted(documented) == sorted(accepted(table))


def test_qconfig_keys(page_named):
    """The row of ``qconfig`` names its keys."""
    row = next(
        line for line in page_named(RECIPES).section("Keys of a recipe") if "`qconfig`" in line
    )
    for key in accepted({"qconfig": {"zzz": 1}}):
        assert f"`{key}`" in row


def test_recipe_defaults(page_named):
    """The defaults that the tables state are those of the code."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:3]]
        for heading in ("Keys of a recipe", "Keys of a quantizer")
        for line in page_named(RECIPES).section(heading)
        if line.startswith("| `")
    ]
    stated = {key.strip("`"): value.strip("`") for key, value in rows if value.startswith("`")}
    recipe, quantizer = qcore.Recipe(), qcore.QuantizerConfig(scheme="int8")
    actual = {
        **{key: getattr(recipe, key) for key in ("name", "preset", "backend", "prefer", "seed")},
        **{
            key: getattr(quantizer, key)
            for key in ("observer", "observer_options", "fake_quant", "fake_quant_options")
        },
    }
    written = {tuple: "[]", dict: "{}"}
    assert stated == {
        key: written.get(type(value)) or (f'"{value}"' if isinstance(value, str) else str(value))
        for key, value in actual.items()
    }


def test_granularities(page_named):
    """The row of ``granularity`` has exactly the words that the reader accepts."""
    with pytest.raises(qcore.RecipeError, match="use one of") as caught:
        qcore.Recipe.from_table({"weight": {"scheme": {"bits": 8, "granularity": "zzz"}}})
    words = str(caught.value).rpartition("use one of ")[2].split(", ")
    row = next(
        line for line in page_named(RECIPES).section("Keys of a scheme") if "`granularity`" in line
    )
    assert re.findall(r'`"(per_\w+)"`', row.split("|")[3]) == words


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("Presets", "preset"),
        ("Schemes", "scheme"),
        ("Observers", "observer"),
        ("Fake quantizers", "fake_quant"),
    ],
)
def test_names_of_contributions(page_named, heading, kind):
    """Every built-in contribution is listed, and nothing that is not there."""
    built_in = {
        spec.name
        for spec in qcore.default_host().specs(kind)
        if spec.origin is not None and spec.origin.distribution == "qcore-quant"
    }
    documented = page_named(RECIPES).first_column(heading)
    assert len(documented) == len(set(documented))
    assert set(documented) == built_in


@pytest.mark.parametrize(
    ("heading", "kind"), [("Observers", "observer"), ("Algorithms", "algorithm")]
)
def test_options(page_named, heading, kind):
    """The options in a table are the keyword arguments of the target."""
    given = {"self", "scheme", "where", "model", "dataset", "seed"}
    for line in page_named(RECIPES).section(heading):
        names = re.findall(r"`([^`]+)`", line)
        if line.startswith("| `"):
            target = qcore.default_host().get(kind, names[0])
            assert set(names[1:]) == set(inspect.signature(target).parameters) - given, names[0]


def test_result_keys(page_named):
    """The table of ``result.json`` has the keys of a result."""
    keys = {field.name for field in attrs.fields(qcore.RunResult)} - {"folder"}
    assert set(page_named(RECIPES).first_column("Keys of result.json")) == keys


def test_contracts(page_named):
    """The table of contracts has every setting and every value, the default ones marked."""
    lines = [line for line in page_named(NUMERICS).section("Contracts") if line.startswith("| `")]
    found = {names[0]: tuple(names[1:]) for names in (re.findall(r"`(\w+)`", s) for s in lines)}
    assert found == qcore.Numerics.ALLOWED
    default = qcore.Numerics()
    for setting, values in found.items():
        assert getattr(default, setting) == values[0], "the first value is the default"


def test_causes(page_named):
    """The table of causes has every name that a comparison can give."""
    from qcore.comparison.records import CAUSES

    assert sorted(page_named("docs/compare.md").first_column("Causes")) == sorted(CAUSES)


def test_hooks(page_named):
    """The guide lists every hook with the records that it returns."""
    from qcore.hookspecs import HOOKS

    lines = page_named("docs/plugins/index.md").section("Kinds of contribution")
    found = {}
    for line in lines:
        if line.startswith("| `"):
            hook, records = line.split("|")[1:3]
            found[hook.strip(" `()")] = set(re.findall(r"`(\w+)`", records))
    assert found == {hook: {r.__name__ for r in records} for hook, records in HOOKS.items()}


def test_statuses(page_named):
    """The guide explains every status that a plug-in can have."""
    from typing import get_args

    from qcore.plugin_info import PluginStatus

    documented = page_named("docs/plugins/index.md").first_column("Statuses")
    assert sorted(documented) == sorted(get_args(PluginStatus))


CONFORMANCE = "docs/plugins/conformance.md"


def test_statuses_of_contracts(page_named):
    """The page explains every status of an outcome."""
    from typing import get_args

    from qcore.testing.contract import Status

    rows = [line for line in page_named(CONFORMANCE).section("In Python") if "| `" in line]
    assert sorted(row.split("`")[1] for row in rows) == sorted(get_args(Status))


def test_base_classes_of_contracts(page_named):
    """The page names every base class, and each of their attributes."""
    from qcore import testing

    text = "\n".join(page_named(CONFORMANCE).section("In a test file"))
    bases = {name for name in testing.__all__ if name.endswith("Conformance")}
    assert bases <= set(re.findall(r"`(\w+)`", text))
    attributes = page_named(CONFORMANCE).first_column("In a test file")
    assert set(attributes) == {"subject", "options", "host"}


LAYERS = "docs/layers.md"


def _float_forms(spec):
    """Modules and functions of a converter as the page writes them, each once."""
    modules = [name.removeprefix("torch.nn.") for name in spec.types]
    functions = [
        name.split(".")[1] if name.startswith("aten.") else name.removeprefix("_operator.")
        for name in spec.functions
    ]
    return list(dict.fromkeys([*modules, *functions]))


@pytest.mark.parametrize(
    ("heading", "islands"), [("What is quantized how", False), ("What stays float, and why", True)]
)
def test_layers(page_named, heading, islands):
    """Every built-in converter has one row, with its modules, functions and operation of Q, or the
    reason why it stays float; and the test that it names is there."""
    host = qcore.default_host()
    lines = [line for line in page_named(LAYERS).section(heading) if line.startswith("| `")]
    rows = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name.strip("`") in {spec.name for spec in host.specs("converter")}:
            assert name not in rows
            rows[name.strip("`")] = cells
    built_in = {
        spec.name: spec
        for spec in host.specs("converter")
        if spec.origin.distribution == "qcore-quant"
        and issubclass(host.load(spec), qcore.Island) == islands
    }
    assert set(rows) == set(built_in)
    for name, (forms, *cells) in rows.items():
        target = host.load(built_in[name])
        assert re.findall(r"`([^`]+)`", forms) == _float_forms(built_in[name]), name
        if islands:
            step = types.SimpleNamespace(op=built_in[name].op)
            assert target.reason(step) == f"float by policy: {cells[0]}"
        else:
            operation, how, test = cells
            assert operation.strip("`") == getattr(target, "program_op", "the call"), name
            assert how
            assert re.fullmatch(r"\[\w+\]\(\.\./tests/converters/test_\w+\.py\)", test), name
