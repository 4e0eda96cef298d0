"""Finding one contribution, or one distribution, by the name that a user wrote.

Pure functions over what the host knows. Most of this file is what to say when the name is not
there.
"""

from collections.abc import Sequence
from typing import cast

from .errors import PluginError
from .hookspecs import KINDS
from .plugin_info import PluginInfo
from .specs import Origin, Spec
from .suggest import did_you_mean
from .versions import Requirement

__all__ = ["check_kind", "check_usable", "find_by_name", "find_distribution", "find_in_plugin"]


def check_kind(kind: str) -> None:
    """Refuse a word that is no kind of contribution.

    Raises:
        PluginError: it is none.
    """
    if kind not in KINDS:
        raise PluginError(
            f"no kind of contribution is called {kind!r}{did_you_mean(kind, KINDS)} "
            f"(kinds: {', '.join(KINDS)})"
        )


def find_by_name(kind: str, name: str, infos: Sequence[PluginInfo]) -> Spec:
    """The one contribution of that kind and name among all plug-ins.

    Raises:
        PluginError: there is none, or several plug-ins have one.
    """
    specs = [spec for info in infos for spec in info.contributions if spec.kind == kind]
    found = [spec for spec in specs if spec.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        origins = [cast(Origin, spec.origin) for spec in found]
        raise PluginError(
            f"{kind} {name!r} is ambiguous: it comes from "
            f"{' and from '.join(origin.describe() for origin in origins)}; write "
            + " or ".join(repr(f"{origin.plugin}:{name}") for origin in origins)
        )
    names = sorted({spec.name for spec in specs})
    # What was looked for may well be in a plug-in that could not be used.
    absent = ", ".join(f"{info.plugin} ({info.status})" for info in infos if info.status != "ok")
    raise PluginError(
        f"no {kind} is called {name!r}{did_you_mean(name, names)} "
        f"(available: {', '.join(names) or 'none'})"
        + (f"; plug-ins not in use: {absent}; `qcore plugins list` says why" if absent else "")
    )


def find_in_plugin(
    kind: str, plugin: str, name: str, infos: Sequence[PluginInfo], known: Sequence[PluginInfo]
) -> Spec:
    """The contribution ``plugin:name``.

    Args:
        kind: its kind.
        plugin: name of the plug-in.
        name: name of the contribution.
        infos: the plug-ins of that name, activated; several where only one may be used.
        known: all plug-ins.

    Raises:
        PluginError: there is no such plug-in, it is not in use, or it has no such contribution.
    """
    wanted = f"{kind} {f'{plugin}:{name}'!r}"
    if not infos:
        plugins = sorted({info.plugin for info in known})
        raise PluginError(
            f"{wanted}: no plug-in is called {plugin!r}{did_you_mean(plugin, plugins)} "
            f"(installed: {', '.join(plugins) or 'none'})"
        )
    used = [info for info in infos if info.status == "ok"]
    if not used:
        raise PluginError(f"{wanted}: {infos[0].trouble}")
    specs = [spec for info in used for spec in info.contributions if spec.kind == kind]
    for spec in specs:
        if spec.name == name:
            return spec
    names = [spec.name for spec in specs]
    raise PluginError(
        f"{wanted}: plug-in {used[0].origin.describe()} has no {kind} {name!r}"
        f"{did_you_mean(name, names)} (it has: {', '.join(names) or f'no {kind} at all'})"
    )


def find_distribution(
    text: str, requirement: Requirement, infos: Sequence[PluginInfo]
) -> list[PluginInfo]:
    """The plug-ins of a required distribution.

    Args:
        text: the requirement as the user wrote it.
        requirement: the same, read.
        infos: all plug-ins.

    Raises:
        PluginError: it is not installed, or in another version.
    """
    found = [info for info in infos if info.distribution == requirement.name]
    if not found:
        for info in infos:
            if info.plugin == requirement.name and info.distribution:
                raise PluginError(
                    f"plug-in requirement {text!r}: {info.plugin!r} is a plug-in; name its "
                    f"distribution, {info.distribution!r}"
                )
        known = (info.distribution for info in infos if info.distribution)
        cure = did_you_mean(requirement.name, known) or f"; pip install '{text}'"
        raise PluginError(
            f"plug-in requirement {text!r}: no installed distribution {requirement.name!r} brings "
            f"plug-ins{cure}"
        )
    try:
        accepted = requirement.accepts(found[0].version)
    except PluginError as error:
        raise PluginError(
            f"plug-in requirement {text!r}: the version of the installed {requirement.name} can't "
            f"be compared: {error}"
        ) from None
    if not accepted:
        raise PluginError(
            f"plug-in requirement {text!r}: installed is {requirement.name} {found[0].version}; "
            f"pip install '{text}'"
        )
    return found


def check_usable(text: str, infos: Sequence[PluginInfo]) -> None:
    """Refuse a required distribution whose plug-ins do not work.

    Args:
        text: the requirement as the user wrote it.
        infos: the distribution's plug-ins, activated.

    Raises:
        PluginError: one is broken, or none is in use.
    """
    bad = [info for info in infos if info.degraded]
    if not bad and not any(info.status == "ok" for info in infos):
        bad = list(infos)
    if bad:
        raise PluginError(f"plug-in requirement {text!r}: {bad[0].trouble}")
