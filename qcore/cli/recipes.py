"""``qcore plan`` and ``qcore run``: what a recipe would do, and doing it."""

import argparse
import tomllib
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError
from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, note, only_stderr, print_json, print_table

if TYPE_CHECKING:
    from ..recipe import Recipe
    from ..running import RunResult

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    """Declare the two verbs."""
    parser = subparsers.add_parser("plan", help="show what a recipe will quantize, and what not")
    _add_recipe(parser)
    parser.set_defaults(handler=_plan)
    parser = subparsers.add_parser(
        "run", help="run a recipe: train or load, prepare, calibrate, convert, compare, save"
    )
    _add_recipe(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="new folder for the results (default runs/NAME)"
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="run the float stages even if they ran before"
    )
    parser.set_defaults(handler=_run)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace one value of the recipe, such as calibration.samples=256 (may be repeated)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_plugin_options(parser)


def _load(args: argparse.Namespace) -> "Recipe":
    from ..recipe import Recipe

    return Recipe.load(args.recipe, dict(map(_setting, args.settings)))


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {text!r}: write KEY=VALUE, such as seed=1")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        # A bare word is a string, so that no shell quoting is needed.
        return key, value


def _plan(args: argparse.Namespace) -> ExitCode:
    from ..running import plan_with_note

    with only_stderr():
        plan, why = plan_with_note(_load(args), host=host_from(args))
    if why:
        note(f"the plan names operations of Q, not kernels of backend {plan.backend!r}: {why}")
    if args.json:
        print_json(plan.to_data())
    else:
        print(plan)
    return ExitCode.OK


def _run(args: argparse.Namespace) -> ExitCode:
    from ..running import run_recipe

    with only_stderr():
        result = run_recipe(
            _load(args), folder=args.out, use_cache=not args.no_cache, host=host_from(args)
        )
    if args.json:
        print_json(result.to_data())
    else:
        _show(result)
    if result.integers["differing"]:
        note(f"{result.integers['differing']} integers of QFloat and Q differ")
        return ExitCode.FAILED
    return ExitCode.OK


def _show(result: "RunResult") -> None:
    size = result.bytes
    rows = [
        ("Float", f"{result.accuracy['float']:.2f} %", f"{size['float']:,}", ""),
        ("QFloat", f"{result.accuracy['qfloat']:.2f} %", "", ""),
        (
            "Q",
            f"{result.accuracy['q']:.2f} %",
            f"{size['q']:,}",
            f"{result.integers['differing']:,} of {result.integers['compared']:,}",
        ),
    ]
    print_table(("PHASE", "ACCURACY", "BYTES", "INTEGERS THAT DIFFER FROM QFLOAT"), rows)
    seconds = ", ".join(f"{stage} {s:.1f}" for stage, s in result.seconds.items())
    print()
    print_table(
        ("seconds", seconds),
        [
            ("artifact", str(result.artifact)),
            ("plan", str(result.plan)),
            ("result", str(result.folder / "result.json")),
        ],
    )
