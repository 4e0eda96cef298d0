"""``qcore inspect``: what an artifact says about itself."""

import argparse

from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, only_stderr, print_json, print_table

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    """Declare ``inspect``."""
    parser = subparsers.add_parser(
        "inspect",
        help="what an artifact holds: layers, sizes, operations, origins",
        description="Read the manifest of an artifact and print its layers with their schemes and "
        "sizes, the operations of its programs, and the plug-ins that had a part in it.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the artifact")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_plugin_options(parser)
    parser.set_defaults(handler=_inspect)


def _inspect(args: argparse.Namespace) -> ExitCode:
    import attrs

    from ..artifact import ArtifactInfo, inspect_artifact

    with only_stderr():
        info: ArtifactInfo = inspect_artifact(args.folder, host=host_from(args))
    if args.json:
        print_json(attrs.asdict(info))
        return ExitCode.OK
    print_table(
        ("artifact", info.folder),
        [
            ("written by", f"qcore {info.qcore}, torch {info.torch}, format {info.format_version}"),
            ("recipe", f"{info.recipe}, preset {info.preset or '(given in Python)'}"),
            ("numerics", f"{info.numerics}, for backend {info.backend}"),
            ("programs", ", ".join(path or "the whole model" for path in info.programs)),
            (
                "bytes",
                f"{info.bytes} ({_times(info.float_bytes, info.bytes)}float {info.float_bytes})",
            ),
            ("file", f"{info.file_bytes} bytes, {info.golden_bytes} of golden values"),
        ],
    )
    print()
    print_table(
        ("LAYER", "OPERATION", "WEIGHT", "RESULT", "FLOAT BYTES", "BYTES"),
        [
            (
                f"{layer.program}: {layer.name}" if layer.program else layer.name,
                layer.operation.removesuffix(".default"),
                layer.weight or "-",
                "float"
                if layer.scale is None
                else f"scale {layer.scale:.6g}, zero point {layer.zero_point}",
                str(layer.float_bytes),
                str(layer.bytes),
            )
            for layer in info.layers
        ],
    )
    print()
    print_table(
        ("OPERATION", "CALLS"), [(name, str(count)) for name, count in info.operations.items()]
    )
    print()
    print_table(
        ("KIND", "NAME", "PLUGIN", "DISTRIBUTION", "VERSION", "INSTALLED"),
        [
            (
                origin.contribution.kind,
                origin.contribution.name,
                origin.contribution.plugin,
                origin.contribution.distribution,
                origin.contribution.version,
                "the same" if origin.matches else origin.installed or "no",
            )
            for origin in info.origins
        ],
    )
    return ExitCode.OK


def _times(whole: int, part: int) -> str:
    return f"{whole / part:.2f} times smaller than " if part else ""
