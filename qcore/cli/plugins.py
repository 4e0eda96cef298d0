"""``qcore plugins``: what is installed, what it brings, whether it works; and a new one."""

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import PluginError
from ..host import PluginHost
from ..missing import MissingExtraError
from ..plugin_info import PluginInfo
from ..scaffold import KINDS, distribution_name, new_plugin
from ..specs import AlgorithmSpec, CheckedSpec, ConverterSpec, FusionSpec, PresetSpec, Spec
from ..suggest import did_you_mean
from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, note, only_stderr, print_json, print_table, printable

__all__ = ["register"]

_NOT_IMPORTED = "(blocked: never imported)"


def register(subparsers: Subparsers) -> None:
    """Declare ``plugins list``, ``plugins info``, ``plugins check`` and ``plugins new``."""
    family = subparsers.add_parser("plugins", help="list, describe, check and begin plug-ins")
    family.set_defaults(parser=family)
    verbs = family.add_subparsers(title="verbs", metavar="VERB")

    parser = verbs.add_parser("list", help="all plug-ins; exits 3 when one does not work")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--strict", action="store_true", help="fail at the first broken plug-in")
    add_plugin_options(parser)
    parser.set_defaults(handler=_list)

    parser = verbs.add_parser("info", help="one plug-in and its contributions")
    parser.add_argument("name", metavar="NAME", help="name of the plug-in")
    parser.add_argument("--json", action="store_true", help="print a JSON array, as list does")
    add_plugin_options(parser)
    parser.set_defaults(handler=_info)

    parser = verbs.add_parser(
        "check",
        help="load everything that plug-ins contribute; exits 1 when anything fails",
        description="Load the target of every contribution and look up every name in a preset. "
        "Blocked plug-ins and missing extras are reported, and are failures only of a plug-in that "
        "is named here.",
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="plug-ins; all by default")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    add_plugin_options(parser)
    parser.set_defaults(handler=_check)

    parser = verbs.add_parser(
        "new",
        help="write a new plug-in that works, to change from there",
        description="Write a distribution with one part that keeps the contracts of its kind: its "
        "entry point, a module, a test file of a few lines and a README.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the plug-in, such as acme")
    parser.add_argument("--kind", required=True, choices=KINDS, help="what it brings")
    parser.add_argument(
        "--into", metavar="FOLDER", type=Path, help="new folder for it (default qcore-NAME)"
    )
    add_plugin_options(parser)
    parser.set_defaults(handler=_new)


