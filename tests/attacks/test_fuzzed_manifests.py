"""Random edits of a manifest, by somebody who fixes every checksum."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import qcore

_SETTINGS = settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 1, -1, 2, 127, 128, 255, 2**31]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        [
            *("leaf", "node", "tensor", "tuple", "float", "nan", "inf", "dtype", "int8", "input_1"),
            *("operator.mul", "aten.add.Tensor", "qcore.qlinear.default", "n0", "output"),
        ]
    ),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["node", "tuple", "float", "dtype", "x"]), inner, max_size=2
        ),
    ),
    max_leaves=6,
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys or indices."""
    keys = data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    for key in list(keys):
        yield data, key
        yield from places(data[key])


@_SETTINGS
@given(data=st.data())
def test_a_random_edit_loads_or_is_an_artifact_error(
    forged_copy: Callable[[], Any], data: st.DataObject
) -> None:
    """Values replaced, removed, doubled and moved about: never anything but an ArtifactError.

    What still loads is harmless (the name of a recipe), or another program that is well-formed.
    """
    forgery = forged_copy()
    forgery.seal()
    for _ in range(data.draw(st.integers(1, 3))):
        where = list(places(forgery.manifest))
        container, key = data.draw(st.sampled_from(where))
        edit = data.draw(st.sampled_from(["replace", "remove", "double", "move"]))
        if edit == "replace":
            container[key] = data.draw(values)
        elif edit == "remove":
            del container[key]
        elif edit == "double" and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        else:
            other, other_key = data.draw(st.sampled_from(where))
            container[key] = copy.deepcopy(other[other_key])
    forgery.write_manifest()
    try:
        qcore.load(forgery.folder)
    except qcore.ArtifactError:
        event("refused")
    else:
        event("loaded")
        try:
            qcore.verify(forgery.folder)
        except (qcore.ArtifactError, qcore.BackendError):
            event("not run")


@_SETTINGS
@given(data=st.data())
def test_random_arguments_are_refused_or_run(
    forged_copy: Callable[[], Any], data: st.DataObject
) -> None:
    """An argument of an operation of Q, replaced by any value, is found or makes no difference."""
    forgery = forged_copy()
    calls = [node for node in forgery.program["nodes"] if node["op"] == "call"]
    node = data.draw(st.sampled_from(calls))
    index = data.draw(st.integers(0, len(node["args"]) - 1))
    node["args"][index] = data.draw(values)
    forgery.seal()
    try:
        qcore.load(forgery.folder)
    except qcore.ArtifactError as error:
        assert "it can't be read" not in str(error)  # noqa: PT017
    else:
        qcore.verify(forgery.folder)
