"""Manifests that were edited by somebody who fixed every checksum: fields, references, tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import qcore


def test_an_unchanged_forgery_loads(forge: Any) -> None:
    """The forger's own checksums are right, so what the tests below find is what they changed."""
    forge.seal()
    assert qcore.verify(forge.folder).equal


def at(data: Any, path: str) -> tuple[Any, Any]:
    """The container and key that a dotted path leads to; numbers are indices."""
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in above:
        data = data[part]
    return data, last


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("format", "onnx", "no manifest of an artifact"),
        ("format_version", 2, "pip install --upgrade qcore-quant"),
        ("format_version", "1", "no version of the format"),
        ("format_version", True, "no version of the format"),
        ("format_version", 0, "no version of the format"),
        ("torch", None, "manifest.torch: null where text must be"),
        ("pickle", "gASV", "unknown key 'pickle'"),
        ("numerics.rounding", "up", "rounding='up'"),
        ("numerics.rounding", "half_away", "the plan is for"),
        ("plan.numerics", "half_even", "the plan is for"),
        ("plan.rows.0.status", 3, r"rows\[0\]\.status: an integer where text must be"),
        ("recipe.seed", 1.0, "seed: a float where an integer must be"),
        ("recipe.seed", True, "seed: true or false where an integer must be"),
        ("recipe.overrides", [{}], "key 'name' is missing"),
        ("recipe.weight", {"kind": "x"}, "unknown key 'kind'"),
        ("recipe.weight", [], "a list where an object or null must be"),
        ("origins.0.kind", {}, "an object where text must be"),
        ("programs", {}, "there is none"),
        ("programs", [], "a list where an object must be"),
        ("state", {"a": "0.bias"}, "one is the whole model, and there is more"),
        ("programs..tensors.spare", "b", "tensor 'b': it is not in the file"),
        ("tensor_file.bytes", -1, "the manifest says -1"),
        ("tensor_file.sha256", "0" * 64, "sha256 says"),
    ],
)
def test_a_field_that_is_wrong_is_named(forge: Any, path: str, value: Any, match: str) -> None:
    """Every field has its type, none is missing or unknown, and the message says where."""
    forge.seal()
    container, key = at(forge.manifest, path)
    container[key] = value
    forge.write_manifest()
    forge.refused_as_it_is(match)


def test_a_newer_format_is_told_whatever_its_form(forge: Any) -> None:
    """A later format may write its manifest in another way; the message is still about its
    version."""
    forge.seal()
    (forge.folder / "manifest.json").write_text(
        '{"format": "qcore-artifact", "format_version": 7, "qcore": "3.1", "programs": 4}'
    )
    forge.refused_as_it_is(r"version 7 of the format.*up to 1.*qcore '3.1'.*pip install --upgrade")


def test_a_missing_field_is_named(forge: Any) -> None:
    """A manifest without its recipe is refused."""
    del forge.manifest["recipe"]
    forge.refused("key 'recipe' is missing")


def test_a_wrong_checksum_of_the_manifest_is_found(forge: Any) -> None:
    """An edit that does not fix the checksum is reported as an edit."""
    forge.seal()
    path = forge.folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1'))
    forge.refused_as_it_is("damaged or edited")


def test_whitespace_is_part_of_the_form(forge: Any) -> None:
    """A manifest that was merely formatted anew is not taken for the one that was written."""
    forge.seal()
    path = forge.folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'": "', b'":  "', 1))
    forge.refused_as_it_is("not in the one form")


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("shape", [4, 2, 3], "its shape is"),
        ("shape", [2**62, 2**62], "bytes"),
        ("shape", [-1], "no shape"),
        ("shape", [1] * 65, "no shape"),
        ("dtype", "float32", "bytes|it is torch"),
        ("dtype", "int128", "no dtype"),
        ("dtype", "torch.int8", "no dtype"),
        ("order", [0, 0, 1, 2], "no order"),
        ("order", [0], "no order"),
        ("sha256", "0" * 64, "its values are not what its sha256 says"),
    ],
)
def test_a_tensor_that_is_not_as_declared_is_refused(
    forge: Any, path: str, value: Any, match: str
) -> None:
    """Shape, dtype, layout and checksum of each tensor are those of the manifest."""
    forge.seal()
    name = forge.program["tensors"]["0.weight"]
    forge.manifest["tensors"][name][path] = value
    forge.write_manifest()
    forge.refused_as_it_is(match)


def test_the_sets_of_tensors_are_equal(forge: Any) -> None:
    """A tensor too many or too few, on either side, is named."""
    forge.tensors["extra"] = torch.ones(1)
    forge.refused("tensor 'extra': nothing uses it")
    del forge.manifest["tensors"]["extra"]
    forge.write_manifest()
    forge.refused_as_it_is("tensor 'extra' is in it only")
    del forge.tensors["extra"]
    del forge.tensors["0.bias"]
    forge.refused("tensor '0.bias' is in the manifest only")


def test_a_tensor_that_no_node_reads_is_refused(forge: Any) -> None:
    """A program holds no tensors that nothing reads."""
    forge.program["tensors"]["spare"] = "0.bias"
    forge.refused("no node reads 'spare'")


def edit_golden_dtype(forge: Any) -> None:
    forge.tensors["golden/input.0"] = forge.tensors["golden/input.0"].double()


def edit_golden_shape(forge: Any) -> None:
    forge.tensors["golden/input.0"] = torch.zeros(2, 2, 9, 9)


def edit_golden_count(forge: Any) -> None:
    forge.program["golden"]["inputs"].append(1)


def edit_golden_layers(forge: Any) -> None:
    forge.program["golden"]["layers"].pop()


def edit_golden_value(forge: Any) -> None:
    forge.program["golden"]["outputs"].append({"tensor": 3})


def edit_layer_node(forge: Any) -> None:
    forge.program["layers"][0]["node"] = "nothing"


def edit_layer_scale(forge: Any) -> None:
    forge.program["layers"][0]["scale"] = 0.0


def edit_layer_zero_point(forge: Any) -> None:
    forge.program["layers"][0]["zero_point"] = None


def edit_two_programs(forge: Any) -> None:
    forge.manifest["programs"]["also"] = forge.program


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (edit_golden_dtype, "golden.inputs: captured model: input input is float64"),
        (edit_golden_shape, "golden.inputs: captured model: input input is float32"),
        (edit_golden_count, "golden: 2 inputs"),
        (edit_golden_layers, "layers where the program has"),
        (edit_golden_value, "the tensor file has no tensor '3'"),
        (edit_layer_node, "the graph has no operation 'nothing'"),
        (edit_layer_scale, "scale=0.0"),
        (edit_layer_zero_point, "scale and zero_point come together"),
        (edit_two_programs, "one is the whole model, and there is more"),
    ],
)
def test_records_that_contradict_each_other_are_refused(
    forge: Any, edit: Callable[[Any], None], match: str
) -> None:
    """Golden values and layers belong to the program that they stand with."""
    edit(forge)
    forge.refused(match)
