"""What a plug-in costs its author: lines, files in our tree, seconds to a green conformance run.

    python benchmarks/plugin_kit.py

For each kind: ``qcore plugins new`` writes it, pip installs it into a fresh environment that sees
the packages of this one, and pytest runs its conformance tests there. Lines are those of code:
without blank lines, comments and docstrings.
"""

import ast
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("observer", "fake-quant", "fusion", "converter", "backend", "algorithm")
EXAMPLE = {
    "observer": ("percentile_of_batches.py",),
    "fake-quant": ("stochastic.py",),
    "fusion": ("silu.py",),
    "converter": ("gated_linear.py",),
    "backend": ("numpy_backend.py",),
    "algorithm": ("bias_correction.py",),
}


def code_lines(source: str) -> int:
    """Lines with code: a statement of several lines counts them all, a docstring none."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = {
        id(node.body[0])
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None
    }
    skipped = {
        line
        for node in ast.walk(tree)
        if id(node) in texts
        # A text below an assignment describes it.
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for line in range(node.lineno, node.end_lineno + 1)
    }
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in skipped
        for number, line in enumerate(source.splitlines(), 1)
    )


def example_lines(kind: str) -> int:
    """Lines of the part of that kind in the example distribution."""
    folder = ROOT / "examples" / "acme-plugin" / "src" / "qcore_acme"
    return sum(code_lines((folder / name).read_text()) for name in EXAMPLE[kind])


def template_lines(kind: str) -> dict[str, int]:
    """Lines of the new plug-in of that kind: the part, the light module, the test."""
    folder = ROOT / "qcore" / "scaffold" / "templates" / kind
    count = {"part": 0, "plugin": 0, "test": 0}
    for file in sorted(folder.rglob("*.py.template")):
        name = {"plugin.py.template": "plugin", "test_conformance.py.template": "test"}
        # The placeholders of templates stand in strings only.
        count[name.get(file.name, "part")] += code_lines(file.read_text())
    return count


def page_lines(kind: str) -> int:
    """Lines of the first part on the page of that kind: its smallest whole plug-in."""
    text = (ROOT / "docs" / "plugins" / f"{kind}.md").read_text()
    parts = text.split('```python title="')[1:]
    name, _, source = parts[1].partition('"\n')
    assert not name.endswith("plugin.py"), name
    return code_lines(source.partition("```")[0])


def environment(folder: Path) -> Path:
    """The interpreter of a fresh environment that sees the packages of this one."""
    venv.create(folder, with_pip=False)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    outer = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({path!r})" for path in sorted(outer)]
    (packages / "outer.pth").write_text("\n".join(lines) + "\n")
    return Path(sysconfig.get_path("scripts", "venv", scheme)) / Path(sys.executable).name


def steps(kind: str, folder: Path) -> Iterator[tuple[str, float]]:
    """Name and seconds of each step from nothing to a green conformance run."""
    name = f"bench-{kind}"
    python = environment(folder / "environment")
    target = folder / "new"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    for step, command in (
        ("new", (python, "-m", "qcore", "plugins", "new", name, "--kind", kind, "--into", target)),
        ("install", (sys.executable, "-m", "pip", "--python", python, "install", *options, target)),
        ("pytest", (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", target)),
    ):
        start = time.perf_counter()
        done = subprocess.run(
            [*map(str, command)], cwd=folder, env=clean(), capture_output=True, text=True
        )
        yield step, time.perf_counter() - start
        if done.returncode:
            sys.exit(f"{kind}: {step} failed\n{done.stdout}{done.stderr}")


def clean() -> dict[str, str]:
    """The environment variables without those that choose modules or plug-ins."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "QCORE_"))}


def main() -> None:
    """Prints one line a kind."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    print(f"qcore {project['version']}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}\n")
    print("kind        page  template  example | new  install  pytest  total (seconds)")
    for kind in KINDS:
        with tempfile.TemporaryDirectory(prefix="qcore-kit-") as folder:
            seconds = dict(steps(kind, Path(folder)))
        print(
            f"{kind:<11} {page_lines(kind):4} {template_lines(kind)['part']:9} "
            f"{example_lines(kind):8} |{seconds['new']:4.1f} {seconds['install']:8.1f} "
            f"{seconds['pytest']:7.1f} {sum(seconds.values()):6.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
