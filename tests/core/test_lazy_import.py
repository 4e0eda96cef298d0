"""What must be quick does not import torch."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "safetensors")
PROGRAM = """
import sys
{}
heavy = sorted({} & set(sys.modules))
sys.exit(f"imported: {{heavy}}" if heavy else 0)
"""


def imports_nothing_heavy(statement):
    """Run a statement in a new interpreter and look at what it imported."""
    program = PROGRAM.format(statement, set(HEAVY))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import qcore; dir(qcore)",
        "from qcore import ObserverSpec, PluginHost, QScheme, hookimpl",
        "from qcore.discovery import discover; discover()",
        "import qcore.testing; dir(qcore.testing); from qcore.testing import Contract",
        "import qcore.testing.pytest_plugin",
    ],
)
def test_import(statement):
    """Importing qcore and declaring a plug-in is light."""
    imports_nothing_heavy(statement)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["plugins", "list"],
        ["plugins", "list", "--json"],
        ["plugins", "info", "observers"],
    ],
    ids=" ".join,
)
def test_command(argv):
    """Help and lists answer at once; the built-in plug-ins' modules are light as well."""
    imports_nothing_heavy(f"from qcore.cli import main; main({argv})")
