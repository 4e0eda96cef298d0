"""Programs that are saved and loaded are the same programs."""

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

import qcore

FILES = ("manifest.json", "tensors.safetensors")


class ConvNet(nn.Module):
    """Residual, concatenation, table, pools, groups and two kinds of results."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.conv(x))
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(x, 2)], 1)
        x = F.hardswish(self.up(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return {"logits": self.fc(x), "features": (x, None)}


class Transformer(nn.Module):
    """Embedding, attention with runtime shapes, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.head = nn.Linear(32, 30)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, t, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2) * 0.35).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, 32))
        return self.head(F.gelu(x))


def same(a: Any, b: Any) -> bool:
    """Whether two results have equal structures, and tensors equal bit by bit."""
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(left) == len(right) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def converted(model: nn.Module, example: Any, recipe: Any = "int8_minmax") -> nn.Module:
    """The program of a model with random parameters."""
    torch.manual_seed(0)
    qfloat = qcore.prepare(model.eval(), example, recipe)
    qcore.calibrate(qfloat, [example])
    return qcore.convert(qfloat)


IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
TOKENS = torch.arange(10).reshape(2, 5)
NETS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "conv int8": (ConvNet, IMAGE, "int8_minmax"),
    "conv uint8": (ConvNet, IMAGE, "uint8"),
    "conv int4": (ConvNet, IMAGE, "int4"),
    "conv weight-only": (ConvNet, IMAGE, "int8_weight_only"),
    "transformer int8": (Transformer, TOKENS, "int8_minmax"),
    "transformer int4 in groups": (Transformer, TOKENS, "int4_weight_only"),
}


@functools.cache
def program(name: str) -> nn.Module:
    """The program of one of the networks; made once, tests leave it as it is."""
    make, example, recipe = NETS[name]
    return converted(make(), example, recipe)


def batch_like(example: Tensor, size: int) -> Tensor:
    """Other values, for another batch size."""
    shape = (size, *example.shape[1:])
    return torch.randn(shape) if example.is_floating_point() else torch.randint(0, 30, shape)


@pytest.mark.parametrize("name", NETS)
def test_a_loaded_program_equals_the_saved_one(name: str, tmp_path: Path) -> None:
    """Every integer of every layer and every float is the same, on other batch sizes too."""
    q = program(name)
    folder = qcore.save(q, tmp_path / "artifact")
    loaded = qcore.load(folder)
    for size in (1, 2, 5):
        batch = batch_like(NETS[name][1], size)
        assert same(loaded(batch), q(batch))
        ours, theirs = qcore.layer_values(loaded, batch), qcore.layer_values(q, batch)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[layer], theirs[layer]) for layer in theirs)
    assert qcore.verify(folder).equal


def test_what_a_program_remembers_is_kept(tmp_path: Path) -> None:
    """Plan, recipe, layers and origins come back; origins name distribution and version."""
    q = program("conv int8")
    loaded = qcore.load(qcore.save(q, tmp_path / "artifact"))
    ours, theirs = loaded.meta["qcore"], q.meta["qcore"]
    assert ours.plan == theirs.plan
    assert ours.recipe == theirs.recipe
    assert ours.layers == theirs.layers
    assert ours.origins == theirs.origins
    named = {(o.kind, o.name): o for o in ours.origins}
    assert {("observer", "minmax"), ("converter", "conv2d"), ("fusion", "conv-bn-relu")} <= set(
        named
    )
    assert named["observer", "minmax"].distribution == "qcore-quant"
    assert named["observer", "minmax"].version
    assert str(ours.plan) == str(theirs.plan)


def test_saving_is_deterministic(tmp_path: Path) -> None:
    """The same program gives the same bytes, and so does the loaded one."""
    q = program("conv int8")
    first = qcore.save(q, tmp_path / "first")
    torch.manual_seed(123)
    second = qcore.save(q, tmp_path / "second")
    third = qcore.save(qcore.load(first), tmp_path / "third")
    fourth = qcore.save(copy.deepcopy(qcore.load(third)), tmp_path / "fourth")
    assert content(first) == content(second) == content(third) == content(fourth)


def test_saving_changes_neither_the_program_nor_the_generator(tmp_path: Path) -> None:
    """Golden inputs come from a generator of their own; modes and hooks stay."""
    q = program("conv int8")
    state = torch.get_rng_state()
    before = (str(q.graph), q.training, len(q._forward_pre_hooks), set(q.state_dict()))
    qcore.save(q, tmp_path / "artifact")
    assert torch.equal(torch.get_rng_state(), state)
    assert (str(q.graph), q.training, len(q._forward_pre_hooks), set(q.state_dict())) == before


