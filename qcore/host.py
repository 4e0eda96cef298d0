"""The plug-in host: one table of everything that the installed plug-ins contribute.

Its work has two steps. *Discover* reads the metadata of installed distributions and imports
nothing. *Activate* imports a plug-in's light module, on the first question that needs it, calls its
hooks and checks what they return. The heavy part of a contribution, its target, is imported by
:meth:`PluginHost.load` only.

A plug-in that breaks any rule is put in quarantine: it contributes nothing, its :class:`PluginInfo`
says why, and everything else works.
"""

import copy
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Self

import attrs

from .activation import QuarantineError, collect, import_plugin
from .discovery import InstalledPlugin, discover
from .errors import PluginError
from .loading import load_examples, load_fusion_check, load_target
from .lookup import check_kind, check_usable, find_by_name, find_distribution, find_in_plugin
from .plugin_info import PluginInfo, PluginStatus, triage
from .specs import (
    IN_PROCESS,
    AlgorithmSpec,
    ConverterSpec,
    FusionSpec,
    Origin,
    Spec,
    is_name,
)
from .versions import Requirement

__all__ = ["PluginHost", "default_host"]

# An installed plug-in of this status can never be activated by this host.
_NAME_IS_FREE = ("blocked", "incompatible", "missing")


class PluginHost:
    """Finds plug-ins, activates them on demand and looks their contributions up.

    A host is an object without global state: two hosts do not see each other. Its order is
    (plug-in, name) everywhere, whatever the order of folders and imports. It may be used from
    several threads.

    Args:
        path: folders and archives to look for distributions in; by default ``sys.path`` without the
            working folder. Modules are imported from ``sys.path`` in any case.
        allow: names of the only plug-ins to use; None allows all, an empty collection none.
        block: names of plug-ins never to import; stronger than ``allow``.
        strict: raise at the first plug-in that is broken instead of going on without it.

    >>> host = PluginHost([])
    >>> host.specs("observer")
    ()
    """

    def __init__(
        self,
        path: Sequence[str | os.PathLike[str]] | None = None,
        *,
        allow: Iterable[str] | None = None,
        block: Iterable[str] = (),
        strict: bool = False,
    ) -> None:
        for name, value in (("allow", allow), ("block", block)):
            if isinstance(value, str):
                raise PluginError(
                    f"PluginHost: {name}={value!r}; give a list of names: [{value!r}]"
                )
        self._path = path
        self._allow = None if allow is None else frozenset(allow)
        self._block = frozenset(block)
        self._strict = strict
        self._lock = threading.RLock()
        self._rows: list[tuple[InstalledPlugin | None, PluginInfo]] | None = None
        self._activating: str | None = None

    @classmethod
    def from_environment(cls, *, block: Iterable[str] = (), strict: bool = False) -> Self:
        """A host whose allow-list is the variable ``QCORE_PLUGINS``: names with commas between.

        Unset, it allows all plug-ins; empty, none.
        """
        value = os.environ.get("QCORE_PLUGINS")
        allow = None if value is None else [n.strip() for n in value.split(",") if n.strip()]
        return cls(allow=allow, block=block, strict=strict)

    def plugins(self, *, activate: bool = True) -> tuple[PluginInfo, ...]:
        """Every plug-in that is installed or registered, broken and blocked ones too.

        Args:
            activate: import those that were not yet; otherwise they are ``"discovered"``.

        Raises:
            PluginError: the host is strict and a plug-in is broken.
        """
        with self._lock:
            if activate:
                self._activate(lambda info: True)
            return self._discovered()

    @property
    def degraded(self) -> bool:
        """Whether any plug-in that should work does not. Activates all."""
        return any(info.degraded for info in self.plugins())

    def specs(self, kind: str) -> tuple[Spec, ...]:
        """All contributions of a kind, ordered by plug-in and name.

        Args:
            kind: ``"observer"``, ``"fake_quant"``, ``"scheme"``, ``"preset"``, ``"fusion"``,
                ``"converter"``, ``"backend"``, ``"algorithm"``, ``"model"`` or ``"dataset"``.

        Raises:
            PluginError: there is no such kind, or the host is strict and a plug-in is broken.
        """
        check_kind(kind)
        return tuple(
            spec for info in self.plugins() for spec in info.contributions if spec.kind == kind
        )

    def find(self, kind: str, name: str) -> Spec:
        """The contribution of that name.

        Args:
            kind: as for :meth:`specs`.
            name: ``"name"``, or ``"plugin:name"`` where several plug-ins contribute the name. The
                second form activates no other plug-in.

        Raises:
            PluginError: there is none, or several.
        """
        check_kind(kind)
        plugin, colon, own_name = name.rpartition(":")
        if colon:
            with self._lock:
                infos = self._activate_named(plugin)
                return find_in_plugin(kind, plugin, own_name, infos, self._discovered())
        return find_by_name(kind, name, self.plugins())

    def load(self, spec: Spec) -> Any:
        """Import what a record stands for.

        Args:
            spec: a record that this or another host returned.

        Returns:
            The target; for a scheme the :class:`qcore.QScheme`, for a preset the
            :class:`qcore.QConfig`, for a fusion, which is data, the record itself.

        Raises:
            MissingExtraError: the target needs an extra that is not installed.
            PluginError: the target can't be imported, or is not what its kind must be.
        """
        return load_target(spec, self._entry_of(spec))

    def load_check(self, fusion: FusionSpec) -> Callable[..., str | None] | None:
        """Import the function that may refuse a match of a fusion; None if it has none.

        Raises:
            MissingExtraError: the function's module needs an extra that is not installed.
            PluginError: it can't be imported or called.
        """
        return load_fusion_check(fusion, self._entry_of(fusion))

    def load_examples(
        self, spec: FusionSpec | ConverterSpec | AlgorithmSpec
    ) -> Callable[[], Iterable[Any]] | None:
        """Import the function that yields modules with inputs, on which :mod:`qcore.testing` checks
        a contribution; None if it names none.

        Raises:
            MissingExtraError: the function's module needs an extra that is not installed.
            PluginError: it can't be imported or called.
        """
        return load_examples(spec, self._entry_of(spec))

    def get(self, kind: str, name: str) -> Any:
        """``load(find(kind, name))``."""
        return self.load(self.find(kind, name))

    def register(self, plugin: object, *, name: str | None = None) -> PluginInfo:
        """Add a plug-in of this process: a module, or an object with hooks as methods.

        For tests and notebooks; nothing is installed. The allow-list does not apply.

        Args:
            plugin: the module or object.
            name: the plug-in's name; by default that of the module, or of the object's type.

        Raises:
            PluginError: the name is taken or blocked, or the plug-in breaks a rule; the host is
                then as it was.
        """
        default = getattr(plugin, "__name__", None) or type(plugin).__name__
        name = default if name is None else name
        origin = Origin(plugin=name, distribution=IN_PROCESS, version="", entry_point=default)
        where = f"plug-in {name!r} {IN_PROCESS}"
        if not is_name(name):
            raise PluginError(f"{where}: a plug-in's name has no spaces, commas and colons")
        if name in self._block:
            raise PluginError(f"{where}: the host blocks this name; use another or unblock it")
        with self._lock:
            rows = self._discover()
            for _, info in rows:
                if info.plugin == name and info.status not in _NAME_IS_FREE:
                    raise PluginError(
                        f"{where}: the name is taken by {info.origin.describe()}; register it as "
                        f"name='my_{name}' or, if you registered that one too, unregister it first"
                    )
            self._enter(name)
            try:
                records = collect(plugin, origin)
            except QuarantineError as fault:
                raise PluginError(f"{where}: {fault.text}") from fault
            finally:
                self._activating = None
            info = PluginInfo(**attrs.asdict(origin), status="ok", contributions=tuple(records))
            kept = [row for row in rows if row[1].plugin != name or row[1].status != "missing"]
            self._rows = sorted([*kept, (None, info)], key=_row_order)
            return info

    def with_plugin(self, plugin: object, *, name: str | None = None) -> "PluginHost":
        """A host of the same plug-ins and one more of this process; this one stays as it is.

        Args and Raises: as of :meth:`register`.
        """
        with self._lock:
            other = copy.copy(self)
            other._rows = list(self._discover())
        other._lock = threading.RLock()
        other.register(plugin, name=name)
        return other

    def unregister(self, name: str) -> None:
        """Remove a plug-in that :meth:`register` added, so that its name can be used again.

        Raises:
            PluginError: no plug-in of that name was registered.
        """
        with self._lock:
            rows = self._discover()
            kept = [
                row for row in rows if row[1].plugin != name or row[1].distribution != IN_PROCESS
            ]
            if len(kept) == len(rows):
                raise PluginError(f"no plug-in {name!r} was registered in this process")
            self._rows = kept

    def require(self, requirements: Iterable[str]) -> None:
        """Check that distributions of plug-ins are installed, in these versions, and work.

        One that brings several plug-ins may have some blocked or unavailable, but none broken.

        Args:
            requirements: such as ``["qcore-acme>=1.2,<2"]``.

        Raises:
            PluginError: one is not; the message has the cure.
        """
        if isinstance(requirements, str):
            raise PluginError(f"require={requirements!r}; give a list: [{requirements!r}]")
        for text in requirements:
            requirement = Requirement.parse(text)
            with self._lock:
                for info in find_distribution(text, requirement, self._discovered()):
                    self._activate_named(info.plugin)
                check_usable(text, find_distribution(text, requirement, self._discovered()))

    def _discovered(self) -> tuple[PluginInfo, ...]:
        return tuple(info for _, info in self._discover())

    def _entry_of(self, spec: Spec) -> InstalledPlugin | None:
        with self._lock:
            rows = self._discover()
            return next((entry for entry, info in rows if info.origin == spec.origin), None)

    def _discover(self) -> list[tuple[InstalledPlugin | None, PluginInfo]]:
        if self._rows is None:
            self._rows = triage(discover(self._path), allow=self._allow, block=self._block)
        return self._rows

    def _activate_named(self, plugin: str) -> tuple[PluginInfo, ...]:
        self._activate(lambda info: info.plugin == plugin)
        return tuple(info for info in self._discovered() if info.plugin == plugin)

    def _activate(self, wanted: Callable[[PluginInfo], bool]) -> None:
        rows = self._discover()
        for index, (entry, info) in enumerate(rows):
            if not wanted(info):
                continue
            if entry is not None and info.status == "discovered":
                # Kept one by one, so that a Ctrl-C half-way loses nothing.
                rows[index] = entry, self._activate_one(entry, info)
            info = rows[index][1]
            if self._strict and info.degraded:
                raise PluginError(info.trouble)

    def _activate_one(self, entry: InstalledPlugin, info: PluginInfo) -> PluginInfo:
        self._enter(info.plugin)
        try:
            records = collect(import_plugin(entry), info.origin)
        except QuarantineError as fault:
            status: PluginStatus = "unavailable" if fault.unavailable else "failed"
            return attrs.evolve(info, status=status, failure=fault.text)
        finally:
            self._activating = None
        return attrs.evolve(info, status="ok", contributions=records)

    def _enter(self, plugin: str) -> None:
        # A plug-in that asks the host while it is being activated would see half a table.
        if self._activating is not None:
            raise PluginError(
                f"plug-in {self._activating!r} uses the host while the host activates it; move "
                "that code from the plug-in's module to a target"
            )
        self._activating = plugin


def _row_order(row: tuple[object, PluginInfo]) -> tuple[str, str, str]:
    return row[1].plugin, row[1].distribution, row[1].entry_point


_default_lock = threading.Lock()


@cache
def _make_default() -> PluginHost:
    return PluginHost.from_environment()


def default_host() -> PluginHost:
    """The host that functions use when they are given none; made at the first call.

    Its allow-list is the variable ``QCORE_PLUGINS`` as it is then.
    """
    with _default_lock:
        return _make_default()
