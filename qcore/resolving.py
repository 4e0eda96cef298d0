"""From a recipe to the configuration of each layer."""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import attrs

from .config import QConfig, QuantizerConfig
from .errors import RecipeError
from .recipe import Override, Recipe
from .suggest import did_you_mean

if TYPE_CHECKING:
    from .host import PluginHost
    from .planning import PlanRow

__all__ = ["Resolver"]


class Resolver:
    """Turns a recipe into the configuration of each layer.

    Args:
        recipe: the recipe.
        host: looks up presets, schemes, observers and fake quantizers.

    Raises:
        RecipeError, PluginError: the recipe names what no plug-in brings.
    """

    def __init__(self, recipe: Recipe, host: "PluginHost") -> None:
        self.recipe = recipe
        self.host = host
        base = recipe.qconfig or host.get("preset", recipe.preset)
        self.default = self._resolved(
            QConfig(
                weight=recipe.weight or base.weight,
                activation=recipe.activation or base.activation,
            )
        )
        self.presets = {
            o.preset: self._resolved(host.get("preset", o.preset))
            for o in recipe.overrides
            if o.preset is not None
        }
        self.overrides = tuple(
            attrs.evolve(
                o,
                weight=o.weight and self._quantizer(o.weight),
                activation=o.activation and self._quantizer(o.activation),
            )
            for o in recipe.overrides
        )

    def _resolved(self, qconfig: QConfig) -> QConfig:
        return QConfig(
            weight=qconfig.weight and self._quantizer(qconfig.weight),
            activation=qconfig.activation and self._quantizer(qconfig.activation),
        )

    def _quantizer(self, config: QuantizerConfig) -> QuantizerConfig:
        """The configuration with its scheme looked up and its parts known to exist."""
        self.host.find("observer", config.observer)
        self.host.find("fake_quant", config.fake_quant)
        if isinstance(config.scheme, str):
            found = self.host.find("scheme", config.scheme)
            return attrs.evolve(config, scheme=found.scheme)  # type: ignore[attr-defined]
        return config

    def resolve(self, *, name: str, type_name: str, op: str) -> tuple[QConfig | None, str]:
        """Configuration of a layer, or None and the reason."""
        qconfig = self.default
        for override in self.overrides:
            if not override.fits(name=name, type_name=type_name, op=op):
                continue
            if not override.quantize:
                return None, f"the recipe says so (override {override.describe()})"
            if override.preset is not None:
                qconfig = self.presets[override.preset]
            qconfig = QConfig(
                weight=override.weight or qconfig.weight,
                activation=override.activation or qconfig.activation,
            )
        return qconfig, ""

    def check_overrides(self, rows: Iterable["PlanRow"]) -> None:
        """Raises RecipeError for an override that fits no layer."""
        known = list(rows)
        for override in self.overrides:
            fits = (override.fits(name=r.name, type_name=r.kind, op=r.op) for r in known)
            if not any(fits):
                raise RecipeError(
                    f"recipe: override {override.describe()} fits no layer; "
                    f"{_instead(override, known)}"
                )


def _instead(override: Override, rows: Sequence["PlanRow"]) -> str:
    """What to write in an override that fits nothing."""
    name = override.name
    for row in rows if name is not None else ():
        part = next((n for n in row.fused if fnmatch.fnmatchcase(n, name or "")), None)
        if part is not None:
            return f"{part!r} is part of layer {row.name!r}: name that"
    names = list(dict.fromkeys(row.name for row in rows))
    hint = did_you_mean(name, names) if name is not None else ""
    said = [
        f"{what} are {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}"
        for what, given, known in (
            ("layers", name, names),
            ("types", override.type, sorted({row.kind for row in rows})),
            ("operations", override.op, sorted({row.op for row in rows if row.op})),
        )
        if given is not None
    ]
    return "; ".join(said) + hint