def test_a_loaded_program_is_copied_lowered_and_exported(tmp_path: Path) -> None:
    """It is a program like any other."""
    q = program("conv int8")
    loaded = qcore.load(qcore.save(q, tmp_path / "artifact"))
    x = torch.randn(3, 3, 8, 8)
    assert same(copy.deepcopy(loaded)(x), q(x))
    assert same(qcore.lower(loaded)(x), q(x))
    exported = torch.export.export(loaded, (x,))
    assert same(exported.module()(x), q(x))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training


def test_a_loaded_program_guards_its_inputs(tmp_path: Path) -> None:
    """Another image size or dtype is refused as by the program that was saved; another batch is
    not."""
    q = program("conv int8")
    loaded = qcore.load(qcore.save(q, tmp_path / "artifact"))
    loaded(torch.zeros(7, 3, 8, 8))
    for wrong in (torch.zeros(2, 3, 8, 10), torch.zeros(2, 3, 8, 8).double()):
        with pytest.raises(qcore.CaptureError, match="captured for float32"):
            loaded(wrong)
    with pytest.raises(qcore.CaptureError, match="input"):
        loaded(IMAGE, IMAGE)


class Keywords(nn.Module):
    """Takes and returns nested structures."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, pair: tuple[Tensor, dict[str, Tensor]], scale: float) -> Any:
        first, more = pair
        return [self.a(x) * scale, {"sum": (self.a(first) + more["y"],), "scale": scale}]


def test_keywords_and_structures_are_kept(tmp_path: Path) -> None:
    """Nested arguments by keyword, plain values among them, and nested results."""
    example = {
        "x": torch.ones(2, 4),
        "pair": (torch.ones(2, 4), {"y": torch.ones(2, 4)}),
        "scale": 0.5,
    }
    q = converted(Keywords(), example)
    loaded = qcore.load(qcore.save(q, tmp_path / "artifact"))
    batch = pytree.tree_map_only(Tensor, lambda t: torch.randn(3, 4), example)
    out = loaded(**batch)
    assert same(out, q(**batch))
    assert isinstance(out, list)
    assert out[1]["scale"] == 0.5
    with pytest.raises(qcore.CaptureError):
        loaded(**{**batch, "scale": 0.7})


def test_equal_tensors_are_stored_once(tmp_path: Path) -> None:
    """Layers that share their weights share the bytes of the file too."""
    shared = nn.Linear(64, 64)
    twice = converted(nn.Sequential(shared, nn.ReLU(), shared), torch.randn(2, 64))
    folder = qcore.save(twice, tmp_path / "artifact")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    tensors = manifest["programs"][""]["tensors"]
    weights = {key for target, key in tensors.items() if target.endswith("weight")}
    assert len([t for t in tensors if t.endswith("weight")]) == 2
    assert len(weights) == 1
    assert manifest["tensors"][weights.pop()]["shape"] == [64, 64]


def test_the_memory_layout_of_float_weights_is_kept(tmp_path: Path) -> None:
    """Kernels choose by layout and add in another order, so a float weight keeps its strides."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = model.to(memory_format=torch.channels_last)
    recipe = qcore.Recipe(
        preset="int8_minmax", overrides=(qcore.Override(name="2", quantize=False),)
    )
    q = converted(model, torch.randn(2, 3, 8, 8), recipe)
    strides = {tuple(t.stride()) for t in q.state_dict().values() if t.is_floating_point()}
    loaded = qcore.load(qcore.save(q, tmp_path / "artifact"))
    again = {tuple(t.stride()) for t in loaded.state_dict().values() if t.is_floating_point()}
    assert (4 * 3 * 3, 1, 12, 4) in strides
    assert again == strides


def test_names_that_code_can_not_hold_are_replaced(tmp_path: Path) -> None:
    """Modules may be called anything; the tensors of an artifact are called by words."""
    model = nn.Sequential()
    for name in ("a-b", "a_b", "é"):
        model.add_module(name, nn.Linear(4, 4))
    q = converted(model, torch.randn(2, 4))
    folder = qcore.save(q, tmp_path / "artifact")
    loaded = qcore.load(folder)
    x = torch.randn(5, 4)
    assert same(loaded(x), q(x))
    assert [layer.name for layer in loaded.meta["qcore"].layers[1:]] == [
        *dict(model.named_children())
    ]
    again = qcore.save(loaded, tmp_path / "again")
    assert qcore.load(again)(x).equal(q(x))


