"""Finding the installed plug-ins from metadata alone: nothing of theirs is imported.

A plug-in is an entry point of the group ``qcore.v1`` in the ``entry_points.txt`` of an installed
distribution. That file is parsed only when the bytes of the group's name are in it, and of the
metadata only the head is read, so that the cost is one listing a folder and one short read a
distribution. :mod:`importlib.metadata` would parse all of both, and takes as long to import.

References:
    Entry points <https://packaging.python.org/en/latest/specifications/entry-points/>
"""

import os
import re
import site
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs

from .errors import PluginError
from .hookspecs import PROJECT_NAME
from .versions import Version, canonical_name

__all__ = ["InstalledPlugin", "discover", "search_path"]

_GROUP = re.compile(rf"{PROJECT_NAME}\.v[0-9]+")
_MARK = f"{PROJECT_NAME}.v".encode()
_VALUE = re.compile(r"([\w.]+)\s*(?::\s*([\w.]+))?\s*(?:\[([^\]]*)\])?")
_HEADER_BYTES = 4096


@attrs.frozen(kw_only=True)
class InstalledPlugin:
    """An entry point of qcore, as the metadata of a distribution states it.

    Args:
        plugin: name of the entry point, and so of the plug-in.
        group: the entry point's group, which is the version of the API that it was written for.
        value: what the entry point names, such as ``"acme.plugin"``; as written, maybe malformed.
        distribution: canonical name of the distribution.
        version: the distribution's version, as its metadata writes it.
        folder: the entry of the search path where the distribution was found.
    """

    plugin: str
    group: str
    value: str
    distribution: str
    version: str
    folder: str

    @property
    def module(self) -> str | None:
        """The module to import; None when :attr:`value` is malformed."""
        return self._parts()[0]

    @property
    def attribute(self) -> str | None:
        """Dotted path of the object in the module; None when the module itself is the plug-in."""
        return self._parts()[1]

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras of the distribution that the entry point says it needs."""
        return self._parts()[2]

    def describe(self) -> str:
        """``distribution version``."""
        return f"{self.distribution} {self.version}".rstrip()

    def _parts(self) -> tuple[str | None, str | None, tuple[str, ...]]:
        match = _VALUE.fullmatch(self.value)
        if match is None:
            return None, None, ()
        module, attribute, extras = match.groups()
        names = [*module.split("."), *(attribute.split(".") if attribute else ())]
        if not all(name.isidentifier() for name in names):
            return None, None, ()
        return module, attribute, tuple(e.strip() for e in (extras or "").split(",") if e.strip())


def search_path() -> tuple[str, ...]:
    """``sys.path`` without the working folder.

    Python puts the working folder first when it runs ``python -m`` or ``python -c``; a source tree
    or a download there must not add plug-ins by itself. It stays when it is a folder that packages
    are installed to.
    """
    installed = {os.path.realpath(folder) for folder in _site_folders()}
    here = os.path.realpath(os.curdir)
    return tuple(
        folder
        for folder in sys.path
        if isinstance(folder, str)
        and folder
        and (os.path.realpath(folder) != here or here in installed)
    )


def _site_folders() -> Iterable[str]:
    user = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    return (*site.getsitepackages(), *((user,) if user else ()))


def discover(path: Sequence[str | os.PathLike[str]] | None = None) -> tuple[InstalledPlugin, ...]:
    """Every plug-in that is installed on ``path``, whatever version of the API it was written for.

    A distribution that is there more than once counts where it comes first, as it does for imports;
    twice in one folder, by its highest version. Archives are read too, more slowly. A folder,
    archive or file that can't be read holds no plug-ins.

    Args:
        path: folders and archives; by default :func:`search_path`.

    Returns:
        The plug-ins, ordered by plug-in, distribution and group.
    """
    folders = search_path() if path is None else [os.fspath(folder) for folder in path]
    seen: set[str] = set()
    found: list[InstalledPlugin] = []
    for folder in dict.fromkeys(folders):
        for name, plugins in _scan(folder):
            if name not in seen:
                seen.add(name)
                found.extend(plugins)
    return tuple(sorted(found, key=lambda p: (p.plugin, p.distribution, p.group, p.value)))


def _scan(folder: str) -> Iterator[tuple[str, list[InstalledPlugin]]]:
    """Each distribution of one entry of the path, by canonical name, and its plug-ins."""
    if os.path.isfile(folder) or folder.rstrip(os.sep).endswith(".egg"):
        yield from _scan_slowly(folder)
        return
    try:
        children = os.listdir(folder)
    except OSError:
        return
    distributions: dict[str, list[str]] = {}
    for child in children:
        # pip renames what it can't remove yet to a name that starts with a tilde.
        if child.endswith((".dist-info", ".egg-info")) and not child.startswith("~"):
            distributions.setdefault(canonical_name(child[:-10].partition("-")[0]), []).append(
                child
            )
    for name, metadata in distributions.items():
        if len(metadata) > 1:
            metadata = [_best(folder, metadata)]
        yield name, _read(folder, metadata[0])


def _best(folder: str, metadata: list[str]) -> str:
    """Of several folders of one distribution, the one that describes the highest version."""

    def rank(child: str) -> tuple[bool, tuple[object, ...], str]:
        _, version = _header(Path(folder, child))
        try:
            return version is not None, Version.parse(version or "0").key, child
        except PluginError:
            return False, (), child

    return max(metadata, key=rank)


def _read(folder: str, child: str) -> list[InstalledPlugin]:
    try:
        # Not Path.read_bytes: over hundreds of distributions the objects cost more than the files.
        with open(f"{folder}{os.sep}{child}{os.sep}entry_points.txt", "rb") as file:
            raw = file.read()
    except OSError:
        return []
    if _MARK not in raw:
        return []
    entries = list(_entries(raw.decode(errors="replace")))
    if not entries:
        return []
    stem = child[:-10].split("-")
    name, version = _header(Path(folder, child))
    return [
        InstalledPlugin(
            plugin=plugin,
            group=group,
            value=value,
            distribution=canonical_name(name or stem[0]),
            version=version or (stem[1] if len(stem) > 1 else ""),
            folder=folder,
        )
        for group, plugin, value in entries
    ]


def _header(metadata: Path) -> tuple[str | None, str | None]:
    """Name and version of a distribution; None for what its metadata does not say."""
    for file in ("METADATA", "PKG-INFO"):
        try:
            with open(metadata / file, "rb") as stream:
                head = stream.read(_HEADER_BYTES)
        except OSError:
            continue
        fields: dict[str, str] = {}
        for line in head.decode(errors="replace").splitlines():
            if not line.strip():
                break
            key, _, value = line.partition(":")
            fields.setdefault(key.lower(), value.strip())
        return fields.get("name") or None, fields.get("version") or None
    return None, None


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """Group, name and value of each entry point of qcore in an ``entry_points.txt``."""
    group = ""
    # A line written twice says one thing; two values for one name are two entry points.
    seen = set()
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and not line.startswith(("#", ";")) and _GROUP.fullmatch(group):
            name, _, value = (part.strip() for part in line.partition("="))
            if (group, name, value) not in seen:
                seen.add((group, name, value))
                yield group, name, value


def _scan_slowly(folder: str) -> Iterator[tuple[str, list[InstalledPlugin]]]:
    """The same for zip archives and eggs, by way of the standard library."""
    from importlib import metadata

    for distribution in metadata.distributions(path=[folder]):
        try:
            name = canonical_name(distribution.metadata["Name"])
            version = distribution.version
            text = distribution.read_text("entry_points.txt") or ""
        # A damaged archive must not hide the plug-ins of others, whatever it makes zipfile raise.
        except Exception:
            continue
        yield (
            name,
            [
                InstalledPlugin(
                    plugin=plugin,
                    group=group,
                    value=value,
                    distribution=name,
                    version=version,
                    folder=folder,
                )
                for group, plugin, value in _entries(text)
            ],
        )
