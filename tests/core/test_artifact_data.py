"""The data that an artifact is made of: JSON in one form, records, argument values, structures."""

import collections
import math
from typing import Any

import attrs
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from qcore import (
    INT4,
    INT8,
    ArtifactError,
    Override,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QConfig,
    QScheme,
    QuantizerConfig,
    Recipe,
)
from qcore.artifact.conditions import StoredCondition, check_expression, encode_expression
from qcore.artifact.fields import Fields
from qcore.artifact.records import from_data, to_data
from qcore.artifact.strict_json import check_form, parse, render
from qcore.artifact.structure import decode_structure, encode_structure
from qcore.artifact.values import decode_value, encode_value

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=30,
)


@given(JSON)
def test_json_comes_back_exactly(value: Any) -> None:
    """What is rendered parses to the same value, of the same types, and renders to the same
    bytes."""
    data = render(value)
    assert repr(parse(data)) == repr(_sorted(value))
    assert render(parse(data)) == data
    check_form(parse(data), data)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "text",
    ["[1, 2]\n", "[1,2]", " [1,2]\n", "[1,2.50]\n", '["\\u0041"]\n', '{"b":1,"a":2}\n', "1e2\n"],
)
def test_json_in_another_form_is_refused(text: str) -> None:
    """White space, digits, escapes and the order of keys are part of the form."""
    with pytest.raises(ArtifactError, match="not in the one form"):
        check_form(parse(text.encode()), text.encode())


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (math.inf, "no number"),
        (math.nan, "no number"),
        (2**63, "64 bits"),
        ("\ud800", "half a character"),
        ((1, 2), "type tuple"),
        ([object()], "type object"),
    ],
)
def test_json_of_what_has_no_form_is_refused(value: Any, match: str) -> None:
    """A value that would not come back is never written."""
    with pytest.raises(ArtifactError, match=match):
        render(value)


GRANULARITIES = [PerTensor(), PerChannel(-1), PerGroup(32), PerToken(), PerBlock((8, 4))]


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=lambda g: type(g).__name__)
def test_a_recipe_comes_back_equal(granularity: Any) -> None:
    """Every kind of setting of a recipe is data and comes back as it was."""
    quantizer = QuantizerConfig(
        scheme=QScheme(dtype=INT4, granularity=granularity, symmetric=False),
        observer="acme:kl",
        observer_options={"bins": 128, "range": [0.5, None], "nested": {"on": True}},
    )
    recipe = Recipe(
        name="mine",
        weight=quantizer,
        activation=QuantizerConfig(scheme="int8_affine"),
        overrides=(Override(name="layer4.*", quantize=False), Override(op="add", weight=quantizer)),
        prefer=("acme:conv2d",),
        require=("qcore-acme>=1.2",),
        qconfig=QConfig(weight=quantizer, activation=None),
        data={"name": "digits", "samples": 512},
    )
    data = to_data(recipe)
    assert from_data(Recipe, parse(render(data))) == recipe


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"dtype": 8}, r"scheme\.dtype: an integer where an object must be"),
        ({"granularity": {"kind": "per_row"}}, "kind 'per_row' is no granularity"),
        ({"granularity": {"kind": ["x"]}}, "is no granularity"),
        ({"granularity": {"kind": "per_group", "group_size": 0}}, "group_size=0"),
        ({"granularity": {"kind": "per_group"}}, "key 'group_size' is missing"),
        (
            {"granularity": {"kind": "per_block", "shape": [8, "4"]}},
            r"shape\[1\]: text where an int",
        ),
        ({"symetric": True}, "unknown key 'symetric'; did you mean 'symmetric'"),
        ({"symmetric": 1}, "symmetric: an integer where true or false must be"),
    ],
)
def test_a_record_that_does_not_fit_names_the_place(data: dict[str, Any], match: str) -> None:
    """Exactly the fields there are, of exactly their types; also the record's own rules hold."""
    good = to_data(QScheme(dtype=INT8))
    with pytest.raises(ArtifactError, match=match):
        from_data(QScheme, {**good, **data}, "scheme")


def test_a_record_with_foreign_values_is_not_written() -> None:
    """An option that is no data is an error that names the option."""
    config = QuantizerConfig(scheme="int8", observer_options={"device": torch.device("cpu")})
    with pytest.raises(ArtifactError, match=r"observer_options\.device: .* type device"):
        to_data(config, "recipe.weight")
    with pytest.raises(ArtifactError, match="key 3 is no text"):
        to_data(attrs.evolve(config, observer_options={3: 4}))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**63),
        0.1,
        -0.0,
        5e-324,
        math.inf,
        -math.inf,
        math.nan,
        "tanh",
        [1, [2.0, (3,)]],
        (),
        torch.int8,
        torch.complex64,
        torch.channels_last,
        torch.preserve_format,
        torch.strided,
        torch.device("cpu"),
    ],
    ids=repr,
)
def test_an_argument_comes_back_exactly(value: Any) -> None:
    """Bits of floats, tuples and lists, and torch's own literals survive JSON."""
    data = parse(render(encode_value(value)))
    again = decode_value(data, {}, "args[0]")
    assert repr(again) == repr(value)
    assert type(again) is type(value)


