"""The command line: ``qcore VERB ...``.

Each verb, or family of verbs, is a module of this package with a function ``register(subparsers)``
that declares its arguments and sets ``handler``, a function from the parsed arguments to an
:class:`~qcore.cli.terminal.ExitCode`. A verb joins by its name in :data:`VERBS`. Modules here
import nothing heavy at the top; a handler imports what it needs, so that ``qcore --help`` stays
quick.

Data goes to stdout, everything else to stderr.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import QcoreError, RecipeError
from .options import add_plugin_options
from .terminal import ExitCode, note

__all__ = ["VERBS", "main"]

VERBS = ("recipes", "inspect", "verify", "compare", "bench", "plugins", "doctor")
"""Modules of this package, in the order of ``qcore --help``."""

_EPILOG = """\
exit codes:
  0 fine, 1 failed, 2 wrong usage, 3 degraded (something installed does not work)

environment:
  QCORE_PLUGINS   names of the only plug-ins to use, with commas between; empty: none
  QCORE_PROGRESS  how progress is shown: auto (the default), plain or off
  QCORE_CACHE     folder of trained float models; by default in the user's cache
  QCORE_DATA      folder of data sets, such as fashion-mnist/; by default in the user's cache
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments without the program's name; by default those of the process.

    Returns:
        The exit code.
    """
    try:
        try:
            code = _run(argv)
            # What is still in the buffer may find the pipe closed; better here than at exit.
            sys.stdout.flush()
        except RecipeError as error:
            note(f"error: {error}")
            return ExitCode.USAGE
        except QcoreError as error:
            note(f"error: {error}")
            return ExitCode.FAILED
        except KeyboardInterrupt:
            note("interrupted")
            return 130
    except BrokenPipeError:
        _forget_stdout()
        return ExitCode.FAILED
    return code


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else ExitCode.FAILED
    if "handler" not in args:
        # The help of the verb that was left incomplete, not of the whole.
        getattr(args, "parser", parser).print_help(sys.stderr)
        return ExitCode.USAGE
    return int(args.handler(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qcore",
        description="Quantize PyTorch models: Float -> QFloat -> Q.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the version of qcore and exit"
    )
    add_plugin_options(parser)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB")
    for verb in VERBS:
        import_module(f".{verb}", __name__).register(subparsers)
    return parser


class _Version(argparse.Action):
    """Like argparse's own, but looks the version up only when it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        from ..versions import installed_version

        print(f"qcore {installed_version() or '(not installed)'}")
        parser.exit()


def _forget_stdout() -> None:
    """Stop the interpreter from complaining, when it ends, that nobody reads its output."""
    # A stream in memory has no descriptor, and nothing to complain about.
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
