"""Importing a plug-in and collecting its records, with exact blame for whatever goes wrong.

A plug-in is other people's code: it may raise anything at import, misspell a hook, return the
wrong thing or never stop. Everything of it runs inside :func:`_blame`, which turns what it raises
into a :class:`QuarantineError` that says which step failed, how and where. Nothing is shared
between plug-ins while one is being checked, so a fault leaves no trace in the others.
"""

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from types import TracebackType

import attrs
import pluggy

from . import hookspecs
from .discovery import InstalledPlugin
from .hookspecs import HOOKS, PROJECT_NAME
from .missing import explain_missing
from .specs import Origin, Spec
from .suggest import did_you_mean

__all__ = [
    "MAX_RECORDS",
    "QuarantineError",
    "collect",
    "describe_error",
    "import_object",
    "import_plugin",
]

MAX_RECORDS = 10_000
"""More records than this from one hook are taken for a generator that does not end."""

_LONGEST_MESSAGE = 500
_HERE = os.path.join(os.path.dirname(__file__), "")
_IMPORTLIB = inspect.getfile(import_module)


class QuarantineError(Exception):
    """What is wrong with a plug-in.

    It never leaves the host, which records it or turns it into a :class:`qcore.PluginError`.

    Args:
        text: one line.
        unavailable: whether the plug-in only lacks an extra.
    """

    def __init__(self, text: str, *, unavailable: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.unavailable = unavailable


def describe_error(error: BaseException) -> str:
    """An exception in one line: type, message and the line of code that raised it.

    >>> describe_error(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "(its message can't be shown)"
    message = "".join(c if c.isprintable() else "?" for c in message)
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "..."
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text + _place(error.__traceback__)


def _place(traceback: TracebackType | None) -> str:
    place = ""
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        # The frames of the import system and our own say nothing about the plug-in.
        if not file.startswith(("<", _HERE)) and file != _IMPORTLIB:
            place = f" ({file}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return place


@contextmanager
def _blame(action: str) -> Iterator[None]:
    """Turn whatever plug-in code raises into a fault; only the user's Ctrl-C goes through."""
    try:
        yield
    except (KeyboardInterrupt, QuarantineError):
        raise
    except BaseException as error:
        raise QuarantineError(f"{action} failed: {describe_error(error)}") from error


def import_object(
    module: str,
    attribute: str | None,
    *,
    distribution: str,
    folder: str | None,
    extras: Sequence[str] = (),
) -> object:
    """Import a module of a plug-in, or an object in it.

    Args:
        module: dotted name.
        attribute: dotted path of the object in the module, or None for the module itself.
        distribution: canonical name of the plug-in's distribution, for the cure.
        folder: where that is installed; None if it is not installed.
        extras: the extras that the plug-in's entry point names.

    Raises:
        QuarantineError: something else than Ctrl-C came out of it.
    """
    where = f"{module}:{attribute}" if attribute else module
    with _blame(f"importing {module!r}"):
        try:
            found: object = import_module(module)
        except ModuleNotFoundError as error:
            if folder is None:
                raise
            missing = explain_missing(
                error, own=module, distribution=distribution, folder=folder, extras=tuple(extras)
            )
            if missing is None:
                raise
            raise QuarantineError(
                f"importing {module!r} failed: {describe_error(error)}; {missing.cure}",
                unavailable=missing.optional,
            ) from error
    for name in attribute.split(".") if attribute else ():
        with _blame(f"reading {where!r}"):
            if not hasattr(found, name):
                hint = did_you_mean(name, dir(found))
                raise QuarantineError(
                    f"{where!r} does not exist: {found!r:.200} has no {name!r}{hint}"
                )
            found = getattr(found, name)
    return found


def import_plugin(entry: InstalledPlugin) -> object:
    """Import what an entry point names.

    Raises:
        QuarantineError: that can't be done.
    """
    if entry.module is None:
        raise QuarantineError(
            f"the entry point {entry.plugin!r} is {entry.value!r}; write 'package.module'"
        )
    return import_object(
        entry.module,
        entry.attribute,
        distribution=entry.distribution,
        folder=entry.folder,
        extras=entry.extras,
    )


def collect(plugin: object, origin: Origin) -> tuple[Spec, ...]:
    """Call every hook of a plug-in and check what it returns.

    Args:
        plugin: a module, or an object with hooks as methods.
        origin: stamped on every record.

    Returns:
        The records, in the order of (kind, name).

    Raises:
        QuarantineError: the plug-in breaks the contract anywhere; then none of it counts.
    """
    # A manager for each plug-in. In a shared one, a plug-in that pluggy refuses half-way stays
    # registered for the hooks that came first, and a call to a hook stops at the first that raises.
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    with _blame("looking for its hooks"):
        _check_hooks(manager, plugin)
    with _blame("registering its hooks (they take no arguments)"):
        manager.register(plugin, name=origin.plugin)
        manager.check_pending()
    records: dict[tuple[str, str], Spec] = {}
    for hook, allowed in HOOKS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            with _blame(f"hook {hook}"):
                result = implementation.function()
                for record in _records(hook, allowed, result):
                    key = record.kind, record.name
                    if key in records:
                        raise QuarantineError(
                            f"hook {hook}: {record.kind} {record.name!r} comes twice"
                        )
                    records[key] = attrs.evolve(record, origin=origin)
    return tuple(records[key] for key in sorted(records))


def _check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Refuse what pluggy would accept and never call."""
    if plugin is None:
        raise QuarantineError("the entry point names None; let it name a module")
    implemented = 0
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        if options is None:
            if name in HOOKS and inspect.isroutine(inspect.getattr_static(plugin, name, None)):
                raise QuarantineError(
                    f"function {name} is not marked as a hook, so it would never be called; put "
                    "@qcore.hookimpl above it"
                )
            continue
        hook = options.get("specname") or name
        if hook not in HOOKS:
            if options.get("optionalhook"):
                continue
            raise QuarantineError(
                f"qcore has no hook {hook!r}{did_you_mean(hook, HOOKS)} (hooks: {', '.join(HOOKS)})"
            )
        if options.get("wrapper") or options.get("hookwrapper"):
            raise QuarantineError(
                f"hook {hook} is a wrapper; a hook of qcore returns its own records"
            )
        implemented += 1
    if not implemented:
        raise QuarantineError(
            "it implements no hook; mark one or more of these with @qcore.hookimpl: "
            + ", ".join(HOOKS)
        )


def _records(hook: str, allowed: tuple[type[Spec], ...], result: object) -> Iterator[Spec]:
    wanted = " or ".join(record.__name__ for record in allowed)
    if inspect.iscoroutine(result):
        result.close()
    if not hasattr(type(result), "__iter__"):
        raise QuarantineError(
            f"hook {hook} returned {_name_of(result)}; return an iterable of {wanted}, maybe empty"
        )
    for count, record in enumerate(islice(result, MAX_RECORDS + 1)):  # type: ignore[call-overload]
        if count == MAX_RECORDS:
            raise QuarantineError(
                f"hook {hook} returned more than {MAX_RECORDS} records; does its generator end?"
            )
        # Records are data: a subclass could say one thing to the checks and another to the host.
        if type(record) not in allowed:
            home = next((h for h, kinds in HOOKS.items() if type(record) in kinds), None)
            cure = f"; return it from {home}" if home else ""
            raise QuarantineError(
                f"hook {hook} returned {_name_of(record)} where only {wanted} may be{cure}"
            )
        yield record


def _name_of(value: object) -> str:
    if value is None:
        return "None"
    return f"a value of type {type(value).__module__}.{type(value).__qualname__}".replace(
        "builtins.", ""
    )
