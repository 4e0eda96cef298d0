"""The networks of the field on the fastest engines of the field and on qcore, in one run.

    python benchmarks/peers/run.py [--networks ...] [--engines ...] [--batches 1 32]
        [--threads 1 2] [--rounds 5] [--turn 0.3] [--write] [--missing]

The first run makes an environment of its own (``.venv`` beside this file) from
``requirements.txt``. What engines need of a network, exported and quantized, is made once and kept
in ``build``. Then the engines take turns, each in its own process. Figures are times as fast as
torch eager in float32. An engine that fails, or is not installed, is a row with the reason.

With ``--write`` each setting is written when it is measured, so a run that was interrupted loses
one at most: the same command with ``--missing`` goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import environment
from engines import BASE, ENGINES, NETWORKS

_RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results.md"
_OPTIONAL = "qcore-reference"


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the arguments say; exits 1 if an engine failed."""
    args = _arguments(argv)
    environment.enter()
    # Only the environment has what these import.
    from building import build_all
    from measuring import machine_line, measure, show
    from table import merge, missing

    engines = [name for name in ENGINES if name == BASE or name in args.engines]
    titles = [ENGINES[name].title for name in engines if name != BASE]
    broken = build_all(args.networks, engines, anew=args.rebuild, keep=args.keep)
    if args.build_only:
        return int(bool(broken))
    machine = machine_line()
    print(machine)
    failed = False
    for network in args.networks:
        for threads in args.threads:
            page = _RESULTS.read_text(encoding="utf-8")
            # What can't be built will not come of measuring its row again.
            able = [ENGINES[n].title for n in engines if n != BASE and (network, n) not in broken]
            wanted = [
                batch
                for batch in args.batches
                if not args.missing
                or missing(page, (NETWORKS[network], batch, threads), machine=machine, engines=able)
            ]
            if not wanted:
                continue
            for results in measure(
                network,
                engines,
                batches=wanted,
                threads=threads,
                rounds=args.rounds,
                turn_s=args.turn,
                broken=broken,
            ):
                show(results)
                failed |= any(result.failure is not None for result in results)
                if args.write:
                    page = merge(
                        _RESULTS.read_text(encoding="utf-8"),
                        [result for result in results if result.engine in titles],
                        machine=machine,
                        networks=list(NETWORKS.values()),
                        engines=[entry.title for entry in ENGINES.values()],
                    )
                    _RESULTS.write_text(page, encoding="utf-8")
    return int(failed)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME"
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        default=[name for name in ENGINES if name != _OPTIONAL],
        metavar="NAME",
        help=f"of {', '.join(ENGINES)}; {BASE} always runs",
    )
    parser.add_argument("--batches", nargs="+", type=_positive, default=[1, 32], metavar="N")
    parser.add_argument("--threads", nargs="+", type=_positive, default=[1, 2], metavar="N")
    parser.add_argument(
        "--rounds", type=_positive, default=5, metavar="N", help="turns of each engine"
    )
    parser.add_argument(
        "--turn", type=float, default=0.3, metavar="S", help="seconds of a turn; one run at least"
    )
    parser.add_argument(
        "--write", action="store_true", help="merge the figures into docs/results.md as they come"
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="leave out the rows of docs/results.md that have a figure of every engine already",
    )
    parser.add_argument(
        "--build-only", action="store_true", help="export and quantize, but measure nothing"
    )
    parser.add_argument(
        "--rebuild",
        nargs="+",
        choices=ENGINES,
        default=[],
        metavar="NAME",
        help="engines to export and quantize for anew",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="use what was built before, even if what it was built from has changed",
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
