"""What to do with a model, as data: presets, overrides, stages, backend, and for a run also model
and data.

A recipe is written in TOML, or built in Python. It is checked as a whole before anything runs: an
unknown key is an error that offers the nearest known one.
"""

import fnmatch
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import attrs

from .config import QConfig, QuantizerConfig
from .config_tables import TableReader, quantizer_table
from .errors import RecipeError

__all__ = ["Override", "Recipe", "Stage"]


@attrs.frozen(kw_only=True)
class Override:
    """An exception from the preset for some layers; of several that fit, later ones win.

    Args:
        name: glob over qualified names, such as ``"layer4.*"``.
        type: class name of the module, such as ``"Linear"``.
        op: operation, such as ``"add"``.
        quantize: False leaves the layer in float.
        preset: takes the place of the whole configuration.
        weight, activation: replace that part of the configuration.

    At least one of name, type and op must be given; all given must fit.
    """

    name: str | None = None
    type: str | None = None
    op: str | None = None
    quantize: bool = True
    preset: str | None = None
    weight: QuantizerConfig | None = None
    activation: QuantizerConfig | None = None

    def __attrs_post_init__(self) -> None:
        if self.name is None and self.type is None and self.op is None:
            raise RecipeError("override: says for no layer; give name (a glob), type or op")

    def fits(self, *, name: str, type_name: str, op: str) -> bool:
        """Whether the override is about this layer."""
        return (
            (self.name is None or fnmatch.fnmatchcase(name, self.name))
            and (self.type is None or self.type == type_name)
            and (self.op is None or self.op == op)
        )

    def describe(self) -> str:
        """The condition in words."""
        given = (("name", self.name), ("type", self.type), ("op", self.op))
        return " and ".join(f"{key}={value!r}" for key, value in given if value is not None)


