"""The table of operations that a program may call."""

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import qcore
from qcore.artifact.aten_table import ATEN, FUNCTIONS, MUST_BE
from qcore.artifact.operations import QCORE, Operation, name_of_target, operation


def test_the_table_has_every_operation_of_qcore() -> None:
    """What is registered under qcore:: can be saved, and nothing else has that prefix."""
    names = torch._C._dispatch_get_all_op_names()
    assert {n.removeprefix("qcore::") for n in names if n.startswith("qcore::")} == QCORE


def test_every_name_of_torch_has_a_functional_overload() -> None:
    """No name is misspelt, and none stands for operations that all change their arguments."""
    assert [name for name in sorted(ATEN) if not overloads(name)] == []


def overloads(name: str) -> list[Operation]:
    """What a name of the table lets a program call."""
    found = []
    for overload in getattr(torch.ops.aten, name).overloads():
        with contextlib.suppress(qcore.ArtifactError):
            found.append(operation(f"aten.{name}.{overload}"))
    return found


def test_no_operation_of_the_table_has_effects() -> None:
    """Each changes none of its arguments, and is random only by an argument that is ruled out."""
    for name in sorted(ATEN):
        for op in overloads(name):
            assert op.schema is not None
            assert not op.schema.is_mutable, op.name
            target: Any = op.target
            random = torch.Tag.nondeterministic_seeded in target.tags
            given = {argument.name for argument in op.schema.arguments}
            assert not random or set(MUST_BE[name]) <= given, op.name


def test_names_lead_to_the_operation_and_back() -> None:
    """The name of what a node calls is the name that finds it."""
    targets: list[Any] = [
        torch.ops.aten.add.Tensor,
        torch.ops.aten.mH.default,
        torch.ops.qcore.qconv.default,
        operator.getitem,
        *(function for function, _ in FUNCTIONS.values()),
    ]
    for target in targets:
        assert operation(name_of_target(target)).target is target


def test_a_name_for_what_has_no_place_says_what_it_is() -> None:
    """Error messages name the function that can't be saved."""
    assert name_of_target(torch.nn.functional.relu) == "torch.nn.functional.relu"
    assert name_of_target(print) == "builtins.print"


class Attention(nn.Module):
    """A layer with many operations that stay in float."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.place = nn.Parameter(torch.randn(1, 6, 16))
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 20)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
        x = self.norm(self.embed(ids) + self.place[:, : ids.shape[1]])
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2) / 4).masked_fill(~mask[:, None], float("-inf"))
        x = torch.where(mask[..., None], scores.softmax(-1) @ v, torch.zeros_like(v))
        x = x + torch.nn.functional.gelu(x, approximate="tanh")
        pooled = x.amax(1).clamp(-1, 1) * x.sum(1).rsqrt().nan_to_num(0.0)
        split = torch.split(pooled, [10, 6], dim=-1)
        return {"logits": self.out(x), "pooled": (pooled, torch.cat(split[::-1], -1).argmax(-1))}


def test_a_network_with_many_float_operations_can_be_saved(
    pipeline: Callable[..., Any], tmp_path: Any
) -> None:
    """Everything that the pipeline leaves in a program is in the table."""
    done = pipeline(Attention(), (torch.randint(0, 20, (2, 6)), torch.ones(2, 6).bool()))
    ids, mask = torch.randint(0, 20, (3, 6)), torch.rand(3, 6) > 0.4
    folder = qcore.save(done.q, tmp_path / "artifact")
    loaded = qcore.load(folder)
    torch.testing.assert_close(loaded(ids, mask), done.q(ids, mask), rtol=0, atol=0, equal_nan=True)


def test_an_operation_of_somebody_else_can_not_be_saved(
    pipeline: Callable[..., Any], tmp_path: Any
) -> None:
    """A custom operation is named in the error, with the node that calls it."""
    q = pipeline(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)).q
    node = next(n for n in q.graph.nodes if n.target is torch.ops.qcore.qlinear.default)
    with q.graph.inserting_after(node):
        new = q.graph.call_function(torch.nn.functional.relu, (node,))
    node.replace_all_uses_with(new, lambda user: user is not new)
    q.recompile()
    with pytest.raises(qcore.ArtifactError, match=r"node 'relu' \(torch.nn.functional.relu\)"):
        qcore.save(q, tmp_path / "artifact")
    assert not list(tmp_path.iterdir())
