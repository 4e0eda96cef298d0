"""Marks on what is experimental or deprecated."""

import copy
import inspect
import pickle
import warnings

import attrs
import pytest

import qcore


@qcore.experimental("0.2")
def halve(x: float, *, times: int = 1) -> float:
    """Half of ``x``.

    Args:
        x: a number.
    """
    return x / 2**times


@qcore.deprecated("0.2", removed="0.4", use="halve")
def third(x: float) -> float:
    return x / 3


@qcore.deprecated("0.2", removed="0.4", use="Young")
class Old:
    """An old class."""

    def __init__(self, value: int = 1) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Old) and other.value == self.value

    __hash__ = None


@qcore.experimental("0.2")
@attrs.frozen(kw_only=True)
class Young:
    """A young class."""

    value: int = 2

    @classmethod
    @qcore.deprecated("0.3", removed="0.10", use="Young(value=...)")
    def of(cls, value: int) -> "Young":
        return cls(value=value)

    @property
    @qcore.experimental("0.3")
    def twice(self) -> int:
        return 2 * self.value


def caught(call, *args, **kwargs):
    """Result of a call, and the one warning that it gives."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = call(*args, **kwargs)
    (warning,) = found
    return result, warning


def test_marked_functions_work_and_warn_at_the_caller():
    """The result is that of the function; the warning has its category, text and place."""
    result, warning = caught(halve, 3.0, times=2)
    assert result == 0.75
    assert warning.category is qcore.QcoreExperimentalWarning
    assert str(warning.message) == "halve is experimental since 0.2: it may change in any version"
    assert warning.filename == __file__

    result, warning = caught(third, 3.0)
    assert result == 1.0
    assert warning.category is qcore.QcoreDeprecationWarning
    assert (
        str(warning.message)
        == "third is deprecated since 0.2 and will be removed in 0.4; use halve"
    )


def test_categories_are_those_that_filters_know():
    """Deprecation is hidden from end users as Python does it; experimental is shown to them."""
    assert issubclass(qcore.QcoreDeprecationWarning, DeprecationWarning)
    assert issubclass(qcore.QcoreExperimentalWarning, FutureWarning)
    for category in (qcore.QcoreDeprecationWarning, qcore.QcoreExperimentalWarning):
        assert issubclass(category, qcore.QcoreWarning)


def test_a_loop_warns_once():
    """By Python's default filter a place that calls a thousand times is warned once."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(1000):
            halve(1.0)
    assert len(found) == 1


def test_marked_classes_stay_themselves():
    """Making an instance warns; isinstance, copies, pickles and attrs do as before."""
    old, warning = caught(Old, 5)
    assert "Old is deprecated since 0.2" in str(warning.message)
    assert type(old) is Old
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.deepcopy(old) == old
        assert pickle.loads(pickle.dumps(old)) == old
        assert [field.name for field in attrs.fields(Young)] == ["value"]

    young, warning = caught(Young)
    assert "Young is experimental since 0.2" in str(warning.message)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        young.value = 3
    assert young == caught(Young, value=2)[0]


def test_a_subclass_warns_too():
    """Who builds on a deprecated class learns it."""

    class Derived(Old):
        pass

    derived, warning = caught(Derived, 7)
    assert derived.value == 7
    assert "Old is deprecated" in str(warning.message)


def test_methods_and_properties():
    """A mark stands below ``classmethod`` and ``property``."""
    young = caught(Young, value=4)[0]
    assert caught(lambda: young.twice)[0] == 8
    assert "Young.twice is experimental" in str(caught(lambda: young.twice)[1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qcore.QcoreExperimentalWarning)
        made, warning = caught_deprecation(lambda: Young.of(9))
    assert made.value == 9
    assert "Young.of is deprecated since 0.3 and will be removed in 0.10" in str(warning.message)


def caught_deprecation(call):
    """As :func:`caught`, of deprecations alone."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", qcore.QcoreDeprecationWarning)
        result = call()
    (warning,) = found
    return result, warning


def test_signature_and_docstring():
    """Tools see the signature, and a note behind the docstring."""
    assert str(inspect.signature(halve)) == "(x: float, *, times: int = 1) -> float"
    assert halve.__name__ == "halve"
    assert inspect.getdoc(halve).endswith(
        "    x: a number.\n\nNote:\n    Experimental since 0.2: it may change in any version."
    )
    assert inspect.getdoc(third) == "Deprecated since 0.2 and will be removed in 0.4; use halve."
    assert inspect.getdoc(Old).startswith("An old class.\n\nNote:\n    Deprecated since 0.2")
    assert third.__stability__ == "deprecated since 0.2 and will be removed in 0.4; use halve"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: qcore.experimental("soon"), r"experimental: since='soon'; write a version such"),
        (lambda: qcore.experimental(halve), r"since=<function halve.*write a version such as"),
        (
            lambda: qcore.deprecated("0.4", removed="0.4", use="x"),
            r"removed='0\.4' is not after since='0\.4'; name a later version",
        ),
        (lambda: qcore.deprecated("0.9", removed="0.10", use=" "), r"use=' '; say what takes"),
        (lambda: qcore.experimental("0.2")(property(halve)), r"below @property, @classmethod"),
        (lambda: qcore.experimental("0.2")(staticmethod(halve)), r"mark a function or a class"),
    ],
    ids=["no version", "no parentheses", "removed at once", "no replacement", "property", "static"],
)
def test_wrong_marks_are_errors(make, message):
    """A mark that can't be right is an error where it is written."""
    with pytest.raises(qcore.PluginError, match=message):
        make()
