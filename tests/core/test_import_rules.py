"""Who may import whom: the core no plug-in, the plug-ins only what the core makes public."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import qcore

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = [
    ROOT / path for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
]
CORE = next(path for path in PACKAGES if path.name == "qcore")
BUILTINS = {path.name: path for path in PACKAGES if path.name != "qcore"}
ALLOWED = {*sys.stdlib_module_names, "attrs", "pluggy", "torch", "numpy", "safetensors"}
OPTIONAL = {"rich"}
KIT = CORE / "testing"


def sources(package: Path) -> list[Path]:
    """The modules of a package."""
    return sorted(package.rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[int, str, list[str], bool]]:
    """Line, absolute module, names and whether it is lazy, of each import of a file.

    Lazy is what is inside a function, or for type checkers only. A call of ``import_module`` with a
    written-out name counts as an import.
    """
    tree = ast.parse(file.read_text(), str(file))
    not_at_import = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_types(scope)
        for node in ast.walk(scope)
    }
    for node in ast.walk(tree):
        lazy = id(node) in not_at_import
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, [], lazy
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or "", [alias.name for alias in node.names], lazy
        elif isinstance(node, ast.Call) and _is_import_call(node):
            name = node.args[0]
            if isinstance(name, ast.Constant) and not str(name.value).startswith("."):
                yield node.lineno, str(name.value), [], lazy


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _is_import_call(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__") and bool(node.args)


@pytest.mark.parametrize("file", sources(CORE), ids=lambda f: str(f.relative_to(ROOT)))
def test_core_imports_no_plugin(file):
    """The core imports the standard library and five packages; rich only where it is used, and
    pytest where the conformance kit is, or is loaded by, pytest."""
    optional = OPTIONAL | ({"pytest"} if KIT in file.parents else set())
    by_pytest = {"pytest"} if file == KIT / "pytest_plugin.py" else set()
    for line, module, _, lazy in imports(file):
        top = module.partition(".")[0]
        place = f"{file}:{line}: import of {module}"
        assert top not in BUILTINS, f"{place}: the core imports no plug-in"
        allowed = ALLOWED | {"qcore"} | by_pytest | (optional if lazy else set())
        assert top in allowed, f"{place}: the core imports no such package here"


@pytest.mark.parametrize(
    ("package", "file"),
    [(name, file) for name, path in BUILTINS.items() for file in sources(path)],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_builtins_import_public_names(package, file):
    """A built-in plug-in has what anybody's has: ``from qcore import`` of public names."""
    for line, module, names, _ in imports(file):
        top = module.partition(".")[0]
        place = f"{file}:{line}: {module} {', '.join(names)}"
        assert top not in BUILTINS or top == package, f"{place}: a plug-in imports no other plug-in"
        if top == "qcore":
            assert module == "qcore", f"{place}: import from qcore itself, not from its modules"
            private = set(names) - set(qcore.__all__)
            assert not private, f"{place}: not public: {sorted(private)}"


@pytest.mark.parametrize("package", BUILTINS)
def test_builtins_use_public_attributes(package):
    """Where a plug-in says ``qcore.x``, x is public."""
    for file in sources(BUILTINS[package]):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "qcore"
            ):
                assert node.attr in qcore.__all__, f"{file}:{node.lineno}: qcore.{node.attr}"


def test_core_works_without_any_plugin_package():
    """Importing every module of the core imports no built-in plug-in."""
    program = f"""
import importlib, pkgutil, sys, qcore
for module in pkgutil.walk_packages(qcore.__path__, "qcore."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
bad = sorted(name for name in sys.modules if name.partition(".")[0] in {set(BUILTINS)!r})
sys.exit(f"imported: {{bad}}" if bad else 0)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_public_names_exist():
    """Every name that qcore exports is there, and nothing else is listed."""
    for name in qcore.__all__:
        assert getattr(qcore, name) is not None
    assert set(qcore.__all__) <= set(dir(qcore))


def test_every_package_is_typed():
    """Each package of the wheel carries the marker that type checkers look for."""
    assert [path for path in PACKAGES if not (path / "py.typed").is_file()] == []


def test_the_rules_see_every_form_of_import(tmp_path):
    """The reader of these tests finds imports at the top, inside functions and by name."""
    file = tmp_path / "module.py"
    file.write_text(
        "import a.b\nfrom c import d\nfrom . import e\n"
        "if TYPE_CHECKING:\n    import k\n"
        "def f():\n    import g\n    import_module('h.i')\n    importlib.import_module('.j')\n"
    )
    assert [(module, names, lazy) for _, module, names, lazy in imports(file)] == [
        ("a.b", [], False),
        ("c", ["d"], False),
        ("k", [], True),
        ("g", [], True),
        ("h.i", [], True),
    ]
