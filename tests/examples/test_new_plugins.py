"""A new plug-in of each kind, from ``qcore plugins new`` to a green conformance run."""

import re

import pytest

from qcore.scaffold import KINDS, new_plugin


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_green(fresh_environment, tmp_path, kind):
    """Installed by pip into a fresh environment it is listed, loads, and passes its own tests."""
    name = f"new-{kind}"
    new_plugin(name, kind, tmp_path / "new")
    fresh_environment.install(tmp_path / "new")
    checked = fresh_environment.qcore("plugins", "check", name)
    assert checked.returncode == 0, checked.stdout
    assert "1 of 1 contributions load" in checked.stdout

    options = ("-q", "-p", "no:cacheprovider", "--rootdir", tmp_path / "new")
    own = fresh_environment.run("-m", "pytest", *options, tmp_path / "new")
    assert own.returncode == 0, own.stdout
    (passed,) = re.findall(r"(\d+) passed", own.stdout.splitlines()[-1])
    assert int(passed) > 5


@pytest.mark.slow
def test_the_option_checks_without_a_test_file(fresh_environment, tmp_path):
    """``pytest --qcore-conformance`` examines an installed plug-in from an empty folder."""
    new_plugin("option", "observer", tmp_path / "new")
    fresh_environment.install(tmp_path / "new")
    result = fresh_environment.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--qcore-conformance", "option"
    )
    assert result.returncode == 0, result.stdout
    assert re.search(r"option:option_margin: \d+ contracts checked on \d+ cases", result.stdout)
