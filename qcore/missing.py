"""When a plug-in can't import a module that is not installed: whose fault it is, and the cure.

A distribution declares as extras what it can use but does not need. A module of an extra that was
not asked for is no fault: the part is *unavailable*, and one pip command cures it. A module that is
declared as needed, or not declared at all, is a fault.
"""

import re
import sys

import attrs

from .errors import PluginError
from .versions import canonical_name

__all__ = ["MissingExtraError", "MissingModule", "explain_missing", "extras_of"]

# Modules whose distribution has another name, among those that quantization code uses.
_DISTRIBUTION_OF = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "google.protobuf": "protobuf",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)['"]""")


class MissingExtraError(PluginError):
    """A part of a plug-in needs an extra that is not installed; the message has the pip command."""


@attrs.frozen(kw_only=True)
class MissingModule:
    """What a missing module means for the plug-in that asked for it.

    Args:
        optional: whether it belongs to an extra, so that nothing is broken.
        cure: a clause that says what to do.
    """

    optional: bool
    cure: str


def extras_of(distribution: str, folder: str | None = None) -> dict[str, tuple[str, ...]]:
    """What each extra of an installed distribution requires.

    Args:
        distribution: its name.
        folder: the entry of the search path where it is; by default all of ``sys.path``.

    Returns:
        Name of the extra -> requirements as the metadata writes them, markers included. The key
        ``""`` holds what the distribution requires in any case.
    """
    # Slow to import, for what only a failure needs.
    from importlib import metadata

    path = sys.path if folder is None else [folder]
    installed = next(iter(metadata.distributions(name=distribution, path=path)), None)
    requirements: dict[str, list[str]] = {"": []}
    if installed is not None:
        for extra in installed.metadata.get_all("Provides-Extra") or ():
            requirements.setdefault(extra, [])
        for requirement in installed.requires or ():
            for extra in _EXTRA.findall(requirement.partition(";")[2]) or [""]:
                requirements.setdefault(extra, []).append(requirement)
    return {extra: tuple(lines) for extra, lines in requirements.items()}


def explain_missing(
    error: ModuleNotFoundError,
    *,
    own: str,
    distribution: str,
    folder: str,
    extras: tuple[str, ...] = (),
) -> MissingModule | None:
    """Say what to do about a module that a plug-in could not import.

    Args:
        error: what the import raised.
        own: the module of the plug-in that was asked for.
        distribution: canonical name of the plug-in's distribution.
        folder: where that is installed.
        extras: the extras that the plug-in's entry point names.

    Returns:
        None if the module is part of the plug-in, of qcore, or of a package that is installed: then
        it is a wrong import, and no installation cures it.
    """
    module = error.name
    if not module or module.partition(".")[0] in (own.partition(".")[0], "qcore"):
        return None
    declared = extras_of(distribution, folder)
    if module in _DISTRIBUTION_OF:
        names = {_DISTRIBUTION_OF[module]}
    elif "." in module:
        # The package was found, so a module of it is missing: unless it is a namespace that
        # distributions share, which shows as a distribution named after the whole path.
        names = {canonical_name(module)}
        if not any(_requires(line, names) for lines in declared.values() for line in lines):
            return None
    else:
        names = {canonical_name(module)}
    fitting = [
        extra
        for extra, lines in declared.items()
        if extra and (extra in extras or any(_requires(line, names) for line in lines))
    ]
    if any(_requires(line, names) for line in declared[""]):
        needed = next(line for line in declared[""] if _requires(line, names)).partition(";")[0]
        return MissingModule(
            optional=False,
            cure=f"{distribution} requires it, so its installation is incomplete: pip install "
            f"'{needed.strip()}'",
        )
    if fitting:
        # "dev" and "all" repeat what the extra proper says.
        extra = min(fitting, key=lambda e: (e not in extras, len(declared[e]), e))
        return MissingModule(optional=True, cure=f"pip install '{distribution}[{extra}]'")
    return MissingModule(
        optional=False,
        cure=f"{distribution} does not declare that it needs it; if {module!r} is not misspelt: "
        f"pip install {min(names)}",
    )


def _requires(requirement: str, names: set[str]) -> bool:
    match = _NAME.match(requirement)
    return match is not None and canonical_name(match[1]) in names
