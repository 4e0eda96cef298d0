"""``qcore compare``: where and why two executions of one quantized model part."""

import argparse
from typing import TYPE_CHECKING

from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, note, only_stderr, print_json, print_table, printable

if TYPE_CHECKING:
    from ..comparison import Comparison, Difference, OperationComparison

__all__ = ["register"]

_BINS = 4
"""Bins of a histogram that a row has room for."""


def register(subparsers: Subparsers) -> None:
    """Declare ``compare``."""
    parser = subparsers.add_parser(
        "compare",
        help="find where two phases, backends or artifacts part, and why; exits 1 if they do",
        description="Run A and B over the same inputs and compare the value of every operation, "
        "as it comes and with the inputs that A had, so that an operation that differs by itself "
        "stands out from those that inherit a difference. A and B are each a recipe file or the "
        "folder of an artifact; behind an @ may stand a phase (float, qfloat, q) or a backend: "
        "recipe.toml@qfloat, artifact@cpu. Exits 1 if any integer differs.",
    )
    parser.add_argument("a", metavar="A", help="recipe or artifact, with @PHASE or @BACKEND")
    parser.add_argument("b", metavar="B", help="the same")
    parser.add_argument(
        "--inputs",
        metavar="FILE",
        help="a .npy or .safetensors file (the test inputs of a recipe, else the golden inputs)",
    )
    parser.add_argument(
        "--samples", type=_positive, metavar="N", help="how many inputs of a recipe or file (64)"
    )
    parser.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="instead of equality ask for this signal to noise ratio in every operation",
    )
    parser.add_argument(
        "--allow-other-numerics",
        action="store_true",
        help="run a program on a backend that computes by another contract, too",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="run the float stages even if they ran before"
    )
    parser.add_argument("--all", action="store_true", help="list equal operations, too")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_plugin_options(parser)
    parser.set_defaults(handler=_compare)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return int(text)


def _compare(args: argparse.Namespace) -> ExitCode:
    from ..comparison import compare
    from ..comparison.subjects import Opener, inputs_for

    with only_stderr():
        host = host_from(args)
        opener = Opener(
            use_cache=not args.no_cache,
            allow_other_numerics=args.allow_other_numerics,
            host=host,
        )
        a, b = opener.open(args.a), opener.open(args.b)
        batches = inputs_for(a, b, file=args.inputs, samples=args.samples)
        result = compare(a.model, b.model, batches, names=(a.name, b.name), host=host)
    if args.json:
        print_json(result.to_data())
    else:
        _show(result, every=args.all)
    for text in result.notes:
        note(text)
    return ExitCode.OK if _good(result, args.min_sqnr) else ExitCode.FAILED


def _good(result: "Comparison", min_sqnr: float | None) -> bool:
    """Whether the two are as near to each other as was asked for."""
    if min_sqnr is None:
        return result.equal or not result.exact
    return all(_near(operation.free, min_sqnr) for operation in result.operations)


def _near(difference: "Difference", min_sqnr: float) -> bool:
    if difference.sqnr is None:
        # No noise; or no signal, or no number at all.
        return difference.differing == 0
    return difference.sqnr >= min_sqnr


def _show(result: "Comparison", *, every: bool) -> None:
    print(printable(result.verdict()))
    rows = [o for o in result.operations if every or o.free.differing or o.isolated.differing]
    if rows or not result.exact:
        print()
        print_table(
            ("OPERATION", "KIND", "VALUES", "DIFFER", "LSB", "MAX", "SQNR", "ALONE", "CAUSE"),
            [_row(o) for o in (rows if result.exact else result.operations)],
        )
    for side, names in (("A", result.only_a), ("B", result.only_b)):
        if names:
            print()
            print(printable(f"only in {side}, not compared: {', '.join(names)}"))


def _row(operation: "OperationComparison") -> tuple[str, ...]:
    free, alone = operation.free, operation.isolated
    cause = "inherited" if operation.inherited else ""
    if operation.cause is not None:
        cause = f"{operation.cause.name}: {operation.cause}"
    return (
        operation.name,
        operation.operation,
        str(free.compared),
        f"{free.differing} ({_percent(free.share)})" if free.differing else "0",
        _histogram(free),
        "unknown" if free.largest is None else f"{free.largest:.4g}" if free.differing else "",
        "" if free.sqnr is None else f"{free.sqnr:.1f} dB",
        f"{alone.differing} ({_percent(alone.share)})" if alone.differing else "0",
        cause,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _histogram(difference: "Difference") -> str:
    """The largest bins, in their order: ``-1:12 +1:9``."""
    bins = difference.histogram
    most = sorted(bins, key=lambda step: (-bins[step], abs(step)))[:_BINS]
    text = " ".join(f"{step:+d}:{bins[step]}" for step in sorted(most))
    return f"{text} ..." if len(bins) > len(most) else text
