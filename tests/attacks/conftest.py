"""Artifacts to attack, and a forger who knows the format and fixes every checksum."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qcore

MANIFEST, TENSORS = "manifest.json", "tensors.safetensors"


def render(value: Any, level: int = 0) -> str:
    """The one form of a manifest, written down again independently of qcore."""

    def height(item: Any) -> int:
        if not isinstance(item, dict | list):
            return 0
        return 1 + max(map(height, item.values() if isinstance(item, dict) else item), default=0)

    if level == 4 or height(value) < 3:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    pad = "\n" + " " * (level + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(k)}: {render(v, level + 1)}" for k, v in sorted(value.items())]
        return "{" + pad + ("," + pad).join(items) + "\n" + " " * level + "}"
    items = [render(v, level + 1) for v in value]
    return "[" + pad + ("," + pad).join(items) + "\n" + " " * level + "]"


def sealed(data: Mapping[str, Any]) -> bytes:
    """A manifest with a checksum that fits its content, whatever that is."""
    content = {key: value for key, value in data.items() if key != "sha256"}
    digest = hashlib.sha256((render(content) + "\n").encode()).hexdigest()
    return (render({**content, "sha256": digest}) + "\n").encode()


class Forgery:
    """A copy of an artifact, to be changed and written with checksums that fit.

    Attributes:
        manifest: the manifest as data.
        tensors: the tensors by name.
    """

    def __init__(self, source: Path, folder: Path) -> None:
        self.folder = folder
        self.manifest = json.loads((source / MANIFEST).read_bytes())
        self.tensors: dict[str, Tensor] = load_file(source / TENSORS)

    @property
    def program(self) -> dict[str, Any]:
        """The only program."""
        (program,) = self.manifest["programs"].values()
        return program

    def node(self, target: str) -> dict[str, Any]:
        """The first node with this target, such as ``"qcore.qconv.default"``."""
        return next(n for n in self.program["nodes"] if n["target"] == target)

    def call(self, name: str, target: str, args: list[Any]) -> dict[str, Any]:
        """A new node, put in before the output."""
        node = {"args": args, "kwargs": {}, "name": name, "op": "call", "target": target}
        self.program["nodes"].insert(-1, node)
        return node

    def seal(self) -> None:
        """Writes the tensors, and everything about them into the manifest."""
        self.folder.mkdir(exist_ok=True)
        save_file(self.tensors, self.folder / TENSORS)
        for name, tensor in self.tensors.items():
            spec = self.manifest["tensors"].setdefault(name, {"order": None})
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            spec["dtype"] = str(tensor.dtype).removeprefix("torch.")
            spec["shape"] = list(tensor.shape)
            spec["sha256"] = hashlib.sha256(data).hexdigest()
        self.seal_manifest()

    def seal_manifest(self) -> None:
        """Writes the manifest for the tensor file that is there."""
        content = (self.folder / TENSORS).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.manifest["tensor_file"] = {"bytes": len(content), "sha256": digest}
        self.write_manifest()

    def write_manifest(self) -> None:
        """Writes the manifest as it is, with a checksum of itself."""
        (self.folder / MANIFEST).write_bytes(sealed(self.manifest))

    def refused(self, match: str) -> None:
        """Seals it and asserts that loading is refused for the reason given."""
        self.seal()
        self.refused_as_it_is(match)

    def refused_as_it_is(self, match: str) -> None:
        """Asserts that loading what was written is refused, by a check made for the purpose."""
        with pytest.raises(qcore.ArtifactError, match=match) as caught:
            qcore.load(self.folder)
        text = str(caught.value)
        assert str(self.folder) in text
        assert "it can't be read" not in text, f"only the last line of defence held: {text}"


def saved(model: nn.Module, example: Tensor, folder: Path, recipe: str = "int8_minmax") -> Path:
    """The artifact of a small model."""
    torch.manual_seed(0)
    qfloat = qcore.prepare(model.eval(), example, recipe)
    qcore.calibrate(qfloat, [example])
    return qcore.save(qcore.convert(qfloat), folder)


@pytest.fixture(scope="session")
def small_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of one linear layer."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    return saved(nn.Sequential(nn.Linear(4, 3)), torch.randn(4, 4), folder)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with a convolution, packed weights, a table, pools and a linear layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sigmoid(),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    folder = tmp_path_factory.mktemp("artifacts") / "whole"
    return saved(model, torch.randn(4, 2, 8, 8), folder, "int4")


@pytest.fixture
def forge(artifact: Path, tmp_path: Path) -> Forgery:
    """A copy of the artifact to be changed."""
    return Forgery(artifact, tmp_path / "forged")


@pytest.fixture
def forged_copy(small_artifact: Path, tmp_path: Path) -> Callable[[], Forgery]:
    """Makes copies of the small artifact."""
    original = Forgery(small_artifact, tmp_path / "forged")

    def make() -> Forgery:
        twin = copy.copy(original)
        twin.manifest = copy.deepcopy(original.manifest)
        twin.tensors = dict(original.tensors)
        return twin

    return make
