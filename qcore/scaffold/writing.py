"""From a name and a kind to the files of a distribution."""

import re
from collections.abc import Iterator
from importlib import resources, util
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from ..errors import PluginError
from ..host import PluginHost
from ..suggest import did_you_mean
from ..versions import DISTRIBUTION, installed_version

__all__ = ["KINDS", "distribution_name", "new_plugin", "package_name"]

KINDS = ("observer", "fake-quant", "fusion", "converter", "backend", "algorithm")
"""What a new plug-in may bring."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40


def distribution_name(name: str) -> str:
    """What pip calls the plug-in ``name``, and the folder that it is written to."""
    return f"qcore-{name}"


def package_name(name: str) -> str:
    """What Python calls it.

    >>> package_name("acme-tools")
    'qcore_acme_tools'
    """
    return distribution_name(name).replace("-", "_")


def new_plugin(
    name: str, kind: str, folder: Path | None = None, *, host: PluginHost | None = None
) -> tuple[Path, ...]:
    """Writes a distribution that installs, and whose part keeps the contracts of its kind.

    Args:
        name: of the plug-in: lower-case letters, digits and single hyphens.
        kind: one of :data:`KINDS`.
        folder: where it goes; must be new or empty. By default that of the distribution's name.
        host: knows the names that are taken; by default the plug-ins installed.

    Returns:
        The files, in order.

    Raises:
        PluginError: a name that is bad or taken, an unknown kind, or a folder that is in use.
    """
    if kind not in KINDS:
        raise PluginError(
            f"no template for the kind {kind!r}{did_you_mean(kind, KINDS)} "
            f"(kinds: {', '.join(KINDS)})"
        )
    _check_name(name, host or PluginHost.from_environment())
    folder = Path(distribution_name(name)) if folder is None else folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PluginError(
            f"{str(folder)!r} exists already and is not an empty folder; name a new one with --into"
        )
    words = _words(name, kind)
    written = []
    for place, template in sorted(_templates(kind)):
        file = folder / place.replace("_package_", words["package"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(template.substitute(words), encoding="utf-8")
        written.append(file)
    return tuple(written)


def _check_name(name: str, host: PluginHost) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise PluginError(
            f"a plug-in can't be called {name!r}; write lower-case letters and digits with single "
            f"hyphens between, a letter first, {_LONGEST} at most, such as 'acme' or 'acme-tools'"
        )
    if name.partition("-")[0] == "qcore":
        raise PluginError(
            f"a plug-in can't be called {name!r}: its distribution is called 'qcore-NAME' already; "
            f"leave out 'qcore-'"
        )
    for info in host.plugins(activate=False):
        if info.plugin == name:
            raise PluginError(
                f"{info.origin.describe()} has the name {name!r} already, and of two plug-ins with "
                "one name none is used; choose another, or uninstall that one"
            )
    if util.find_spec(package_name(name)) is not None:
        raise PluginError(
            f"a package {package_name(name)!r} can be imported already, and would be hidden; "
            "choose another name"
        )


def _words(name: str, kind: str) -> dict[str, str]:
    """What the templates say differently each time."""
    version = installed_version(DISTRIBUTION)
    minor = ".".join(version.split(".")[:2]) if version else ""
    return {
        "name": name,
        "kind": kind,
        "package": package_name(name),
        "distribution": distribution_name(name),
        "prefix": name.replace("-", "_"),
        "requirement": f"{DISTRIBUTION}>={minor}" if minor else DISTRIBUTION,
    }


def _templates(kind: str) -> Iterator[tuple[str, Template]]:
    """Path in the distribution, and text, of each file."""
    root = resources.files(__package__) / "templates"
    for folder in ("common", kind):
        yield from _walk(root / folder, "")


def _walk(folder: Traversable, place: str) -> Iterator[tuple[str, Template]]:
    for entry in folder.iterdir():
        path = f"{place}{entry.name}"
        if entry.is_dir():
            yield from _walk(entry, f"{path}/")
        elif path.endswith(".template"):
            text = entry.read_text(encoding="utf-8")
            yield path.removesuffix(".template"), Template(text)
