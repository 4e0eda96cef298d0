"""``qcore plugins``: output, exit codes and messages, on real distributions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcore import RecipeError
from qcore.cli import main

KEYS = ["plugin", "distribution", "version", "entry_point", "status", "failure", "contributions"]
PRESET = """
    from qcore import FusionSpec, PresetSpec, QConfig, QuantizerConfig, hookimpl

    @hookimpl
    def qcore_fake_quants():
        weight = QuantizerConfig(scheme="no-such-scheme")
        return [PresetSpec(name="w8", qconfig=QConfig(weight=weight, activation=None))]

    @hookimpl
    def qcore_fusion_patterns():
        return [FusionSpec(name="pair", pattern=("a", "b"), check="acme_plugin:no_such_check")]
    """


@pytest.fixture(autouse=True)
def only_own_plugins(monkeypatch):
    """The built-in plug-ins are installed too; these tests are not about them."""
    monkeypatch.setenv("QCORE_PLUGINS", "acme,broken,noisy")


@pytest.fixture
def acme(site):
    """A plug-in that works and two names of the allow-list that are installed as well."""
    site.plugin("acme", observers=("kl", "minmax"))
    for name in ("broken", "noisy"):
        site.plugin(name, observers=(name,))
    return site


def rows(capsys):
    """What was printed as JSON, without built-in plug-ins."""
    return [r for r in json.loads(capsys.readouterr().out) if r["status"] != "blocked"]


def break_plugin(site, name="broken", source="1 / 0"):
    """Break an installed plug-in on purpose."""
    site.write(f"{name}_plugin.py", source)


def test_list_for_programs(acme, capsys):
    """The JSON form has the agreed keys, in order, and null for no failure."""
    assert main(["plugins", "list", "--json"]) == 0
    first, *_ = rows(capsys)
    assert list(first) == KEYS
    assert first == {
        "plugin": "acme",
        "distribution": "acme",
        "version": "1.2",
        "entry_point": "acme_plugin",
        "status": "ok",
        "failure": None,
        "contributions": [
            {
                "kind": "observer",
                "name": name,
                "target": "acme_observers:Observer",
                "summary": "",
                "deviations": {},
            }
            for name in ("kl", "minmax")
        ],
    }


def test_list_for_people(acme, capsys):
    """The table is aligned and says how much each plug-in brings."""
    assert main(["plugins", "list"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "CONTRIBUTES"]
    (line,) = (line for line in lines if line.startswith("acme "))
    assert line[header.index("CONTRIBUTES") :] == "2 observers"
    (blocked,) = (line for line in lines if line.startswith("observers "))
    assert blocked.endswith("(blocked: never imported)")


def test_list_of_a_degraded_installation(acme, capsys):
    """A broken plug-in is listed with its cause, the rest is listed as ever, and the code is 3."""
    break_plugin(acme)
    assert main(["plugins", "list", "--json"]) == 3
    found = {row["plugin"]: row for row in rows(capsys)}
    assert found["broken"]["status"] == "failed"
    assert "ZeroDivisionError" in found["broken"]["failure"]
    assert found["acme"]["status"] == "ok"
    assert main(["plugins", "list"]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_list_strict(acme, capsys):
    """--strict fails with one line that names the plug-in."""
    break_plugin(acme)
    assert main(["plugins", "list", "--strict"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qcore: error: plug-in broken (broken 1.2) is not in use (failed): ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("where", ["before", "after", "both"])
def test_block(acme, capsys, where):
    """-p no:NAME blocks, before the verb, after it, or in both places."""
    for name in ("broken", "noisy"):
        break_plugin(acme, name)
    broken, noisy = ["-p", "no:broken"], ["-p", "no:noisy"]
    verb = ["plugins", "list", "--json"]
    argv = {
        "before": [*broken, *noisy, *verb],
        "after": [*verb, *broken, *noisy],
        "both": [*broken, *verb, *noisy],
    }
    assert main(argv[where]) == 0
    assert [row["plugin"] for row in rows(capsys)] == ["acme"]
    assert not {"broken_plugin", "noisy_plugin"} & set(sys.modules)


def test_block_of_an_unknown_plugin(acme, capsys):
    """A misspelt block is not silently none."""
    assert main(["-p", "no:brokn", "plugins", "list"]) == 0
    assert "no such plug-in is installed; did you mean 'broken'?" in capsys.readouterr().err


def test_plugins_that_print(acme, capsys):
    """What a plug-in prints when it is imported does not end up among the data."""
    break_plugin(acme, "noisy", "print('hello')\n")
    main(["plugins", "list", "--json"])
    out, err = capsys.readouterr()
    json.loads(out)
    assert "hello" in err


def test_plugins_that_would_fool_a_terminal(acme, capsys):
    """Control characters in a message are not printed."""
    break_plugin(acme, source="raise ValueError('\\x1b[2J')")
    main(["plugins", "list"])
    assert "\x1b" not in capsys.readouterr().out


def test_info(acme, capsys):
    """One plug-in, with its origin and a line for each contribution."""
    assert main(["plugins", "info", "acme"]) == 0
    out = capsys.readouterr().out
    assert "acme 1.2" in out
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("observer")] == [
        ["observer", "kl", "acme_observers:Observer"],
        ["observer", "minmax", "acme_observers:Observer"],
    ]


def test_info_for_programs(acme, capsys):
    """The JSON form is that of the list, with one element."""
    break_plugin(acme)
    assert main(["plugins", "info", "broken", "--json"]) == 3
    (row,) = json.loads(capsys.readouterr().out)
    assert (list(row), row["status"]) == (KEYS, "failed")


def test_info_of_an_unknown_plugin(acme, capsys):
    """The nearest name and all names are offered."""
    assert main(["plugins", "info", "acne"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("qcore: error: no plug-in is called 'acne'; did you mean 'acme'?")


def test_check_reports_every_problem(acme, capsys):
    """Targets that don't load, names that a preset can't mean and checks that aren't there."""
    acme.write("acme_plugin.py", PRESET)
    break_plugin(acme)
    acme.write("noisy_observers.py", "import qcore\nclass Observer(qcore.Observer): ...\n")
    assert main(["plugins", "check", "--json"]) == 1
    failures = {(r["plugin"], r["name"]): r["failure"] for r in rows(capsys) if r["failure"]}
    assert list(failures) == [("acme", "pair"), ("acme", "w8"), ("broken", "broken")]
    assert "has no 'no_such_check'" in failures["acme", "pair"]
    assert "weight.scheme: no scheme is called 'no-such-scheme'" in failures["acme", "w8"]
    assert "ZeroDivisionError" in failures["broken", "broken"]


