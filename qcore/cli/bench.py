"""``qcore bench``: speed and memory of recipes and artifacts."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, note, only_stderr, print_json, print_table

if TYPE_CHECKING:
    from ..benchmarking.profiling import OperationShare
    from ..benchmarking.suite import BenchmarkResult, Measurement

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    """Declare ``bench``."""
    parser = subparsers.add_parser(
        "bench",
        help="measure latency, throughput and memory on backends, as ratios to float32",
        description="Run recipes and artifacts on backends, and the float model of each recipe, "
        "each in a fresh process. All take turns, so that what slows the machine down slows them "
        "alike; figures to quote are the ratios. No stage of a recipe runs: speed does not depend "
        "on the values of weights. Exits 1 if an engine failed.",
    )
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET", help="a recipe file or the folder of an artifact"
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        default=[],
        metavar="NAME",
        help="what to run them on (the backend that the recipe names)",
    )
    parser.add_argument(
        "--batch", nargs="+", type=_positive, default=[1, 32], metavar="N", help="sizes (1 32)"
    )
    parser.add_argument(
        "--threads", nargs="+", type=_positive, default=[1], metavar="N", help="numbers (1)"
    )
    parser.add_argument(
        "--device", default="cpu", metavar="DEVICE", help="where models and inputs lie (cpu)"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=5, metavar="N", help="turns of each engine (5)"
    )
    parser.add_argument(
        "--turn",
        type=_seconds,
        default=0.2,
        metavar="S",
        help="seconds of a turn, which is one run at least (0.2)",
    )
    parser.add_argument(
        "--profile", action="store_true", help="print the share of each operation, too"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_plugin_options(parser)
    parser.set_defaults(handler=_bench)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of seconds above 0")
    return seconds


def _bench(args: argparse.Namespace) -> ExitCode:
    from ..benchmarking.suite import benchmark

    with only_stderr():
        result = benchmark(
            *args.targets,
            backends=args.backends,
            batches=args.batch,
            threads=args.threads,
            device=args.device,
            rounds=args.rounds,
            turn_s=args.turn,
            profile=args.profile,
            host=host_from(args),
        )
    if args.json:
        print_json(result.to_data())
    else:
        _show(result)
    cores = result.machine.cores
    if max(args.threads) > cores:
        note(f"warning: {max(args.threads)} threads on {cores} cores wait for each other")
    failed = [m for m in result.measurements if m.failure is not None]
    for m in failed:
        note(f"{m.target}, batch {m.batch}, threads {m.threads}: {m.failure}")
    return ExitCode.FAILED if failed else ExitCode.OK


def _show(result: "BenchmarkResult") -> None:
    machine = result.machine
    print_table(
        ("torch", machine.torch),
        [
            ("processor", f"{machine.instruction_set}, {machine.cores} cores"),
            ("device", machine.device),
            *((f"base of {target}", base) for target, base in result.base.items()),
        ],
    )
    print()
    header = ("TARGET", "ENGINE", "BATCH", "THREADS", "MEDIAN ms", "P99 ms", "ITEMS/s")
    rows = [
        (m.target, m.engine, str(m.batch), str(m.threads), *_figures(m))
        for m in result.measurements
    ]
    print_table((*header, "TIMES BASE", "BY ROUND", "MEMORY MiB"), rows)
    for m in result.measurements:
        if m.operations:
            print(f"\n{m.target} on {m.engine}, batch {m.batch}, threads {m.threads}")
            _show_operations(m.operations)


def _show_operations(operations: "Sequence[OperationShare]") -> None:
    kernels: dict[str, list[OperationShare]] = {}
    for row in operations:
        kernels.setdefault(row.kernel, []).append(row)
    totals = [
        (sum(r.share for r in rows), sum(r.seconds for r in rows), len(rows), kernel)
        for kernel, rows in kernels.items()
    ]
    print_table(
        ("SHARE", "ms", "OPERATIONS", "KERNEL"),
        [
            (f"{share:.1%}", f"{seconds * 1e3:.3f}", str(count), kernel)
            for share, seconds, count, kernel in sorted(totals, reverse=True)
        ],
    )
    if any(row.layer for row in operations):
        print()
        print_table(
            ("SHARE", "ms", "LAYER", "OPERATION", "KERNEL"),
            [
                (f"{r.share:.1%}", f"{r.seconds * 1e3:.3f}", r.layer, r.operation, r.kernel)
                for r in operations
            ],
        )


def _figures(m: "Measurement") -> tuple[str, ...]:
    if m.timing is None or m.items_per_s is None:
        return ("failed", "", "", "", "", "")
    return (
        f"{m.timing.median_s * 1e3:.3f}",
        f"{m.timing.p99_s * 1e3:.3f}",
        f"{m.items_per_s:.1f}",
        "" if m.speedup is None else f"{m.speedup.median:.2f}",
        "" if m.speedup is None else f"{m.speedup.low:.2f} to {m.speedup.high:.2f}",
        "" if m.memory_bytes is None else f"{m.memory_bytes / 2**20:.1f}",
    )
