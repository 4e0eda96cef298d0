"""Golden values: how they are made, replayed, compared and shown."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn

import qcore
from qcore.cli import main


class Off(qcore.Backend):
    """Flips the last bit of every result of a convolution."""

    name: ClassVar[str] = "off"

    def why_not(self, node: fx.Node) -> str | None:
        return None

    def kernel(self, node: fx.Node) -> str:
        return "off"

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        for node in list(program.graph.nodes):
            if node.target is torch.ops.qcore.qconv.default:
                with program.graph.inserting_after(node):
                    new = program.graph.call_function(torch.ops.aten.bitwise_xor.Scalar, (node, 1))
                node.replace_all_uses_with(new, lambda user, new=new: user is not new)
                node.name, new.name = "raw", node.name
        program.recompile()
        return program


class Closed(Off):
    """The same, as one module that shows nothing inside."""

    name: ClassVar[str] = "closed"

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        return Wrapper(super().compile(program, own))


class Failing(Off):
    """Can't run."""

    name: ClassVar[str] = "failing"

    def compile(self, program: fx.GraphModule, own: frozenset[str]) -> nn.Module:
        return Wrapper(nn.Conv2d(1, 1, 9))


class Wrapper(nn.Module):
    """Hides a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


class Plugin:
    """Brings the backends."""

    @qcore.hookimpl
    def qcore_backends(self) -> Iterable[qcore.BackendSpec]:
        for cls in (Off, Closed, Failing):
            yield qcore.BackendSpec(name=cls.name, target=f"{__name__}:{cls.__name__}")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> qcore.PluginHost:
    """A host with the backends of this file."""
    import sys
    import types

    module = types.ModuleType(__name__)
    for cls in (Off, Closed, Failing):
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, __name__, module)
    host = qcore.PluginHost()
    host.register(Plugin(), name="test")
    return host


def converted(model: nn.Module, example: Any, recipe: Any = "int8_minmax") -> nn.Module:
    """The program of a model with random parameters."""
    torch.manual_seed(0)
    qfloat = qcore.prepare(model.eval(), example, recipe)
    qcore.calibrate(qfloat, [example])
    return qcore.convert(qfloat)


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10), nn.Softmax(-1)
    )


@pytest.fixture(scope="module")
def q() -> nn.Module:
    """A program with a convolution, a linear layer and a float end."""
    return converted(model(), torch.randn(2, 2, 8, 8))


@pytest.fixture(scope="module")
def folder(q: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its artifact; tests leave it as it is."""
    return qcore.save(q, tmp_path_factory.mktemp("golden") / "artifact")


def test_golden_inputs_cover_the_input_quantizer(folder: Path) -> None:
    """Inputs that are made reach beyond both ends of what their quantizer can represent."""
    x = load_file(folder / "tensors.safetensors")["golden/input.0"]
    program = qcore.load(folder)
    quantized = qcore.layer_values(program, x)["input_1_quantizer"]
    assert x.shape == (2, 2, 8, 8)
    assert quantized.min() == -128
    assert quantized.max() == 127
    assert len(quantized.unique()) > 120


def test_golden_inputs_of_the_user_are_kept(q: nn.Module, tmp_path: Path) -> None:
    """A batch that is given is stored as it is; a label behind it is left out."""
    x = torch.randn(3, 2, 8, 8)
    for given in (x, (x,), (x, torch.zeros(3)), {"input": x}):
        folder = qcore.save(q, tmp_path / "artifact", golden_inputs=given, overwrite=True)
        tensors = load_file(folder / "tensors.safetensors")
        assert torch.equal(tensors["golden/input.0"], x)
        assert torch.equal(tensors["golden/output.0"], q(x))


def test_golden_inputs_that_do_not_fit_are_an_error(q: nn.Module, tmp_path: Path) -> None:
    """The cause is named, and nothing is written."""
    with pytest.raises(qcore.ArtifactError, match=r"golden_inputs.*captured for float32"):
        qcore.save(q, tmp_path / "artifact", golden_inputs=torch.zeros(2, 2, 9, 9))
    assert not list(tmp_path.iterdir())


