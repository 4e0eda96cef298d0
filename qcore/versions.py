"""Versions of distributions, and the limits that a recipe may put on them.

The rules are those of the Python packaging standards: the order of versions with their pre-, post-,
development and local parts, and what ``== != < <= > >= ~=`` accept. Only the part of a requirement
that can be checked on an installed distribution is taken: a name and limits.

References:
    Version specifiers <https://packaging.python.org/en/latest/specifications/version-specifiers/>
    Name normalization <https://packaging.python.org/en/latest/specifications/name-normalization/>
"""

import re
from collections.abc import Callable
from typing import Self

import attrs

from .errors import PluginError

__all__ = ["DISTRIBUTION", "Requirement", "Version", "canonical_name", "installed_version"]

DISTRIBUTION = "qcore-quant"
"""What pip calls qcore."""

_VERSION = re.compile(
    r"""v?
    (?:(?P<epoch>[0-9]+)!)?
    (?P<release>[0-9]+(?:\.[0-9]+)*)
    (?:[-_.]?(?P<stage>alpha|beta|preview|pre|rc|a|b|c)[-_.]?(?P<stage_number>[0-9]*))?
    (?:-(?P<bare_post>[0-9]+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_number>[0-9]*))?
    (?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_number>[0-9]*))?
    (?:\+(?P<local>[a-z0-9]+(?:[-_.][a-z0-9]+)*))?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_LONGEST = 200
_STAGES = {"a": 0, "alpha": 0, "b": 1, "beta": 1, "c": 2, "rc": 2, "pre": 2, "preview": 2}
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(.*)", re.DOTALL)
_LIMIT = re.compile(r"\s*(~=|==|!=|<=|>=|<|>)\s*([A-Za-z0-9]\S*?)(\.\*)?\s*")


def canonical_name(name: str) -> str:
    """The one spelling of a distribution's name.

    >>> canonical_name("Qcore_Acme.Tools")
    'qcore-acme-tools'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_version(distribution: str = DISTRIBUTION) -> str | None:
    """The version that is installed; None if the distribution is not."""
    # Slow to import, for what a user rarely asks.
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@attrs.frozen(kw_only=True)
class Version:
    """One version, taken apart; compare with :attr:`key`.

    Args:
        epoch: 0 unless written ``1!2.0``.
        release: the numbers, ``(1, 2, 0)``.
        pre: stage (0 alpha, 1 beta, 2 release candidate) and number.
        post: number of the post-release.
        dev: number of the development release.
        local: parts of what follows ``+``.

    >>> Version.parse("1.10").key > Version.parse("1.9.post2").key > Version.parse("1.9rc1").key
    True
    """

    epoch: int = 0
    release: tuple[int, ...]
    pre: tuple[int, int] | None = None
    post: int | None = None
    dev: int | None = None
    local: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a version.

        Raises:
            PluginError: ``text`` is no version.
        """
        match = _VERSION.fullmatch(text.strip())
        if match is None or len(text) > _LONGEST:
            raise PluginError(f"{text[:_LONGEST]!r} is not a version; write '1.2' or '1.2rc1'")
        part = match.groupdict()
        post = part["bare_post"] or (part["post"] and (part["post_number"] or "0"))
        return cls(
            epoch=int(part["epoch"] or 0),
            release=tuple(int(number) for number in part["release"].split(".")),
            pre=(_STAGES[part["stage"].lower()], int(part["stage_number"] or 0))
            if part["stage"]
            else None,
            post=int(post) if post else None,
            dev=int(part["dev_number"] or 0) if part["dev"] else None,
            local=tuple(re.split(r"[-_.]", part["local"].lower())) if part["local"] else (),
        )

    @property
    def base(self) -> tuple[int, tuple[int, ...]]:
        """Epoch and release without trailing zeros: equal for 1.2, 1.2.0 and 1.2rc1."""
        release = self.release
        while len(release) > 1 and release[-1] == 0:
            release = release[:-1]
        return self.epoch, release

    @property
    def public(self) -> "Version":
        """Without the local part, which limits do not look at."""
        return attrs.evolve(self, local=())

    @property
    def is_prerelease(self) -> bool:
        """Whether it comes before the release that it is named after."""
        return self.pre is not None or self.dev is not None

    @property
    def key(self) -> tuple[object, ...]:
        """What orders versions: a tuple that compares with that of any other version."""
        # A development release precedes the alphas of the same release, but follows the final
        # release when it is one of a post-release.
        if self.pre is not None:
            pre = self.pre
        elif self.dev is not None and self.post is None:
            pre = (-1, 0)
        else:
            pre = (3, 0)
        return (
            *self.base,
            pre,
            -1 if self.post is None else self.post,
            (1, 0) if self.dev is None else (0, self.dev),
            tuple((1, int(p), "") if p.isdigit() else (0, 0, p) for p in self.local),
        )


def _equal(version: Version, limit: Version) -> bool:
    return (version if limit.local else version.public).key == limit.key


def _starts_with(version: Version, prefix: Version) -> bool:
    release = version.release + (0,) * (len(prefix.release) - len(version.release))
    return version.epoch == prefix.epoch and release[: len(prefix.release)] == prefix.release


def _below(version: Version, limit: Version) -> bool:
    # 1.2rc1 is no answer to "<1.2": who writes that wants what came before the 1.2 series.
    end = limit if limit.is_prerelease else attrs.evolve(limit, dev=0)
    return version.public.key < end.key


def _above(version: Version, limit: Version) -> bool:
    # Nor is 1.2.post1 one to ">1.2"; nothing but post-releases shares these parts and is above.
    same = (version.base, version.pre) == (limit.base, limit.pre)
    its_post_release = same and limit.post is None and limit.dev is None
    return version.public.key > limit.key and not its_post_release


def _compatible(version: Version, limit: Version) -> bool:
    prefix = Version(epoch=limit.epoch, release=limit.release[:-1])
    return version.public.key >= limit.key and _starts_with(version, prefix)


_ACCEPTS: dict[str, Callable[[Version, Version], bool]] = {
    "==": _equal,
    "!=": lambda version, limit: not _equal(version, limit),
    "==.*": _starts_with,
    "!=.*": lambda version, limit: not _starts_with(version, limit),
    "<": _below,
    "<=": lambda version, limit: version.public.key <= limit.key,
    ">": _above,
    ">=": lambda version, limit: version.public.key >= limit.key,
    "~=": _compatible,
}


@attrs.frozen(kw_only=True)
class Requirement:
    """A distribution and the versions of it that will do.

    Args:
        name: canonical name of the distribution.
        limits: pairs of an operator and a version; a version must pass all.

    >>> Requirement.parse("Qcore_Acme >=1.2, <2").accepts("1.10.1")
    True
    >>> Requirement.parse("qcore-acme~=1.2").accepts("2.0")
    False
    """

    name: str
    limits: tuple[tuple[str, Version], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``name``, or a name and limits: ``name>=1.2,<2``.

        An installed pre-release is taken by its place in the order, as it is there already.

        Raises:
            PluginError: anything else, such as extras, a marker, an URL or ``===``.
        """
        match = _REQUIREMENT.fullmatch(text)
        if match is None:
            raise _not_a_requirement(text)
        name, rest = match.groups()
        if rest.startswith("(") and rest.endswith(")"):
            rest = rest[1:-1]
        limits = [_limit(text, part) for part in rest.split(",")] if rest else []
        return cls(name=canonical_name(name), limits=tuple(limits))

    def accepts(self, version: str) -> bool:
        """Whether ``version`` passes every limit.

        Raises:
            PluginError: ``version`` is no version, and there are limits to hold it against.
        """
        if not self.limits:
            return True
        candidate = Version.parse(version)
        return all(_ACCEPTS[operator](candidate, limit) for operator, limit in self.limits)


def _limit(requirement: str, part: str) -> tuple[str, Version]:
    match = _LIMIT.fullmatch(part)
    if match is None:
        raise _not_a_requirement(requirement)
    operator, number, wildcard = match.groups()
    try:
        version = Version.parse(number)
    except PluginError as error:
        raise PluginError(f"requirement {requirement!r}: {error}") from None
    plain = version == Version(epoch=version.epoch, release=version.release)
    if wildcard and not (operator in ("==", "!=") and plain):
        raise PluginError(
            f"requirement {requirement!r}: '.*' goes with == and != and plain numbers"
        )
    if operator == "~=" and len(version.release) < 2:
        raise PluginError(
            f"requirement {requirement!r}: '~=' needs two numbers or more; write '~={number}.0'"
        )
    if version.local and operator not in ("==", "!="):
        raise PluginError(
            f"requirement {requirement!r}: {operator!r} does not look at the local part "
            f"'+{'.'.join(version.local)}'; leave it out"
        )
    return operator + ("" if wildcard is None else wildcard), version


def _not_a_requirement(text: str) -> PluginError:
    return PluginError(
        f"requirement {text!r}: write the name of a distribution and, if need be, limits with "
        "== != < <= > >= ~=, such as 'qcore-acme>=1.2,<2'"
    )
