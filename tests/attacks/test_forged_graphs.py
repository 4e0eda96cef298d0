"""Graphs with operations, references, arguments or names that no program has."""

from pathlib import Path
from typing import Any

import pytest
import torch

import qcore

FIRST = {"node": "input_1"}


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "operator.attrgetter",
        "operator.methodcaller",
        "operator.call",
        "operator.pow",
        "torch.load",
        "torch.hub.load",
        "torch.sym_sqrt",
        "aten.from_file.default",
        "aten.add_.Tensor",
        "aten.add.out",
        "aten.set_.source_Tensor",
        "aten.resize_.default",
        "aten.as_strided.default",
        "aten._unsafe_index.Tensor",
        "aten.empty.memory_format",
        "aten.rand_like.default",
        "aten.bernoulli.default",
        "aten.batch_norm_update_stats.default",
        "aten.nonexistent.default",
        "aten.add.Nonexistent",
        "aten.add.__class__",
        "aten.__class__.default",
        "aten.add",
        "aten.add.Tensor.extra",
        "aten.sum.dim_DimnameList",
        "qcore.nonexistent.default",
        "qcore.qconv",
        "qcore_capture.enter.default",
        "prims.convert_element_type.default",
        "quantized.linear.default",
        "profiler._record_function_enter.default",
        "",
        "..",
        "aten..default",
        "aten.add\n.Tensor",
    ],
)
def test_an_operation_that_is_not_in_the_table_is_refused(forge: Any, target: str) -> None:
    """Nothing is looked up, imported or called for a name that the table does not have."""
    forge.call("extra", target, [FIRST, FIRST])
    forge.refused("operation")


@pytest.mark.parametrize(
    ("target", "args", "match"),
    [
        ("aten.add.Tensor", [FIRST], "argument 'other' is missing"),
        ("aten.add.Tensor", [FIRST, FIRST, 1], "takes 2 arguments, here are 3"),
        ("aten.add.Tensor", [1, 2], "none of its arguments is a tensor"),
        ("aten.add.Tensor", [FIRST, "x"], "other='x' is no Tensor"),
        ("aten.relu.default", [[FIRST]], "is no Tensor"),
        ("aten.reshape.default", [FIRST, FIRST], "is no List"),
        ("aten.reshape.default", [FIRST, [1.5]], "is no List"),
        ("aten.reshape.default", [FIRST, [True]], "is no List"),
        ("aten.flatten.using_ints", [FIRST, None], "is no int"),
        ("aten.to.dtype", [FIRST, 6], "is no ScalarType"),
        ("aten.cat.default", [FIRST, 0], "is no List"),
        ("aten.gelu.default", [FIRST, "none"], "takes 1 arguments"),
        ("aten.split.str", ["a b", " "], "is not one that|none of its arguments"),
        ("aten.dropout.default", [FIRST, 0.5, True], "would make it random"),
        (
            "aten.batch_norm.default",
            [FIRST, None, None, None, None, True, 0.1, 1e-5, False],
            "would make it random or change its state",
        ),
        ("operator.mul", ["a", 1000000000], "takes numbers"),
        ("operator.mul", [[1], 1000000000], "takes numbers"),
        ("operator.add", [FIRST, 1], "takes numbers"),
        ("operator.add", [1], "takes 2 arguments"),
        ("operator.getitem", [FIRST, 0], "takes a result of several"),
        ("operator.getitem", ["text", 0], "takes a result of several"),
        ("torch.sym_max", [1, "2"], "takes numbers"),
        ("qcore.dequantize.default", [3, 1.0, 0], "q=3 is no Tensor"),
        ("qcore.quantize.default", [FIRST, 1, 0, -128, 127, {"dtype": "int8"}], "is missing"),
    ],
)
def test_arguments_are_checked_against_the_schema(
    forge: Any, target: str, args: list[Any], match: str
) -> None:
    """Number and types of the arguments are those of the operation, before it is ever called."""
    forge.call("extra", target, args)
    forge.refused(match)


