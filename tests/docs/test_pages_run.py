"""Every page does what it shows: its files, its Python, its commands and their output."""

import ast
import contextlib
import doctest
import fnmatch
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import qcore
from qcore.cli import main
from qcore.provenance import contributions

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EMPTY_PLAN = {"rows": (), "captured": (), "failures": (), "backend": "", "numerics": ""}
OURS = {"qcore-quant", "qcore-acme"}
# What a reader puts something else in the place of, or has only after an earlier command.
PLACEHOLDER = re.compile(r"[A-Z]{3,}|acme|artifact|.*\.toml")


def check_output(where: str, shown: str, printed: str) -> None:
    """Compares what a page shows, where ``...`` is anything, with what was printed."""
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert checker.check_output(shown, printed, options), f"{where}: printed was\n{printed}"


def run_python(page, block, namespace: dict) -> str:
    """Executes a block, with the lines of the page in tracebacks; what it printed."""
    code = compile("\n" * (block.line - 1) + block.text, str(page.path), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def test_page_runs(page, installed_from, monkeypatch):
    """Files, Python and commands of a page work in the order in which they stand."""
    plugins = installed_from(page)
    namespace: dict[str, object] = {"__name__": "page"}
    printed = None
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        if block.language == "python" and not block.title:
            printed = run_python(page, block, namespace)
        elif block.language == "text" and printed is not None:
            check_output(where, block.text, printed)
            printed = None
        elif block.language == "console":
            for command, shown in commands(block.text):
                output = run_command(command, where, monkeypatch)
                if shown:
                    assert output is not None, f"{where}: output of a command that is not run"
                    check_output(where, shown, output)
        elif block.language == "toml" and block.title != "pyproject.toml":
            check_recipe_text(block.text, where)
    infos = {info.plugin: info for info in qcore.default_host().plugins()}
    for name in plugins:
        assert infos[name].status == "ok", infos[name].failure
        for spec in infos[name].contributions:
            qcore.default_host().load(spec)


def check_recipe_text(text: str, where: str) -> None:
    """Everything that a recipe names is there, its layers too."""
    recipe, host = qcore.Recipe.from_toml(text, source=where), qcore.default_host()
    if not recipe.require:
        contributions(recipe, qcore.Plan(**EMPTY_PLAN), host)
    if recipe.data is not None:
        host.find("dataset", recipe.data["name"])
    if recipe.model is not None:
        options = {key: value for key, value in recipe.model.items() if key != "name"}
        layers = [
            name for name, _ in host.get("model", recipe.model["name"])(**options).named_modules()
        ]
        for override in recipe.overrides:
            assert fnmatch.filter(layers, override.name or "*"), f"{where}: {override.name}"


def test_python_is_formatted(page):
    """Python has no line that a reader must scroll for, and parses."""
    for block in page.blocks:
        if block.language == "python":
            ast.parse(block.text)
            assert all(len(line) <= 100 for line in block.text.splitlines()), block


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and the output that is shown for it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def run_command(command: str, where: str, monkeypatch) -> str | None:
    """Runs a command of qcore, or checks that another one could be run.

    Returns:
        What it printed; None if it was not run.
    """
    variables, words = {}, shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        name, _, variables[name] = words.pop(0).partition("=")
    program, *arguments = words
    with monkeypatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return PROGRAMS[program](arguments, f"{where}: {command}")


def run_qcore(arguments: list[str], where: str) -> str | None:
    positional = [word for word in arguments if not word.startswith("-")]
    repository = [word for word in positional if (ROOT / word).is_file()]
    if repository:
        return check_recipe(arguments, repository[0], where)
    installed = {info.plugin for info in qcore.default_host().plugins(activate=False)}
    if any(
        PLACEHOLDER.fullmatch(word) and word not in installed and not Path(word).exists()
        for word in positional
    ):
        words = [w for w in positional if w.islower() and not PLACEHOLDER.fullmatch(w)]
        check_options(words, arguments, where)
        return None
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main(arguments)
    assert code == 0, f"{where}: exit code {code}\n{errors.getvalue()}"
    return printed.getvalue()


def check_recipe(arguments: list[str], recipe: str, where: str) -> None:
    """A command on a recipe of the project, which takes long: the recipe and the options exist."""
    settings = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
    pairs = (setting.partition("=") for setting in settings)
    qcore.Recipe.load(ROOT / recipe, {key: literal(value) for key, _, value in pairs})
    check_options(arguments[:1], arguments, where)


def literal(text: str) -> object:
    """The value of a setting."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def check_options(verbs: list[str], arguments: list[str], where: str) -> None:
    """The verb is there, and its help has every option."""
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text):
        assert main([*verbs, "--help"]) == 0, where
    for word in arguments:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s\[]){word}\b", help_text.getvalue()), f"{where}: no {word}"


def check_make(arguments: list[str], where: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in arguments:
        name, equals, _ = target.partition("=")
        pattern = rf"\$[({{]{name}\b" if equals else rf"^{name}:"
        found = re.search(pattern, makefile, flags=re.MULTILINE) or f"$(or $({name})" in makefile
        assert found, f"{where}: the Makefile has no {name}"


def check_pip(arguments: list[str], where: str) -> None:
    verb, *targets = arguments
    assert verb == "install", where
    for target in targets:
        if target.startswith("-"):
            continue
        if target.startswith("."):
            path, _, extras = target.partition("[")
            assert (ROOT / path / "pyproject.toml").is_file(), where
            name = "qcore-quant"
        else:
            match = re.fullmatch(r"([\w-]+)(?:\[(.*)\])?(?:[<>=!~].*)?", target)
            assert match is not None, where
            name, extras = match[1], match[2] or ""
        assert name in OURS, f"{where}: {name} is no distribution of this project"
        for extra in filter(None, extras.rstrip("]").split(",")):
            assert extra in PROJECT["optional-dependencies"], f"{where}: no extra {extra}"


def check_python(arguments: list[str], where: str) -> None:
    script, *options = arguments
    if script == "-m":
        module, *options = options
        assert shutil.which(module, path=os.path.dirname(sys.executable)), where
        # The only long option of pytest that pages use is that of the conformance kit.
        kit = ROOT / "qcore" / "testing" / "pytest_plugin.py"
        source = kit.read_text() if module == "pytest" else ""
    else:
        source = (ROOT / script).read_text()
    for option in options:
        if option.startswith("--"):
            assert f'"{option}"' in source, f"{where}: {script} has no {option}"
        elif "/" in option:
            assert (ROOT / option).exists(), f"{where}: there is no {option}"


def run_pytest(arguments: list[str], where: str) -> str:
    """A run of pytest as a reader starts it, with what the page has installed."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path.cwd().parent / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_torchrun(arguments: list[str], where: str) -> str:
    """Runs a script that the page shows, in processes of its own."""
    *options, script = arguments
    program = [sys.executable, "-m", "torch.distributed.run", *options]
    done = subprocess.run(
        [*program, str(Path.cwd().parent / "site" / script)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


PROGRAMS = {
    "pytest": run_pytest,
    "qcore": run_qcore,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "torchrun": run_torchrun,
}