def _list(args: argparse.Namespace) -> ExitCode:
    with only_stderr():
        infos = host_from(args, strict=args.strict).plugins()
    if args.json:
        print_json([info.as_dict() for info in infos])
    else:
        print_table(
            ("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "CONTRIBUTES"),
            [(i.plugin, i.distribution, i.version, i.status, _brief(i)) for i in infos],
        )
    return _health(infos)


def _info(args: argparse.Namespace) -> ExitCode:
    with only_stderr():
        infos = _named(host_from(args), [args.name])
    if args.json:
        print_json([info.as_dict() for info in infos])
        return _health(infos)
    for index, info in enumerate(infos):
        if index:
            print()
        print_table(
            ("plugin", info.plugin),
            [
                ("distribution", f"{info.distribution} {info.version}"),
                ("entry point", info.entry_point),
                ("status", info.status),
                *([("failure", info.failure)] if info.failure else []),
            ],
        )
        if info.contributions:
            print()
            print_table(
                ("KIND", "NAME", "TARGET", "SUMMARY"),
                [(c.kind, c.name, c.target, c.summary) for c in info.contributions],
            )
        checked = [c for c in info.contributions if isinstance(c, CheckedSpec)]
        deviations = [(c.name, law, reason) for c in checked for law, reason in c.deviations]
        if deviations:
            print()
            print_table(("NAME", "DEVIATES FROM", "REASON"), deviations)
    return _health(infos)


def _check(args: argparse.Namespace) -> ExitCode:
    with only_stderr():
        host = host_from(args)
        infos = _named(host, args.names) if args.names else host.plugins()
        rows = [row for info in infos for row in _check_plugin(host, info)]
    if args.json:
        print_json(rows)
    else:
        _print_check(infos, rows)
    tolerated = ("ok",) if args.names else ("ok", "unavailable", "blocked")
    failures = sum(row["status"] not in tolerated for row in rows)
    if failures:
        note(f"{failures} of {len(rows)} checks failed")
        return ExitCode.FAILED
    return ExitCode.OK


def _new(args: argparse.Namespace) -> ExitCode:
    files = new_plugin(args.name, args.kind, args.into, host=host_from(args))
    for file in files:
        print(f"wrote {printable(str(file))}")
    folder = shlex.quote(str(args.into or distribution_name(args.name)))
    print("next:")
    print(f"  python -m pip install -e {folder}")
    print(f"  qcore plugins check {args.name}")
    print(f"  python -m pytest {folder}")
    return ExitCode.OK


def _check_plugin(host: PluginHost, info: PluginInfo) -> list[dict[str, str | None]]:
    """A row for the plug-in itself and one for each contribution."""
    row = {
        "plugin": info.plugin,
        "kind": "plugin",
        "name": info.plugin,
        "target": info.entry_point,
        "status": info.status,
        "failure": info.failure,
    }
    return [
        row,
        *(_check_spec(host, spec) | {"plugin": info.plugin} for spec in info.contributions),
    ]


def _check_spec(host: PluginHost, spec: Spec) -> dict[str, str | None]:
    status, failure = "ok", None
    try:
        host.load(spec)
        if isinstance(spec, FusionSpec):
            host.load_check(spec)
        if isinstance(spec, FusionSpec | ConverterSpec | AlgorithmSpec):
            host.load_examples(spec)
        if isinstance(spec, PresetSpec):
            _check_preset(host, spec)
    except MissingExtraError as error:
        status, failure = "unavailable", str(error)
    except PluginError as error:
        status, failure = "failed", str(error)
    return {
        "plugin": None,
        "kind": spec.kind,
        "name": spec.name,
        "target": spec.target,
        "status": status,
        "failure": failure,
    }


def _check_preset(host: PluginHost, preset: PresetSpec) -> None:
    for role in ("weight", "activation"):
        quantizer = getattr(preset.qconfig, role)
        if quantizer is None:
            continue
        for kind in ("scheme", "observer", "fake_quant"):
            name = getattr(quantizer, kind)
            if not isinstance(name, str):
                continue
            try:
                host.find(kind, name)
            except PluginError as error:
                raise PluginError(f"preset {preset.name!r}, {role}.{kind}: {error}") from None


def _print_check(infos: Sequence[PluginInfo], rows: Sequence[dict[str, str | None]]) -> None:
    lines = []
    for info in infos:
        own = [row for row in rows if row["plugin"] == info.plugin and row["kind"] != "plugin"]
        loaded = sum(row["status"] == "ok" for row in own)
        detail = (
            f"{loaded} of {len(own)} contributions load" if info.status == "ok" else _brief(info)
        )
        lines.append((info.plugin, info.distribution, info.version, info.status, detail))
    print_table(("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "CHECK"), lines)
    problems = [row for row in rows if row["kind"] != "plugin" and row["status"] != "ok"]
    if problems:
        print()
        print_table(
            ("CONTRIBUTION", "STATUS", "PROBLEM"),
            [
                (f"{row['plugin']}:{row['name']}", row["status"] or "", row["failure"] or "")
                for row in problems
            ],
        )


def _named(host: PluginHost, names: Sequence[str]) -> list[PluginInfo]:
    infos = host.plugins()
    known = {info.plugin for info in infos}
    for name in names:
        if name not in known:
            raise PluginError(
                f"no plug-in is called {name!r}{did_you_mean(name, known)} "
                f"(installed: {', '.join(sorted(known)) or 'none'})"
            )
    return [info for info in infos if info.plugin in names]


def _brief(info: PluginInfo) -> str:
    """The last column of a list: what a plug-in brings, or why it brings nothing."""
    if info.status == "blocked":
        return _NOT_IMPORTED
    if info.failure:
        return info.failure
    counts = Counter(spec.kind for spec in info.contributions)
    return ", ".join(f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts.items()) or "nothing"


def _health(infos: Sequence[PluginInfo]) -> ExitCode:
    return ExitCode.DEGRADED if any(info.degraded for info in infos) else ExitCode.OK
