"""``qcore.benchmark``: latency, throughput and memory of recipes and artifacts, as ratios."""

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch

from ..errors import BackendError, RecipeError
from ..host import default_host
from ..progressbar import progress
from ..recipe import Recipe
from .processes import EngineProcess
from .profiling import OperationShare
from .rounds import Ratio, Timing, take_turns
from .targets import FLOAT, Target, open_target

if TYPE_CHECKING:
    from ..host import PluginHost

__all__ = ["BenchmarkResult", "Machine", "Measurement", "benchmark"]

_ENGINES = __name__.rpartition(".")[0] + ".engines"


@attrs.frozen(kw_only=True)
class Machine:
    """What figures were measured on.

    Args:
        torch: its version.
        instruction_set: what torch's kernels use, such as ``"AVX512 VNNI AMX"``.
        cores: that this process may use.
        device: ``"cpu"``, or the name of the accelerator.
    """

    torch: str
    instruction_set: str
    cores: int
    device: str


@attrs.frozen(kw_only=True)
class Measurement:
    """One engine in one setting.

    Args:
        target: the recipe or artifact.
        engine: ``"float32"`` or the name of a backend.
        batch, threads: the setting.
        timing: its runs; None if it failed.
        speedup: how many times as fast as the base; None if one of the two failed.
        memory_bytes: growth of the process's resident memory by the engine, up to the peak while it
            ran; on an accelerator the peak that torch allocated there.
        operations: what each operation takes, if that was asked for.
        failure: why there are no figures.
    """

    target: str
    engine: str
    batch: int
    threads: int
    timing: Timing | None = None
    speedup: Ratio | None = None
    memory_bytes: int | None = None
    operations: tuple[OperationShare, ...] = ()
    failure: str | None = None

    @property
    def items_per_s(self) -> float | None:
        """Throughput: inputs of the batch a second."""
        return None if self.timing is None else self.batch * self.timing.runs_per_s

    def to_data(self) -> dict[str, Any]:
        """Plain data; of the runs only the figures."""
        timing = self.timing
        return {
            "target": self.target,
            "engine": self.engine,
            "batch": self.batch,
            "threads": self.threads,
            "runs": None if timing is None else timing.runs,
            "median_s": None if timing is None else timing.median_s,
            "p99_s": None if timing is None else timing.p99_s,
            "items_per_s": self.items_per_s,
            "speedup": None if self.speedup is None else attrs.asdict(self.speedup),
            "memory_bytes": self.memory_bytes,
            "failure": self.failure,
            **(
                {"operations": [attrs.asdict(o) for o in self.operations]}
                if self.operations
                else {}
            ),
        }


@attrs.frozen(kw_only=True)
class BenchmarkResult:
    """What :func:`benchmark` measured.

    Args:
        machine: where.
        base: what speedups are relative to, by target.
        measurements: by batch, then threads, then target, then engine.
    """

    machine: Machine
    base: dict[str, str]
    measurements: tuple[Measurement, ...]

    def to_data(self) -> dict[str, Any]:
        """Plain data, as ``qcore bench --json`` prints it."""
        return {
            "machine": attrs.asdict(self.machine),
            "base": self.base,
            "measurements": [m.to_data() for m in self.measurements],
        }


def benchmark(
    *targets: "str | Path | Recipe",
    backends: Sequence[str] = (),
    batches: Sequence[int] = (1, 32),
    threads: Sequence[int] = (1,),
    device: str = "cpu",
    rounds: int = 5,
    turn_s: float = 0.2,
    profile: bool = False,
    host: "PluginHost | None" = None,
) -> BenchmarkResult:
    """Speed and memory of recipes and artifacts, on backends, batch sizes and threads.

    In each setting every engine runs in a fresh process of its own, and all take turns. A recipe's
    float model always runs too: it is what its speedups are relative to. Its program is made for
    each backend by that backend's contract, of the model as built; no stage runs, because speed
    does not depend on the values of weights. Artifacts have no float model: the base is the first
    backend of the first one.

    Args:
        targets: recipes, paths of recipes, folders of artifacts.
        backends: names; by default the one that each recipe, or the recipe of each artifact, names.
        batches: batch sizes.
        threads: numbers of threads; more than there are cores is allowed.
        device: ``"cpu"`` or ``"cuda"``: where float models and inputs lie, and programs of backends
            that leave them where they are.
        rounds: turns of each engine.
        turn_s: about how many seconds a turn takes; it is one run at least.
        profile: measure the share of each operation, too.
        host: plug-ins; by default those installed. Plug-ins registered in this process only are
            unknown to the others.

    Returns:
        BenchmarkResult; an engine that fails is a measurement with the reason.

    Raises:
        ArtifactError, PluginError, RecipeError: a target can't be read, there is no such backend,
            or a number is below 1.
        BackendError: the device is not there.
    """
    host = host or default_host()
    for what, numbers in (("batches", batches), ("threads", threads), ("rounds", [rounds])):
        if not numbers:
            raise RecipeError(f"{what}: there is none; give at least one number")
        for number in numbers:
            if type(number) is not int or number < 1:
                raise RecipeError(f"{what}: got {number!r}; use whole numbers, 1 or more")
    if not turn_s > 0:
        raise RecipeError(f"turn_s: got {turn_s}; use a time above 0 s")
    _check_device(device)
    for name in backends:
        host.find("backend", name)
    blocked = [info.plugin for info in host.plugins(activate=False) if info.status == "blocked"]
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="qcore-bench-") as folder:
        opened = _open(targets, backends, Path(folder), host)
        settings = list(itertools.product(batches, threads))
        with contextlib.closing(progress(settings, label="benchmark")) as shown:
            for batch, count in shown:
                order = {"batch": batch, "threads": count, "device": device, "block": blocked}
                measurements += _measure(opened, order, rounds, turn_s, profile)
    return BenchmarkResult(
        machine=_machine(device),
        base={target: ": ".join(base) for target, base in _bases(opened).items()},
        measurements=tuple(measurements),
    )


