"""Distributions that are installed for one test, with real ``*.dist-info`` folders."""

import importlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest


class Site:
    """A folder that packages are installed to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def install(
        self,
        name: str = "acme",
        version: str = "1.2",
        *,
        plugins: Mapping[str, str] | None = None,
        group: str = "qcore.v1",
        entry_points: str | None = None,
        modules: Mapping[str, str] | None = None,
        requires: Iterable[str] = (),
        extras: Iterable[str] = (),
    ) -> Path:
        """Write a distribution as pip leaves it.

        Args:
            name: as its author writes it.
            version: its version.
            plugins: name of each plug-in -> value of its entry point; by default one that is called
                as the distribution, with the module ``<name>_plugin``.
            group: the group of the entry points.
            entry_points: the whole ``entry_points.txt`` instead.
            modules: path of each file -> its source; dedented.
            requires: ``Requires-Dist`` lines.
            extras: ``Provides-Extra`` lines.

        Returns:
            The ``*.dist-info`` folder.
        """
        module = name.replace("-", "_")
        if plugins is None:
            plugins = {name: f"{module}_plugin"}
        if entry_points is None:
            lines = [f"{plugin} = {value}" for plugin, value in plugins.items()]
            entry_points = "\n".join([f"[{group}]", *lines, ""])
        metadata = self.folder / f"{module}-{version}.dist-info"
        metadata.mkdir()
        head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        head += [f"Provides-Extra: {extra}" for extra in extras]
        head += [f"Requires-Dist: {requirement}" for requirement in requires]
        (metadata / "METADATA").write_text("\n".join([*head, "", "Name: not this one", ""]))
        (metadata / "entry_points.txt").write_text(entry_points)
        (metadata / "INSTALLER").write_text("pip\n")
        for path, source in (modules or {}).items():
            self.write(path, source)
        return metadata

    def plugin(
        self, name: str = "acme", version: str = "1.2", *, observers: Iterable[str] = ("kl",)
    ) -> Path:
        """Install a plug-in that works, with observers of the given names."""
        records = ", ".join(
            f"ObserverSpec(name={observer!r}, target='{name}_observers:Observer')"
            for observer in observers
        )
        source = f"""
            from qcore import ObserverSpec, hookimpl

            @hookimpl
            def qcore_observers():
                return [{records}]
            """
        return self.install(name, version, modules={f"{name}_plugin.py": source})

    def write(self, path: str, source: str) -> None:
        """Write a module."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site folder that modules are imported from; they are forgotten when the test ends."""
    before = set(sys.modules)
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(site.folder)
    yield site
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
