"""Where the time of a run goes: operation by operation."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import fx, nn

from ..artifact.replay import input_leaves
from ..backend import Lowered, lowered_info
from ..conversion import ProgramInfo

__all__ = ["OperationShare", "profile_operations"]

_OUTSIDE = "(outside of the programs)"
_PROFILE_S = 1.0


@attrs.frozen(kw_only=True)
class OperationShare:
    """What one operation takes of a run.

    Args:
        layer: the layer that it computes, or the node of the program; empty if only the kernel is
            known.
        operation: what it is in the program; empty if only the kernel is known.
        kernel: what ran it.
        seconds: in one run, the median of several, or the mean where torch's profiler counts.
        share: of the time of all operations, 0 to 1.
    """

    layer: str
    operation: str
    kernel: str
    seconds: float
    share: float


def profile_operations(
    model: nn.Module, run: Callable[[], object], *, synchronize: Callable[[], None] | None = None
) -> list[OperationShare]:
    """The share of each operation, the largest first.

    Programs that are graphs run node by node; the time between two nodes, which only this way of
    running costs, is left out. For anything else (a float model, or where a backend made something
    of its own) the operations that torch's profiler sees are listed, each with all its calls.

    Args:
        model: the model.
        run: runs it once.
        synchronize: waits for the device; None where nothing runs behind the caller's back.
    """
    run()
    start = time.perf_counter()
    run()
    repeats = min(max(3, int(_PROFILE_S / (time.perf_counter() - start))), 100)
    tables = lowered_info(model)
    graphs = [(path, model.get_submodule(path)) for path in tables]
    if not graphs or not all(isinstance(graph, fx.GraphModule) for _, graph in graphs):
        return _of_profiler(run, repeats)
    timers = [
        _NodeTimer(graph, path, tables[path], synchronize or (lambda: None))
        for path, graph in graphs
        if isinstance(graph, fx.GraphModule)
    ]
    for timer in timers:
        timer.program.forward = timer.forward
    try:
        outside = [_outside(run, timers) for _ in range(repeats)]
    finally:
        for timer in timers:
            del timer.program.forward
    rows = [row for timer in timers for row in timer.rows()]
    if all(timer.program is not model for timer in timers):
        rows.append((_OUTSIDE, "", "", statistics.median(outside)))
    return _shares(rows)


def _outside(run: Callable[[], object], timers: Sequence["_NodeTimer"]) -> float:
    """One run; the seconds of it that were not in programs."""
    for timer in timers:
        timer.inside = 0.0
        timer.repeats.append({})
    start = time.perf_counter()
    run()
    return time.perf_counter() - start - sum(timer.inside for timer in timers)


_Row = tuple[str, str, str, float]
"""Layer, operation, kernel, and seconds in one run."""


class _NodeTimer(fx.Interpreter):
    """Runs a lowered program node by node and takes the seconds of each.

    Attributes:
        repeats: for each run, the seconds by node; a program may be called several times in one.
        inside: seconds of the last run in this program.
    """

    def __init__(
        self, program: fx.GraphModule, path: str, table: Lowered, synchronize: Callable[[], None]
    ) -> None:
        super().__init__(program)
        self.program = program
        self.path = path
        self.table = table
        self.synchronize = synchronize
        self.repeats: list[dict[fx.Node, float]] = []
        self.inside = 0.0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the program's own forward does, timed."""
        start = time.perf_counter()
        leaves = input_leaves(self.program, args, kwargs)
        result = self.run(*leaves, enable_io_processing=False)
        self.inside += time.perf_counter() - start
        return self.program.graph.process_outputs(result)

    def run_node(self, n: fx.Node) -> Any:
        if n.op not in ("call_function", "call_module"):
            return super().run_node(n)
        start = time.perf_counter()
        result = super().run_node(n)
        self.synchronize()
        seconds = self.repeats[-1]
        seconds[n] = seconds.get(n, 0.0) + time.perf_counter() - start
        return result

    def rows(self) -> Iterable[_Row]:
        """What was timed."""
        info = self.program.meta.get("qcore")
        layers = info.layers if isinstance(info, ProgramInfo) else ()
        names = {layer.node: layer.name for layer in layers}
        for node in self.repeats[0]:
            origin = self._origin(node)
            layer = names.get(origin)
            if layer is None and len(node.users) == 1:
                # A layer of several operations is known by its last one.
                layer = names.get(self._origin(next(iter(node.users))))
            yield (
                layer or (f"{self.path}: {origin}" if self.path else origin),
                self._operation(node),
                self.table.kernels.get(origin) or self._other_kernel(node),
                statistics.median(seconds[node] for seconds in self.repeats),
            )

    def _origin(self, node: fx.Node) -> str:
        """The node of the program that a node of the lowered one was made from.

        A backend's module carries the name of the node at its end.
        """
        known = (*self.table.kernels, *self.table.reference)
        if node.op == "call_module" and node.name not in known:
            target = str(node.target)
            found = [name for name in known if target == name or target.endswith(f"_{name}")]
            return max(found, key=len, default=node.name)
        return node.name

    def _operation(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.program.get_submodule(str(node.target))).__name__
        if isinstance(node.target, torch._ops.OpOverload):
            return str(node.target).removesuffix(".default")
        return getattr(node.target, "__name__", str(node.target))

    @staticmethod
    def _other_kernel(node: fx.Node) -> str:
        return "reference" if getattr(node.target, "namespace", "") == "qcore" else "torch"


def _of_profiler(run: Callable[[], object], repeats: int) -> list[OperationShare]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(repeats):
            run()
    rows: list[_Row] = []
    for event in profiler.key_averages():
        # On a device the time of the host is that of giving orders.
        microseconds = event.self_device_time_total or event.self_cpu_time_total
        rows.append(("", "", event.key, microseconds / 1e6 / repeats))
    return _shares(rows)


def _shares(rows: Sequence[_Row]) -> list[OperationShare]:
    whole = sum(seconds for *_, seconds in rows)
    shares = [
        OperationShare(
            layer=layer,
            operation=operation,
            kernel=kernel,
            seconds=seconds,
            share=seconds / whole if whole else 0.0,
        )
        for layer, operation, kernel, seconds in rows
    ]
    return sorted(shares, key=lambda row: row.seconds, reverse=True)
