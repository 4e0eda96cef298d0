"""``qcore doctor``: what this machine can run, and why it can't run the rest."""

import argparse
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..activation import describe_error
from ..cpp_library import find_cpp_compiler, why_no_cpp_compiler
from ..errors import PluginError
from ..host import PluginHost
from ..missing import MissingExtraError, extras_of
from ..plugin_info import PluginInfo
from ..specs import IN_PROCESS, Spec
from ..versions import DISTRIBUTION, Requirement, installed_version
from .options import Subparsers, add_plugin_options, host_from
from .terminal import ExitCode, only_stderr, print_json, print_table

__all__ = ["register"]

# The instructions that decide how fast, and with which rounding, integer kernels run.
_CPU_FEATURES = frozenset(
    (
        *("ssse3", "sse4_1", "avx", "avx2", "fma", "f16c"),
        *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("avx_vnni", "avx_vnni_int8", "amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
    )
)


def register(subparsers: Subparsers) -> None:
    """Declare ``doctor``."""
    parser = subparsers.add_parser(
        "doctor",
        help="what works on this machine, and why the rest does not",
        description="Report Python, torch, the processor, every backend, the plug-ins and the "
        "optional extras. Exits 3 when a plug-in or a backend is broken; a backend that this "
        "machine lacks the hardware for is not.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_plugin_options(parser)
    parser.set_defaults(handler=_doctor)


def _doctor(args: argparse.Namespace) -> ExitCode:
    with only_stderr():
        host = host_from(args)
        infos = host.plugins()
        report: dict[str, Any] = {
            "qcore": installed_version(),
            "python": {"version": platform.python_version(), "executable": sys.executable},
            "platform": platform.platform(),
            "cpu": _cpu(),
            "torch": _torch(),
            "compiler": _compiler(),
            "backends": [_backend(host, spec) for spec in host.specs("backend")],
            "plugins": [
                {key: value for key, value in info.as_dict().items() if key != "contributions"}
                for info in infos
            ],
            "extras": _extras(infos),
        }
    if args.json:
        print_json(report)
    else:
        _print(report)
    if report["torch"]["failure"] is not None:
        return ExitCode.FAILED
    broken = any(info.degraded for info in infos) or any(b["broken"] for b in report["backends"])
    return ExitCode.DEGRADED if broken else ExitCode.OK


def _cpu() -> dict[str, Any]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            model, features = parse_cpuinfo(file.read())
    except OSError:
        model, features = "", []
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": model or platform.processor() or platform.machine(),
        "features": features,
        "cores": os.cpu_count(),
        "usable_cores": usable,
    }


def parse_cpuinfo(text: str) -> tuple[str, list[str]]:
    """Model name and features, of those that quantized kernels use, from ``/proc/cpuinfo``.

    >>> parse_cpuinfo("model name : Some CPU\\nflags : fpu avx2 avx512_vnni\\n")
    ('Some CPU', ['avx2', 'avx512_vnni'])
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or ""
    return fields.get("model name", ""), sorted(_CPU_FEATURES.intersection(flags.split()))


def _torch() -> dict[str, Any]:
    """What torch is and has; ``failure`` says why it can't be imported."""
    try:
        import torch
    # Broken installations of torch fail in many ways: a missing library, a wrong instruction set.
    except Exception as error:
        return {"version": installed_version("torch"), "failure": describe_error(error)}
    return {
        "version": torch.__version__,
        "failure": None,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "cuda": _cuda(),
    }


def _compiler() -> dict[str, Any]:
    """What compiles the C++ of plug-ins here."""
    found = find_cpp_compiler()
    return {
        "command": None if found is None else list(found.command),
        "version": None if found is None else found.version.splitlines()[0],
        "reason": why_no_cpp_compiler(),
    }


def _cuda() -> dict[str, Any]:
    import torch

    # torch explains a driver that it can't use by a warning.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    reason = None
    if not available:
        if torch.version.cuda is None:
            reason = "this build of torch has no CUDA"
        elif caught:
            reason = " ".join(str(caught[0].message).split())
        else:
            reason = "torch finds no CUDA device"
    devices = []
    for index in range(torch.cuda.device_count() if available else 0):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "tensor_cores": _tensor_cores((properties.major, properties.minor)),
                "memory_bytes": properties.total_memory,
            }
        )
    return {
        "available": available,
        "reason": reason,
        "version": torch.version.cuda,
        "devices": devices,
    }


def _tensor_cores(capability: tuple[int, int]) -> list[str]:
    """The narrow types that the tensor cores of a GPU multiply.

    >>> _tensor_cores((8, 0)), _tensor_cores((9, 0))
    (['int8'], ['int8', 'float8'])
    """
    since = {"int8": (7, 5), "float8": (8, 9)}
    return [name for name, oldest in since.items() if capability >= oldest]


