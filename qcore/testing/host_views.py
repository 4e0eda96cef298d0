"""A host as it would be with other fusions."""

from collections.abc import Callable, Iterable
from typing import Any

from ..host import PluginHost
from ..plugin_info import PluginInfo
from ..specs import FusionSpec, Spec

__all__ = ["WithFusions"]


class WithFusions(PluginHost):
    """Another host, with only these fusions, in this order.

    Args:
        host: knows everything.
        fusions: records of it.
    """

    def __init__(self, host: PluginHost, fusions: Iterable[FusionSpec]) -> None:
        super().__init__([])
        self._host = host
        self._fusions = tuple(fusions)

    def plugins(self, *, activate: bool = True) -> tuple[PluginInfo, ...]:
        return self._host.plugins(activate=activate)

    def specs(self, kind: str) -> tuple[Spec, ...]:
        return self._fusions if kind == "fusion" else self._host.specs(kind)

    def find(self, kind: str, name: str) -> Spec:
        return self._host.find(kind, name)

    def load(self, spec: Spec) -> Any:
        return self._host.load(spec)

    def load_check(self, fusion: FusionSpec) -> Callable[..., str | None] | None:
        return self._host.load_check(fusion)