@pytest.mark.parametrize(
    ("target", "args", "match"),
    [
        ("aten.reshape.default", [FIRST, [7, 7]], "can't run on its arguments"),
        ("aten.select.int", [FIRST, 9, 0], "can't run on its arguments"),
        ("aten.mm.default", [FIRST, FIRST], "can't run on its arguments"),
        ("aten.expand.default", [FIRST, [2**62, 2, 2, 8, 8]], "can't run|would have"),
        ("aten.arange.default", [2**62], "can't run|would have"),
        ("aten.zeros.default", [[2**31, 2**31]], "can't run|would have"),
        ("aten.pad.default", [FIRST, [2**60, 2**60]], "can't run|would have"),
        ("aten.one_hot.default", [FIRST, 2**62], "can't run|would have"),
        ("aten.gelu.default", [FIRST], None),
    ],
)
def test_shapes_are_checked_without_memory(
    forge: Any, target: str, args: list[Any], match: str | None
) -> None:
    """Sizes that don't fit together, or that no machine has room for, are found on shapes alone."""
    forge.call("extra", target, args)
    if match is None:
        forge.seal()
        qcore.load(forge.folder)
    else:
        forge.refused(match)


def test_a_result_that_no_machine_has_room_for_is_refused(forge: Any) -> None:
    """Expanding takes no memory itself; whatever follows would."""
    forge.call("narrow", "aten.zeros.default", [[1]])
    forge.call("wide", "aten.expand.default", [{"node": "narrow"}, [2**21, 2**20]])
    forge.refused("would have 2199023255552 values")


def test_cutting_a_tensor_into_endless_pieces_is_refused(forge: Any) -> None:
    """An expanded tensor takes no memory; a list of its rows would."""
    forge.call("wide", "aten.zeros.default", [[1]])
    forge.call("wider", "aten.expand.default", [{"node": "wide"}, [2**30]])
    forge.call("pieces", "aten.unbind.int", [{"node": "wider"}])
    forge.refused("would give 1073741824 tensors")


def test_numbers_that_grow_without_end_are_refused(forge: Any) -> None:
    """Squaring a size again and again stops at 64 bits."""
    forge.call("n0", "aten.sym_size.int", [FIRST, 2])
    for i in range(12):
        forge.call(f"n{i + 1}", "operator.mul", [{"node": f"n{i}"}, {"node": f"n{i}"}])
    forge.refused("more than 64 bits")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"node": "extra"}, "no operation 'extra' comes before"),
        ({"node": "output"}, "no operation 'output' comes before"),
        ({"node": "nothing"}, "no operation 'nothing' comes before"),
        ({"node": 3}, "is no argument"),
        ({"node": "input_1", "also": 1}, "tagged by one key"),
        ({"tensor": "0.weight"}, "is no argument"),
        ({"dtype": "quint8"}, "is no argument"),
        ({"dtype": "__class__"}, "is no argument"),
        ({"device": "cuda"}, "is no argument"),
        ({"layout": "sparse_coo"}, "is no argument"),
        ({"memory_format": "x"}, "is no argument"),
        ({"float": "1e999"}, "is no argument"),
        ({"call": "os.system"}, "is no argument"),
        ({}, "tagged by one key"),
        ("x" * 300, "no text that an operation takes"),
        ("\x1b[2J", "no text that an operation takes"),
    ],
)
def test_a_value_that_is_no_argument_is_refused(forge: Any, value: Any, match: str) -> None:
    """Arguments refer to earlier operations only, and have no forms but those of the table."""
    forge.call("extra", "aten.add.Tensor", [FIRST, value])
    forge.refused(match)


def test_a_cycle_is_refused(forge: Any) -> None:
    """Two operations that take each other's result can't both come first."""
    forge.call("a", "aten.add.Tensor", [FIRST, {"node": "b"}])
    forge.call("b", "aten.add.Tensor", [FIRST, {"node": "a"}])
    forge.refused("no operation 'b' comes before")