def _backend(host: PluginHost, spec: Spec) -> dict[str, Any]:
    """Whether a backend works here; ``broken`` if not even that question could be answered."""
    broken = False
    runs_on = None
    question = "unavailable"
    try:
        backend = host.load(spec)
        reason = backend.unavailable()
        if reason is not None and not isinstance(reason, str):
            reason, broken = f"its unavailable() returned {reason!r}, no reason in words", True
        if reason is None:
            question = "runs_on"
            runs_on = backend.runs_on()
    except MissingExtraError as error:
        reason = str(error)
    except PluginError as error:
        reason, broken = str(error), True
    # Asking is the plug-in's own code, so anything may come out of it.
    except Exception as error:
        reason, broken = f"its {question}() failed: {describe_error(error)}", True
    return {
        "name": spec.name,
        "plugin": spec.origin.plugin if spec.origin else None,
        "available": reason is None,
        "runs_on": runs_on,
        "reason": reason,
        "broken": broken,
    }


def _extras(infos: Sequence[PluginInfo]) -> list[dict[str, Any]]:
    """Every extra of qcore and of the distributions that bring plug-ins."""
    distributions = {info.distribution for info in infos if info.distribution} - {IN_PROCESS}
    rows = []
    for distribution in sorted(distributions | {DISTRIBUTION}):
        for extra, requirements in sorted(extras_of(distribution).items()):
            if not extra:
                continue
            missing = [r for r in map(_plain, requirements) if r is not None and not _installed(r)]
            rows.append(
                {
                    "distribution": distribution,
                    "extra": extra,
                    "installed": not missing,
                    "missing": missing,
                    "install": f"pip install '{distribution}[{extra}]'",
                }
            )
    return rows


def _plain(requirement: str) -> str | None:
    """A requirement without its marker; None if the marker asks for more than the extra."""
    needed, _, marker = requirement.partition(";")
    return None if " and " in marker or " or " in marker else needed.strip()


def _installed(requirement: str) -> bool:
    try:
        wanted = Requirement.parse(requirement)
        version = installed_version(wanted.name)
        return version is not None and wanted.accepts(version)
    # Extras of extras, URLs: pip alone can tell.
    except PluginError:
        return True


def _print(report: dict[str, Any]) -> None:
    cpu, torch = report["cpu"], report["torch"]
    rows = [
        ("python", f"{report['python']['version']}  {report['python']['executable']}"),
        ("platform", report["platform"]),
        ("processor", f"{cpu['model']}, {cpu['usable_cores']} of {cpu['cores']} cores usable"),
        ("features", " ".join(cpu["features"]) or "unknown"),
    ]
    if torch["failure"] is not None:
        rows.append(("torch", f"{torch['version'] or 'not installed'}: {torch['failure']}"))
    else:
        threads = f"{torch['threads']} threads, {torch['interop_threads']} interop"
        onednn = "oneDNN" if torch["onednn"] else "no oneDNN"
        rows.append(
            ("torch", f"{torch['version']}, {torch['cpu_capability']}, {onednn}, {threads}")
        )
        rows.append(("cuda", _cuda_line(torch["cuda"])))
    compiler = report["compiler"]
    rows.append(("c++", compiler["version"] if compiler["reason"] is None else compiler["reason"]))
    print_table(("qcore", report["qcore"] or "not installed"), rows)
    print()
    print_table(
        ("BACKEND", "PLUGIN", "AVAILABLE"),
        [(b["name"], b["plugin"] or "", _available(b)) for b in report["backends"]],
    )
    print()
    print_table(
        ("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", ""),
        [
            (p["plugin"], p["distribution"], p["version"], p["status"], p["failure"] or "")
            for p in report["plugins"]
        ],
    )
    print()
    print_table(
        ("EXTRA", "INSTALLED"),
        [
            (
                f"{e['distribution']}[{e['extra']}]",
                "yes"
                if e["installed"]
                else f"no: {', '.join(e['missing'])} missing; {e['install']}",
            )
            for e in report["extras"]
        ],
    )


def _available(backend: dict[str, Any]) -> str:
    if not backend["available"]:
        return f"no: {backend['reason']}"
    return "yes" if backend["runs_on"] is None else f"yes: {backend['runs_on']}"


def _cuda_line(cuda: dict[str, Any]) -> str:
    if not cuda["available"]:
        return f"not available: {cuda['reason']}"
    devices = ", ".join(
        f"{d['name']} (compute capability {d['capability']}, tensor cores for "
        f"{' and '.join(d['tensor_cores']) or 'neither int8 nor float8'})"
        for d in cuda["devices"]
    )
    return f"{cuda['version']}, {devices}"