class Branching(nn.Module):
    """Can't be captured whole, because its way depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.norm = nn.BatchNorm1d(6)
        self.second = nn.Linear(6, 6)
        self.third = self.second

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if x.sum() > 0:
            x = x * 2
        return self.third(self.second(x))


@pytest.fixture
def branching(tmp_path: Path) -> tuple[nn.Module, nn.Module, Path]:
    """A model, its partly quantized form, and the artifact of that."""
    torch.manual_seed(0)
    model = Branching().eval()
    example = torch.randn(8, 6)
    qfloat = qcore.prepare(model, example, "int8_minmax")
    qcore.calibrate(qfloat, [example])
    # What was trained outside of the programs must come back too.
    with torch.no_grad():
        qfloat.norm.weight.mul_(1.5)  # type: ignore[union-attr, operator]
    q = qcore.convert(qfloat)
    return model, q, qcore.save(q, tmp_path / "artifact", golden_inputs=example)


def test_programs_of_parts_go_into_the_model(
    branching: tuple[nn.Module, nn.Module, Path],
) -> None:
    """With several programs the model brings its code, the artifact everything else."""
    model, q, folder = branching
    before = {name: t.clone() for name, t in model.state_dict().items()}
    loaded = qcore.load(folder, into=model)
    for n in (1, 5):
        x = torch.randn(n, 6)
        assert torch.equal(loaded(x), q(x))
    assert list(qcore.programs(loaded)) == list(qcore.programs(q))
    assert loaded.get_submodule("third") is loaded.get_submodule("second")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert isinstance(model.get_submodule("second"), nn.Linear)
    assert qcore.verify(folder).equal


def test_programs_of_parts_need_their_model(
    branching: tuple[nn.Module, nn.Module, Path],
) -> None:
    """Without the model, or with another one, the error says what is missing."""
    _, _, folder = branching
    with pytest.raises(qcore.ArtifactError, match=r"2 parts of a model .*into=model"):
        qcore.load(folder)
    with pytest.raises(qcore.ArtifactError, match="Linear has no module of that name"):
        qcore.load(folder, into=nn.Linear(2, 2))
    other = Branching()
    other.norm = nn.BatchNorm1d(6, affine=False)
    with pytest.raises(qcore.ArtifactError, match=r"norm.bias' is .* of the artifact only"):
        qcore.load(folder, into=other)
    other.norm = nn.BatchNorm1d(7)
    with pytest.raises(qcore.ArtifactError, match="norm.weight' is"):
        qcore.load(folder, into=other)
    other.norm, other.more = nn.BatchNorm1d(6), nn.Linear(1, 1)
    with pytest.raises(qcore.ArtifactError, match=r"more.bias' is .* of Branching only"):
        qcore.load(folder, into=other)


def test_a_whole_program_needs_no_model(tmp_path: Path) -> None:
    """Giving one where none is needed is an error, not ignored."""
    folder = qcore.save(
        converted(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)), tmp_path / "a"
    )
    with pytest.raises(qcore.ArtifactError, match="without into="):
        qcore.load(folder, into=nn.Linear(4, 4))


def test_layers_without_an_example_are_saved_with_golden_inputs(tmp_path: Path) -> None:
    """Module swap knows no shapes, so it asks for a batch; with one it works."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    qfloat = qcore.prepare(model, None, "int8_minmax")
    qcore.calibrate(qfloat, [torch.randn(8, 6)])
    q = qcore.convert(qfloat)
    with pytest.raises(qcore.ArtifactError, match=r"its shape was never seen.*golden_inputs=batch"):
        qcore.save(q, tmp_path / "artifact")
    folder = qcore.save(q, tmp_path / "artifact", golden_inputs=torch.randn(3, 6))
    x = torch.randn(5, 6)
    assert torch.equal(qcore.load(folder, into=model)(x), q(x))


def test_golden_values_come_from_the_cpu(tmp_path: Path) -> None:
    """A program that names another device runs on the CPU to be saved, and is for that."""
    q = converted(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    assert isinstance(q, torch.fx.GraphModule)
    node = next(n for n in q.graph.nodes if n.target is torch.ops.qcore.quantize.default)
    with q.graph.inserting_before(node):
        arguments = (node.args[0], torch.device("cuda", 7), torch.float32)
        moved = q.graph.call_function(torch.ops.aten.to.device, arguments)
    node.args = (moved, *node.args[1:])
    q.recompile()
    folder = qcore.save(q, tmp_path / "artifact")
    assert b"cuda" not in (folder / "manifest.json").read_bytes()
    assert moved.args[1] == torch.device("cuda", 7)
    assert qcore.load(folder)(torch.ones(3, 4)).shape == (3, 4)
