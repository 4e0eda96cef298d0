"""Discovery reads metadata of real distributions and imports nothing."""

import os
import sys
import zipfile
from pathlib import Path

import pytest

from qcore.discovery import InstalledPlugin, discover, search_path


def names(*path):
    """Plug-in, distribution and version of what is found."""
    return [(p.plugin, p.distribution, p.version) for p in discover(path)]


def zip_of(folder, archive):
    """Pack a folder's files."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*"):
            file.write(path, path.relative_to(folder))
    return archive


def test_entry_point_is_found_with_its_origin(site):
    """The record has all that the metadata says, and the module is not imported."""
    site.install("acme", "1.2", plugins={"kl": "acme.kl:plugin [fast]"}, modules={"acme/kl.py": ""})
    (found,) = discover([site.folder])
    assert found == InstalledPlugin(
        plugin="kl",
        group="qcore.v1",
        value="acme.kl:plugin [fast]",
        distribution="acme",
        version="1.2",
        folder=str(site.folder),
    )
    assert (found.module, found.attribute, found.extras) == ("acme.kl", "plugin", ("fast",))
    assert "acme" not in sys.modules


def test_distribution_name_is_canonical(site):
    """A name is written in the one way of the packaging standard, as pip prints it."""
    site.install("Qcore_Acme.Tools", plugins={"a": "acme"})
    assert names(site.folder) == [("a", "qcore-acme-tools", "1.2")]


def test_other_groups_are_left_alone(site):
    """Only the groups of qcore's API count, of any version."""
    text = (
        "[qcore.v1]\na = m\n[console_scripts]\nb = m:main\n[qcore.v2]\nc = m\n[qcore.vx]\nd = m\n"
    )
    site.install(entry_points=text)
    assert [(p.plugin, p.group) for p in discover([site.folder])] == [
        ("a", "qcore.v1"),
        ("c", "qcore.v2"),
    ]


def test_entry_points_file_is_read_as_pip_reads_it(site):
    """Comments, blank lines and spaces mean nothing, and a line written twice is one entry."""
    text = "# qcore.v1\n\n[ qcore.v1 ]\n a=m \na = m\n; b = m\nc = m = n\n"
    site.install(entry_points=text)
    assert [(p.plugin, p.value) for p in discover([site.folder])] == [("a", "m"), ("c", "m = n")]


def test_order_does_not_depend_on_the_disk(site, monkeypatch):
    """The result is sorted by name, however the folder is listed."""
    for name in ("b", "a", "c"):
        site.install(name)
    listing = os.listdir
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        monkeypatch.setattr(os, "listdir", lambda folder, order=order: order(listing(folder)))
        assert [plugin for plugin, _, _ in names(site.folder)] == ["a", "b", "c"]


def test_first_on_the_path_wins(site, tmp_path):
    """A distribution in two folders is the one that would be imported, and no conflict."""
    other = type(site)(tmp_path / "other")
    site.install("acme", "1.2")
    other.install("Acme", "1.3")
    assert names(site.folder, other.folder) == [("acme", "acme", "1.2")]
    assert names(other.folder, site.folder) == [("Acme", "acme", "1.3")]


def test_first_on_the_path_hides_plugins_of_later_versions(site, tmp_path):
    """A version without plug-ins hides the plug-ins of the same distribution further on."""
    other = type(site)(tmp_path / "other")
    site.install("acme", "1.0", entry_points="")
    other.install("acme", "1.3")
    assert names(site.folder, other.folder) == []


@pytest.mark.parametrize("versions", [("1.9", "1.10"), ("1.10", "1.9")])
def test_highest_version_of_one_folder_counts(site, versions):
    """What an interrupted upgrade left beside the new metadata is not read."""
    for version in versions:
        site.install("acme", version)
    assert names(site.folder) == [("acme", "acme", "1.10")]


def test_leftovers_of_pip_are_ignored(site):
    """A folder that pip renamed to remove later is not installed."""
    site.install("acme").rename(site.folder / "~cme-1.2.dist-info")
    assert names(site.folder) == []


