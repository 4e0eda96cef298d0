"""Pages of the documentation as tests see them: blocks of code, headings, links, tables."""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import attrs
import pytest

from qcore import host as host_module

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path for glob in ("*.md", "docs/**/*.md", "examples/*/*.md") for path in ROOT.glob(glob)
)

_FENCE = re.compile(r"^```(?P<info>.*)$")
_SOURCES = ("python", "cpp")
"""Languages of the files of a plug-in; others are files of its user."""
_HEADING = re.compile(r"^(#+) +(.*?) *$")


@attrs.frozen
class Block:
    """A fenced block of code.

    Args:
        language: first word behind the fence.
        title: of ``title="..."`` behind it: the file that the block is; empty for none.
        line: number of its first line of code in the page.
        text: the code.
    """

    language: str
    title: str
    line: int
    text: str


@attrs.frozen
class Page:
    """A page in Markdown."""

    path: Path

    @property
    def name(self) -> str:
        """Path in the project."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def lines(self) -> list[tuple[int, str, Block | None]]:
        """Number and text of each line, and the block that it belongs to."""
        return list(self._read())

    def _read(self) -> Iterator[tuple[int, str, Block | None]]:
        text = self.path.read_text(encoding="utf-8").splitlines()
        number = 0
        while number < len(text):
            fence = _FENCE.match(text[number])
            number += 1
            if fence is None:
                yield number, text[number - 1], None
                continue
            end = next((i for i in range(number, len(text)) if text[i] == "```"), None)
            assert end is not None, f"{self.name}:{number}: the block does not end"
            title = re.search(r'title="([^"]*)"', fence["info"])
            block = Block(
                language=fence["info"].partition(" ")[0],
                title=title[1] if title else "",
                line=number + 1,
                text="".join(f"{line}\n" for line in text[number:end]),
            )
            yield number, text[number - 1], block
            number = end + 1

    @property
    def blocks(self) -> list[Block]:
        """The blocks in their order."""
        return [block for _, _, block in self.lines if block is not None]

    @property
    def prose(self) -> list[tuple[int, str]]:
        """The lines outside of blocks."""
        return [(number, line) for number, line, block in self.lines if block is None]

    @property
    def headings(self) -> list[tuple[int, str, str]]:
        """Line, text and anchor of each heading."""
        found = []
        for number, line in self.prose:
            heading = _HEADING.match(line)
            if heading is not None:
                words = re.sub(r"[^\w\- ]", "", heading[2].lower())
                found.append((number, heading[2], words.replace(" ", "-")))
        return found

    def section(self, heading: str) -> list[str]:
        """The lines of prose under a heading, to the next one."""
        starts = {text: number for number, text, _ in self.headings}
        assert heading in starts, f"{self.name}: no heading {heading!r}"
        start = starts[heading]
        end = min((n for n in starts.values() if n > start), default=10**9)
        return [line for number, line in self.prose if start < number < end]

    def first_column(self, heading: str) -> list[str]:
        """What stands in backticks in the first column of the tables of a section."""
        cells = [line.split("|")[1] for line in self.section(heading) if line.startswith("|")]
        return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty working folder that modules can be imported from, and a new default host."""
    (tmp_path / "site").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("QCORE_PROGRESS", "off")
    monkeypatch.setenv("QCORE_CACHE", str(tmp_path / "cache"))
    before = set(sys.modules)
    host_module._make_default.cache_clear()
    yield tmp_path
    host_module._make_default.cache_clear()
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def install(page: Page, folder: Path) -> set[str]:
    """Writes the files that a page shows; those of a plug-in as pip would leave them.

    Returns:
        Names of the plug-ins.
    """
    plugins: dict[str, str] = {}
    for block in page.blocks:
        if block.title == "pyproject.toml":
            project = tomllib.loads(block.text)["project"]
            plugins = project["entry-points"]["qcore.v1"]
            metadata = folder / "site" / f"{project['name']}-{project['version']}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(
                f"Name: {project['name']}\nVersion: {project['version']}\n"
            )
            lines = [f"{name} = {value}" for name, value in plugins.items()]
            (metadata / "entry_points.txt").write_text("\n".join(["[qcore.v1]", *lines, ""]))
        elif block.title:
            place = folder / ("site" if block.language in _SOURCES else "work") / block.title
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(block.text)
    return set(plugins)


@pytest.fixture
def installed_from(folder) -> Callable[[Page], set[str]]:
    """Installs what a page shows, into the working folder and the path of one test."""
    return lambda page: install(page, folder)


@pytest.fixture
def page_named():
    """Reads a page by its path in the project."""
    return lambda name: Page(ROOT / name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that asks for ``page`` with each page."""
    if "page" in metafunc.fixturenames:
        pages = [Page(path) for path in PAGES]
        metafunc.parametrize("page", pages, ids=[page.name for page in pages])