class Tokens(nn.Module):
    """Token ids that index a table, and a mask whose values mean something."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.fc(self.embed(ids.reshape(-1, ids.shape[-1])))
        return x if mask is None else x * mask[..., None]


def test_token_ids_stay_within_their_table(tmp_path: Path) -> None:
    """Integers that only index a table are drawn from its rows."""
    q = converted(Tokens(), torch.full((2, 40), 10))
    folder = qcore.save(q, tmp_path / "artifact")
    ids = load_file(folder / "tensors.safetensors")["golden/input.0"]
    assert ids.dtype == torch.int64
    assert set(ids.unique().tolist()) == set(range(11))


def test_integers_that_mean_something_are_asked_for(tmp_path: Path) -> None:
    """Where the values of an input can't be told, the error asks for a batch."""
    example = (torch.full((2, 6), 10), torch.ones(2, 6, dtype=torch.long))
    q = converted(Tokens(), example)
    with pytest.raises(qcore.ArtifactError, match=r"input 'mask'.*int64.*golden_inputs=batch"):
        qcore.save(q, tmp_path / "artifact")
    assert qcore.verify(qcore.save(q, tmp_path / "artifact", golden_inputs=example)).equal


def test_a_program_of_one_batch_size_runs_on_that(tmp_path: Path) -> None:
    """Where the forward fixes the batch, golden inputs have the example's."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x).reshape(3, 2, 2)

    folder = qcore.save(converted(Fixed(), torch.randn(3, 4)), tmp_path / "artifact")
    assert load_file(folder / "tensors.safetensors")["golden/input.0"].shape == (3, 4)


def test_verify_compares_every_layer(folder: Path) -> None:
    """Each layer and each result is counted, and all are equal on the machine that saved them."""
    result = qcore.verify(folder)
    assert result.equal
    assert result.first is None
    assert [check.name for check in result.checks] == ["input_1_quantizer", "0", "3", "(output)"]
    assert [check.compared for check in result.checks] == [256, 288, 20, 20]
    assert all(check.differing == 0 and check.largest == 0.0 for check in result.checks)


def test_verify_counts_what_a_backend_does_otherwise(folder: Path, host: qcore.PluginHost) -> None:
    """Layers before the difference are equal; in the layer that differs, every value is counted."""
    result = qcore.verify(folder, "off", host=host)
    assert not result.equal
    assert result.first is not None
    assert result.first.name == "0"
    assert result.first.differing == result.first.compared == 288
    assert result.first.largest == 1.0
    assert result.checks[0].equal


def test_verify_compares_results_where_layers_are_hidden(
    folder: Path, host: qcore.PluginHost
) -> None:
    """Of a backend that compiles the whole, the results alone are compared."""
    result = qcore.verify(folder, "closed", host=host)
    assert [check.name for check in result.checks] == ["(output)"]
    assert not result.equal
    with pytest.raises(qcore.BackendError, match="runs on the reference kernels, but here"):
        qcore.verify(folder, "failing", host=host)


def test_verify_finds_a_kernel_that_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the reference itself gives something else, how much can't be told, but where can."""
    from qcore.artifact import verification

    original = verification.replay

    def changed(*args: Any) -> Any:
        ran = original(*args)
        return attrs.evolve(ran, layers=(ran.layers[0], ran.layers[1] + 1, *ran.layers[2:]))

    monkeypatch.setattr(verification, "replay", changed)
    result = qcore.verify(folder)
    assert [check.differing for check in result.checks] == [0, None, 0, 0]
    assert result.first is not None
    assert result.first.name == "0"
    assert not result.equal