@attrs.frozen(kw_only=True)
class Stage:
    """One algorithm of the pipeline and its options."""

    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Recipe:
    """A whole quantization job.

    Args:
        name: of the run; its folder is named after it.
        preset: a named :class:`~qcore.QConfig` of a plug-in, the starting point.
        weight, activation: replace that part of the preset.
        overrides: exceptions by layer.
        backend: whose arithmetic contract QFloat and Q follow, and where Q runs.
        numerics: the contract by its key, instead of the backend's own.
        prefer: ``plugin:name`` of converters that win where several claim one type.
        require: distributions that must be installed, ``"qcore-acme>=1.2"``.
        algorithms: stages, in order.
        seed: of everything random.
        calibration: options of calibration: ``samples``, ``batch_size``, ``seed``.
        model, data: for ``qcore run``: ``name`` and the options of a model and a data set.

    >>> recipe = Recipe.from_toml('preset = "int8"')
    >>> recipe.preset, recipe.backend
    ('int8', 'reference')
    >>> Recipe.from_toml('prest = "int8"')
    Traceback (most recent call last):
    qcore.errors.RecipeError: recipe: unknown key 'prest'; did you mean 'preset'? ...
    """

    name: str = "qcore"
    preset: str = "int8"
    weight: QuantizerConfig | None = None
    activation: QuantizerConfig | None = None
    overrides: tuple[Override, ...] = ()
    backend: str = "reference"
    numerics: str | None = None
    prefer: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    algorithms: tuple[Stage, ...] = ()
    seed: int = 0
    calibration: Mapping[str, Any] = attrs.field(factory=dict)
    model: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    qconfig: QConfig | None = None
    """A configuration given in Python; stands in for the preset."""

    @classmethod
    def from_toml(cls, text: str, *, source: str = "recipe") -> Self:
        """Parses and checks a recipe.

        Raises:
            RecipeError: not TOML, an unknown key, a value of the wrong type.
        """
        return cls.from_table(_parse(text, source), source=source)

    @classmethod
    def load(cls, path: str | Path, settings: Mapping[str, Any] | None = None) -> Self:
        """Reads a recipe file: TOML, or the JSON that a run leaves.

        Args:
            path: the file.
            settings: values that replace the file's, by dotted key (``"data.name"``); a number in a
                key is an index of a list.

        Raises:
            RecipeError: the file is missing or unreadable, or as :meth:`from_toml`.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {str(path)!r} can't be read: {error}") from None
        table = _parse(text, str(path), json_text=path.suffix == ".json")
        return cls.from_table(override_keys(table, settings or {}), source=str(path))

    @classmethod
    def from_table(cls, table: Mapping[str, Any], *, source: str = "recipe") -> Self:
        """A recipe from the tables that its TOML holds."""
        reader = _Reader(source)
        values = reader.keys(table, _TOP, "")
        if "plugins" in values:
            plugins = reader.keys(values.pop("plugins"), {"require": list}, "plugins")
            values["require"] = reader.words(plugins.get("require", ()), "plugins.require")
        for key in ("weight", "activation"):
            if key in values:
                values[key] = reader.quantizer(values[key], key)
        if "qconfig" in values:
            values["qconfig"] = reader.qconfig(values["qconfig"], "qconfig")
        values["overrides"] = tuple(
            reader.override(item, f"override[{i}]")
            for i, item in enumerate(values.pop("override", ()))
        )
        values["algorithms"] = tuple(
            reader.stage(item, f"algorithm[{i}]")
            for i, item in enumerate(values.pop("algorithm", ()))
        )
        values["prefer"] = reader.words(values.get("prefer", ()), "prefer")
        if "calibration" in values:
            reader.keys(
                values["calibration"],
                {"samples": int, "batch_size": int, "seed": int},
                "calibration",
            )
            for key, value in values["calibration"].items():
                least = 0 if key == "seed" else 1
                if value < least:
                    raise reader.error(
                        f"calibration.{key}", f"got {value}", f"give {least} or more"
                    )
        name = values.get("name", "qcore")
        if not re.fullmatch(r"[\w .+-]+", name) or not name.strip(" ."):
            raise reader.error(
                "name",
                f"got {name!r}",
                "a folder is named after it: use letters, digits, spaces and . _ + -",
            )
        for key in ("model", "data"):
            if key in values and not isinstance(values[key].get("name"), str):
                raise reader.error(key, f"name={values[key].get('name')!r}", "give a name")
        return cls(**values)

    def to_table(self) -> dict[str, Any]:
        """The recipe as the table that :meth:`from_table` reads: what a run keeps of it."""
        table: dict[str, Any] = {
            "name": self.name,
            "preset": self.preset,
            "backend": self.backend,
            "seed": self.seed,
        }
        if self.qconfig is not None:
            del table["preset"]
            table["qconfig"] = {
                key: quantizer_table(config)
                for key in ("weight", "activation")
                if (config := getattr(self.qconfig, key)) is not None
            }
        for key in ("weight", "activation"):
            if (config := getattr(self, key)) is not None:
                table[key] = quantizer_table(config)
        for key in ("numerics", "model", "data"):
            if (value := getattr(self, key)) is not None:
                table[key] = value if isinstance(value, str) else dict(value)
        if self.overrides:
            table["override"] = [_override_table(o) for o in self.overrides]
        if self.algorithms:
            table["algorithm"] = [{"name": s.name, **s.options} for s in self.algorithms]
        if self.prefer:
            table["prefer"] = list(self.prefer)
        if self.require:
            table["plugins"] = {"require": list(self.require)}
        if self.calibration:
            table["calibration"] = dict(self.calibration)
        return table


def _parse(text: str, source: str, *, json_text: bool = False) -> dict[str, Any]:
    try:
        table = json.loads(text) if json_text else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise RecipeError(
            f"{source}: not valid {'JSON' if json_text else 'TOML'}: {error}"
        ) from None
    if not isinstance(table, dict):
        raise RecipeError(f"{source}: got {type(table).__name__}; a recipe is a table")
    return table


_TOP: dict[str, type] = {
    "name": str,
    "preset": str,
    "qconfig": dict,
    "weight": dict,
    "activation": dict,
    "override": list,
    "backend": str,
    "numerics": str,
    "prefer": list,
    "plugins": dict,
    "algorithm": list,
    "seed": int,
    "calibration": dict,
    "model": dict,
    "data": dict,
}
_OVERRIDE: dict[str, type] = {
    "name": str,
    "type": str,
    "op": str,
    "quantize": bool,
    "preset": str,
    "weight": dict,
    "activation": dict,
}


def _override_table(override: Override) -> dict[str, Any]:
    table = {
        key: getattr(override, key)
        for key in ("name", "type", "op", "preset")
        if getattr(override, key) is not None
    }
    if not override.quantize:
        table["quantize"] = False
    for key in ("weight", "activation"):
        if (config := getattr(override, key)) is not None:
            table[key] = quantizer_table(config)
    return table


class _Reader(TableReader):
    """Checks the tables of a recipe."""

    def override(self, table: Any, where: str) -> Override:
        values = self.keys(table, _OVERRIDE, where)
        for key in ("weight", "activation"):
            if key in values:
                values[key] = self.quantizer(values[key], f"{where}.{key}")
        try:
            return Override(**values)
        except RecipeError as error:
            raise RecipeError(f"{self.source}: {where}: {error}") from None

    def stage(self, table: Any, where: str) -> Stage:
        if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
            raise self.error(where, f"got {table!r}", "give a name of an algorithm")
        return Stage(name=table["name"], options={k: v for k, v in table.items() if k != "name"})


def override_keys(table: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``table`` in which dotted keys, such as ``"data.name"``, have new values.

    A number in the path is an index of a list: ``"algorithm.0.epochs"``.

    Raises:
        RecipeError: a path leads through something that is no table.

    >>> override_keys({"data": {"name": "digits"}}, {"data.name": "fashion_mnist", "seed": 1})
    {'data': {'name': 'fashion_mnist'}, 'seed': 1}
    """

    def put(node: Any, path: list[str], value: Any, full: str) -> Any:
        if not path:
            return value
        key, *rest = path
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise RecipeError(f"{full}: {key!r} is no index of a list of {len(node)}")
            return [put(v, rest, value, full) if i == int(key) else v for i, v in enumerate(node)]
        if not isinstance(node, Mapping):
            raise RecipeError(f"{full}: {key!r} lies in {node!r}, which is no table")
        return {**node, key: put(node.get(key, {}), rest, value, full)}

    result: Any = dict(table)
    for dotted, value in settings.items():
        result = put(result, dotted.split("."), value, dotted)
    return dict(result)
