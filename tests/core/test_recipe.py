"""Recipes: reading, checking, overriding, and writing back."""

import json

import pytest

import qcore
from qcore import (
    INT8,
    Override,
    PerBlock,
    PerGroup,
    QConfig,
    QScheme,
    QuantizerConfig,
    Recipe,
    Stage,
)
from qcore.recipe import override_keys

FULL = """
name = "all of it"
preset = "uint8"
backend = "reference"
numerics = "half_even.multiplier.int32.after.int32"
prefer = ["acme:linear"]
seed = 3

[weight]
scheme = "int4_group32"
observer = "mse"
observer_options = { steps = 20 }

[activation]
scheme = { bits = 7, signed = false, granularity = "per_tensor", symmetric = false }

[[override]]
name = "head.*"
quantize = false

[[override]]
type = "Linear"
op = "linear"
weight = { scheme = { bits = 8, granularity = "per_block", block = [2, 4] }, fake_quant = "affine" }

[plugins]
require = ["qcore-acme>=1.2"]

[[algorithm]]
name = "train"
epochs = 3

[calibration]
samples = 64
batch_size = 8
seed = 0

[model]
name = "resnet20"
num_classes = 10

[data]
name = "digits"
"""


def test_everything_at_once():
    """A recipe with every table is read into typed values."""
    recipe = Recipe.from_toml(FULL)
    assert (recipe.name, recipe.preset, recipe.seed) == ("all of it", "uint8", 3)
    assert recipe.weight == QuantizerConfig(
        scheme="int4_group32", observer="mse", observer_options={"steps": 20}
    )
    assert isinstance(recipe.activation.scheme, QScheme)
    assert (recipe.activation.scheme.dtype.quant_max, recipe.activation.scheme.symmetric) == (
        127,
        False,
    )
    assert recipe.overrides[0] == Override(name="head.*", quantize=False)
    assert recipe.overrides[1].weight.scheme.granularity == PerBlock((2, 4))
    assert recipe.algorithms == (Stage(name="train", options={"epochs": 3}),)
    assert recipe.require == ("qcore-acme>=1.2",)
    assert recipe.prefer == ("acme:linear",)
    assert dict(recipe.calibration) == {"samples": 64, "batch_size": 8, "seed": 0}
    assert recipe.model == {"name": "resnet20", "num_classes": 10}


def test_an_empty_recipe_is_the_default():
    """Nothing written is the default recipe."""
    assert Recipe.from_toml("") == Recipe()


def test_a_recipe_that_is_written_back_is_the_same():
    """to_table gives what from_table reads, through JSON too."""
    recipe = Recipe.from_toml(FULL)
    assert Recipe.from_table(json.loads(json.dumps(recipe.to_table()))) == recipe
    assert Recipe.from_table(Recipe().to_table()) == Recipe()


@pytest.mark.parametrize("part", ["weight", "activation"])
def test_a_configuration_given_in_python_is_written_back(part):
    """A QConfig in place of a preset is written as one, with what it leaves in float."""
    scheme = QScheme(dtype=INT8, granularity=PerGroup(4))
    given = {"weight": None, "activation": None} | {part: QuantizerConfig(scheme=scheme)}
    recipe = Recipe(qconfig=QConfig(**given))
    table = recipe.to_table()
    assert "preset" not in table
    assert Recipe.from_table(json.loads(json.dumps(table))).qconfig == recipe.qconfig


