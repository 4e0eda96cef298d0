"""Arguments that several verbs share."""

import argparse
from typing import TYPE_CHECKING, Any

from ..host import PluginHost
from ..specs import is_name
from ..suggest import did_you_mean
from .terminal import note

if TYPE_CHECKING:
    # Public in all but its name, and generic only for type checkers.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = Any

__all__ = ["Subparsers", "add_plugin_options", "host_from"]


def add_plugin_options(parser: argparse.ArgumentParser) -> None:
    """Let ``-p no:NAME`` stand after a verb as well as before it."""
    # A subparser's values replace those of the main parser, so each has a list of its own.
    parser.add_argument(
        "-p",
        dest=f"blocked_by_{parser.prog.replace(' ', '_')}",
        action="append",
        default=[],
        type=_blocked_name,
        metavar="no:NAME",
        help="block the plug-in NAME: it is never imported (may be repeated)",
    )


def host_from(args: argparse.Namespace, *, strict: bool = False) -> PluginHost:
    """The host that a command works with: ``QCORE_PLUGINS`` and ``-p`` applied."""
    lists = [value for key, value in vars(args).items() if key.startswith("blocked_by_")]
    block = sorted({name for names in lists for name in names})
    host = PluginHost.from_environment(block=block, strict=strict)
    known = {info.plugin for info in host.plugins(activate=False)}
    for name in block:
        if name not in known:
            note(f"warning: -p no:{name}: no such plug-in is installed{did_you_mean(name, known)}")
    return host


def _blocked_name(text: str) -> str:
    prefix, _, name = text.partition(":")
    if prefix != "no" or not is_name(name):
        raise argparse.ArgumentTypeError(f"{text!r}: write no:NAME to block the plug-in NAME")
    return name