def _check_device(device: str) -> None:
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise RecipeError(f"device: got {device!r}; use 'cpu', 'cuda' or 'cuda:N'")
    index = int(device.partition(":")[2] or 0)
    if device != "cpu" and index >= torch.cuda.device_count():
        raise BackendError(
            f"device {device!r} is not there: torch {torch.__version__} finds "
            f"{torch.cuda.device_count()} CUDA devices; use 'cpu'"
        )


def _open(
    targets: Sequence["str | Path | Recipe"],
    backends: Sequence[str],
    folder: Path,
    host: "PluginHost",
) -> list[Target]:
    if not targets:
        raise RecipeError("benchmark: no target; give a recipe or the folder of an artifact")
    opened: list[Target] = []
    for index, target in enumerate(targets):
        (folder / str(index)).mkdir()
        opened.append(open_target(target, backends, folder / str(index), host=host))
    names = [target.name for target in opened]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"benchmark: target {name!r} is given twice; give it once")
    return opened


_Name = tuple[str, str]
"""Target and engine."""


def _bases(opened: Sequence[Target]) -> dict[str, _Name]:
    """By target, what its speedups are relative to."""
    artifacts = [target for target in opened if not target.has_float]
    return {
        target.name: (
            (target.name, FLOAT)
            if target.has_float
            else (artifacts[0].name, next(iter(artifacts[0].engines)))
        )
        for target in opened
    }


def _measure(
    opened: Sequence[Target], order: dict[str, Any], rounds: int, turn_s: float, profile: bool
) -> list[Measurement]:
    """All engines in one setting."""
    orders: dict[_Name, dict[str, Any]] = {
        (target.name, engine): {**order, **own}
        for target in opened
        for engine, own in target.engines.items()
    }
    failures = {
        (target.name, engine): why for target in opened for engine, why in target.failures.items()
    }
    memory: dict[_Name, int] = {}
    operations: dict[_Name, tuple[OperationShare, ...]] = {}
    threads = str(order["threads"])
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                EngineProcess(name[1], ["-m", _ENGINES], environment=environment)
            )
            for name in orders
        }

        def ask(names: Iterable[_Name], do: str, **more: Any) -> Iterator[tuple[_Name, Any]]:
            """Gives all the order first, so that they work on it at the same time."""
            asked = [name for name in names if name not in failures]
            for name in asked:
                arguments = {**orders[name], **more} if do == "setup" else more
                processes[name].send(do, **arguments)
            for name in asked:
                try:
                    yield name, processes[name].answer()
                except BackendError as error:
                    failures[name] = str(error)

        ready = {name: processes[name] for name, _ in ask(processes, "setup")}
        timings, failed = take_turns(ready, rounds=rounds, turn_s=turn_s)
        failures.update(failed)
        for name, answer in ask(timings, "memory"):
            memory[name] = answer["bytes"]
        if profile:
            # One at a time: they would slow each other down.
            for name in timings:
                for _, answer in ask([name], "setup", profile=True):
                    rows = answer["facts"]["operations"]
                    operations[name] = tuple(OperationShare(**row) for row in rows)
    bases = _bases(opened)

    def measurement(name: _Name) -> Measurement:
        timing, base = timings.get(name), timings.get(bases[name[0]])
        return Measurement(
            target=name[0],
            engine=name[1],
            batch=order["batch"],
            threads=order["threads"],
            timing=timing,
            speedup=None if timing is None or base is None else timing.faster_than(base),
            memory_bytes=memory.get(name),
            operations=operations.get(name, ()),
            failure=failures.get(name),
        )

    return [
        measurement((target.name, engine))
        for target in opened
        for engine in (*target.engines, *target.failures)
    ]


def _machine(device: str) -> Machine:
    features = [torch.backends.cpu.get_cpu_capability()]
    features += ["VNNI"] if torch.cpu._is_vnni_supported() else []
    features += ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    features += [f"(ONEDNN_MAX_CPU_ISA={limit})"] if limit else []
    cores = os.cpu_count() or 1
    return Machine(
        torch=torch.__version__,
        instruction_set=" ".join(features),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores,
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    )
