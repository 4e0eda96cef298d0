"""Which contributions of plug-ins had a part in a program.

They are recorded so that a result can be traced: the observer that chose the scales, in which
version. A program does not need them to run.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs

from .config import QConfig, QuantizerConfig

if TYPE_CHECKING:
    from .host import PluginHost
    from .planning import Plan
    from .recipe import Recipe

__all__ = ["Contribution", "contributions"]


@attrs.frozen(kw_only=True)
class Contribution:
    """One contribution of a plug-in, and the distribution it came from.

    Args:
        kind: ``"observer"``, ``"scheme"``, ``"converter"``, ...
        name: its name.
        plugin: name of the plug-in.
        distribution: what brings the plug-in.
        version: the distribution's.
    """

    kind: str
    name: str
    plugin: str
    distribution: str
    version: str


def contributions(recipe: "Recipe", plan: "Plan", host: "PluginHost") -> tuple[Contribution, ...]:
    """What a recipe and the plan made from it use, ordered by kind, plug-in and name.

    Args:
        recipe: its preset, schemes, observers, fake quantizers, algorithms and backend.
        plan: its converters and fusions, of the layers that are not left in float.
        host: where the names are looked up.

    Raises:
        PluginError: a name is not there (any more), or is ambiguous.
    """
    found = {
        Contribution(
            kind=spec.kind,
            name=spec.name,
            plugin=spec.origin.plugin,
            distribution=spec.origin.distribution,
            version=spec.origin.version,
        )
        for kind, name in {*_of_recipe(recipe, host), *_of_plan(plan)}
        if (spec := host.find(kind, name)).origin is not None
    }
    return tuple(sorted(found, key=lambda c: (c.kind, c.plugin, c.name)))


def _of_recipe(recipe: "Recipe", host: "PluginHost") -> Iterator[tuple[str, str]]:
    base: QConfig | None = recipe.qconfig
    if base is None:
        yield "preset", recipe.preset
        base = host.get("preset", recipe.preset)
        assert base is not None
    yield from _of_quantizers((recipe.weight or base.weight, recipe.activation or base.activation))
    for override in recipe.overrides:
        weight, activation = override.weight, override.activation
        if override.preset is not None:
            yield "preset", override.preset
            given: QConfig = host.get("preset", override.preset)
            weight, activation = weight or given.weight, activation or given.activation
        yield from _of_quantizers((weight, activation))
    for stage in recipe.algorithms:
        yield "algorithm", stage.name
    yield "backend", recipe.backend


def _of_quantizers(configs: Iterable[QuantizerConfig | None]) -> Iterator[tuple[str, str]]:
    for config in configs:
        if config is not None:
            if isinstance(config.scheme, str):
                yield "scheme", config.scheme
            yield "observer", config.observer
            yield "fake_quant", config.fake_quant


def _of_plan(plan: "Plan") -> Iterator[tuple[str, str]]:
    for row in plan.rows:
        if row.status != "float":
            if row.converter:
                yield "converter", row.converter
            if row.fusion:
                yield "fusion", row.fusion
