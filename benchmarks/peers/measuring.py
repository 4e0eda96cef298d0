"""Engines in turns, each in a process of its own, and what came of it."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from building import BUILD, folder_of, version_of
from engines import BASE, ENGINES, NETWORKS
from table import Cell

from qcore import QcoreError
from qcore.benchmarking.processes import EngineProcess
from qcore.benchmarking.rounds import Ratio, Timing, take_turns

__all__ = ["Result", "machine_line", "measure", "show"]

_WORKER = str(Path(__file__).resolve().parent / "worker.py")

_UNSET = ("OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT", "GOMP_CPU_AFFINITY")
_UNSET += ("KMP_BLOCKTIME", "KMP_AFFINITY", "ONEDNN_MAX_CPU_ISA")
"""Variables that make engines faster or slower; all of them run without."""


@attrs.frozen(kw_only=True)
class Result(Cell):
    """A cell of the table and how it was measured.

    Args:
        timing: its runs; None if it failed.
        by_round: times as fast as float32 torch eager, ``ratio`` being the median; None if one of
            the two failed.
    """

    timing: Timing | None = None
    by_round: Ratio | None = None


def measure(
    network: str,
    engines: Sequence[str],
    *,
    batches: Sequence[int],
    threads: int,
    rounds: int,
    turn_s: float,
    broken: Mapping[tuple[str, str], str],
) -> Iterator[list[Result]]:
    """Measures engines on a network with one number of threads.

    Args:
        network, engines: names; the base is among the engines.
        batches: sizes, one after the other in the same processes.
        threads: of each engine.
        rounds, turn_s: as for :func:`qcore.benchmarking.rounds.take_turns`.
        broken: engines that could not be built, and why.

    Yields:
        The engines in the order given, for each batch.
    """
    environment: dict[str, str | None] = dict.fromkeys(_UNSET)
    environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(threads)
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(BUILD / "inductor")
    reasons = {engine: broken[network, engine] for engine in engines if (network, engine) in broken}
    with contextlib.ExitStack() as stack:
        processes: dict[str, EngineProcess] = {}
        for engine in engines:
            if engine in reasons:
                continue
            serve = [_WORKER, "serve", network, engine, str(folder_of(network, engine))]
            process = EngineProcess(
                ENGINES[engine].title, [*serve, str(threads)], environment=environment
            )
            processes[engine] = stack.enter_context(process)
        for batch in batches:
            failures = dict(reasons)
            sqnr_db: dict[str, float] = {}
            for process in processes.values():
                process.send("setup", batch=batch)
            for engine, process in processes.items():
                try:
                    sqnr_db[engine] = process.answer()["facts"]["sqnr_db"]
                except QcoreError as error:
                    failures[engine] = str(error)
            ready = {engine: processes[engine] for engine in sqnr_db}
            timings, failed = take_turns(ready, rounds=rounds, turn_s=turn_s)
            failures.update(failed)
            base = timings.get(BASE)
            yield [
                _result(
                    engine,
                    timings.get(engine),
                    base,
                    network=NETWORKS[network],
                    batch=batch,
                    threads=threads,
                    sqnr_db=sqnr_db.get(engine),
                    failure=failures.get(engine),
                )
                for engine in engines
            ]


def _result(engine: str, timing: Timing | None, base: Timing | None, **fields: Any) -> Result:
    by_round = timing.faster_than(base) if timing is not None and base is not None else None
    ratio = None if by_round is None else by_round.median
    title = ENGINES[engine].title
    return Result(engine=title, timing=timing, ratio=ratio, by_round=by_round, **fields)


def show(results: Sequence[Result]) -> None:
    """Prints the engines in one setting."""
    first = results[0]
    print(f"\n{first.network}, batch {first.batch}, threads {first.threads}")
    print(f"{'':29}{'median ms':>10}{'p99 ms':>10}{'x float32':>11}{'by round':>14}{'SQNR dB':>9}")
    for result in results:
        if result.timing is None or result.by_round is None:
            print(f"{result.engine:29}-  {result.failure or 'no float32 to compare with'}")
            continue
        by_round = f"{result.by_round.low:.2f}-{result.by_round.high:.2f}"
        print(
            f"{result.engine:29}{result.timing.median_s * 1e3:10.3f}"
            f"{result.timing.p99_s * 1e3:10.3f}{result.ratio:11.2f}{by_round:>14}"
            f"{result.sqnr_db:9.1f}"
        )
    print(end="", flush=True)


def machine_line() -> str:
    """Processor and versions, one line."""
    names = {"qcore-quant": "qcore"}
    distributions = ["qcore-quant", "torch"]
    distributions += [d for entry in ENGINES.values() for d in entry.distributions]
    found = {d: version_of(d) for d in distributions}
    versions = [f"{names.get(d, d)} {version}" for d, version in found.items() if version]
    features = [torch.backends.cpu.get_cpu_capability()]
    features += ["VNNI"] if torch.cpu._is_vnni_supported() else []
    features += ["AMX"] if torch.cpu._is_amx_tile_supported() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores with {', '.join(features)}; {', '.join(versions)}."