def test_version_comes_from_the_folder_name_without_metadata(site):
    """A distribution without METADATA still says its name and version."""
    (site.install("qcore-acme", "1.2", plugins={"a": "m"}) / "METADATA").unlink()
    assert names(site.folder) == [("a", "qcore-acme", "1.2")]


def test_egg_info_folders_are_read(site):
    """What setuptools leaves for development installs counts, whatever its name says."""
    for name, version in (("acme.egg-info", ""), ("brand-2.0-py3.11.egg-info", "2.0")):
        folder = site.folder / name
        folder.mkdir()
        (folder / "entry_points.txt").write_text("[qcore.v1]\na = m\n")
        if not version:
            (folder / "PKG-INFO").write_text("Name: Acme\nVersion: 1.0\n\nVersion: 9\n")
    assert names(site.folder) == [("a", "acme", "1.0"), ("a", "brand", "2.0")]


def test_egg_folders_are_read(site, tmp_path):
    """An unpacked egg keeps its metadata inside."""
    info = tmp_path / "acme-1.0-py3.11.egg" / "EGG-INFO"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qcore.v1]\na = m\n")
    assert names(info.parent) == [("a", "acme", "1.0")]


def test_archives_are_read(site, tmp_path):
    """A zip file on the path holds plug-ins too."""
    site.install("acme")
    site.install("other", entry_points="[console_scripts]\nx = y:z\n")
    archive = zip_of(site.folder, tmp_path / "site.zip")
    assert names(archive) == [("acme", "acme", "1.2")]


def test_unreadable_places_hold_no_plugins(site, tmp_path):
    """A missing folder, a damaged archive and a file in place of a folder hide no other plug-in."""
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (site.folder / "file-1.0.dist-info").write_text("not a folder")
    (site.folder / "folder-1.0.dist-info" / "entry_points.txt").mkdir(parents=True)
    site.install("acme")
    path = (tmp_path / "missing", tmp_path / "damaged.zip", site.folder)
    assert names(*path) == [("acme", "acme", "1.2")]


def test_text_that_is_not_utf8_is_no_error(site):
    """A damaged line gives an entry point that names no module."""
    metadata = site.install("acme")
    (metadata / "entry_points.txt").write_bytes(b"[qcore.v1]\na = \xff\xfe\n")
    (found,) = discover([site.folder])
    assert found.module is None


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("acme", ("acme", None, ())),
        ("acme.kl", ("acme.kl", None, ())),
        ("acme.kl : Plugin.one", ("acme.kl", "Plugin.one", ())),
        ("acme [a, b]", ("acme", None, ("a", "b"))),
        ("", (None, None, ())),
        ("acme..kl", (None, None, ())),
        ("acme:", (None, None, ())),
        ("1acme", (None, None, ())),
        ("acme kl", (None, None, ())),
    ],
)
def test_value_of_an_entry_point(value, parts):
    """A value is a module and perhaps an object and extras, or malformed."""
    entry = InstalledPlugin(
        plugin="a", group="qcore.v1", value=value, distribution="d", version="1", folder="/"
    )
    assert (entry.module, entry.attribute, entry.extras) == parts


def test_working_folder_is_not_searched(site, monkeypatch):
    """Nothing is loaded because of where a command is run."""
    site.install("acme")
    monkeypatch.chdir(site.folder)
    monkeypatch.setattr(sys, "path", ["", str(site.folder), os.curdir])
    assert search_path() == ()
    assert discover() == ()


def test_working_folder_is_searched_if_packages_are_installed_to_it(site, monkeypatch):
    """Standing in a site folder changes nothing."""
    site.install("acme")
    monkeypatch.chdir(site.folder)
    monkeypatch.setattr(sys, "path", ["", str(site.folder)])
    monkeypatch.setattr("site.getsitepackages", lambda: [str(site.folder)])
    assert [p.plugin for p in discover()] == ["acme"]


def test_search_path_is_that_of_imports(site):
    """By default plug-ins are looked for where modules are."""
    site.install("acme")
    assert "acme" in [p.plugin for p in discover()]
    assert Path(search_path()[0]) == site.folder
