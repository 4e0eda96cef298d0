"""What the CUDA benchmarks share: times of recorded launches, the limits of the GPU, the page.

Every engine is timed as a CUDA graph, so that the cost of Python is in none of them. The graph is
started while the GPU still writes what fills its caches, so that the cost of the start is in none
either. The engines take turns, so that heat and clocks fall on all alike.
"""

import importlib.metadata as metadata
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch

__all__ = ["DRY", "Limits", "device", "limits", "machine", "medians", "write"]

DRY = "--dry-run" in sys.argv
if DRY:
    # Triton looks once, when it is first imported: when the first program is lowered.
    os.environ["TRITON_INTERPRET"] = "1"

_FILL = 2**29
"""Bytes that are written before each measurement: more than any cache holds."""
_WARM_S = 0.5
"""Seconds of work before the first measurement, in which clocks rise."""

PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"

Call = Callable[[], object]


def device() -> torch.device:
    """The GPU; the CPU in a dry run.

    Raises:
        SystemExit: there is no GPU.
    """
    if DRY:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; --dry-run tries the script without one")
    return torch.device("cuda", torch.cuda.current_device())


def machine() -> str:
    """The GPU and the versions of what was measured."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    names = {"qcore-quant": "qcore", "triton": "Triton", "torchao": "torchao"}
    versions = [f"{title} {v}" for name, title in names.items() if (v := version(name))]
    gpu = "a dry run without a GPU" if DRY else torch.cuda.get_device_name()
    return f"{gpu}; torch {torch.__version__}, {', '.join(versions)}."


@attrs.frozen(kw_only=True)
class Limits:
    """What the GPU can do at most, measured.

    Args:
        bytes_per_second: of a copy, read and written bytes together.
        int8_per_second: operations of a large int8 product, a multiplication and an addition each.
    """

    bytes_per_second: float
    int8_per_second: float

    def seconds(self, *, memory: float, operations: float) -> float:
        """The least time of something that moves so many bytes and does so many operations."""
        return max(memory / self.bytes_per_second, operations / self.int8_per_second)


def limits() -> Limits:
    """The limits of this GPU; numbers without meaning in a dry run."""
    if DRY:
        return Limits(bytes_per_second=1e9, int8_per_second=1e9)
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    # All values: products of small ones take less power, so clocks would be higher.
    a = torch.randint(-128, 128, (8192, 8192), device="cuda").to(torch.int8)
    b = torch.randint(-128, 128, (8192, 8192), device="cuda").to(torch.int8).t()
    found = medians(
        {"copy": [lambda: target.copy_(source)], "product": [lambda: torch._int_mm(a, b)]}
    )
    return Limits(
        bytes_per_second=2 * source.numel() / found["copy"],
        int8_per_second=2 * 8192**3 / found["product"],
    )


def medians(engines: dict[str, Sequence[Call]], rounds: int = 15) -> dict[str, float]:
    """Median seconds of one call of each engine.

    Args:
        engines: by name, calls that do the same work on different data, so that caches hold none
            of it from the call before; one where that does not matter.

    Returns:
        By name; an engine that could not be recorded is left out, and its reason printed.
    """
    if DRY:
        return {name: _once(calls) for name, calls in engines.items()}
    graphs = {}
    for name, calls in engines.items():
        try:
            graphs[name] = _recorded(calls)
        # Each engine fails in its own way: an operation that is missing, a shape that is refused.
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
    begun = time.monotonic()
    while graphs and time.monotonic() - begun < _WARM_S:
        for graph in graphs.values():
            graph.replay()
        torch.cuda.synchronize()
    caches = torch.empty(_FILL, dtype=torch.int8, device="cuda")
    spent: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            caches.zero_()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            spent[name].append(begin.elapsed_time(end) / 1e3 / len(engines[name]))
    return {name: statistics.median(times) for name, times in spent.items()}


def _once(calls: Sequence[Call]) -> float:
    begin = time.perf_counter()
    calls[0]()
    return time.perf_counter() - begin


def _recorded(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def write(name: str, lines: Sequence[str]) -> None:
    """Puts lines between the markers ``name`` of ``docs/results.md``, in the place of the old.

    Raises:
        ValueError: the page does not have the markers.
    """
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- figures:begin {name} -->\n", "<!-- figures:end -->"
    pattern = rf"({re.escape(begin)}).*?({re.escape(end)})"
    new, count = re.subn(
        pattern, lambda m: m[1] + "\n".join(lines) + "\n" + m[2], page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{PAGE}: the page must have the line {begin.strip()!r} once")
    PAGE.write_text(new, encoding="utf-8")
