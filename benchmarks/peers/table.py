"""The table of the peers in ``docs/results.md``: written between markers, merged row by row.

The page itself is the store. A run replaces the cells that it measured and leaves the others, if
they are of the same machine and versions; otherwise it begins a new table.
"""

import re
from collections.abc import Iterable, Sequence

import attrs

__all__ = ["Cell", "merge", "missing"]

_BEGIN = "<!-- figures:begin peers -->"
_END = "<!-- figures:end -->"
_FAILED = "-"
_ROW_HEAD = ("network", "batch", "threads")
_NOISE_HEAD = ("network",)
_NOISE_TITLE = "Signal to quantization noise of the outputs, against float32, in dB:"


@attrs.frozen(kw_only=True)
class Cell:
    """One engine on one network, with one batch size and number of threads.

    Args:
        network, engine: titles.
        batch, threads: the setting.
        ratio: how many times as fast as float32 torch eager; None if the engine failed.
        sqnr_db: of its outputs against float32.
        failure: why it failed.
    """

    network: str
    engine: str
    batch: int
    threads: int
    ratio: float | None = None
    sqnr_db: float | None = None
    failure: str | None = None

    @property
    def row(self) -> tuple[str, ...]:
        """What its row begins with."""
        return self.network, str(self.batch), str(self.threads)

    @property
    def text(self) -> str:
        """What it shows."""
        return _FAILED if self.ratio is None else f"{self.ratio:.2f}"

    @property
    def where(self) -> str:
        """The beginning of the line that says why it failed."""
        return f"- {self.engine} on {self.network}, batch {self.batch}, threads {self.threads}: "


def merge(
    page: str,
    cells: Sequence[Cell],
    *,
    machine: str,
    networks: Sequence[str],
    engines: Sequence[str],
) -> str:
    """A page with new figures in its table.

    Args:
        page: text that has the two markers.
        cells: what was measured.
        machine: processor and versions; a page with another line loses its old figures.
        networks, engines: titles of all there are, in the order of rows and columns.

    Returns:
        The page's new text.

    Raises:
        ValueError: the markers are not there, each once and in order.
    """
    before, old, after = _parts(page, machine)
    speeds, noise, reasons = _read(old)
    for cell in cells:
        speeds.setdefault(cell.row, {})[cell.engine] = cell.text
        if cell.sqnr_db is not None:
            noise.setdefault((cell.network,), {})[cell.engine] = f"{cell.sqnr_db:.0f}"
        reasons = [line for line in reasons if not line.startswith(cell.where)]
        if cell.failure is not None:
            reasons.append(cell.where + " ".join(cell.failure.split()))
    new = [
        machine,
        "",
        *_lines(_ROW_HEAD, speeds, networks, engines),
        *(["", *sorted(reasons)] if reasons else []),
        "",
        _NOISE_TITLE,
        "",
        *_lines(_NOISE_HEAD, noise, networks, engines),
    ]
    return before + "\n".join(new) + "\n" + after


def missing(page: str, row: tuple[str, int, int], *, machine: str, engines: Sequence[str]) -> bool:
    """Whether a row of the page's table lacks a figure of one of the engines.

    Args:
        page, machine: as of :func:`merge`.
        row: title of the network, batch and threads.
        engines: titles.
    """
    speeds, _, _ = _read(_parts(page, machine)[1])
    there = speeds.get(tuple(map(str, row)), {})
    return any(there.get(engine, _FAILED) == _FAILED for engine in engines)


def _parts(page: str, machine: str) -> tuple[str, str, str]:
    """What is before the figures, the figures if they are of this machine, and what is behind."""
    match = re.fullmatch(
        rf"(.*{re.escape(_BEGIN)}\n)(.*?)({re.escape(_END)}.*)", page, flags=re.DOTALL
    )
    if match is None or page.count(_BEGIN) != 1:
        raise ValueError(f"the page must have the line {_BEGIN!r} once, and {_END!r} behind it")
    return match[1], match[2] if machine in match[2].splitlines() else "", match[3]


_Table = dict[tuple[str, ...], dict[str, str]]


def _read(text: str) -> tuple[_Table, _Table, list[str]]:
    """The two tables and the reasons of failures."""
    tables: dict[tuple[str, ...], _Table] = {_ROW_HEAD: {}, _NOISE_HEAD: {}}
    head: tuple[str, ...] = ()
    columns: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head, columns = (), []
            continue
        values = [value.strip() for value in line.strip("|").split("|")]
        if not head:
            head = _ROW_HEAD if tuple(values[: len(_ROW_HEAD)]) == _ROW_HEAD else _NOISE_HEAD
            columns = values[len(head) :]
        elif set(values[0]) != {"-"}:
            cells = zip(columns, values[len(head) :], strict=True)
            tables[head][tuple(values[: len(head)])] = {c: v for c, v in cells if v}
    reasons = [line for line in text.splitlines() if line.startswith("- ")]
    return tables[_ROW_HEAD], tables[_NOISE_HEAD], reasons


def _lines(
    head: tuple[str, ...], table: _Table, networks: Sequence[str], engines: Sequence[str]
) -> Iterable[str]:
    columns = [name for name in engines if any(name in row for row in table.values())]
    yield _line((*head, *columns))
    yield _line(["---"] * (len(head) + len(columns)))

    def place(key: tuple[str, ...]) -> tuple[int, ...]:
        return networks.index(key[0]), *map(int, key[1:])

    for key in sorted((key for key in table if key[0] in networks), key=place):
        yield _line((*key, *(table[key].get(name, "") for name in columns)))


def _line(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"
