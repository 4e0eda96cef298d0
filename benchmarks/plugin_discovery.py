"""What it costs to know which plug-ins are installed, over importing them all.

Makes real distributions in a temporary folder, each with a ``*.dist-info`` folder and a package,
and times four things, each in fresh interpreters, one after the other in turn:

- *discover*: :func:`qcore.discovery.discover`, which reads metadata only;
- *importlib*: the same facts from :mod:`importlib.metadata` and its import, for comparison;
- *import*: importing the module of every plug-in, and no more;
- *activate*: all that a host does to use every plug-in: discover, import, call and check its hooks.

The plug-ins are the smallest there are, so the ratios are lower bounds.

Usage: ``python benchmarks/plugin_discovery.py [--count 500] [--repeats 7] [--json]``
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: 1.{index}
Summary: An observer for qcore.
Requires-Python: >=3.11
Requires-Dist: qcore-quant>=0.1
Description-Content-Type: text/markdown

{description}
"""
_PLUGIN = """\
from qcore import ObserverSpec, hookimpl


@hookimpl
def qcore_observers():
    return [ObserverSpec(name="observer_{index}", target="{package}.observer:Observer")]
"""
# Runs in a fresh interpreter. What it imports first is not part of any of the four.
_CHILD = """\
import importlib, sys, time
from qcore.discovery import discover
from qcore.host import PluginHost
import qcore; qcore.ObserverSpec, qcore.hookimpl
what, folder = sys.argv[1:]
sys.path.append(folder)
found = discover([folder]) if what == "import" else ()
start = time.perf_counter()
if what == "discover":
    count = len(discover([folder]))
elif what == "importlib":
    from importlib import metadata
    dists = metadata.distributions(path=[folder])
    facts = [
        (e.name, e.value, d.metadata["Name"], d.version)
        for d in dists for e in d.entry_points if e.group == "qcore.v1"
    ]
    count = len(facts)
elif what == "import":
    count = len([importlib.import_module(p.module) for p in found])
else:
    count = sum(i.status == "ok" for i in PluginHost([folder]).plugins())
print(count, time.perf_counter() - start)
"""
_STEPS = ("discover", "importlib", "import", "activate")


def make_distributions(folder: Path, count: int) -> None:
    """Write ``count`` installed distributions, each with one plug-in, to ``folder``."""
    for index in range(count):
        package = f"qcore_bench_{index:04}"
        metadata = folder / f"{package}-1.{index}.dist-info"
        metadata.mkdir()
        name = package.replace("_", "-")
        text = _METADATA.format(name=name, index=index, description="A paragraph of text.\n" * 200)
        (metadata / "METADATA").write_text(text)
        (metadata / "entry_points.txt").write_text(
            f"[console_scripts]\n{name} = {package}:main\n\n"
            f"[qcore.v1]\nbench{index:04} = {package}.plugin\n"
        )
        (metadata / "RECORD").write_text(f"{package}/__init__.py,,\n{package}/plugin.py,,\n")
        (metadata / "INSTALLER").write_text("pip\n")
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text("")
        (folder / package / "plugin.py").write_text(_PLUGIN.format(index=index, package=package))


def measure(what: str, folder: Path, count: int) -> float:
    """Milliseconds of one step in a fresh interpreter."""
    command = [sys.executable, "-c", _CHILD, what, str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, seconds = output.split()
    if int(found) != count:
        raise SystemExit(f"{what} found {found} of {count} plug-ins")
    return float(seconds) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500, help="distributions (default: 500)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each step (default: 7)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_distributions(folder, args.count)
        # Byte code is written by the first import of each module; no installed plug-in pays that.
        measure("activate", folder, args.count)
        runs: dict[str, list[float]] = {step: [] for step in _STEPS}
        for _ in range(args.repeats):
            for step in _STEPS:
                runs[step].append(measure(step, folder, args.count))
    medians = {step: statistics.median(times) for step, times in runs.items()}
    ratios = {step: medians[step] / medians["discover"] for step in _STEPS}
    if args.json:
        print(json.dumps({"count": args.count, "ms": medians, "ratio_to_discover": ratios}))
        return
    print(f"{args.count} distributions, median of {args.repeats} fresh interpreters")
    print(f"{'step':<14}{'ms':>9}{'ratio':>8}")
    for step in _STEPS:
        print(f"{step:<14}{medians[step]:>9.1f}{ratios[step]:>8.1f}")


if __name__ == "__main__":
    main()
