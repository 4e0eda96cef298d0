"""A host as it would be with other contributions of some kinds."""

from collections.abc import Callable, Iterable
from typing import Any

from ..host import PluginHost
from ..plugin_info import PluginInfo
from ..specs import FusionSpec, Spec

__all__ = ["WithSpecs"]


class WithSpecs(PluginHost):
    """Another host, with only these contributions of some kinds, in this order.

    Args:
        host: knows everything.
        kinds: kind -> records of it.
    """

    def __init__(self, host: PluginHost, **kinds: Iterable[Spec]) -> None:
        super().__init__([])
        self._host = host
        self._kinds = {kind: tuple(specs) for kind, specs in kinds.items()}

    def plugins(self, *, activate: bool = True) -> tuple[PluginInfo, ...]:
        return self._host.plugins(activate=activate)

    def specs(self, kind: str) -> tuple[Spec, ...]:
        return self._kinds[kind] if kind in self._kinds else self._host.specs(kind)

    def find(self, kind: str, name: str) -> Spec:
        for spec in self._kinds.get(kind, ()):
            plugin = spec.origin.plugin if spec.origin else ""
            if name in (spec.name, f"{plugin}:{spec.name}"):
                return spec
        return self._host.find(kind, name)

    def load(self, spec: Spec) -> Any:
        return self._host.load(spec)

    def load_check(self, fusion: FusionSpec) -> Callable[..., str | None] | None:
        return self._host.load_check(fusion)
