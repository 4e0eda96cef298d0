"""Records refuse what the host or the pipeline could not use, with the cure."""

import attrs
import pytest

import qcore
from qcore import Origin, PluginError


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "a\n", "\x1b[2J", None, 1])
def test_names(name):
    """A name can stand in lists, in ``plugin:name`` and on a terminal."""
    with pytest.raises(PluginError, match="use a non-empty name without spaces, commas and colons"):
        qcore.ObserverSpec(name=name, target="a:b")


@pytest.mark.parametrize("target", ["", "a", "a:", ":b", "a.b", "a-b:c", "a:b c", "a..b:c", None])
def test_targets(target):
    """A target is a module and an attribute."""
    with pytest.raises(PluginError, match=r"target=.*write 'package.module:Attribute'"):
        qcore.ObserverSpec(name="kl", target=target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: qcore.ObserverSpec(name="x", target="a:b", summary=1),
            "summary=1; it must be str",
        ),
        (lambda: qcore.SchemeSpec(name="x", scheme="int8"), "scheme='int8'; it must be QScheme"),
        (lambda: qcore.PresetSpec(name="x", qconfig=None), "qconfig=None; it must be QConfig"),
        (lambda: qcore.FusionSpec(name="x", pattern=("a",)), "a tuple of two steps or more"),
        (lambda: qcore.FusionSpec(name="x", pattern=["a", "b"]), "a tuple of two steps or more"),
        (lambda: qcore.FusionSpec(name="x", pattern=("a", ())), r"the step \(\) of its pattern"),
        (lambda: qcore.FusionSpec(name="x", pattern=("a", 1)), "the step 1 of its pattern"),
        (
            lambda: qcore.FusionSpec(name="x", pattern=("a", "b"), priority="1"),
            "priority='1'; it must be int",
        ),
        (
            lambda: qcore.FusionSpec(name="x", pattern=("a", "b"), priority=True),
            "priority=True; it must be int",
        ),
        (
            lambda: qcore.FusionSpec(name="x", pattern=("a", "b"), check="f"),
            "check='f'; write 'package.module:Attribute'",
        ),
        (
            lambda: qcore.ConverterSpec(name="x", target="a:b", op="conv", types="torch.nn.Conv2d"),
            "types='torch.nn.Conv2d'; write a tuple of names",
        ),
        (
            lambda: qcore.AlgorithmSpec(name="x", target="a:b", phase="late"),
            "phase='late'; use one of float, qfloat, calibrated, q",
        ),
        (
            lambda: qcore.AlgorithmSpec(name="x", target="a:b", phase="q", reads=["bias"]),
            r"reads=\['bias'\]; write a tuple of names",
        ),
        (lambda: qcore.ModelSpec(name="x", target="a:b", options=()), "options=.*must be Mapping"),
        (
            lambda: qcore.FusionSpec(name="x", pattern=("a", "b"), examples="f"),
            "examples='f'; write 'package.module:Attribute'",
        ),
        (
            lambda: qcore.ConverterSpec(name="x", target="a:b", op="conv", examples=print),
            "examples=<built-in.*write 'package.module:Attribute'",
        ),
        (
            lambda: qcore.AlgorithmSpec(name="x", target="a:b", phase="q", examples=""),
            "examples=''; write 'package.module:Attribute'",
        ),
    ],
)
def test_fields(make, message):
    """Every other field is checked when the record is made, in the plug-in's own code."""
    with pytest.raises(PluginError, match=message):
        make()


@pytest.mark.parametrize(
    "deviations",
    [
        {"order": ""},
        {"order": "  "},
        {"order": None},
        {"the order": "it is random"},
        {"Order": "it is random"},
        {1: "it is random"},
        {"order"},
        "order",
        (("order",),),
        None,
    ],
    ids=repr,
)
def test_deviations_have_names_and_reasons(deviations):
    """A deviation without a reason, or from something that is no name, is refused."""
    with pytest.raises(PluginError, match="from the name of each contract .* to the reason"):
        qcore.ObserverSpec(name="x", target="a:b", deviations=deviations)


def test_deviations_are_kept_as_pairs():
    """A record stays hashable, and its deviations can't be changed behind its back."""
    given = {"order": "it is random", "merge": "it is not"}
    record = qcore.ObserverSpec(name="x", target="a:b", deviations=given)
    del given["order"]
    assert record.deviations == (("merge", "it is not"), ("order", "it is random"))
    assert attrs.evolve(record, name="y").deviations == record.deviations
    assert hash(record) == hash(attrs.evolve(record))


def test_target_of_data_is_words():
    """Lists show a line for every record, data too."""
    fusion = qcore.FusionSpec(name="x", pattern=("conv2d", ("relu", "relu6")))
    scheme = qcore.SchemeSpec(name="x", scheme=qcore.QScheme(dtype=qcore.INT8))
    assert (fusion.target, scheme.target) == (
        "conv2d -> relu|relu6",
        "int8 symmetric per_tensor",
    )


def test_origin_is_no_part_of_equality():
    """A record is the same thing wherever it came from."""
    record = qcore.ObserverSpec(name="kl", target="a:b")
    origin = Origin(plugin="p", distribution="d", version="1", entry_point="m")
    assert attrs.evolve(record, origin=origin) == record


@pytest.mark.parametrize(
    ("distribution", "version", "text"),
    [
        ("acme", "1.2", "p (acme 1.2)"),
        ("acme", "", "p (acme)"),
        ("", "", "p"),
        ("(in process)", "", "p (in process)"),
    ],
)
def test_origin_in_words(distribution, version, text):
    """An origin is shown on one line."""
    origin = Origin(plugin="p", distribution=distribution, version=version, entry_point="m")
    assert origin.describe() == text