BAD = {
    "unknown-key": ('prest = "int8"', "unknown key 'prest'; did you mean 'preset'"),
    "unknown-key-in-a-table": (
        "[calibration]\nsample = 3",
        "calibration: unknown key 'sample'; did you",
    ),
    "unknown-key-in-an-override": ('[[override]]\nnam = "a"', r"override\[0\]: unknown key 'nam'"),
    "unknown-key-in-a-scheme": (
        "[weight]\nscheme = { bit = 8 }",
        "weight.scheme: unknown key 'bit'; did you mean 'bits'",
    ),
    "number-for-text": ("preset = 8", r"preset: got 8 \(int\); give a value of type str"),
    "text-for-number": ('seed = "one"', r"seed: got 'one' \(str\).*int"),
    "truth-for-number": ("seed = true", r"seed: got True \(bool\).*int"),
    "number-for-truth": (
        '[[override]]\nname = "a"\nquantize = 0',
        r"override\[0\].quantize: got 0",
    ),
    "float-for-number": ("[calibration]\nsamples = 1.5", "calibration.samples: got 1.5"),
    "negative-seed": ("[calibration]\nseed = -1", "calibration.seed: got -1; give 0 or more"),
    "no-samples": ("[calibration]\nsamples = 0", "calibration.samples: got 0; give 1 or more"),
    "table-for-list": ('[override]\nname = "a"', "override: got.*type list"),
    "number-in-a-list": ("override = [3]", r"override\[0\]: got 3; write a table"),
    "number-for-a-name": ("prefer = [3]", r"prefer\[0\]: got 3"),
    "number-for-a-requirement": ("plugins = { require = [3] }", r"plugins.require\[0\]: got 3"),
    "override-of-nothing": ("[[override]]\nquantize = false", r"override\[0\]: .*give name"),
    "no-scheme": ('[weight]\nobserver = "mse"', "weight: no scheme; give scheme"),
    "scheme-of-another-type": ("[weight]\nscheme = 8", "weight.scheme: got 8"),
    "no-bits": ("[weight]\nscheme = { signed = true }", "weight.scheme: no bits"),
    "too-many-bits": ("[weight]\nscheme = { bits = 33 }", "weight.scheme: .*use 1 to 32"),
    "crossed-range": (
        "[weight]\nscheme = { bits = 4, quant_min = 3, quant_max = 1 }",
        "weight.scheme: .*ascending",
    ),
    "unknown-granularity": (
        '[weight]\nscheme = { bits = 4, granularity = "per_row" }',
        "granularity='per_row'; use one of",
    ),
    "granularity-without-its-size": (
        '[weight]\nscheme = { bits = 4, granularity = "per_group" }',
        "it needs 'group_size'",
    ),
    "size-of-another-granularity": (
        '[weight]\nscheme = { bits = 4, granularity = "per_channel", group_size = 32 }',
        "group_size with granularity='per_channel'; it belongs to 'per_group'",
    ),
    "group-of-nothing": (
        '[weight]\nscheme = { bits = 4, granularity = "per_group", group_size = 0 }',
        "group_size=0",
    ),
    "block-of-text": (
        '[weight]\nscheme = { bits = 4, granularity = "per_block", block = ["2"] }',
        r"block\[0\]: got '2'",
    ),
    "algorithm-without-a-name": ("[[algorithm]]\nepochs = 3", r"algorithm\[0\]: .*give a name"),
    "model-without-a-name": ("[model]\ndepth = 3", "model: name=None; give a name"),
    "data-with-a-number": ("[data]\nname = 3", "data: name=3; give a name"),
    "name-that-leaves-the-folder": (
        'name = "../x"',
        "name: got '../x'; a folder is named after it",
    ),
    "name-of-dots": ('name = ".."', "name: got '..'"),
    "no-toml": ("preset = ", "not valid TOML"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_recipe(name):
    """Each mistake is an error that names source and key, what was found, and what to write."""
    text, message = BAD[name]
    with pytest.raises(qcore.RecipeError, match=message) as error:
        Recipe.from_toml(text, source="mine.toml")
    assert str(error.value).startswith("mine.toml: ")


def test_files(tmp_path):
    """A recipe is read from TOML and from the JSON of a run, with settings that replace its own."""
    toml, data = tmp_path / "a.toml", tmp_path / "recipe.json"
    toml.write_text(FULL, encoding="utf-8")
    data.write_text(json.dumps(Recipe.from_toml(FULL).to_table()), encoding="utf-8")
    assert Recipe.load(toml) == Recipe.load(data)
    changed = Recipe.load(toml, {"data.name": "fashion_mnist", "algorithm.0.epochs": 9, "seed": 1})
    assert (changed.data["name"], changed.algorithms[0].options["epochs"], changed.seed) == (
        "fashion_mnist", 9, 1,
    )  # fmt: skip


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"x = [", b"[1]"])
def test_files_that_can_not_be_read(tmp_path, content):
    """A missing file, one that is no text, and broken TOML or JSON name the file."""
    for suffix in (".toml", ".json"):
        path = tmp_path / f"r{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(qcore.RecipeError, match=f"r{suffix}"):
            Recipe.load(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed.x": 1}, "seed.x: 'x' lies in 3, which is no table"),
        ({"algorithm.5.epochs": 1}, "'5' is no index of a list of 1"),
        ({"algorithm.first.epochs": 1}, "'first' is no index"),
        ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'"),
    ],
)
def test_settings_that_lead_nowhere(tmp_path, settings, message):
    """A dotted key that leads through a value, beyond a list, or to nothing is an error."""
    path = tmp_path / "r.toml"
    path.write_text(FULL, encoding="utf-8")
    with pytest.raises(qcore.RecipeError, match=message):
        Recipe.load(path, settings)


def test_settings_leave_the_table_alone():
    """Overriding makes a new table, and tables that were not there."""
    table = {"data": {"name": "digits"}}
    assert override_keys(table, {"data.name": "x", "model.name": "y"}) == {
        "data": {"name": "x"}, "model": {"name": "y"},
    }  # fmt: skip
    assert table == {"data": {"name": "digits"}}


def test_what_an_override_fits():
    """Name (a glob), type and operation must all fit, where given."""
    override = Override(name="layer?.*", type="Conv2d")
    assert override.fits(name="layer1.0.conv", type_name="Conv2d", op="conv2d")
    assert not override.fits(name="layer10.conv", type_name="Conv2d", op="conv2d")
    assert not override.fits(name="layer1.0.conv", type_name="Linear", op="linear")
    assert not override.fits(name="Layer1.0", type_name="Conv2d", op="conv2d")
    assert override.describe() == "name='layer?.*' and type='Conv2d'"
    with pytest.raises(qcore.RecipeError, match="says for no layer"):
        Override(quantize=False)


@pytest.mark.parametrize("path", ["recipes", "examples"])
def test_recipes_of_the_project_are_valid(path):
    """Every recipe that the project brings can be read."""
    from pathlib import Path

    files = sorted((Path(__file__).parents[2] / path).rglob("*.toml"))
    recipes = [f for f in files if f.name != "pyproject.toml"]
    assert recipes
    for file in recipes:
        Recipe.load(file)
