"""What to do with a model, as data: presets, overrides, stages, backend, and for a run also model
and data.

A recipe is written in TOML, or built in Python. It is checked as a whole before anything runs: an
unknown key is an error that offers the nearest known one.
"""

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

import attrs

from .config import QConfig, QScheme, QuantizerConfig
from .dtypes import (
    INT2,
    INT3,
    INT4,
    INT8,
    INT8_NARROW,
    INT16,
    INT32,
    UINT2,
    UINT3,
    UINT4,
    UINT8,
    QDtype,
)
from .errors import QcoreError, RecipeError
from .granularity import Granularity, PerBlock, PerChannel, PerGroup, PerTensor, PerToken

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
                key: _quantizer_table(config)
                for key in ("weight", "activation")
                if (config := getattr(self.qconfig, key)) is not None
            }
        for key in ("weight", "activation"):
            if (config := getattr(self, key)) is not None:
                table[key] = _quantizer_table(config)
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
_QUANTIZER: dict[str, type] = {
    "scheme": object,
    "observer": str,
    "fake_quant": str,
    "observer_options": dict,
    "fake_quant_options": dict,
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
_SCHEME: dict[str, type] = {
    "bits": int,
    "signed": bool,
    "quant_min": int,
    "quant_max": int,
    "granularity": str,
    "ch_axis": int,
    "group_size": int,
    "block": list,
    "symmetric": bool,
    "power_of_two": bool,
}
_GRANULARITY_KEYS = {"ch_axis": "per_channel", "group_size": "per_group", "block": "per_block"}


def _known(dtype: QDtype) -> QDtype:
    """The dtype under its usual name, if its bits and range have one."""
    usual = (
        INT2,
        UINT2,
        INT3,
        UINT3,
        INT4,
        UINT4,
        INT8,
        INT8_NARROW,
        UINT8,
        INT16,
        INT32,
    )
    return next((d for d in usual if attrs.evolve(dtype, name=d.name) == d), dtype)


def _quantizer_table(config: QuantizerConfig) -> dict[str, Any]:
    table = {k: v for k, v in attrs.asdict(config, recurse=False).items() if v != {}}
    if isinstance(config.scheme, QScheme):
        table["scheme"] = _scheme_table(config.scheme)
    return table


def _scheme_table(scheme: QScheme) -> dict[str, Any]:
    dtype, granularity = scheme.dtype, scheme.granularity
    table: dict[str, Any] = {
        "bits": dtype.bits,
        "signed": dtype.signed,
        "quant_min": dtype.quant_min,
        "quant_max": dtype.quant_max,
        "granularity": "per_" + type(granularity).__name__.removeprefix("Per").lower(),
        "symmetric": scheme.symmetric,
        "power_of_two": scheme.power_of_two,
    }
    if isinstance(granularity, PerChannel):
        table["ch_axis"] = granularity.ch_axis
    elif isinstance(granularity, PerGroup):
        table["group_size"] = granularity.group_size
    elif isinstance(granularity, PerBlock):
        table["block"] = list(granularity.shape)
    return table


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
            table[key] = _quantizer_table(config)
    return table


@attrs.frozen
class _Reader:
    """Checks tables of a recipe; its errors name the source and the key."""

    source: str

    def error(self, where: str, got: str, cure: str) -> RecipeError:
        place = f"{self.source}: {where}: " if where else f"{self.source}: "
        return RecipeError(f"{place}{got}; {cure}")

    def keys(self, table: Any, known: Mapping[str, type], where: str) -> dict[str, Any]:
        if not isinstance(table, Mapping):
            raise self.error(where, f"got {table!r}", f"write a table [{where}]")
        for key, value in table.items():
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise self.error(
                    where, f"unknown key {key!r}", f"{hint}known are {', '.join(sorted(known))}"
                )
            wanted = known[key]
            wrong = not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))
            if wrong:
                raise self.error(
                    f"{where}.{key}" if where else key,
                    f"got {value!r} ({type(value).__name__})",
                    f"give a value of type {wanted.__name__}",
                )
        return dict(table)

    def words(self, value: Iterable[Any], where: str) -> tuple[str, ...]:
        """The words of a list."""
        for i, word in enumerate(value):
            if not isinstance(word, str):
                raise self.error(f"{where}[{i}]", f"got {word!r}", "give a text")
        return tuple(value)

    def qconfig(self, table: Any, where: str) -> QConfig:
        """A whole configuration; what it does not give stays float."""
        values = self.keys(table, {"weight": dict, "activation": dict}, where)
        made = {key: self.quantizer(value, f"{where}.{key}") for key, value in values.items()}
        return QConfig(weight=made.get("weight"), activation=made.get("activation"))

    def quantizer(self, table: Any, where: str) -> QuantizerConfig:
        values = self.keys(table, _QUANTIZER, where)
        if "scheme" not in values:
            raise self.error(where, "no scheme", 'give scheme = "int8" or another scheme')
        values["scheme"] = self.scheme(values["scheme"], f"{where}.scheme")
        return QuantizerConfig(**values)

    def scheme(self, value: Any, where: str) -> QScheme | str:
        if isinstance(value, str):
            return value
        values = self.keys(value, _SCHEME, where)
        if "bits" not in values:
            raise self.error(where, "no bits", "give bits = 8 or the name of a scheme")
        try:
            dtype = _known(
                QDtype.custom(
                    bits=values["bits"],
                    signed=values.get("signed", True),
                    quant_min=values.get("quant_min"),
                    quant_max=values.get("quant_max"),
                )
            )
            granularity = self._granularity(values, where)
        except RecipeError:
            raise
        except QcoreError as error:
            raise RecipeError(f"{self.source}: {where}: {error}") from None
        return QScheme(
            dtype=dtype,
            granularity=granularity,
            symmetric=values.get("symmetric", True),
            power_of_two=values.get("power_of_two", False),
        )

    def _granularity(self, values: Mapping[str, Any], where: str) -> Granularity:
        name = values.get("granularity", "per_tensor")
        made: dict[str, Any] = {
            "per_tensor": PerTensor,
            "per_channel": lambda: PerChannel(values.get("ch_axis", 0)),
            "per_group": lambda: PerGroup(values["group_size"]),
            "per_token": PerToken,
            "per_block": lambda: PerBlock(tuple(values["block"])),
        }
        if name not in made:
            raise self.error(where, f"granularity={name!r}", f"use one of {', '.join(made)}")
        for key, owner in _GRANULARITY_KEYS.items():
            if key in values and name != owner:
                raise self.error(
                    where, f"{key} with granularity={name!r}", f"it belongs to {owner!r}"
                )
        for i, size in enumerate(values.get("block", ())):
            if not isinstance(size, int) or isinstance(size, bool):
                raise self.error(f"{where}.block[{i}]", f"got {size!r}", "give an integer")
        try:
            granularity: Granularity = made[name]()
        except KeyError as error:
            raise self.error(where, f"granularity={name!r}", f"it needs {error}") from None
        return granularity

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
