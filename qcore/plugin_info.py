"""What the host knows about one plug-in, and the rules that decide before anything is imported."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import attrs

from .discovery import InstalledPlugin
from .hookspecs import ENTRY_POINT_GROUP
from .specs import CheckedSpec, Origin, Spec, is_name
from .suggest import did_you_mean
from .versions import DISTRIBUTION

__all__ = ["PluginInfo", "PluginStatus", "triage"]

PluginStatus = Literal[
    "discovered", "ok", "unavailable", "blocked", "failed", "incompatible", "conflict", "missing"
]
_DEGRADED = ("failed", "incompatible", "conflict", "missing")


@attrs.frozen(kw_only=True)
class PluginInfo:
    """A plug-in, where it comes from, how it is and what it brings.

    Args:
        plugin: its name.
        distribution: canonical name of the distribution that brings it.
        version: that distribution's version.
        entry_point: value of its entry point.
        status: ``"discovered"`` (not imported yet), ``"ok"``, ``"unavailable"`` (needs an extra
            that is not installed), ``"blocked"`` (by the user; never imported), ``"failed"``,
            ``"incompatible"`` (written for another version of the API; never imported),
            ``"conflict"`` (two distributions bring one name; never imported) or ``"missing"``
            (the allow-list names it, and it is not installed).
        failure: what is wrong and the cure, in one line; None for ``"discovered"``, ``"ok"`` and
            ``"blocked"``.
        contributions: its records, ordered by kind and name; empty unless ``"ok"``.
    """

    plugin: str
    distribution: str
    version: str
    entry_point: str
    status: PluginStatus
    failure: str | None = None
    contributions: tuple[Spec, ...] = ()

    @property
    def degraded(self) -> bool:
        """Whether something that should work does not."""
        return self.status in _DEGRADED

    @property
    def trouble(self) -> str:
        """Who it is and why it is not in use, for error messages."""
        who = f"plug-in {self.origin.describe()}"
        if self.status == "blocked":
            return (
                f"{who} is blocked; allow it in QCORE_PLUGINS, or leave out '-p no:{self.plugin}'"
            )
        return f"{who} is not in use ({self.status}): {self.failure}"

    @property
    def origin(self) -> Origin:
        """What its records are stamped with."""
        return Origin(
            plugin=self.plugin,
            distribution=self.distribution,
            version=self.version,
            entry_point=self.entry_point,
        )

    def as_dict(self) -> dict[str, Any]:
        """The plain form that ``qcore plugins list --json`` prints."""
        return {
            "plugin": self.plugin,
            "distribution": self.distribution,
            "version": self.version,
            "entry_point": self.entry_point,
            "status": self.status,
            "failure": self.failure,
            "contributions": [_contribution(spec) for spec in self.contributions],
        }


def _contribution(spec: Spec) -> dict[str, Any]:
    deviations = {"deviations": dict(spec.deviations)} if isinstance(spec, CheckedSpec) else {}
    return {
        "kind": spec.kind,
        "name": spec.name,
        "target": spec.target,
        "summary": spec.summary,
        **deviations,
    }


def triage(
    found: Sequence[InstalledPlugin], *, allow: Iterable[str] | None, block: Iterable[str]
) -> list[tuple[InstalledPlugin | None, PluginInfo]]:
    """Decide by metadata alone which plug-ins may be imported.

    Args:
        found: what is installed.
        allow: names of plug-ins; None allows all.
        block: names of plug-ins; stronger than ``allow``.

    Returns:
        Each plug-in with its entry point, ordered by plug-in and distribution; ``"discovered"`` are
        those that may be imported. An allowed plug-in that is not installed has no entry point.
    """
    allowed = None if allow is None else frozenset(allow)
    blocked = frozenset(block)
    # A distribution that supports several versions of the API is used by the one that fits.
    fitting = {(e.distribution, e.plugin) for e in found if e.group == ENTRY_POINT_GROUP}
    entries = [
        e
        for e in found
        if e.group == ENTRY_POINT_GROUP or (e.distribution, e.plugin) not in fitting
    ]
    rivals: dict[str, list[InstalledPlugin]] = defaultdict(list)
    for entry in entries:
        if entry.group == ENTRY_POINT_GROUP:
            rivals[entry.plugin].append(entry)

    rows: list[tuple[InstalledPlugin | None, PluginInfo]] = []
    for entry in entries:
        info = PluginInfo(
            plugin=entry.plugin,
            distribution=entry.distribution,
            version=entry.version,
            entry_point=entry.value,
            status="discovered",
        )
        if entry.plugin in blocked or (allowed is not None and entry.plugin not in allowed):
            info = attrs.evolve(info, status="blocked")
        elif entry.group != ENTRY_POINT_GROUP:
            info = attrs.evolve(info, status="incompatible", failure=_incompatible(entry))
        elif not is_name(entry.plugin):
            failure = (
                f"the entry point is called {entry.plugin!r}; a plug-in's name has no spaces, "
                "commas and colons"
            )
            info = attrs.evolve(info, status="failed", failure=failure)
        elif len(rivals[entry.plugin]) > 1:
            failure = _conflict(entry, rivals[entry.plugin])
            info = attrs.evolve(info, status="conflict", failure=failure)
        rows.append((entry, info))

    installed = {entry.plugin for entry in entries}
    for name in sorted((allowed or frozenset()) - installed - blocked):
        failure = f"the allow-list names it, and it is not installed{did_you_mean(name, installed)}"
        missing = PluginInfo(
            plugin=name,
            distribution="",
            version="",
            entry_point="",
            status="missing",
            failure=failure,
        )
        rows.append((None, missing))
    return sorted(rows, key=lambda row: (row[1].plugin, row[1].distribution, row[1].entry_point))


def _incompatible(entry: InstalledPlugin) -> str:
    theirs, ours = (int(g.rpartition("v")[2]) for g in (entry.group, ENTRY_POINT_GROUP))
    upgrade = DISTRIBUTION if theirs > ours else entry.distribution
    return (
        f"it is written for the plug-in API {entry.group}, and this qcore has {ENTRY_POINT_GROUP}; "
        f"pip install --upgrade {upgrade}"
    )


def _conflict(entry: InstalledPlugin, rivals: Sequence[InstalledPlugin]) -> str:
    sources = sorted({rival.describe() for rival in rivals})
    if len(sources) == 1:
        values = " and ".join(sorted(repr(rival.value) for rival in rivals))
        return (
            f"{sources[0]} declares the plug-in {entry.plugin!r} as {values}, so none is used; "
            "its author must rename all but one"
        )
    return (
        f"{' and '.join(sources)} each bring a plug-in {entry.plugin!r}, so none is used; "
        "uninstall all but one"
    )