def test_check_for_people(acme, capsys):
    """The summary says how many contributions load, then what does not and why."""
    assert main(["plugins", "check", "acme"]) == 1
    out, err = capsys.readouterr()
    assert "0 of 2 contributions load" in out
    assert "acme:kl" in out
    assert "No module named 'acme_observers'" in out
    assert err == "qcore: 2 of 3 checks failed\n"


def test_check_of_a_plugin_that_works(acme, capsys):
    """Exit code 0, whatever else is broken."""
    break_plugin(acme)
    acme.write("acme_observers.py", "import qcore\nclass Observer(qcore.Observer): ...\n")
    assert main(["plugins", "check", "acme"]) == 0
    assert "2 of 2 contributions load" in capsys.readouterr().out


def test_check_takes_a_missing_extra_for_a_failure_only_if_named(acme, capsys):
    """An extra that nobody installed is normal, unless the user asks about this plug-in."""
    metadata = acme.folder / "noisy-1.2.dist-info" / "METADATA"
    head = "Metadata-Version: 2.4\nName: noisy\nVersion: 1.2\nProvides-Extra: x\n"
    metadata.write_text(head + "Requires-Dist: not-there; extra == 'x'\n")
    acme.write("noisy_observers.py", "import not_there\n")
    block = ["-p", "no:acme", "-p", "no:broken"]
    assert main([*block, "plugins", "check"]) == 0
    assert "pip install 'noisy[x]'" in capsys.readouterr().out
    assert main([*block, "plugins", "check", "noisy"]) == 1


def test_allow_list_that_names_nothing(acme, monkeypatch, capsys):
    """An empty list uses none; a misspelt one is degraded."""
    monkeypatch.setenv("QCORE_PLUGINS", "")
    assert main(["plugins", "list", "--json"]) == 0
    assert rows(capsys) == []
    monkeypatch.setenv("QCORE_PLUGINS", "acne")
    assert main(["plugins", "list", "--json"]) == 3
    assert [row["status"] for row in rows(capsys)] == ["missing"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "usage: qcore [-h]"),
        (["plugins"], "usage: qcore plugins [-h]"),
        (["plugin"], "invalid choice: 'plugin'"),
        (["plugins", "info"], "the following arguments are required: NAME"),
        (["plugins", "list", "--jsn"], "unrecognized arguments: --jsn"),
        (["-p", "acme", "plugins", "list"], "'acme': write no:NAME to block the plug-in NAME"),
        (["-p", "no:", "plugins", "list"], "'no:': write no:NAME"),
    ],
)
def test_wrong_usage(argv, message, capsys):
    """Wrong usage prints what is right on stderr and exits with 2."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_help_and_version(capsys):
    """Both are data on stdout, with exit code 0."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for part in (
        "plugins",
        "doctor",
        "0 fine, 1 failed, 2 wrong usage, 3 degraded",
        "QCORE_PLUGINS",
    ):
        assert part in text
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qcore ")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RecipeError("recipe.toml: no\nsuch key"), 2, "qcore: error: recipe.toml: no such key\n"),
        (KeyboardInterrupt(), 130, "qcore: interrupted\n"),
    ],
)
def test_errors_of_a_verb(monkeypatch, capsys, error, code, line):
    """An error is one clear line on stderr; a recipe's is wrong usage."""

    def fail(args):
        raise error

    monkeypatch.setattr("qcore.cli.plugins._list", fail)
    assert main(["plugins", "list"]) == code
    assert capsys.readouterr() == ("", line)


def run(*argv, cwd=None, **options):
    """The command line in an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", "qcore", *argv], cwd=cwd, capture_output=True, text=True, **options
    )


def test_module_is_the_command():
    """``python -m qcore`` calls itself qcore and exits with the code of the verb."""
    result = run("plugins")
    assert result.returncode == 2
    assert result.stderr.startswith("usage: qcore plugins ")
    script = Path(sys.executable).with_name("qcore")
    if script.exists():
        assert subprocess.check_output([script, "--help"], text=True) == run("--help").stdout


def test_nothing_is_loaded_from_the_working_folder(tmp_path):
    """Standing in a folder with a plug-in's metadata neither lists nor imports it."""
    info = tmp_path / "evil.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Name: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[qcore.v1]\nevil = evil\n")
    (tmp_path / "evil.py").write_text("open('imported', 'w').close()\n")
    result = run("plugins", "list", "--json", cwd=tmp_path)
    assert "evil" not in {row["plugin"] for row in json.loads(result.stdout)}
    assert not (tmp_path / "imported").exists()


def test_reader_that_goes_away():
    """A closed pipe is no traceback."""
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "qcore", "plugins", "list"], stdout=write, stderr=subprocess.PIPE
        )
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (1, b"")
