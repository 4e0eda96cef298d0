"""``qcore inspect``: what an artifact says about itself, and what would run it."""

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, only_stderr, print_json, print_table

if TYPE_CHECKING:
    from ..artifact import ArtifactInfo
    from ..host import PluginHost
    from ..placing import Placed

__all__ = ["register"]


def register(subparsers: Subparsers) -> None:
    """Declare ``inspect``."""
    parser = subparsers.add_parser(
        "inspect",
        help="what an artifact holds: layers, sizes, operations, kernels, origins",
        description="Read the manifest of an artifact and print its layers with their schemes and "
        "sizes, the operations of its programs, and the plug-ins that had a part in it.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="the artifact")
    parser.add_argument(
        "--backend",
        metavar="NAME",
        help="load the program too, and name the kernel that would run each layer and operation "
        "on this backend",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_plugin_options(parser)
    parser.set_defaults(handler=_inspect)


def _inspect(args: argparse.Namespace) -> ExitCode:
    from ..artifact import inspect_artifact

    host = host_from(args)
    with only_stderr():
        info: ArtifactInfo = inspect_artifact(args.folder, host=host)
        found = _placed(args, host) if args.backend else None
    if args.json:
        print_json(_data(info, found))
    else:
        _show(info, found)
    return ExitCode.OK


def _placed(args: argparse.Namespace, host: "PluginHost") -> "Placed":
    from ..artifact import load
    from ..placing import placed

    return placed(load(args.folder), args.backend, host=host)


def _kernels(found: "Placed") -> Counter[tuple[str, str, str]]:
    """How often each operation is run by each kernel, with the reason where it is not the
    backend's."""
    from ..placing import operation_kernel

    return Counter(
        (
            str(node.target).removesuffix(".default"),
            operation_kernel(node, table),
            table.reference.get(node.name, ""),
        )
        for program, table in found.values()
        for node in program.graph.nodes
        if node.name in table.kernels or node.name in table.reference
    )


def _data(info: "ArtifactInfo", found: "Placed | None") -> dict[str, Any]:
    import attrs

    from ..placing import placed_layers

    data = attrs.asdict(info)
    if found is not None:
        for layer, ran in zip(data["layers"], placed_layers(found), strict=True):
            layer["kernel"], layer["kernel_reason"] = ran.kernel, ran.reason
        data["kernels"] = [
            {"operation": operation, "kernel": kernel, "reason": reason, "calls": calls}
            for (operation, kernel, reason), calls in sorted(_kernels(found).items())
        ]
    return data


def _show(info: "ArtifactInfo", found: "Placed | None") -> None:
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
    if found is None:
        print_table(
            ("OPERATION", "CALLS"), [(name, str(count)) for name, count in info.operations.items()]
        )
    else:
        _show_kernels(found)
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


def _show_kernels(found: "Placed") -> None:
    from ..placing import placed_layers

    backend = next(table.backend for _, table in found.values())
    print_table(
        ("LAYER", f"KERNEL ON {backend}", "WHY NOT"),
        [
            (
                f"{layer.program}: {layer.name}" if layer.program else layer.name,
                layer.kernel,
                layer.reason or "-",
            )
            for layer in placed_layers(found)
        ],
    )
    print()
    print_table(
        ("OPERATION", "CALLS", f"KERNEL ON {backend}", "WHY NOT"),
        [
            (operation, str(calls), kernel, reason or "-")
            for (operation, kernel, reason), calls in sorted(_kernels(found).items())
        ],
    )


def _times(whole: int, part: int) -> str:
    return f"{whole / part:.2f} times smaller than " if part else ""