@pytest.mark.parametrize("value", [{"a": 1}, {1}, b"x", 1j, torch.ones(1), 2**63, torch.sparse_coo])
def test_a_foreign_argument_is_not_written(value: Any) -> None:
    """Values that no operation takes, or that JSON can't hold, are errors."""
    with pytest.raises(ArtifactError):
        encode_value(value)


def test_a_device_becomes_the_cpu() -> None:
    """An artifact does not depend on the machine it was made on."""
    assert encode_value(torch.device("cuda", 1)) == {"device": "cpu"}


Pair = collections.namedtuple("Pair", "first second")


def test_structures_come_back() -> None:
    """Tuples, lists, dictionaries, named tuples and their nesting survive."""
    tree = (Pair(1, [2, (3,)]), {"b": 4, "a": {0: 5}}, collections.OrderedDict(x=6), ())
    spec = decode_structure(encode_structure(pytree.tree_structure(tree)), "outputs")
    again = pytree.tree_unflatten(range(1, 7), spec)
    assert again == (tree[0], tree[1], {"x": 6}, ())
    assert again[0].second == [2, (3,)]
    assert list(again[1]) == ["b", "a"]


def test_a_model_output_becomes_fields() -> None:
    """An output class of transformers gives Fields, which are used like it."""
    outputs = pytest.importorskip("transformers.modeling_outputs")
    given = outputs.BaseModelOutput(last_hidden_state=torch.ones(1), attentions=(torch.ones(2),))
    data = encode_structure(pytree.tree_structure(given))
    output = pytree.tree_unflatten([1, 2], decode_structure(data, "outputs"))
    assert isinstance(output, Fields)
    assert output.last_hidden_state == output["last_hidden_state"] == output[0] == 1
    assert output.attentions == output[-1] == (2,)
    assert output.hidden_states is None
    assert "hidden_states" not in output
    assert output.to_tuple() == (1, (2,))
    with pytest.raises(AttributeError, match="no field 'logits'; there are last_hidden_state"):
        _ = output.logits
    assert encode_structure(pytree.tree_structure(output)) == data


def test_fields_are_a_tree() -> None:
    """torch maps over Fields and keeps their names, also of those that are not set."""
    fields = Fields([("a", 1), ("b", (2, 3))], absent=["c"])
    doubled = pytree.tree_map(lambda x: 2 * x, fields)
    assert doubled == {"a": 2, "b": (4, 6)}
    assert doubled.c is None
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(fields)[0]]
    assert paths == ["['a']", "['b'][0]", "['b'][1]"]


def test_a_container_without_names_is_an_error() -> None:
    """A container whose fields can't be told is refused when saving."""
    with pytest.raises(ArtifactError, match="type deque has no fields with names"):
        encode_structure(pytree.tree_structure(collections.deque([1, 2])))
    with pytest.raises(ArtifactError, match="is no text and no integer"):
        encode_structure(pytree.tree_structure({(1, 2): 3}))


def test_conditions_on_sizes_come_back() -> None:
    """A relation of torch's own symbols gives the same answers after saving, over its new names."""
    sympy = pytest.importorskip("sympy")
    from torch.utils._sympy.functions import FloorDiv, Mod

    s, t = sympy.Symbol("s31", integer=True), sympy.Symbol("s77", integer=True)
    relations = [
        sympy.Eq(Mod(s, 2), 0),
        sympy.Ne(FloorDiv(s, 3) * t, 4),
        sympy.And(s + t >= 5, sympy.Max(s, 2) < 9),
        sympy.Or(s > t**2, sympy.Eq(s / 2, t)),
        sympy.true,
    ]
    for relation in relations:
        tree = encode_expression(relation, {"s31": "n0", "s77": "n1"})
        check_expression(tree, "conditions[0]")
        stored = StoredCondition(expression=parse(render(tree)))
        for n0 in range(1, 12):
            for n1 in range(1, 6):
                wanted = bool(relation.subs({s: n0, t: n1}))
                assert stored.holds({"n0": n0, "n1": n1}) is wanted, (relation, n0, n1)
        assert encode_expression(stored.expression, {"n0": "n0", "n1": "n1"}) == tree


def test_a_condition_on_unknown_sizes_is_left_out() -> None:
    """Nobody could check a relation over a size that no input has."""
    sympy = pytest.importorskip("sympy")
    assert encode_expression(sympy.Symbol("u0") > 3, {"s0": "n0"}) is None
    assert StoredCondition(expression=["gt", "n5", 3]).holds({"n0": 1})


def test_a_condition_with_another_operation_is_an_error() -> None:
    """A relation that can't be kept is not dropped in silence."""
    sympy = pytest.importorskip("sympy")
    with pytest.raises(ArtifactError, match="sin is not among the operations"):
        encode_expression(sympy.sin(sympy.Symbol("s0")) > 0, {"s0": "n0"})
