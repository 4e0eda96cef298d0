"""Configurations as tables of TOML or JSON, and back: schemes, quantizers and both of a layer."""

from collections.abc import Iterable, Mapping
from typing import Any

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
from .suggest import did_you_mean

__all__ = ["TableReader", "quantizer_table"]

_QUANTIZER: dict[str, type] = {
    "scheme": object,
    "observer": str,
    "fake_quant": str,
    "observer_options": dict,
    "fake_quant_options": dict,
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


def quantizer_table(config: QuantizerConfig) -> dict[str, Any]:
    """The table that :meth:`TableReader.quantizer` reads."""
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


@attrs.frozen
class TableReader:
    """Checks tables; its errors name the source and the key.

    Args:
        source: file, or what else the tables are of.
    """

    source: str

    def error(self, where: str, got: str, cure: str) -> RecipeError:
        """The error about a key, to be raised."""
        place = f"{self.source}: {where}: " if where else f"{self.source}: "
        return RecipeError(f"{place}{got}; {cure}")

    def keys(self, table: Any, known: Mapping[str, type], where: str) -> dict[str, Any]:
        """A table whose keys are known and whose values are of their types."""
        if not isinstance(table, Mapping):
            raise self.error(where, f"got {table!r}", f"write a table [{where}]")
        for key, value in table.items():
            if key not in known:
                hint = did_you_mean(key, known).removeprefix("; ")
                allowed = f"{hint} known are {', '.join(sorted(known))}".strip()
                raise self.error(where, f"unknown key {key!r}", allowed)
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
        """How one tensor is quantized."""
        values = self.keys(table, _QUANTIZER, where)
        if "scheme" not in values:
            raise self.error(where, "no scheme", 'give scheme = "int8" or another scheme')
        values["scheme"] = self.scheme(values["scheme"], f"{where}.scheme")
        return QuantizerConfig(**values)

    def scheme(self, value: Any, where: str) -> QScheme | str:
        """A scheme by its name or by its parts."""
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
