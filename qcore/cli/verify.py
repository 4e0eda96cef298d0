"""``qcore verify``: whether an artifact gives here what it gave where it was saved."""

import argparse

from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, note, only_stderr, print_json, print_table

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    """Declare ``verify``."""
    parser = subparsers.add_parser(
        "verify",
        help="run an artifact on its golden inputs and compare; exits 1 when anything differs",
        description="Check every byte of an artifact, run its programs on the inputs that it "
        "brings, and compare the result of each layer with what it was when it was saved.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the artifact")
    parser.add_argument(
        "--backend", metavar="NAME", default="reference", help="what to run it on (reference)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_plugin_options(parser)
    parser.set_defaults(handler=_verify)


def _verify(args: argparse.Namespace) -> ExitCode:
    import attrs

    from ..artifact import verify

    with only_stderr():
        result = verify(args.folder, args.backend, host=host_from(args))
    if args.json:
        print_json({"equal": result.equal, **attrs.asdict(result)})
    else:
        print_table(
            ("LAYER", "VALUES", "DIFFERING", "LARGEST DIFFERENCE"),
            [
                (
                    f"{check.program}: {check.name}" if check.program else check.name,
                    str(check.compared),
                    "some" if check.differing is None else str(check.differing),
                    "unknown" if check.largest is None else f"{check.largest:g}",
                )
                for check in result.checks
            ],
        )
    first = result.first
    if first is not None:
        note(f"not equal on backend {result.backend!r}; the first to differ is {first.name!r}")
        return ExitCode.FAILED
    return ExitCode.OK
