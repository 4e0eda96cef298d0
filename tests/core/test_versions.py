"""Versions and limits follow the packaging standard, for which `packaging` is the oracle."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version as Oracle

from qcore import PluginError
from qcore.versions import Requirement, Version, canonical_name, installed_version

number = st.integers(0, 3).map(str)


@st.composite
def pairs(draw):
    """Two versions of any form; often of one release, where the rules differ from plain order."""
    releases = st.lists(number, min_size=1, max_size=4).map(".".join)
    epochs = st.sampled_from(["", "", "", "1!", "v"])
    left = draw(epochs) + draw(releases)
    right = draw(
        st.one_of(st.just(left), st.just(left + ".0"), st.builds(str.__add__, epochs, releases))
    )
    return left + draw(endings()), right + draw(endings())


@st.composite
def endings(draw):
    """What may follow a release."""
    stages = ["", "", "", "a", "b0", "rc1", ".beta", "-c_2", "PRE1"]
    text = draw(st.sampled_from(stages))
    text += draw(st.sampled_from(["", "", "", ".post1", "-1", "rev2", "post"]))
    text += draw(st.sampled_from(["", "", "", ".dev0", "dev1"]))
    return text + draw(st.sampled_from(["", "", "", "+a", "+1", "+a.1", "+cu118", "+10"]))


@given(pairs())
def test_order_of_versions(pair):
    """Any two versions compare as the standard says."""
    left, right = pair
    ours = Version.parse(left).key, Version.parse(right).key
    theirs = Oracle(left), Oracle(right)
    assert (ours[0] < ours[1], ours[0] == ours[1]) == (
        theirs[0] < theirs[1],
        theirs[0] == theirs[1],
    )


@example(("1.2rc1", "1.2"), "<", False)
@example(("1.2.post1", "1.2"), ">", False)
@example(("1.2.post1", "1.2.dev0"), ">", False)
@example(("1.2.post1.dev0", "1.2.post1"), "<", False)
@example(("1.2+cu118", "1.2"), "==", False)
@example(("1.2rc1", "1.2"), "==", True)
@given(pairs(), st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "~="]), st.booleans())
def test_limits(pair, operator, wildcard):
    """A limit accepts what the standard accepts, and is refused where the standard refuses it."""
    version, limit = pair
    text = f"{operator}{limit}" + (".*" if wildcard else "")
    try:
        oracle = SpecifierSet(text)
    except InvalidSpecifier:
        with pytest.raises(PluginError, match="requirement"):
            Requirement.parse(f"acme{text}")
        return
    accepted = Requirement.parse(f"acme{text}").accepts(version)
    assert accepted == oracle.contains(version, prereleases=True)


def test_all_limits_must_hold():
    """Limits with commas between are a conjunction."""
    requirement = Requirement.parse("Acme_Tools (>=1.2, <2, !=1.5.*)")
    assert requirement.name == "acme-tools"
    accepted = [v for v in ("1.1", "1.2", "1.5.1", "1.6", "2.0") if requirement.accepts(v)]
    assert accepted == ["1.2", "1.6"]


def test_a_name_alone_takes_any_version():
    """Without limits the version is not even read."""
    assert Requirement.parse("acme").accepts("unknown")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ">=1",
        "acme[onnx]>=1",
        "acme>=1; python_version>'3'",
        "acme @ https://example.org/acme.whl",
        "acme===1.0",
        "acme=1.0",
        "acme>=",
        "acme>=1,",
        "acme>=1 2",
        "acme>=" + "9" * 5000,
        "acme>=1.2.*",
        "acme~=1",
        "acme>=1+local",
        "acme==1.\u0662",
    ],
)
def test_other_forms_are_refused(text):
    """What can't be checked is an error, never ignored."""
    with pytest.raises(PluginError, match="requirement"):
        Requirement.parse(text)


def test_version_that_is_none():
    """A version that can't be read is an error that shows it."""
    with pytest.raises(PluginError, match="'unknown' is not a version"):
        Requirement.parse("acme>=1").accepts("unknown")


def test_canonical_name():
    """Case and separators do not distinguish distributions."""
    assert {canonical_name(n) for n in ("a-b", "A_b", "a.B", "a-_.b")} == {"a-b"}


def test_installed_version(site):
    """The version of a distribution that is not installed is None."""
    site.install("acme", "1.2")
    assert (installed_version("acme"), installed_version("not-installed-at-all")) == ("1.2", None)