@pytest.mark.parametrize(
    "name",
    [
        "input_1",
        "output",
        "x y",
        "x;import os",
        "x\nimport os",
        "1x",
        "",
        "class",
        "self",
        "torch",
        "print",
        "é",
        "x" * 300,
        "a.b",
    ],
)
def test_a_name_that_is_no_word_is_refused(forge: Any, name: str) -> None:
    """Names become code, so they are plain words, different from each other and not reserved."""
    forge.call(name, "aten.relu.default", [FIRST])
    forge.refused("can't name a part|taken or reserved")


@pytest.mark.parametrize(
    "name",
    [
        'x"); __import__("os").mkdir("trapped"); ("',
        "forward",
        "__class__",
        "graph.x",
        "training",
        "_buffers",
        "0.weight.deeper",
        "a..b",
        "",
        "if",
        "a" * 300,
        ".".join("a" * 100),
    ],
)
def test_a_tensor_name_that_is_no_word_is_refused(
    forge: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of tensors become attributes and code: words, and none that a module has already."""
    Path(forge.folder).mkdir()
    monkeypatch.chdir(forge.folder)
    forge.program["tensors"][name] = "0.bias"
    node = {"args": [], "kwargs": {}, "name": "extra", "op": "tensor", "target": name}
    forge.program["nodes"].insert(1, node)
    forge.refused("can't name a tensor")
    assert not Path("trapped").exists()


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("names", ["self"], "can't name a part"),
        ("names", ["input=print(1)"], "can't name a part"),
        ("names", ["a", "b"], "no tree of"),
        ("names", ["input", "input"], "not different"),
        ("positional", 0, "no tree of"),
        ("positional", -1, "not different"),
        ("positional", 5, "not different"),
        ("inputs", "leaf", "no tree of"),
        ("inputs", {"tuple": []}, "no tree of"),
        ("inputs", {"set": []}, "is no structure"),
        ("inputs", {"tuple": ["leaf"], "list": []}, "tagged by one key"),
        (
            "inputs",
            {"tuple": [{"tuple": [{"tuple": ["leaf", "leaf"]}]}, {"dict": []}]},
            "2 places for 1 inputs",
        ),
        ("outputs", {"tuple": ["leaf", "leaf"]}, "2 places for 1 results"),
        ("outputs", {"dict": [["a", "leaf"], ["a", "leaf"]]}, "comes twice"),
        ("outputs", {"dict": [[None, "leaf"]]}, "an entry is a key and a structure"),
        ("outputs", {"dict": ["leaf"]}, "an entry is a key and a structure"),
        ("outputs", {"named": [["class", "leaf"]]}, "an entry is a key and a structure"),
        ("outputs", {"named": [["x=1", "leaf"]]}, "an entry is a key and a structure"),
        ("outputs", {"fields": [["a", None]]}, "0 places for 1 results"),
        ("outputs", {"tuple": ["leaf"] * 10_001}, "at most"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(
    forge: Any, field: str, value: Any, match: str
) -> None:
    """Names and structures of inputs and outputs are words and trees that fit the graph."""
    forge.program["signature"][field] = value
    forge.refused(match)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("dtype", "object", "is no dtype"),
        ("shape", ["n0", -1, 8, 8], "negative size"),
        ("shape", ["n0", 2, 8, 9], "golden.inputs"),
        ("tensor", False, "golden.inputs|none of its arguments|is no Tensor"),
        ("same_as", "input", "no input 'input' comes before it"),
        ("value", {"call": 1}, "is no argument"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(
    forge: Any, field: str, value: Any, match: str
) -> None:
    """What an input may be is well-formed, and the golden input is that."""
    forge.program["inputs"][0][field] = value
    forge.refused(match)


def nested_power(depth: int) -> Any:
    """A number with more digits than there is memory."""
    return ["pow", nested_power(depth - 1), 16] if depth else "n0"


@pytest.mark.parametrize(
    ("expression", "match"),
    [
        ("__import__('os')", None),
        (["eval", "1"], "no operation on sizes"),
        (["eq", "n0"], "no operation on sizes"),
        ([], "no operation on sizes"),
        ([["eq"], 1, 2], "no operation on sizes"),
        (["gt", ["pow", "n0", 10**9], 0], "too much"),
        (["gt", ["pow", "n0", "n0"], 0], "too much"),
        (["gt", nested_power(30), 0], "golden.inputs"),
        (["and", *[True] * 1001], "more than 1000 parts"),
        ({"call": 1}, "no size and no number"),
        (["eq", "n0", 3], "golden.inputs"),
        (["eq", ["mod", "n0", 0], 0], "golden.inputs"),
    ],
)
def test_a_condition_is_a_tree_of_known_operations(
    forge: Any, expression: Any, match: str | None
) -> None:
    """Conditions are worked out by a table, and hold for the golden inputs; no text is
    evaluated."""
    forge.program["conditions"] = [{"expression": expression, "place": ""}]
    if match is None:
        forge.seal()
        qcore.load(forge.folder)
    else:
        forge.refused(match)


def edit_no_output(program: dict[str, Any]) -> None:
    program["nodes"].pop()


def edit_two_outputs(program: dict[str, Any]) -> None:
    program["nodes"].append({**program["nodes"][-1], "name": "output_1"})


def edit_unknown_op(program: dict[str, Any]) -> None:
    program["nodes"][1]["op"] = "call_module"


def edit_input_default(program: dict[str, Any]) -> None:
    program["nodes"][0]["args"] = [1]


def edit_kwargs(program: dict[str, Any]) -> None:
    program["nodes"][1]["kwargs"] = {"x=1, y": 1}


def edit_kwarg_twice(program: dict[str, Any]) -> None:
    program["nodes"][1]["kwargs"] = {"scale": 1.0}


def edit_unknown_tensor(program: dict[str, Any]) -> None:
    next(n for n in program["nodes"] if n["op"] == "tensor")["target"] = "nothing"


def edit_no_signature(program: dict[str, Any]) -> None:
    program["signature"] = None


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (edit_no_output, "there is no output"),
        (edit_two_outputs, "nothing may come after the output"),
        (edit_unknown_op, "op='call_module'; use one of"),
        (edit_input_default, "wrong number of arguments"),
        (edit_kwargs, "has no argument"),
        (edit_kwarg_twice, "given twice"),
        (edit_unknown_tensor, "the program has no tensor 'nothing'"),
        (edit_no_signature, "nothing to apply them to"),
    ],
)
def test_a_graph_that_is_none_is_refused(forge: Any, edit: Any, match: str) -> None:
    """The nodes are inputs, tensors, calls and one output at the end."""
    edit(forge.program)
    forge.refused(match)


def test_strings_stay_strings(forge: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text in an argument is quoted in the code that is generated, whatever it holds."""
    forge.folder.mkdir()
    monkeypatch.chdir(forge.folder)
    text = "'); __import__('os').mkdir('trapped'); ('"
    forge.call("extra", "aten.div.Tensor_mode", [FIRST, 2.0])["kwargs"] = {"rounding_mode": text}
    forge.refused("can't run on its arguments")
    assert not Path("trapped").exists()
    layer = forge.program["layers"][0]
    layer["name"] = text
    forge.program["nodes"] = [n for n in forge.program["nodes"] if n["name"] != "extra"]
    forge.seal()
    assert qcore.load(forge.folder).meta["qcore"].layers[0].name == text
    assert not Path("trapped").exists()


def test_loading_runs_no_operation(forge: Any) -> None:
    """The checks work on shapes alone: a program that would take a week loads at once."""
    before = forge.call("n", "aten.zeros.default", [[2**20, 1]])
    for i in range(3):
        forge.call(f"m{i}", "aten.expand.default", [{"node": before["name"]}, [2**20, 2**19]])
    forge.seal()
    program = qcore.load(forge.folder)
    assert isinstance(program, torch.fx.GraphModule)
