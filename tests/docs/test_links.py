"""What the pages point to is there: files, headings, public names, messages."""

import re
from pathlib import Path

import pytest

import qcore

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`]+)`")
# The conformance kit is a package of its own, which `import qcore` does not import.
PUBLIC = {*qcore.__all__, "testing"}


def test_links_resolve(page, page_named):
    """A link leads to a file of the project, and where it says so to a heading in it."""
    for number, line in page.prose:
        for target in LINK.findall(line):
            if target.startswith("https://"):
                continue
            where = f"{page.name}:{number}: {target}"
            path, _, anchor = target.partition("#")
            file = (page.path.parent / path).resolve() if path else page.path
            assert file.exists(), where
            assert file.is_relative_to(ROOT), where
            if anchor:
                other = page_named(file.relative_to(ROOT).as_posix())
                assert anchor in [a for _, _, a in other.headings], where


def test_headings_are_unique(page):
    """Each heading of a page has an anchor of its own, and there is one title."""
    anchors = [anchor for _, _, anchor in page.headings]
    assert sorted(set(anchors)) == sorted(anchors)
    assert [line for _, line in page.prose if line.startswith("# ")] == [page.prose[0][1]]


def test_names_exist(page):
    """Every ``qcore.name`` in the text is public, and every path of the project is there."""
    for number, line in page.prose:
        for code in CODE.findall(line):
            name = re.fullmatch(r"qcore\.([A-Za-z_]\w*)(\(.*\))?", code)
            if name is not None and not re.fullmatch(r"v\d+", name[1]):
                assert name[1] in PUBLIC, f"{page.name}:{number}: {code}"
            if re.fullmatch(
                r"(qcore\w*|plugins|benchmarks|recipes|tests|docs|examples)/[\w./-]+", code
            ):
                assert (ROOT / code).exists(), f"{page.name}:{number}: {code}"


@pytest.fixture(scope="module")
def host_source() -> str:
    """The modules whose messages the guide explains, one line each."""
    names = ("activation", "loading", "plugin_info", "missing", "host", "cli/plugins")
    text = "".join((ROOT / "qcore" / f"{name}.py").read_text() for name in names)
    # Messages are written over several lines; they are one text to the reader.
    return re.sub(r'"\s+f?"', "", text)


def test_messages_of_the_guide(page_named, host_source):
    """What the guide says that the list says is what the code says."""
    heading = "Why was my plug-in not loaded?"
    quoted = page_named("docs/plugins/index.md").first_column(heading)
    assert len(quoted) > 10
    for text in quoted:
        assert text in host_source, text


def test_module_map_is_complete(page_named):
    """The architecture names every module and package of the core."""
    page = page_named("docs/architecture.md")
    named = {code for _, line in page.prose for code in CODE.findall(line)}
    for path in (ROOT / "qcore").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in named, path.name
        elif (path / "__init__.py").exists():
            assert f"{path.name}/" in named, path.name
