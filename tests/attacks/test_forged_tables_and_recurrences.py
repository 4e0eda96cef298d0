"""Forged programs with embedding tables and recurrent layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .conftest import Forgery, saved

TABLE = "qcore.qembedding.default"
BAG = "qcore.qembedding_bag.default"
RECURRENT = "qcore.qrecurrent.default"


class Network(nn.Module):
    """A table, bags, and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 32)
        self.bag = nn.EmbeddingBag(20, 32)
        self.layer = nn.GRU(32, 32, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.table(ids))[0][:, -1] + self.bag(ids)  # type: ignore[no-any-return]


IDS = torch.randint(0, 20, (2, 4), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network with 4-bit weights in groups, and with static 8-bit activations."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("artifacts"), Network().eval()
    return {
        preset: saved(model, IDS, folder / preset, preset)
        for preset in ("int4_dynamic", "int8_minmax")
    }


@pytest.fixture
def forgery(originals: dict[str, Path], tmp_path: Path) -> Forgery:
    """A copy of the program with groups, to be changed."""
    return Forgery(originals["int4_dynamic"], tmp_path / "forged")


@pytest.fixture
def static(originals: dict[str, Path], tmp_path: Path) -> Forgery:
    """A copy of the program with static scales, to be changed."""
    return Forgery(originals["int8_minmax"], tmp_path / "forged")


@pytest.mark.parametrize(
    ("target", "index", "value", "match"),
    [
        (TABLE, 1, {"node": "ids"}, "w is computed by the program"),
        (TABLE, 2, {"node": "ids"}, "w_scale is computed by the program"),
        (TABLE, 4, 3, "bits=3; use 1, 2, 4 or 8"),
        (TABLE, 4, 8, "for 32 columns of 8 bits"),
        (TABLE, 6, 0, "columns=0; use positive numbers"),
        (TABLE, 6, 2**40, "columns of 4 bits"),
        (BAG, 9, "median", "mode='median'"),
        (BAG, 7, "yes", "is no bool"),
        (RECURRENT, 7, "cru", "cell='cru'"),
        (RECURRENT, 7, "lstm", "can't run on its arguments"),
        (RECURRENT, 9, "row", "state='row'"),
        (RECURRENT, 10, -1.0, "h_scale=-1.0"),
        (RECURRENT, 12, 0, "a symmetric range has 0 between them"),
        (RECURRENT, 13, 2**20, "what int16 holds"),
        (RECURRENT, 3, {"node": "ids"}, "w is int64"),
    ],
)
def test_arguments_are_checked(
    forgery: Forgery, target: str, index: int, value: Any, match: str
) -> None:
    """Bits, columns, modes, cells and ranges mean something, and tables are stored."""
    args = forgery.node(target)["args"]
    assert args[index] != value
    args[index] = value
    forgery.refused(match)


def test_zero_point_of_a_state_is_in_its_range(static: Forgery) -> None:
    """Where the state has a scale of its own, its zero point is one of its integers."""
    args = static.node(RECURRENT)["args"]
    assert args[9] == "tensor"
    args[11] = 200
    static.refused("h_zero_point=200 is not in -128..127")


@pytest.mark.parametrize(
    ("name", "edit", "match"),
    [
        ("table.weight_scale", lambda t: t * float("nan"), "w_scale="),
        ("table.weight_scale", lambda t: t[:-1], "don't belong together"),
        ("table.weight_scale", lambda t: t.repeat(1, 5), "don't belong together"),
        ("table.weight", lambda t: t[:, :-1], "for 32 columns of 4 bits"),
        ("table.weight", lambda t: t.to(torch.int8), "use uint8"),
        ("layer.weight_hh_l0_scale", lambda t: -t, "w_scale="),
        ("layer.weight_hh_l0_scale", lambda t: t[:-1], "don't belong together"),
        ("layer.bias_hh_l0", Tensor.int, "bias is int32; .*is float32"),
        ("layer.bias_hh_l0", lambda t: t[:-1], "bias is float32"),
    ],
)
def test_stored_parameters_are_checked(
    forgery: Forgery, name: str, edit: Callable[[Tensor], Tensor], match: str
) -> None:
    """Tables have the bytes of their columns, scales are positive and belong to rows."""
    forgery.tensors[name] = edit(forgery.tensors[name]).contiguous()
    forgery.refused(match)