def test_inspect_tells_sizes_by_layer(folder: Path) -> None:
    """Bytes before and after, by layer and in all, without the golden values."""
    info = qcore.inspect_artifact(folder)
    layers = {layer.name: layer for layer in info.layers}
    assert layers["0"].float_bytes == 4 * (2 * 4 * 9 + 4)
    assert layers["0"].bytes == 2 * 4 * 9 + 4 * 4 + 4 * 4
    assert layers["3"].float_bytes == 4 * (144 * 10 + 10)
    assert layers["0"].weight == "int8_narrow symmetric per_channel(0)"
    assert layers["3"].scale is None
    assert info.float_bytes == sum(layer.float_bytes for layer in info.layers)
    assert info.bytes == sum(layer.bytes for layer in info.layers)
    assert info.golden_bytes == 4 * (256 + 20)
    assert info.file_bytes == (folder / "tensors.safetensors").stat().st_size
    assert info.operations["qcore.qconv.default"] == 1
    assert (info.recipe, info.preset, info.backend) == ("qcore", "int8_minmax", "reference")
    assert info.numerics == "half_even.multiplier.int32.after.int32"
    assert all(origin.matches for origin in info.origins)


def test_inspect_counts_packed_weights_unpacked(tmp_path: Path) -> None:
    """Of a packed weight the float size is that of its values, and tensors outside layers count
    too."""
    net = nn.Sequential(nn.Linear(33, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    info = qcore.inspect_artifact(
        qcore.save(converted(net, torch.randn(2, 33), "int4"), tmp_path / "artifact")
    )
    layers = {layer.name: layer for layer in info.layers}
    assert layers["0"].float_bytes == 4 * (33 * 8 + 8)
    assert layers["0"].bytes == 17 * 8 + 4 * 8 + 4 * 8
    assert info.float_bytes == 4 * (33 * 8 + 8 + 2 * 8 + 8 * 4 + 4)


def test_inspect_compares_the_installed_versions(folder: Path) -> None:
    """A plug-in that is not there, or in another version, is told and is no error."""
    info = qcore.inspect_artifact(folder, host=qcore.PluginHost(path=[]))
    assert {origin.installed for origin in info.origins} == {None}
    assert not any(origin.matches for origin in info.origins)


def test_the_command_line_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and a table, or JSON, where all is equal."""
    assert main(["verify", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["LAYER", "VALUES", "DIFFERING", "LARGEST", "DIFFERENCE"]
    assert lines[2].split() == ["0", "288", "0", "0"]
    assert main(["verify", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["equal"] is True
    assert data["backend"] == "reference"
    assert data["checks"][1] == {
        "program": "", "name": "0", "compared": 288, "differing": 0, "largest": 0.0,
    }  # fmt: skip


def test_the_command_line_fails_where_something_differs(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, and the first layer that differs on stderr."""
    from qcore.artifact import verification

    original = verification.replay

    def changed(*args: Any) -> Any:
        ran = original(*args)
        return attrs.evolve(ran, outputs=tuple(o + 1 for o in ran.outputs))

    monkeypatch.setattr(verification, "replay", changed)
    assert main(["verify", str(folder)]) == 1
    assert "the first to differ is '(output)'" in capsys.readouterr().err


def test_the_command_line_reports_bad_artifacts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged or missing artifact is one line on stderr and exit code 1, for both verbs."""
    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    (damaged / "manifest.json").write_text("{}")
    for verb in ("verify", "inspect"):
        for place in (damaged, tmp_path / "nothing"):
            assert main([verb, str(place)]) == 1
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith("qcore: error: artifact ")
            assert err.count("\n") == 1


def test_the_command_line_inspects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables for people, an object for programs."""
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "half_even.multiplier.int32.after.int32" in out
    assert "qcore.qlinear" in out
    assert "qcore-quant" in out
    assert main(["inspect", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["operations"]["qcore.quantize.default"] == 1
    assert data["origins"][0]["contribution"]["kind"] == "backend"
    assert data["layers"][1]["name"] == "0"
